"""Training is killed at random moments, resumed until it is done, and every loss is what it would have been.

SIGKILL lets a process clean up nothing: it is what a power cut, a full memory or an impatient scheduler does.  The kills
fall wherever they fall: while the data are read, in a step, in an evaluation, in the writing of a checkpoint.

    pytest tests/test_kill.py                30 kills
    pytest tests/test_kill.py --kills 100
"""

import hashlib
import json
import os
import random
import subprocess
import sys
import time

import pytest

from minbert.run import checkpoint

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Importing PyTorch takes seconds, so one process does it once and forks a child for each try.  The child is the real thing:
# it reads the data, builds the model and trains.  It also writes down every loss, to the last bit, as it comes.
SERVER = r"""
import hashlib, json, os, signal, sys, time, traceback
import safetensors.torch, torch
from minbert.run import device, loop, recipes, records, tasks

# What is slow the first time is done once for all: PyTorch imports much of itself with the first optimizer.  No backward
# pass, for a process that has done one can't be forked.
task = tasks.make(recipes.resolve("first-finetune", "smoke"))
task.evaluate(device.choose("cpu"))
loop.make_optimizer(task.model).zero_grad()
records.commit = lambda: {"hash": None, "dirty": None}

def train(job):
    log = os.open(job["out"] + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    make_batch, training_step, evaluate = tasks.SentenceTask.batch, loop.training_step, tasks.SentenceTask.evaluate
    at = []

    def batch(self, indices, step):
        at[:] = [step]
        return make_batch(self, indices, step)

    def step(*arguments):
        loss, *rest = training_step(*arguments)
        os.write(log, f"loss of step {at[0]}: {loss.hex()}\n".encode())
        return loss, *rest

    def score(self, arithmetic):
        weights = b"".join(tensor.numpy().tobytes() for tensor in self.model.state_dict().values())
        os.write(log, f"weights in evaluation: {hashlib.sha256(weights).hexdigest()}\n".encode())
        return evaluate(self, arithmetic)

    tasks.SentenceTask.batch, loop.training_step, tasks.SentenceTask.evaluate = batch, step, score
    config = recipes.resolve("first-finetune", "smoke", epochs=3, steps_per_epoch=5)
    loop.train(config, out=job["out"], resume=True, progress=False, device="cpu", save_every=job["save_every"])

for line in sys.stdin:
    job, began = json.loads(line), time.perf_counter()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            train(job)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if job["delay"] is not None:
        time.sleep(job["delay"])
        os.kill(child, signal.SIGKILL)               # not waited for yet: the number can't be another process's
    status = os.waitpid(child, 0)[1]
    print(json.dumps({"killed": os.WIFSIGNALED(status), "code": os.waitstatus_to_exitcode(status),
                      "seconds": time.perf_counter() - began}), flush=True)
"""


@pytest.fixture(scope="module")
def attempt(tmp_path_factory):
    """A function that trains in a process of its own, and kills it after `delay` seconds unless that is None."""
    errors = tmp_path_factory.mktemp("server") / "stderr"
    environment = {**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with open(errors, "w") as stderr:
        server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
                                  text=True, env=environment)

    def attempt(out, save_every=0.0, delay=None):
        server.stdin.write(json.dumps({"out": str(out), "save_every": save_every, "delay": delay}) + "\n")
        server.stdin.flush()
        answer = json.loads(server.stdout.readline())
        assert answer["killed"] or answer["code"] == 0, errors.read_text()[-3000:]
        return answer

    yield attempt
    server.stdin.close()
    server.wait()
    server.stdout.close()


def lines(out):
    log = out.with_suffix(".log")
    return log.read_text().splitlines() if log.exists() else []


def outcome(out):
    """What must not depend on kills: the scores of every epoch, and the best weights."""
    record = json.loads((out / "record.json").read_text())
    for entry in record["epochs"]:
        del entry["train"]["seconds"], entry["train"]["examples_per_second"]
    [best] = out.glob("best-*.safetensors")
    weights = b"".join(tensor.numpy().tobytes() for _, tensor in sorted(checkpoint.load(best)[0].items()))
    return record["epochs"], record["curve"], best.name, hashlib.sha256(weights).hexdigest()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system can't fork processes")
def test_killed_at_random_moments_and_resumed_every_loss_is_the_same(attempt, tmp_path, pytestconfig):
    attempt(tmp_path / "warm")
    whole = tmp_path / "whole"
    duration = attempt(whole)["seconds"]
    expected, result = lines(whole), outcome(whole)
    assert len(expected) == 15 + 3 and len(set(expected)) == 18

    seed = time.time_ns()
    chance = random.Random(seed)
    kills = runs = within_an_epoch = 0
    while kills < pytestconfig.getoption("kills"):
        runs += 1
        out = tmp_path / f"run{runs}"
        while not (out / "record.json").exists():
            finish = kills >= pytestconfig.getoption("kills")
            # Saved after every step, after some, or at the end of each epoch only.
            answer = attempt(out, chance.choice([1e-9, 1e-9, duration / 600, 0]), None if finish else chance.uniform(0, duration))
            kills += answer["killed"]
            if answer["killed"] and (out / "last.safetensors").exists():
                within_an_epoch += checkpoint.load(out / "last.safetensors")[1]["progress"]["step"] % 5 != 0
            assert set(lines(out)) <= set(expected), f"seed {seed}, kill {kills}"
        assert set(lines(out)) == set(expected) and outcome(out) == result, f"seed {seed}, run {runs}"
        assert not list(out.glob(".*.part"))
    assert within_an_epoch                           # or the kills would have shown nothing about the middle of an epoch
