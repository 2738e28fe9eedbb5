"""The command line, as a reader meets it: what is printed, what is kept, and one clear line for everything that goes wrong."""

import csv
import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from minbert import __version__
from minbert.run import cli, loop, records, recipes
from minbert.run.data import find_data

TINY = ["--model", "scratch", "--vocab-size", "150", "--layers", "1", "--hidden-size", "8", "--heads", "2",
        "--intermediate-size", "8", "--epochs", "1", "--steps-per-epoch", "2", "--lr", "1e-3", "--device", "cpu", "--quiet"]
# The tests leave the checkout; a process of its own has to find the package all the same.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}
COMMANDS = ["train", "evaluate", "predict", "ask", "embed", "similar", "run", "report", "recipes", "exercises", "plan", "data", "doctor"]
RECIPE = ["run", "first-finetune", "--size", "smoke", "--device", "cpu", "--quiet"]


def minbert(*arguments):
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every test in an empty directory of its own, with its own results."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINBERT_RESULTS", str(tmp_path / "results"))
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The directory of a finished run: a tiny model, two steps."""
    out = tmp_path_factory.mktemp("trained") / "run"
    assert minbert("train", *TINY, "--out", out) == 0
    return out


# ---- help and lists ----------------------------------------------------------------------------------------------

def test_without_a_command_it_shows_what_there_is(capsys):
    assert minbert() == 2
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)
    assert "first steps:" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_examples(command, capsys):
    with pytest.raises(SystemExit) as stop:
        minbert(command, "--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0 and f"  minbert {command}" in text.split("examples:")[1]


def test_the_examples_of_the_help_are_commands_that_parse(capsys):
    import shlex

    parser = cli.make_parser()
    lines = [line.split("     ")[0].strip() for name in COMMANDS
             for line in _help(name, capsys).split("examples:")[1].splitlines() if line.strip()]
    lines += [line.split("   ")[0].strip() for line in cli.EXAMPLES.splitlines() if line.startswith("  minbert")]
    for line in lines:
        words = shlex.split(line.split("|")[-1])
        assert words[0] == "minbert"
        parser.parse_args(words[1:])
    assert len(lines) > 20


def _help(name, capsys):
    with pytest.raises(SystemExit):
        minbert(name, "--help")
    return capsys.readouterr().out


def test_the_version(capsys):
    with pytest.raises(SystemExit):
        minbert("--version")
    assert capsys.readouterr().out.strip() == f"minbert {__version__}"


def test_recipes_for_readers_and_for_scripts(capsys):
    assert minbert("recipes") == 0
    text = capsys.readouterr().out
    assert all(name in text for name in (*recipes.RECIPES, *recipes.GROUPS))
    assert minbert("recipes", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in listed] == list(recipes.RECIPES)
    assert all({"chapter", "summary", "minutes", "published", "seeds", "sizes"} <= set(entry) for entry in listed)


def test_exercises_for_readers_and_for_scripts(capsys):
    from minbert import checks

    assert minbert("exercises", "--json") == 0
    assert json.loads(capsys.readouterr().out) == checks.exercises()
    assert minbert("exercises") == 0
    text = capsys.readouterr().out
    assert all(exercise["id"] in text for exercise in checks.exercises())


def test_data_for_readers_and_for_scripts(capsys):
    assert minbert("data") == 0
    assert "ids-sst-train.csv" in capsys.readouterr().out
    assert minbert("data", "--json") == 0
    built_in = {path.name for path in find_data("builtin").directory.iterdir() if path.suffix in (".csv", ".json")}
    assert {entry["file"] for entry in json.loads(capsys.readouterr().out)} == built_in > {"ids-sst-train.csv"}


def test_an_early_end_of_the_pipe_is_no_error():
    done = subprocess.run(f"{sys.executable} -m minbert.run.cli recipes --json | head -1", shell=True, text=True,
                          capture_output=True, env=ENVIRONMENT)
    assert done.stdout.strip() == "[" and "Traceback" not in done.stderr


# ---- run ---------------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_one_command_tries_every_row_of_table1(tmp_path):
    assert minbert("run", "table1", "--size", "smoke", "--seeds", 0, "--device", "cpu", "--quiet") == 0
    finished = {path.parts[-3] for path in tmp_path.rglob("record.json")}
    assert len(recipes.TABLE1) == 9 and finished == {name for names in recipes.TABLE1.values() for name in names}


def test_a_smoke_run_says_so_in_every_line_and_records_nothing(tmp_path, capsys):
    assert minbert("run", "first-finetune", "--size", "smoke", "--seeds", 0, 1, "--device", "cpu") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(line.startswith("plumbing only") for line in lines)
    assert not (tmp_path / "results").exists()
    assert sorted(os.listdir("runs/first-finetune")) == [f"smoke-scratch-builtin-fp32-{seed}" for seed in (0, 1)]
    # Finished runs are left alone, and said to be.
    assert minbert(*RECIPE, "--seeds", 0) == 0
    out = capsys.readouterr().out
    assert "finished already" in out and "plumbing only" in out
    assert minbert(*RECIPE, "--seeds", 0, "--again") == 0 and "best epoch" in capsys.readouterr().out


def short(monkeypatch):
    """Let size small be as short as smoke, so that a test can record something."""
    recipe = recipes.RECIPES["first-finetune"]
    monkeypatch.setitem(recipes.RECIPES, "first-finetune",
                        dataclasses.replace(recipe, settings={**recipes.SMOKE, "task": "sst", "steps_per_epoch": 2}))


SMALL = ["run", "first-finetune", "--device", "cpu", "--quiet", "--seeds", 0]


def test_a_run_is_recorded_once_and_the_books_record_stays(tmp_path, monkeypatch, capsys):
    short(monkeypatch)
    assert minbert(*SMALL) == 0
    assert "recorded in" in capsys.readouterr().out
    [record] = records.load("first-finetune", tmp_path / "results")
    path = tmp_path / "results" / "first-finetune" / "small-scratch-builtin-fp32-0.json"
    assert path.is_file() and record["command"].startswith("minbert run first-finetune --size small")
    before = path.read_bytes()

    # Here already, with its checkpoint: nothing to do.
    assert minbert(*SMALL) == 0 and "finished already" in capsys.readouterr().out

    # A reader's fresh clone has the record and no checkpoint: the run is done, the book's record stays.
    shutil.rmtree("runs")
    assert minbert(*SMALL) == 0
    assert "it stays as it is" in capsys.readouterr().out and path.read_bytes() == before
    assert os.path.isdir("runs/first-finetune/small-scratch-builtin-fp32-0")

    # --resume only fills gaps.
    shutil.rmtree("runs")
    assert minbert(*SMALL, "--resume") == 0 and "recorded already, skipped" in capsys.readouterr().out
    assert not os.path.exists("runs")

    # --again replaces.
    assert minbert(*SMALL, "--again") == 0 and "recorded in" in capsys.readouterr().out
    assert records.faults(tmp_path / "results") == []


def test_a_run_stopped_before_its_record_was_written_gets_it_later(tmp_path, monkeypatch, capsys):
    short(monkeypatch)
    monkeypatch.setattr(records, "write", lambda *_: (_ for _ in ()).throw(OSError("no")))
    assert minbert(*SMALL) == 1
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINBERT_RESULTS", str(tmp_path / "results"))
    short(monkeypatch)
    assert minbert(*SMALL, "--resume") == 0
    assert len(records.load("first-finetune", tmp_path / "results")) == 1


def test_an_interrupted_run_says_how_to_go_on_and_goes_on(tmp_path, monkeypatch, capsys):
    real = loop.training_step

    steps = []

    def training_step(*arguments):
        if len(steps) == 5:
            raise KeyboardInterrupt
        steps.append(1)
        return real(*arguments)

    monkeypatch.setattr(loop, "training_step", training_step)
    assert minbert(*RECIPE, "--seeds", 0) == 130
    error = capsys.readouterr().err.splitlines()[-1]
    assert "interrupted" in error and "--resume" in error
    monkeypatch.setattr(loop, "training_step", real)
    assert minbert(*RECIPE, "--seeds", 0) == 1       # not by accident
    assert "--resume" in capsys.readouterr().err
    assert minbert(*RECIPE, "--seeds", 0, "--resume") == 0
    assert "resumed after epoch 1 of 2" in capsys.readouterr().out


def three_recipes(monkeypatch):
    """Let there be three recipes, as short at size small as a smoke run; the second needs the third."""
    short = {"steps_per_epoch": 2, "epochs": 1}
    chosen = {"small-bert-random": {"weights": "run:masked-language-model", "task": "sst"},
              "masked-language-model": {"task": "mlm"}, "first-finetune": {"task": "sst"}}
    for name in list(recipes.RECIPES):
        if name not in chosen:
            monkeypatch.delitem(recipes.RECIPES, name)
    for name in ("first-finetune", "small-bert-random", "masked-language-model"):
        recipe = recipes.RECIPES[name]
        monkeypatch.delitem(recipes.RECIPES, name)
        settings = {**recipes.SMOKE, **short, **chosen[name]}
        monkeypatch.setitem(recipes.RECIPES, name, dataclasses.replace(recipe, settings=settings, seeds=(0,), minutes=45))


ALL = ["run", "--all", "--resume", "--device", "cpu", "--quiet"]
PLACE = "small-scratch-builtin-fp32-0.json"


def test_the_queue_does_what_is_missing_goes_on_after_a_failure_and_repeats_nothing(tmp_path, monkeypatch, capsys):
    three_recipes(monkeypatch)
    real, trained = loop.train, []

    def train(config, **options):
        trained.append(config.recipe)
        if config.recipe == "first-finetune" and len(trained) == 1:
            raise ValueError("no luck")
        return real(config, **options)

    monkeypatch.setattr(loop, "train", train)
    assert minbert(*ALL) == 1
    out, error = capsys.readouterr()
    assert "queue    0 of 3 runs are done, 3 to do (about 2 h 15 min on a laptop)" in out
    # What is needed comes before what needs it; the failure stops neither.
    assert trained == ["first-finetune", "masked-language-model", "small-bert-random"]
    assert "minbert: first-finetune, seed 0: no luck" in error
    assert error.splitlines()[-1].startswith("minbert: 1 of 3 runs failed (first-finetune, seed 0)")
    results = tmp_path / "results"
    assert len(records.load(root=results)) == 2

    del trained[1:]
    assert minbert(*ALL) == 0 and trained == ["first-finetune", "first-finetune"]
    out = capsys.readouterr().out
    assert "2 of 3 runs are done, 1 to do (about 45 min" in out and "first-finetune, seed 0: not run yet" in out
    assert minbert(*ALL) == 0 and len(trained) == 2
    assert "3 of 3 runs are done, 0 to do" in capsys.readouterr().out

    # Another learning rate: that record is stale, and its run is started over.
    recipe = recipes.RECIPES["first-finetune"]
    changed = dataclasses.replace(recipe, settings={**recipe.settings, "lr": 2e-3})
    monkeypatch.setitem(recipes.RECIPES, "first-finetune", changed)
    assert minbert(*ALL) == 0 and trained[2:] == ["first-finetune"]
    assert "done with other settings (lr: 0.001 → 0.002)" in capsys.readouterr().out
    assert records.load("first-finetune", results)[0]["config"]["lr"] == 2e-3

    # Elsewhere, with the records but no weights: the pre-training is done again for the run that needs it, its record stays.
    shutil.rmtree("runs")
    (results / "small-bert-random" / "small-masked-language-model-builtin-fp32-0.json").unlink()
    before = (results / "masked-language-model" / PLACE).read_bytes()
    assert minbert(*ALL) == 0 and trained[3:] == ["masked-language-model", "small-bert-random"]
    out = capsys.readouterr().out
    assert "masked-language-model, seed 0: recorded, but small-bert-random needs its weights" in out
    assert (results / "masked-language-model" / PLACE).read_bytes() == before
    assert minbert(*ALL) == 0 and len(trained) == 5


def test_ctrl_c_stops_the_queue_and_the_queue_goes_on(monkeypatch, capsys):
    three_recipes(monkeypatch)
    monkeypatch.setattr(loop, "train", lambda *_, **__: (_ for _ in ()).throw(loop.Interrupted("interrupted: kept")))
    assert minbert(*ALL) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "minbert: interrupted: kept"
    monkeypatch.undo()


def test_the_queue_holds_every_recipe_and_data_and_model_stand_in_where_they_fit():
    options = cli.make_parser().parse_args(["run", "--all", "--data", "course", "--model", "mine"])
    configs = cli.all_configs(options)
    assert {(c.recipe, c.seed) for c in configs} == {(r.name, seed) for r in recipes.RECIPES.values() for seed in r.seeds}
    names = [c.recipe for c in configs]
    for recipe in recipes.RECIPES.values():
        assert not recipe.needs or names.index(recipe.needs) < names.index(recipe.name)
    found = {c.recipe: (c.weights, c.data) for c in configs}
    assert found["sst-full"] == ("mine", "course") and found["first-finetune"] == ("mine", "builtin")
    assert found["masked-language-model"] == ("scratch", "course")
    assert found["small-bert-pretrained"] == ("run:masked-language-model", "course")


def test_the_queue_never_mixes_the_data_of_a_run_and_of_the_run_it_starts_from(capsys):
    assert minbert("run", "--all", "--device", "cpu") == 1
    out, error = capsys.readouterr()
    assert re.fullmatch(r"minbert: --all needs --data here: without it masked-language-model learns from builtin, and "
                        r"small-bert-\w+, which starts from its weights, asks for hub\. Give --data and a directory with the "
                        r"course's files, or --data builtin\n", error), error
    assert out == "" and not os.path.exists("runs")
    for more in (["--data", "builtin"], ["--size", "smoke"]):
        configs = cli.all_configs(cli.make_parser().parse_args(["run", "--all", *more]))
        data = {config.recipe: config.data for config in configs}
        assert all(data[r.needs] == data[r.name] for r in recipes.RECIPES.values() if r.needs)


def test_everything_is_looked_at_before_the_first_minute_is_spent(capsys):
    assert minbert("run", "first-finetune", "sst-ful", "--size", "smoke", "--device", "cpu") == 1
    assert "did you mean sst-full?" in capsys.readouterr().err and not os.path.exists("runs")


@pytest.mark.parametrize("kind", ["SIGINT", "SIGTERM"])
def test_a_real_signal_finishes_the_step_saves_and_says_how_to_go_on(tmp_path, kind, capsys):
    """From outside, to a process of its own."""
    import signal
    import time

    code = ("import sys, signal, time; from minbert.run import cli, loop; real = loop.training_step\n"
            "signal.signal(signal.SIGINT, signal.default_int_handler)     # a shell may have it ignored in the background\n"
            "def slow(*arguments):\n"
            "    print('ready', flush=True); time.sleep(0.5)\n"
            "    return real(*arguments)\n"
            f"loop.training_step = slow; sys.exit(cli.main({[str(a) for a in RECIPE]!r} + ['--seeds', '0']))")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env=ENVIRONMENT)
    while "ready" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(0.2)
    process.send_signal(getattr(signal, kind))
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in error
    assert error.splitlines()[-1] == (
        "minbert: interrupted: everything up to epoch 0 of 2, step 1 of 4 of the next is kept in "
        f"{os.path.join('runs', 'first-finetune', 'smoke-scratch-builtin-fp32-0')}; the same command with --resume goes on "
        "from there")
    assert minbert(*RECIPE, "--seeds", 0, "--resume") == 0
    assert "resumed after epoch 0 of 2, step 1 of 4 of the next" in capsys.readouterr().out


# ---- train, predict, evaluate ------------------------------------------------------------------------------------

def test_train_takes_every_setting_as_an_option(trained):
    config = json.loads((trained / "config.json").read_text())
    assert (config["layers"], config["hidden_size"], config["lr"], config["init"]) == (1, 8, 1e-3, "random")
    record = json.loads((trained / "record.json").read_text())
    assert record["command"].startswith("minbert train --model scratch") and "--lr 0.001" in record["command"]
    cli.make_parser().parse_args(record["command"].split()[1:])


def test_predict_labels_sentences_with_probabilities(trained, capsys):
    assert minbert("predict", "--checkpoint", trained, "A fine film.", "A dull one.") == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "A fine film." and lines[2] == "A dull one." and len(lines) == 4 and "model:" in err
    shares = [float(word) for word in lines[1].split() if "." in word]
    assert len(shares) == 5 and sum(shares) == pytest.approx(1, abs=0.03)


def test_predict_for_scripts(trained, capsys, monkeypatch, tmp_path):
    (tmp_path / "s.txt").write_text("One film.\n\nAnother film.\n", encoding="utf-8")
    assert minbert("predict", "--checkpoint", trained, "--file", "s.txt", "--json") == 0
    from_file = capsys.readouterr().out
    rows = [json.loads(line) for line in from_file.splitlines()]
    assert [row["sentence"] for row in rows] == ["One film.", "Another film."]
    for row in rows:
        assert row["name"] == max(row["probabilities"], key=row["probabilities"].get)
    monkeypatch.setattr(sys, "stdin", io.StringIO("One film.\nAnother film.\n"))
    assert minbert("predict", "--checkpoint", trained, "--json") == 0 and capsys.readouterr().out == from_file


def test_a_checkpoint_can_be_moved(trained, tmp_path, capsys):
    minbert("predict", "--checkpoint", trained, "--json", "A film.")
    first = capsys.readouterr().out
    shutil.copytree(trained, tmp_path / "moved")
    minbert("predict", "--checkpoint", "moved", "--json", "A film.")
    assert capsys.readouterr().out == first


def test_without_a_checkpoint_the_newest_first_finetune_is_taken(trained, capsys):
    assert minbert("predict", "A film.") == 1
    assert "run 'minbert run first-finetune' first" in capsys.readouterr().err
    for age, name in ((100, "small-old"), (50, "small-new"), (0, "smoke-newest")):
        shutil.copytree(trained, os.path.join("runs", "first-finetune", name))
        for file in os.scandir(os.path.join("runs", "first-finetune", name)):
            os.utime(file, (1e9 - age, 1e9 - age))
    assert minbert("predict", "A film.") == 0 and "small-new" in capsys.readouterr().err


def test_evaluate_prints_the_scores_and_writes_the_predictions(trained, capsys):
    from minbert.metrics import accuracy
    from minbert.run.data import load_task

    assert minbert("evaluate", "--checkpoint", trained, "--out", "p.tsv") == 0
    text = capsys.readouterr().out
    with open("p.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    dev = load_task("sst", "dev", "builtin")
    assert [row["sentence"] for row in rows] == dev.texts and [int(row["label"]) for row in rows] == dev.labels
    score = accuracy([int(row["prediction"]) for row in rows], dev.labels)
    assert f"accuracy    {score:.3f}" in text and "macro-F1" in text and "very positive 4" in text
    assert score == json.loads((trained / "record.json").read_text())["best"]["dev"]["accuracy"]


# ---- report ------------------------------------------------------------------------------------------------------

def test_report_with_no_record_shows_gaps(capsys):
    assert minbert("report", "--chapter", 5, "--curves", "c.svg") == 0
    out = capsys.readouterr().out
    assert "not run" in out and "sst-full" in out and "no curves drawn" in out and "bag-of-embeddings" not in out


def test_report_on_records(tmp_path, capsys):
    from tests.test_records import made_up

    records.write(made_up("sst-full", 0, 0.512), tmp_path / "results")
    assert minbert("report", "sst-full", "--format", "markdown", "--curves", "c.svg") == 0
    assert "0.512 (n=1)" in capsys.readouterr().out and os.path.getsize("c.svg") > 1000
    assert minbert("report", "--chapter", 99) == 1
    capsys.readouterr()
    assert minbert("report", "table1") == 0
    out = capsys.readouterr().out
    assert out.startswith("Three tasks, every way of report S0\n") and "· in the report" in out and "quora-joined" in out
    records.write(made_up("sst-full", 0, 0.512, data="elsewhere"), tmp_path / "results")
    assert minbert("report", "table1") == 0          # that table can't choose between two data sets, the others show both
    out, error = capsys.readouterr()
    assert "recorded with 2 settings" in error and "elsewhere" in out and "every way" not in out


# ---- what goes wrong (the rest is in test_faults.py) --------------------------------------------------------------

@pytest.mark.parametrize("arguments", [["run"], ["run", "sst-full", "--all"], ["train", "--save-every", "-1"], ["trian"], ["run", "sst-full", "--seeds", "-1"], ["train", "--lr", "much"],
                                       ["run", "sst-full", "--resume", "--again"],
                                       ["ask", "--context", "a.txt", "--others", "-1", "Who?"]])
def test_a_wrong_command_line_is_explained(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        minbert(*arguments)
    out, error = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    assert re.fullmatch(r"minbert: .+ \('minbert( run| train| ask)? --help' says what it takes\)\n", error), error


def test_a_wrong_option_is_named_with_the_help_of_its_command(capsys):
    with pytest.raises(SystemExit):
        minbert("train", "--lr", "much")
    assert capsys.readouterr().err == ("minbert: argument --lr: 'much' is not a number such as 0.1 or 3e-5 "
                                       "('minbert train --help' says what it takes)\n")


def test_debug_shows_the_whole_story():
    with pytest.raises(recipes.RecipeError):
        minbert("run", "sst-ful", "--debug")


def test_an_unexpected_error_is_told_apart(monkeypatch, capsys):
    monkeypatch.setattr(loop, "train", lambda *_, **__: {}["key"])
    assert minbert("train", *TINY) == 1
    assert capsys.readouterr().err == "minbert: unexpected KeyError: 'key' (run it again with --debug for the whole story)\n"


def test_no_bar_where_none_is_wanted():
    done = subprocess.run([sys.executable, "-m", "minbert.run.cli", *RECIPE[:-1], "--seeds", "0"], capture_output=True,
                          text=True, env={**ENVIRONMENT, "TQDM_DISABLE": "1"})
    assert done.returncode == 0 and done.stderr == "" and "epoch 2/2" in done.stdout
