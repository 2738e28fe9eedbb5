"""Two processes train together: the result is that of one process, and everything is said and written once.

The processes are real, and talk by gloo; they are started once, and go through all scenarios one after the other.
"""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from minbert.run import checkpoint, cli, loop, parallel, recipes, records, tasks

ROOT = Path(__file__).resolve().parents[1]
SMALL = dict(recipes.SMOKE, hidden_size=16, intermediate_size=32, vocab_size=300, epochs=2, steps_per_epoch=5, lr=2e-3,
             dropout=0.0, head_dropout=0.0, size="small")
THREE = dict(task="sst+quora+sts", sampling="round-robin")

# What two processes and one must agree on.  312 scored pairs and 340 sentences: a batch size that leaves one over.
SCENARIOS = {
    "sentences": dict(task="sst"),
    "ragged": dict(task="sst", batch_size=113, steps_per_epoch=0),           # 113, 113, 113 and 1: one has none
    "micro": dict(task="sst", batch_size=5, micro_batch=1, clip=0.05),       # 3 and 2 examples, in 3 and 2 parts
    "pairs apart": dict(task="sts", pair_head="vector", similarity="mse", batch_size=7, micro_batch=2),
    "summed": dict(THREE, step_form="summed", batch_size=5, micro_batch=2),
    "adapters": dict(THREE, adapt="lora", batch_size=7),
    "pieces": dict(task="mlm", batch_size=2, max_length=24),                 # now and then nothing is hidden in one half
}
RESUMED = dict(task="sst", dropout=0.3, head_dropout=0.3)


def settings(**changes):
    return recipes.make(**{**SMALL, **changes})


def train(config, out, **options):
    """A run with double the digits, so that only a real difference can grow."""
    torch.set_default_dtype(torch.float64)
    try:
        return loop.train(config, out=out, progress=True, device="cpu", **options)
    finally:
        torch.set_default_dtype(torch.float32)


def outcome(result):
    return {"losses": result.losses, "epochs": result.record["epochs"], "device": result.record["device"],
            "command": result.record["command"]}


# ---- what each of the two processes does -------------------------------------------------------------------------

def work(directory):
    """Go through all scenarios; what came of them is left in `directory`, one file a process."""
    rank, _ = parallel.world()
    found = {}
    for name, changes in SCENARIOS.items():
        found[name] = outcome(train(settings(**changes), directory / "runs" / name))

    found["whole"] = outcome(train(settings(**RESUMED), directory / "runs" / "whole"))
    with at_step(7, lambda: rank == 1 and os.kill(os.getpid(), signal.SIGTERM)):
        try:
            train(settings(**RESUMED), directory / "runs" / "resumed")
        except loop.Interrupted as error:
            found["interrupted"] = str(error)
    found["resumed"] = outcome(train(settings(**RESUMED), directory / "runs" / "resumed", resume=True))

    real = tasks.SentenceTask.loss
    def broken(self, batch):
        loss, *rest = real(self, batch)
        return loss * float("nan"), *rest
    with at_step(6, lambda: setattr(tasks.SentenceTask, "loss", broken) if rank == 1 else None):
        try:
            train(settings(task="sst"), directory / "runs" / "broken")
        except loop.TrainingStopped as error:
            found["broken"] = str(error)
    tasks.SentenceTask.loss = real

    # A recipe by the command line, with a tiny model in its place.
    recipes.resolve = lambda name, size="small", **k: recipes.make(recipe=name, **{**SMALL, "epochs": 1})
    arguments = ["run", "first-finetune", "--seeds", "0", "--device", "cpu", "--root", str(directory / "records"),
                 "--runs", str(directory / "runs")]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        found["code"] = cli.main(arguments)
    found["said"] = said.getvalue()
    (directory / f"{rank}.json").write_text(json.dumps(found))


@contextlib.contextmanager
def at_step(number, act):
    """Do something after so many steps of a run."""
    real, taken = loop.training_step, []

    def training_step(*arguments):
        taken.append(1)
        if len(taken) == number:
            act()
        return real(*arguments)

    loop.training_step = training_step
    try:
        yield
    finally:
        loop.training_step = real


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """(what process 0 found, what process 1 found, their directory)."""
    directory = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    logs = [open(directory / f"{rank}.log", "w+") for rank in (0, 1)]
    command = [sys.executable, "-m", "tests.test_parallel", str(directory)]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log,
                                  env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)})
                 for rank, log in enumerate(logs)]
    until = time.monotonic() + 900
    while any(process.poll() is None for process in processes):      # if one fails, the other would wait for ever
        if any(process.poll() for process in processes) or time.monotonic() > until:
            for process in processes:
                process.kill()
        time.sleep(0.05)
    said = []
    for log in logs:
        log.seek(0)
        said.append(log.read())
        log.close()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)[-5000:]
    return *(json.loads((directory / f"{rank}.json").read_text()) for rank in (0, 1)), said, directory


def trained(directory, name):
    [best] = (directory / "runs" / name).glob("best-*.safetensors")
    return checkpoint.load(best)[0]


# ---- two are as one ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_train_as_one(two, tmp_path, name):
    one = train(settings(**SCENARIOS[name]), tmp_path / "one")
    for process in two[:2]:
        assert process[name]["losses"] == pytest.approx(one.losses, abs=1e-6)
        for found, expected in zip(process[name]["epochs"], one.record["epochs"], strict=True):
            for key in expected["train"].keys() - {"seconds", "examples_per_second"}:
                assert found["train"][key] == pytest.approx(expected["train"][key], abs=1e-6), key
    assert [epoch["dev"] for epoch in two[0][name]["epochs"]] == [epoch["dev"] for epoch in two[1][name]["epochs"]]
    weights, expected = trained(two[3], name), checkpoint.load(one.checkpoint)[0]
    assert weights.keys() == expected.keys()
    for key in expected:
        assert torch.allclose(weights[key], expected[key], rtol=0, atol=1e-5), key


@pytest.mark.parametrize("changes", [dict(task="sst"), dict(task="sts", pair_head="vector"), dict(task="mlm"),
                                     dict(THREE, step_form="summed")], ids=["sentences", "pairs apart", "pieces", "summed"])
def test_the_shares_of_all_processes_are_the_batch(changes):
    task = tasks.make(settings(**changes))
    batch = task.batch(task.order(0)[0], 0)
    whole = task.parts(batch, 0)                     # one for each task
    for processes in (1, 2, 3, 8):
        shares = [part for rank in range(processes) for part in parallel.own_parts(task, batch, 2, rank, processes)]
        assert sum(weight for _, weight in shares) == pytest.approx(len(whole))
        answers = [task.answers(part) for part, weight in shares if weight]
        assert sum(answers) == sum(task.answers(part) for part in whole)
        if changes["task"] != "mlm":                 # there a row in which nothing is hidden is left out
            assert rows_in(part for part, weight in shares if weight) == rows_in(whole)


def rows_in(parts):
    """The word pieces of every row of some parts, without padding, sorted."""
    found = []
    for part in parts:
        own = part if "input_ids" in part else next(iter(part.values()))
        found += [ids[mask.bool()].tolist() for ids, mask in zip(own["input_ids"], own["attention_mask"])]
    return sorted(found)


def test_a_process_without_an_example_takes_part_with_weight_0():
    task = tasks.make(settings(task="sst"))
    (part, weight), = parallel.own_parts(task, task.batch([3], 0), 0, 1, 2)
    assert weight == 0 and len(part["labels"]) == 1


# ---- everything once ---------------------------------------------------------------------------------------------

def test_a_record_says_how_many_processes_there_were(two):
    assert two[0]["sentences"]["device"]["processes"] == 2
    assert two[0]["sentences"]["command"].startswith("torchrun --nproc-per-node 2 -m minbert.run.cli train")


def test_only_the_first_process_writes_and_speaks(two):
    first, second, said, directory = two
    assert first["code"] == second["code"] == 0
    assert first["said"].count("best epoch") == 1 and "recorded in" in first["said"] and second["said"] == ""
    assert "epoch 1/2" in said[0] and said[1].strip() == "", said[1]
    assert len(list((directory / "records").rglob("small-*.json"))) == 1 and not records.faults(directory / "records")
    for run in (directory / "runs").glob("*/"):
        assert not list(run.glob(".*")), run


def test_interrupting_one_stops_both_and_they_resume_with_the_same_dropout(two):
    first, second, _, directory = two
    assert first["interrupted"] == second["interrupted"]
    assert "everything up to epoch 1 of 2, step 2 of 5 of the next is kept" in first["interrupted"]
    assert first["resumed"]["losses"] == first["whole"]["losses"] == second["resumed"]["losses"]
    whole, resumed = trained(directory, "whole"), trained(directory, "resumed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_loss_that_is_no_number_in_one_process_stops_both_with_one_message(two):
    first, second, _, directory = two
    assert first["broken"] == second["broken"] or "first seen in" in first["broken"]
    for process in (first, second):
        assert "in epoch 2, step 1 of 5" in process["broken"] and "the loss is nan" in process["broken"]
        assert "everything up to epoch 1 of 2 is kept" in process["broken"]
    meta = checkpoint.load(directory / "runs" / "broken" / "last.safetensors")[1]
    assert meta["progress"]["step"] == 5


def test_more_processes_than_examples_in_a_batch_are_refused(tmp_path, monkeypatch, capsys):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    code = cli.main(["train", "--model", "scratch", "--batch-size", "2", "--device", "cpu", "--out", str(tmp_path / "run")])
    assert code == 1 and capsys.readouterr().err == (
        "minbert: 4 processes can't share a batch of 2: start at most 2 (torchrun --nproc-per-node 2), or take a larger batch\n")
    assert not list((tmp_path / "run").glob("*"))


@pytest.mark.slow
def test_torchrun_trains_a_recipe(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "minbert.run.cli"]
    done = subprocess.run([*command, "run", "annealed", "--size", "smoke", "--seeds", "0", "--device", "cpu", "--runs",
                           str(tmp_path)], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
                          cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best epoch") == 1
    [record] = tmp_path.rglob("record.json")
    assert json.loads(record.read_text())["device"]["processes"] == 2


if __name__ == "__main__":
    work(Path(sys.argv[1]))
