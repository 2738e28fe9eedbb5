"""`minbert plan`: what is printed is what a training would do, and what can't be planned is refused in one line."""

import json

import pytest

from minbert import multitask
from minbert.run import cli, plan
from minbert.run.data import load_task
from minbert.run.data_pairs import load_pairs

COURSE = "8544,141498,6040"


def said(capsys, *arguments):
    code = cli.main(["plan", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_summary_has_the_published_probabilities(capsys):
    code, out, _ = said(capsys, "sst", "quora", "sts", "--counts", COURSE, "--epochs", "10", "--epoch", "5")
    assert code == 0
    rows = {line.split()[0]: line for line in out.splitlines() if line.startswith(("sst ", "quora ", "sts "))}
    for name, p in (("sst", "0.1265"), ("quora", "0.7723"), ("sts", "0.1012")):
        assert f" {p} " in rows[name]
    assert "α = 0.644" in out and "9,755 of batch size 8" in out


def test_json_is_the_plan_that_training_follows(capsys):
    code, out, _ = said(capsys, "--counts", "170,400", "--sampling", "square-root", "--epochs", "4", "--epoch", "3", "--seed", "7",
                        "--steps-per-epoch", "30", "--steps", "30", "--json")
    found = json.loads(out)
    wanted = multitask.make_plan("square-root", [170, 400], 8, 3, 4, seed=7, steps=30)
    assert code == 0 and [tuple(step) for step in found["plan"]] == wanted and found["steps"] == 30
    assert [task["drawn"] for task in found["tasks"]] == multitask.positions(wanted, 2)
    start = [0, 0]
    for epoch in (1, 2):
        start = multitask.positions(multitask.make_plan("square-root", [170, 400], 8, epoch, 4, seed=7, steps=30), 2, start)
    assert [task["start"] for task in found["tasks"]] == start
    for task, taken, batches in zip(found["tasks"], multitask.positions(wanted, 2, start), (22, 50)):
        assert task["batches"] == batches and task["passes_so_far"] == pytest.approx(taken / batches)
        assert task["expected"] == pytest.approx(30 * task["probability"])


def test_steps_name_the_batch_of_each_task_and_count_on_from_the_epoch_before(capsys):
    _, out, _ = said(capsys, "a", "b", "--counts", "17,8", "--sampling", "round-robin", "--stop", "longest", "--epochs", "2",
                     "--epoch", "2", "--steps", "4")
    lines = out.splitlines()[-5:]
    assert [line.split("  ")[-1].strip() for line in lines[:4]] == [
        "a (pass 2, batch 1 of 3)", "b (pass 4, batch 1 of 1)", "a (pass 2, batch 2 of 3)", "b (pass 5, batch 1 of 1)"]
    assert "2 more" in lines[4]


def test_an_epoch_that_a_run_stops_early_is_as_short_in_the_plan(capsys):
    """Of three batches of a and one of b, a run with --steps-per-epoch 3 takes a and b, and then a again."""
    code, out, _ = said(capsys, "a", "b", "--counts", "17,8", "--sampling", "round-robin", "--stop", "longest", "--epochs", "3",
                        "--epoch", "2", "--steps-per-epoch", "3", "--json", "--steps", "9")
    found = json.loads(out)
    assert code == 0 and found["plan"] == [[0], [1], [0]] and found["steps"] == 3
    assert [(task["start"], task["drawn"]) for task in found["tasks"]] == [(2, 2), (1, 1)]


def test_a_summed_step_names_every_task(capsys):
    _, out, _ = said(capsys, "--counts", "17,8", "--sampling", "round-robin", "--step-form", "summed", "--steps", "1")
    assert "     1  task 1 (pass 1, batch 1 of 3) + task 2 (pass 1, batch 1 of 1)" in out
    assert "nothing is drawn" not in out and "one batch of each task a step" in out


@pytest.mark.parametrize("sampling, share", [("sequential", "100.0 %"), ("round-robin", "66.7 %")])
def test_what_is_never_seen_is_said(sampling, share, capsys):
    _, out, _ = said(capsys, "long", "short", "--counts", "24,8", "--sampling", sampling, "--epoch", "2")
    row = next(line for line in out.splitlines() if line.startswith("long"))
    assert share in row and " -  " in row            # no probability where nothing is drawn


def test_counts_are_read_from_the_data(capsys):
    _, out, _ = said(capsys, "sst+quora", "squad", "--json")
    found = {task["name"]: task["examples"] for task in json.loads(out)["tasks"]}
    assert found["quora"] == len(load_pairs("quora", "train")) and set(found) == {"sst", "quora", "squad"}
    assert plan.examples_of("quora", "builtin", 50) == 50
    sst = load_task("sst", "train")
    assert plan.examples_of("score", "builtin") == len(sst)
    assert plan.examples_of("sign", "builtin") == len(sst) - sst.labels.count(2)       # without the neutral sentences
    assert json.loads(out)["data"] == "builtin"
    assert plan.SQUAD_NOTE in said(capsys, "squad")[1] and plan.SQUAD_NOTE not in said(capsys, "sst")[1]


@pytest.mark.parametrize("arguments, message", [
    ([], "name the tasks, such as"),
    (["sst", "qora"], "did you mean quora?"),
    (["sst", "mlm"], "known: sst, cfimdb, quora, sts, squad, sign, score"),
    (["sst", "sst"], "named twice"),
    (["sst", "sts", "--counts", "3"], "2 tasks (sst sts) and 1 counts"),
    (["--counts", "8,8", "--sampling", "anealed"], "did you mean annealed?"),
    (["--counts", "8,8", "--epochs", "3", "--epoch", "4"], "epoch 4 is not between 1 and 3"),
    (["--counts", "8,8", "--epoch", "0"], "epoch 0 is not between 1 and 10"),
    (["--counts", "8,8", "--batch-size", "0"], "--batch-size must be at least 1"),
    (["--counts", "8,8", "--epochs", "0"], "--epochs must be at least 1"),
    (["--counts", "8,8,8", "--sampling", "phases", "--epochs", "2"], "2 epochs are fewer than 3 tasks"),
    (["--counts", "8,8", "--step-form", "summed"], "goes with round-robin, not with annealed"),
    (["sst", "--data", "nowhere"], "nowhere"),
])
def test_what_can_not_be_planned_is_told_in_one_line(arguments, message, capsys):
    code, out, err = said(capsys, *arguments)
    assert code == 1 and not out and message in err and err.count("\n") == 1


@pytest.mark.parametrize("text", ["", "8,0", "8;9", "-3", "many"])
def test_counts_that_are_none_are_a_wrong_command_line(text, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", f"--counts={text}"])
    assert stop.value.code == 2 and "such as 8544,6000,6040" in capsys.readouterr().err
