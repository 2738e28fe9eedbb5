"""Records: written by the runner, trusted only as it wrote them, stale when the recipe has moved on, free of paths."""

import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from minbert.run import lock, loop, recipes, records
from minbert.run.records import RecordError


def made_up(recipe="sst-full", seed=0, accuracy=0.5, size="small", **changes):
    """A record with the form of a real one, as `records.make` writes it; the numbers are invented."""
    config = recipes.resolve(recipe, size, seed=seed, precision="fp32", **{"data": "builtin", **changes})
    epochs = [{"epoch": e + 1,
               "train": {"loss": 1.5 - e / 4, "accuracy": accuracy + e / 10, "steps": 2, "examples": 16, "seconds": 2.0,
                         "examples_per_second": 8.0},
               "dev": {"loss": 1.4, "accuracy": accuracy - (2 - e) / 100, "macro_f1": accuracy - 0.05}} for e in range(3)]
    data = {"name": recipes.source_name(config.data), "dev_majority": 0.25}
    if config.task == "mlm":
        data = {"name": recipes.source_name(config.data), "unigram_baseline": {"loss": 6.5, "accuracy": 0.04}}
    return {"recipe": recipe, "size": size, "seed": seed, "config": recipes.public(config), "data": data, "epochs": epochs,
            "best": epochs[2], "curve": {"every": 25, "loss": [1.5, 1.25, 1.0]},
            "parameters": {"trained": 1925, "stored": 22715141},
            "time": {"timing": "shared", "train_seconds": 6.0, "examples_per_second": 8.0, "steps": 6}}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A real run of a few steps, from a directory whose path must not be seen anywhere."""
    from minbert.run import data

    place = tmp_path_factory.mktemp("a-place-of-this-machine") / "reviews"
    place.mkdir()
    for split in ("train", "dev"):
        source = data.find_data("builtin").directory / f"ids-sst-{split}.csv"
        (place / source.name).write_bytes(source.read_bytes())
    config = recipes.resolve("sst-partial", "smoke", data=str(place), epochs=1, steps_per_epoch=2)
    out = tmp_path_factory.mktemp("runs") / "run"
    return loop.train(config, out=out, progress=False, device="cpu"), place, out


def test_a_record_says_all_that_is_needed_to_repeat_the_run(real):
    record = real[0].record
    assert record["command"] == ("minbert run sst-partial --size smoke --data reviews --precision fp32 --device cpu --seeds 0")
    assert set(record) == {"recipe", "size", "seed", "command", "commit", "config", "weights", "data", "notes", "device",
                           "versions", "parameters", "epochs", "best", "curve", "time"}
    assert set(record["commit"]) == {"hash", "dirty"}
    assert {"python", "minbert", "torch", "tokenizers"} <= set(record["versions"])
    for split in ("train", "dev"):
        file = real[1] / f"ids-sst-{split}.csv"
        assert record["data"][split] == {"file": file.name, "examples": len(file.read_text(encoding="utf-8").splitlines()) - 1,
                                         "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    assert record["device"]["type"] == "cpu" and record["device"]["threads"] >= 1
    trained, stored = record["parameters"]["trained"], record["parameters"]["stored"]
    assert 0 < trained < stored == sum(p.numel() for p in real[0].task.model.parameters())
    assert record["time"]["timing"] == "shared" and record["time"]["peak_memory_mb"] > 10
    assert len(record["curve"]["loss"]) == 1 and record["best"] == record["epochs"][0]


def test_the_command_of_a_record_makes_the_same_run_again():
    from minbert.run import cli, device

    config = recipes.make(recipe="train", adapt="lora", lora_feed_forward=True, task="sst+quora", trained="sst", lr=1e-3,
                          data="film reviews", precision="fp32")
    words = shlex.split(records.command_of(config, device.choose("cpu")))
    assert words[:2] == ["minbert", "train"]
    given = vars(cli.make_parser().parse_args(words[1:]))
    settings = {key: given[key] for key in cli.HELP if given[key] is not None}
    assert recipes.make(recipe="train", size="small", **settings) == config


def test_no_path_and_no_name_of_the_machine_is_in_a_record_or_a_checkpoint(real):
    result, place, out = real
    told = records.to_bytes(result.record).decode()
    stored = b"".join((out / name).read_bytes() for name in os.listdir(out)).decode("utf-8", errors="ignore")
    for text in (told, stored):
        assert str(place.parent) not in text and os.path.expanduser("~") + "/" not in text and os.uname().nodename not in text


def test_the_path_of_a_record(tmp_path):
    path = records.write(made_up("sst-frozen", seed=2), tmp_path)
    assert path == tmp_path / "sst-frozen" / "small-minilm-builtin-fp32-2.json"
    assert json.loads(path.read_text(encoding="utf-8")) == made_up("sst-frozen", seed=2)


def test_a_smoke_run_is_not_recorded(real, tmp_path):
    with pytest.raises(RecordError, match="plumbing only"):
        records.write(real[0].record, tmp_path)
    assert not os.listdir(tmp_path)


def test_a_number_that_is_none_is_not_recorded(tmp_path):
    record = made_up()
    record["best"]["dev"]["loss"] = float("nan")
    with pytest.raises(ValueError):
        records.write(record, tmp_path)
    assert records.load(root=tmp_path) == []


@pytest.mark.parametrize("harm, complaint", [
    (lambda path: path.write_text(path.read_text().replace("0.5", "0.6", 1)), "changed since it was written"),
    (lambda path: path.unlink(), "the file is gone"),
    (lambda path: path.with_name("small-minilm-builtin-fp32-9.json").write_text(path.read_text()), "not written by the runner"),
])
def test_a_record_that_is_not_as_it_was_written_is_an_error(tmp_path, harm, complaint):
    path = records.write(made_up(), tmp_path)
    assert records.faults(tmp_path) == [] and len(records.load("sst-full", tmp_path)) == 1
    harm(path)
    assert len(records.faults(tmp_path)) == 1
    with pytest.raises(RecordError, match=complaint) as error:
        records.load(root=tmp_path)
    assert path.parent.name in str(error.value)


def test_other_line_ends_are_no_change(tmp_path):
    path = records.write(made_up(), tmp_path)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert len(records.load(root=tmp_path)) == 1


def test_writing_again_replaces_and_keeps_the_index_true(tmp_path):
    records.write(made_up(accuracy=0.5), tmp_path)
    records.write(made_up(accuracy=0.6), tmp_path)
    assert [r["best"]["dev"]["accuracy"] for r in records.load(root=tmp_path)] == [0.6]


def test_runs_that_finish_together_are_all_in_the_index(tmp_path):
    with ThreadPoolExecutor(4) as pool:              # the lock is a file: it holds between processes as between threads
        list(pool.map(lambda seed: records.write(made_up("sst-full", seed), tmp_path), range(8)))
    assert len(records.load(root=tmp_path)) == 8 and not (tmp_path / ".INDEX.lock").exists()


def test_a_lock_left_behind_by_a_killed_writer_is_no_hindrance(tmp_path, monkeypatch):
    file = tmp_path / ".INDEX.lock"
    code = "import sys; from minbert.run import lock\nwith lock.hold(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(lock.Busy, match="held by another process"):      # while it lives, it is waited for
        with lock.hold(file, patience=0.1):
            pass
    monkeypatch.setattr(records, "PATIENCE", 0)
    with pytest.raises(RecordError, match="another process has been writing .* --resume records the finished run"):
        records.write(made_up(), tmp_path)
    monkeypatch.undo()
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    assert file.exists()
    began = time.monotonic()
    records.write(made_up(), tmp_path)
    assert time.monotonic() - began < 1 and not file.exists()


def test_no_record_is_a_gap_and_no_error(tmp_path):
    assert records.load(root=tmp_path / "nothing") == [] and records.rows(root=tmp_path / "nothing") == []


def test_a_damaged_index_is_one_line(tmp_path):
    (tmp_path / "INDEX.json").write_text("{")
    with pytest.raises(RecordError, match="not valid JSON"):
        records.load(root=tmp_path)


# ---- stale -------------------------------------------------------------------------------------------------------

def test_a_record_of_todays_recipe_is_not_stale():
    for name in recipes.RECIPES:
        assert records.stale(made_up(name)) == []


def test_a_record_of_other_settings_is_stale_with_the_difference():
    record = made_up()
    record["config"].update(lr=1e-5, freeze="full")
    assert records.stale(record) == ["lr: 1e-05 → 3e-05", "freeze: full → none"]


def test_what_is_chosen_apart_makes_no_record_stale():
    record = made_up(seed=7, data="hub", weights="bert-base-uncased")
    record["config"].update(precision="bf16")
    assert records.stale(record) == []


def test_a_record_of_a_recipe_that_is_gone_is_stale():
    record = made_up()
    record["recipe"] = "sst-fulll"
    assert "unknown recipe" in records.stale(record)[0]


# ---- cells -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("values, cell", [
    ([], "not run"),
    ([0.5], "0.500 (n=1)"),
    ([0.5, 0.6], "0.550 (n=2)"),
    ([0.5, 0.6, 0.7], "0.600 ± 0.100 (n=3)"),        # sample standard deviation: .1, where that of the population is .082
])
def test_a_spread_is_told_from_three_seeds_up_and_n_always(values, cell):
    assert records.mean_and_spread(values) == cell


def test_rows_are_grouped_by_setting_and_never_mix(tmp_path):
    for seed in range(3):
        records.write(made_up(seed=seed, accuracy=0.5 + seed / 100), tmp_path)
    records.write(made_up(seed=0, data="hub"), tmp_path)
    records.write(made_up(seed=0, weights="bert-base-uncased"), tmp_path)
    records.write(made_up(seed=0, size="full"), tmp_path)
    records.write(made_up("sst-frozen"), tmp_path)
    rows = records.rows(["sst-full"], tmp_path)
    assert sorted((r.size, r.model, r.data, len(r.records)) for r in rows) == [
        ("full", "bert-base-uncased", "builtin", 1), ("small", "bert-base-uncased", "builtin", 1),
        ("small", "minilm", "builtin", 3), ("small", "minilm", "hub", 1)]
    [row] = [r for r in rows if len(r.records) == 3]
    assert row.values("best", "dev", "accuracy") == [0.5, 0.51, 0.52] and row.values("best", "nothing", "there") == []


# ---- where -------------------------------------------------------------------------------------------------------

def test_where_records_are(tmp_path, monkeypatch):
    monkeypatch.delenv("MINBERT_RESULTS", raising=False)
    (tmp_path / "book").mkdir()
    (tmp_path / "minbert").mkdir()
    (tmp_path / "book" / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "book" / "deep")
    assert records.results_root() == tmp_path / "book" / "results"
    monkeypatch.setenv("MINBERT_RESULTS", str(tmp_path / "elsewhere"))
    assert records.results_root() == tmp_path / "elsewhere"
    assert records.results_root(tmp_path / "asked") == tmp_path / "asked"
