"""Two processes train together: the result is that of one process, and everything is said and written once.

The processes are real, and talk by gloo; they are started once, go through all scenarios one after the other, and leave what
came of them in files.  Each test looks at one part of that.
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
TINY = dict(recipes.SMOKE, hidden_size=16, intermediate_size=32, vocab_size=300, epochs=1, steps_per_epoch=4, lr=2e-3,
            dropout=0.0, head_dropout=0.0, size="small")
THREE = dict(task="sst+quora+sts", sampling="round-robin")

# What two processes and one must agree on.
SCENARIOS = {
    "ragged": dict(task="sst", batch_size=113, steps_per_epoch=0),           # 113, 113, 113 and 1: one has none
    # 3 and 2 examples, in 3 and 2 parts.  With L2 in the gradient and no clipping its size counts; by itself Adam ignores it.
    "micro": dict(task="sst", batch_size=5, micro_batch=1, optimizer="adam-l2", weight_decay=0.1, clip=0.0),
    "pairs apart": dict(task="sts", pair_head="vector", similarity="mse", batch_size=7, micro_batch=2, clip=0.05),
    "summed": dict(THREE, step_form="summed", batch_size=5, micro_batch=2),
    "adapters": dict(THREE, adapt="lora", batch_size=7),
    "pieces": dict(task="mlm", batch_size=2, max_length=24, mask_rate=0.05, steps_per_epoch=8),    # some halves hide nothing
    "questions": dict(task="sst+squad", sampling="round-robin", batch_size=3, window_length=64, question_length=24,
                      window_step=24),
}
RESUMED = dict(task="sst", epochs=2, steps_per_epoch=3, dropout=0.3, head_dropout=0.3)


def settings(**changes):
    return recipes.make(**{**TINY, **changes})


def train(config, out, **options):
    """A run with double the digits, so that only a real difference can grow."""
    torch.set_default_dtype(torch.float64)
    try:
        return loop.train(config, out=out, device="cpu", **options)
    finally:
        torch.set_default_dtype(torch.float32)


def outcome(result):
    return {"losses": result.losses, **{key: result.record[key] for key in ("epochs", "device", "command")}}


# ---- what each of the two processes does -------------------------------------------------------------------------

def work(directory):
    """Go through all scenarios; what came of them is left in `directory`, one file a process."""
    rank, _ = parallel.world()
    found = {"written": []}
    sys.addaudithook(lambda event, details: found["written"].append(str(details[1])) if event == "os.rename" else None)
    for name, changes in SCENARIOS.items():
        found[name] = outcome(train(settings(**changes), directory / "runs" / name))

    found["whole"] = outcome(train(settings(**RESUMED), directory / "runs" / "whole"))
    with at_step(5, lambda: rank == 1 and os.kill(os.getpid(), signal.SIGTERM)), pytest.raises(loop.Interrupted) as stopped:
        train(settings(**RESUMED), directory / "runs" / "resumed")
    found["interrupted"] = str(stopped.value)
    found["resumed"] = outcome(train(settings(**RESUMED), directory / "runs" / "resumed", resume=True))

    real = tasks.SentenceTask.loss

    def broken(self, batch):
        loss, *rest = real(self, batch)
        return loss * float("nan"), *rest

    with (at_step(3, lambda: rank == 1 and setattr(tasks.SentenceTask, "loss", broken)),
          pytest.raises(loop.TrainingStopped) as stopped):
        train(settings(task="sst"), directory / "runs" / "broken")
    found["broken"] = str(stopped.value)
    tasks.SentenceTask.loss = real

    # A recipe by the command line, with a tiny model in its place.
    recipes.resolve = lambda name, size="small", **k: recipes.make(recipe=name, **TINY)
    places = ["--device", "cpu", "--root", str(directory / "records"), "--runs", str(directory / "runs")]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        found["code"] = cli.main(["run", "first-finetune", "--seeds", "0", *places])
    found["said"] = said.getvalue()

    # The last, for one of them is lost in it.
    (directory / f"{rank}.json").write_text(json.dumps(found))
    with at_step(2, lambda: rank == 1 and os._exit(9)), contextlib.redirect_stderr(io.StringIO()) as said:
        found["code alone"] = cli.main(["run", "first-finetune", "--seeds", "0", "--again", *places])
    found["said alone"] = said.getvalue()
    (directory / f"{rank}.json").write_text(json.dumps(found))


@contextlib.contextmanager
def at_step(number, act):
    """Do something before that step of a run."""
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
    """(what process 0 found, what process 1 found, what each printed, their directory)."""
    directory = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    logs = [directory / f"{rank}.log" for rank in (0, 1)]
    processes = []
    for rank, log in enumerate(logs):
        with open(log, "w") as file:
            processes.append(subprocess.Popen([sys.executable, "-m", "tests.test_parallel", str(directory)], cwd=ROOT,
                                              stdout=file, stderr=file, env={**environment, "RANK": str(rank)}))
    until = time.monotonic() + 600
    while any(process.poll() is None for process in processes) and time.monotonic() < until:
        if any(process.poll() not in (None, 0, 9) for process in processes):     # the other might wait for ever
            break
        time.sleep(0.05)
    for process in processes:
        process.kill()
    said = [log.read_text() for log in logs]
    assert [process.wait() for process in processes] == [0, 9], "\n".join(said)[-5000:]
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


@pytest.mark.parametrize("name", ["ragged", "pairs apart", "pieces", "summed", "questions"])
def test_the_shares_of_all_processes_are_the_batch(name):
    task = tasks.make(settings(**{**SCENARIOS[name], "batch_size": 8, "mask_rate": 0.15}))
    batch = task.batch(task.order(0)[-1], 0)
    whole = task.parts(batch, 0)                     # one for each task
    for processes in (1, 2, 3, 8):
        shares = [part for rank in range(processes) for part in parallel.own_parts(task, batch, 2, rank, processes)]
        assert sum(weight for _, weight in shares) == pytest.approx(len(whole))
        answers = [task.answers(part) for part, weight in shares if weight]
        assert sum(answers) == sum(task.answers(part) for part in whole)
        if name != "pieces":                         # there a row in which nothing is hidden is left out
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


def test_the_scenario_of_hidden_pieces_has_halves_without_any():
    task = tasks.make(settings(**SCENARIOS["pieces"]))
    batches = [task.batch(indices, step) for step, indices in enumerate(task.order(0))]
    assert 0 in [weight for batch in batches for rank in (0, 1) for _, weight in parallel.own_parts(task, batch, 0, rank, 2)]


def test_random_numbers_differ_by_process_step_and_seed_and_come_again(monkeypatch):
    def drawn(rank, seed, step):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        parallel.seed_step(seed, step)
        return torch.rand(4).tolist()

    before = torch.get_rng_state()
    runs = [[drawn(rank, seed, step) for rank in (0, 1) for seed in (0, 1) for step in (0, 1)] for _ in range(2)]
    torch.set_rng_state(before)
    assert runs[0] == runs[1] and len({tuple(numbers) for numbers in runs[0]}) == 8


# ---- everything once ---------------------------------------------------------------------------------------------

def test_a_record_says_how_many_processes_there_were(two):
    assert two[0]["micro"]["device"]["processes"] == 2
    assert two[0]["micro"]["command"].startswith("torchrun --nproc-per-node 2 -m minbert.run.cli train")


def test_only_the_first_process_writes_and_speaks(two):
    first, second, said, directory = two
    assert first["code"] == second["code"] == 0
    assert first["said"].count("best epoch") == 1 and "recorded in" in first["said"] and second["said"] == ""
    assert "epoch 1/1" in said[0] and said[1].strip() == "", said[1]
    assert len(list((directory / "records").rglob("small-*.json"))) == 1 and not records.faults(directory / "records")
    assert first["written"].count(str(directory / "records" / records.INDEX)) == 1 and second["written"] == []


def test_interrupting_one_stops_both_and_they_resume_with_the_same_dropout(two):
    first, second, _, directory = two
    assert first["interrupted"] == second["interrupted"]
    assert "everything up to epoch 1 of 2, step 2 of 3 of the next is kept" in first["interrupted"]
    assert first["resumed"]["losses"] == first["whole"]["losses"] == second["resumed"]["losses"]
    whole, resumed = trained(directory, "whole"), trained(directory, "resumed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_loss_that_is_no_number_in_one_process_stops_both_with_one_message(two):
    first, second, _, directory = two
    assert first["broken"] == second["broken"]
    assert "in epoch 1, step 3 of 4" in first["broken"] and "the loss is nan" in first["broken"]
    assert "everything up to epoch 0 of 1, step 2 of 4 of the next is kept" in first["broken"]
    meta = checkpoint.load(directory / "runs" / "broken" / "last.safetensors")[1]
    assert meta["progress"]["step"] == 2


def test_a_process_that_is_lost_ends_the_other_with_one_line(two):
    assert two[0]["code alone"] == 1
    assert two[0]["said alone"].endswith("minbert: another process of this run has stopped, and this one can't go on alone: "
                                         "its message says why\n")


def test_what_all_are_told_is_said_by_the_first(monkeypatch, capsys):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    for rank, interrupted, failed in (("0", 1, 1), ("1", 0, 1)):
        monkeypatch.setenv("RANK", rank)
        assert cli.complain("interrupted", 130) == 130 and cli.complain("no memory", 1) == 1
        said = capsys.readouterr().err
        assert said.count("interrupted") == interrupted and said.count("no memory") == failed


def test_more_processes_than_examples_in_a_batch_are_refused(tmp_path, monkeypatch, capsys):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    code = cli.main(["train", "--model", "scratch", "--batch-size", "2", "--device", "cpu", "--out", str(tmp_path / "run")])
    assert code == 1 and capsys.readouterr().err == (
        "minbert: 4 processes can't share a batch of 2: start at most 2 (torchrun --nproc-per-node 2), or take a larger batch\n")
    assert not list((tmp_path / "run").glob("*"))


@pytest.mark.slow
def test_torchrun_trains_a_recipe_as_one_process_does(tmp_path):
    recipe = ["run", "annealed", "--size", "smoke", "--seeds", "0", "--device", "cpu", "--runs"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "minbert.run.cli"]
    done = subprocess.run([*command, *recipe, str(tmp_path / "two")], capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert cli.main([*recipe, str(tmp_path / "one")]) == 0
    lines = done.stdout.splitlines()
    assert len(set(lines)) == len(lines) and all(line.startswith("plumbing only") for line in lines)

    [path], [other] = ((tmp_path / name).rglob("record.json") for name in ("two", "one"))
    two, one = json.loads(path.read_text()), json.loads(other.read_text())
    for key in ("config", "weights", "data", "notes", "parameters", "untrained", "plan"):
        assert two[key] == one[key], key
    assert (two["device"].pop("processes"), two["device"].pop("threads")) == (2, 1)
    for epoch, expected in zip(two["epochs"], one["epochs"], strict=True):       # dropout is another, but nothing else
        assert epoch["train"]["loss"] == pytest.approx(expected["train"]["loss"], abs=0.05)
        assert epoch["train"]["examples"] == expected["train"]["examples"]


if __name__ == "__main__":
    work(Path(sys.argv[1]))
