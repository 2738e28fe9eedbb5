"""The training loop: it learns, it repeats, it resumes bit for bit, it stops where a number is none, it loses nothing."""

import dataclasses
import json
import math
import os
import random

import pytest
import torch
from torch import nn

from minbert import files
from minbert.bert import BertConfig, BertModel
from minbert.pretrained import WeightsError, load_pretrained
from minbert.run import build, checkpoint, device, loop, recipes, tasks
from minbert.run.batching import batches
from minbert.run.data import DataError
from minbert.run.loop import RunError, TrainingStopped

CPU = device.choose("cpu", "fp32")
WORDS = [["awful", "dull", "bore"], ["weak", "thin", "limp"], ["plain", "usual", "even"], ["good", "warm", "fine"],
         ["superb", "great", "joy"]]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A directory in the course's format: 64 sentences, and in each of them a word gives the class away."""
    directory = tmp_path_factory.mktemp("course")
    for split, count in (("train", 64), ("dev", 20)):
        rows = ["\tid\tsentence\tsentiment"]
        for i in range(count):
            label = i % 5
            middle = " and the film goes on" * (i % 3)
            first, second = WORDS[label][i % 3], WORDS[label][(i + 1) % 3]
            if split == "dev":                       # no sentence of one split is in the other
                first, second = second, first
            rows.append(f"{i}\t{split}{i}\tthe film{middle} is {first} and {second}\t{label}")
        (directory / f"ids-sst-{split}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return str(directory)


def settings(data, **changes):
    """A small random BERT with dropout, so that a run depends on every random number."""
    defaults = dict(weights="scratch", init="random", vocab_size=200, layers=2, hidden_size=16, heads=2, intermediate_size=32,
                    data=data, epochs=3, batch_size=8, lr=2e-3, max_length=32)
    return recipes.make(**{**defaults, **changes})


def run(config, out=None, **options):
    return loop.train(config, out=out, progress=False, device="cpu", **options)


def weights_of(result):
    return {name: tensor.clone() for name, tensor in result.task.model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- learning ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("encoder, lr", [("bag", 2e-2), ("attention", 1e-2), ("bert", 5e-3)])
def test_it_learns_what_can_be_learned(data, encoder, lr):
    result = run(settings(data, encoder=encoder, hidden_size=32, epochs=20, lr=lr, dropout=0.0))
    best = result.record["best"]
    assert best["dev"]["accuracy"] == 1.0 and best["dev"]["macro_f1"] == 1.0
    assert best["dev"]["confusion"] == [[4 * (i == j) for j in range(5)] for i in range(5)]
    assert result.losses[0] == pytest.approx(math.log(5), abs=0.25) and result.losses[-1] < 0.5


def test_a_run_repeats_with_its_seed_and_changes_with_another(data):
    first, second, other = run(settings(data)), run(settings(data)), run(settings(data, seed=1))
    assert first.losses == second.losses and same(weights_of(first), weights_of(second))
    assert first.losses != other.losses


def test_the_random_state_before_does_not_matter(data):
    first = run(settings(data, epochs=1))
    torch.rand(17)
    assert run(settings(data, epochs=1)).losses == first.losses


def test_it_does_what_a_plain_loop_does(data):
    """Against PyTorch's own clipping, and a schedule and a loop written out here; same batches, no dropout."""
    config = settings(data, dropout=0.0, head_dropout=0.0, clip=0.05, epochs=2)
    result = run(config)

    loop.seed_everything(0)
    task = tasks.make(config)
    model = task.model.train()
    optimizer = loop.make_optimizer(model, lr=1.0, weight_decay=0.01)
    losses = []
    for epoch in range(2):
        for indices in batches([len(ids) for ids in task.train_ids], 8, 0, epoch):
            batch = task.batch(indices, len(losses))
            step, total = len(losses), 16
            factor = step / 2 if step < 2 else (total - step) / (total - 2)      # warm-up over 10 % of 16 steps
            for group in optimizer.param_groups:
                group["lr"] = config.lr * factor
            loss = nn.functional.cross_entropy(model(batch["input_ids"], batch["attention_mask"]), batch["labels"])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            optimizer.step()
            losses.append(loss.item())
    assert result.losses == pytest.approx(losses, abs=1e-6)


def test_train_and_dev_scores_of_every_epoch_are_kept(data):
    history = run(settings(data)).record["epochs"]
    assert [entry["epoch"] for entry in history] == [1, 2, 3]
    for entry in history:
        assert {"loss", "accuracy", "steps", "examples", "seconds", "examples_per_second"} == set(entry["train"])
        assert {"loss", "accuracy", "macro_f1", "confusion"} == set(entry["dev"])
        assert entry["train"]["examples"] == 64 and sum(map(sum, entry["dev"]["confusion"])) == 20


def test_an_epoch_can_be_cut_short(data):
    result = run(settings(data, steps_per_epoch=2))
    assert len(result.losses) == 6 and result.record["epochs"][0]["train"]["examples"] == 16
    assert len(run(settings(data, steps_per_epoch=99)).losses) == 24           # more than there are: all


def test_over_fitting_shows_in_the_record(tmp_path):
    """Labels drawn at random: there is nothing to learn but the training sentences themselves."""
    chance = random.Random(0)
    words = [f"word{i}" for i in range(60)]
    for split, count in (("train", 40), ("dev", 40)):
        rows = [f"{i}\t{split}{i}\t{' '.join(chance.sample(words, 6))}\t{chance.randrange(5)}" for i in range(count)]
        (tmp_path / f"ids-sst-{split}.csv").write_text("\n".join(["\tid\tsentence\tsentiment", *rows]) + "\n")
    history = run(settings(str(tmp_path), encoder="bag", hidden_size=32, dropout=0.0, head_dropout=0.0, epochs=30, lr=2e-2,
                           schedule="constant")).record["epochs"]
    first, last = history[0], history[-1]
    assert last["train"]["accuracy"] == 1.0 and last["train"]["loss"] < 0.1
    assert last["dev"]["accuracy"] < 0.5 and last["dev"]["loss"] > first["dev"]["loss"] + 0.5


@pytest.mark.parametrize("length", [40, 512])
def test_long_reviews_in_two_classes(tmp_path, length, capsys):
    """CFIMDB: whole reviews, many times as long as SST's sentences."""
    for split, count in (("train", 6), ("dev", 4)):
        rows = [f"{i}\t{split}{i}\t{'a long and rather slow film ' * (40 + 50 * (i % 2))}{split} {'bad good'.split()[i % 2]}"
                f"\t{i % 2}" for i in range(count)]
        (tmp_path / f"ids-cfimdb-{split}.csv").write_text("\n".join(["\tid\tsentence\tsentiment", *rows]) + "\n")
    result = run(settings(str(tmp_path), task="cfimdb", max_length=length, batch_size=2, epochs=1), tmp_path / "run")
    assert max(map(len, result.task.train_ids)) == length and result.record["best"]["dev"]["loss"] < 1.5
    assert len(result.record["best"]["dev"]["confusion"]) == 2
    cut = "6 of 6" if length == 40 else "3 of 6"
    assert f"{cut} sentences were longer than {length} tokens and were cut" in capsys.readouterr().out
    model, _, _ = build.load_classifier(tmp_path / "run")
    assert model.head.out_features == 2


# ---- a batch in parts --------------------------------------------------------------------------------------------

def in_float64(config):
    """The task with double the digits and no dropout, and an arithmetic that leaves them."""
    loop.seed_everything(0)
    task = tasks.make(config)
    task.model.double().train()
    for parameter in task.model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return task


@pytest.mark.parametrize("task_name", ["sst", "mlm"])
@pytest.mark.parametrize("rows, parts", [(1, 7), (2, 4), (3, 3), (5, 2), (6, 2), (7, 1), (9, 1)])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(data, task_name, rows, parts, monkeypatch):
    """In float64, the last part ragged; for masked pieces the parts ask for different numbers of answers, some for none."""
    monkeypatch.setattr(tasks, "cross_entropy", lambda logits, labels: nn.functional.cross_entropy(logits.double(), labels))
    task = in_float64(settings(data, task=task_name, dropout=0.0, head_dropout=0.0))
    batch = task.batch([0, 1, 2, 3, 7, 8, 14], 3)
    assert len(loop.micro_batches(batch, rows)) == parts
    # Against PyTorch alone: one mean over all answers.
    task.loss(batch)[0].backward()
    expected = {name: parameter.grad.clone() for name, parameter in task.model.named_parameters()
                if parameter.grad is not None}
    task.model.zero_grad()
    loss, right, count = loop.forward_backward(task, batch, CPU, rows)
    with torch.no_grad():
        whole = task.loss(batch)
    assert loss == pytest.approx(whole[0].item(), rel=1e-12) and (right, count) == (whole[1], whole[2])
    for name, parameter in task.model.named_parameters():
        if name in expected:
            assert torch.allclose(parameter.grad, expected[name], rtol=0, atol=1e-12), name


def test_a_part_in_which_nothing_is_hidden_does_not_make_a_nan(data):
    task = tasks.make(settings(data, task="mlm", dropout=0.0))
    batch = task.batch([0, 1, 2, 3], 0)
    batch["labels"][:2] = -100
    batch["labels"][2:, 1] = batch["input_ids"][2:, 1]
    loss, _, count = loop.forward_backward(task, batch, CPU, 2)
    assert math.isfinite(loss) and count == task.answers(batch) > 0


def test_padding_is_cut_where_a_part_needs_none():
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    batch = {"input_ids": mask * 7, "attention_mask": mask, "labels": torch.tensor([0, 1, 2])}
    parts = loop.micro_batches(batch, 1)
    assert [part["input_ids"].tolist() for part in parts] == [[[7, 7, 7, 7]], [[7, 7]], [[7]]]
    assert [part["labels"].tolist() for part in parts] == [[0], [1], [2]]
    assert loop.micro_batches(batch, 0) == [batch]


def test_a_whole_run_in_parts_is_the_run_in_one(data, tmp_path, monkeypatch):
    """The last batch of an epoch is ragged (64 = 6 · 10 + 4).  Memory may run out in between: the rest can go in parts."""
    config = settings(data, dropout=0.0, head_dropout=0.0, batch_size=10, lr=1e-3)
    whole = run(config)
    for rows in (1, 3):
        parts = run(dataclasses.replace(config, micro_batch=rows))
        assert parts.losses == pytest.approx(whole.losses, abs=1e-5)
        assert parts.record["epochs"][0]["train"]["accuracy"] == whole.record["epochs"][0]["train"]["accuracy"]
    stop_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run", save_every=1e-9)
    monkeypatch.undo()
    resumed = run(dataclasses.replace(config, micro_batch=4), tmp_path / "run", resume=True)
    assert resumed.losses == pytest.approx(whole.losses, abs=1e-5)


# ---- freezing ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("freeze, still, moved", [
    ("full", "encoder.", "head."),
    ("partial", "encoder.embeddings.", "encoder.layers.1."),
    ("partial", "encoder.layers.0.", "encoder.pooler"),
])
def test_what_is_frozen_does_not_move_by_a_bit(data, freeze, still, moved):
    config = settings(data, freeze=freeze, freeze_layers=int(freeze == "partial"), weight_decay=0.3)
    loop.seed_everything(0)
    before = {name: tensor.clone() for name, tensor in tasks.make(config).model.state_dict().items()}
    after = weights_of(run(config))
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith(still))
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith(moved))


def test_the_frozen_part_has_no_dropout_while_the_head_learns(data):
    task = tasks.make(settings(data, freeze="full", dropout=0.5, head_dropout=0.0))
    task.model.train()
    batch = task.batch([0, 1, 2], 0)
    first, second = (task.loss(batch)[0].item() for _ in range(2))
    assert first == second


# ---- the best checkpoint -----------------------------------------------------------------------------------------

def scripted(monkeypatch, scores):
    """Let the dev accuracy of each epoch be what the test says."""
    real, left = tasks.SentenceTask.evaluate, list(scores)
    monkeypatch.setattr(tasks.SentenceTask, "evaluate", lambda self, a: {**real(self, a), "accuracy": left.pop(0)})


def test_the_best_weights_are_a_copy_and_the_first_of_two_equals_stays(data, monkeypatch, tmp_path):
    scripted(monkeypatch, [0.2, 0.6, 0.6, 0.1])
    result = run(settings(data, epochs=4), tmp_path / "run")
    assert result.record["best"]["epoch"] == 2 and result.checkpoint.name == "best-002.safetensors"
    saved, meta = checkpoint.load(result.checkpoint)
    assert same(saved, weights_of(result)) and meta["epoch"] == 2

    # The learning rate's course depends on the number of epochs: the weights after two of four epochs, by stopping there.
    monkeypatch.undo()
    scripted(monkeypatch, [0.2, 0.6])
    stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        run(settings(data, epochs=4), tmp_path / "stopped")
    assert same(checkpoint.load(tmp_path / "stopped" / "best-002.safetensors")[0], saved)


def test_only_the_best_file_is_kept(data, monkeypatch, tmp_path):
    scripted(monkeypatch, [0.2, 0.4, 0.6])
    run(settings(data), tmp_path / "run")
    assert sorted(os.listdir(tmp_path / "run")) == ["best-003.safetensors", "config.json", "record.json", "tokenizer.json"]


def test_without_a_directory_nothing_is_written(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(settings(data, epochs=1))
    assert result.directory is None and result.checkpoint is None and not os.listdir(tmp_path)


# ---- resuming ----------------------------------------------------------------------------------------------------

def stop_after(monkeypatch, epochs, step=3):
    """Press Ctrl-C in a step of the epoch after so many."""
    real, count = loop.training_step, [0]

    def training_step(*arguments):
        if count[0] == epochs * 8 + step:
            raise KeyboardInterrupt
        count[0] += 1
        return real(*arguments)

    monkeypatch.setattr(loop, "training_step", training_step)


@pytest.mark.parametrize("changes", [{}, {"freeze": "partial", "freeze_layers": 1}, {"encoder": "bag"},
                                     {"precision": "bf16"}, {"task": "mlm", "batch_size": 2},
                                     {"attention": "fast"}, {"embedding_rows": "occurring", "last_layer": "cls"},
                                     {"optimizer": "adamw"}, {"rates": "layerwise", "micro_batch": 3}],
                         ids=lambda c: "-".join(map(str, c.values())) or "plain")
@pytest.mark.parametrize("save_every, kept", [(0, 8), (1e-9, 11)], ids=["by-epochs", "within-an-epoch"])
def test_a_resumed_run_continues_bit_for_bit(data, tmp_path, monkeypatch, changes, save_every, kept):
    config = settings(data, **changes)
    whole = run(config, tmp_path / "whole")
    stop_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "part", save_every=save_every)
    monkeypatch.undo()
    assert checkpoint.load(tmp_path / "part" / "last.safetensors")[1]["progress"]["step"] == kept
    torch.rand(5)                                    # another process has another random state
    resumed = run(config, tmp_path / "part", resume=True)
    assert len(whole.losses) == 24 and resumed.losses == whole.losses
    assert same(weights_of(resumed), weights_of(whole))
    times = ("seconds", "examples_per_second")
    plain = [{**e, "train": {k: v for k, v in e["train"].items() if k not in times}} for e in whole.record["epochs"]]
    again = [{**e, "train": {k: v for k, v in e["train"].items() if k not in times}} for e in resumed.record["epochs"]]
    assert again == plain
    assert resumed.checkpoint.name == whole.checkpoint.name
    assert same(checkpoint.load(resumed.checkpoint)[0], checkpoint.load(whole.checkpoint)[0])


@pytest.mark.parametrize("where", ["best", "last"])
def test_stopped_while_saving_it_resumes_bit_for_bit(data, tmp_path, monkeypatch, where):
    """Ctrl-C between the two files of an epoch, or in the writing of either."""
    config = settings(data)
    whole = run(config)
    real, seen = files.os.replace, []

    def replace(part, path):
        if path.name.startswith(where):
            seen.append(path)
            if len(seen) == 2:
                raise KeyboardInterrupt
        real(part, path)

    scores = [0.3, 0.4, 0.5]                         # every epoch has a best file to write
    scripted(monkeypatch, scores)
    monkeypatch.setattr(files.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run")
    monkeypatch.undo()
    assert not [name for name in os.listdir(tmp_path / "run") if name.endswith(".part")]
    assert run(config, tmp_path / "run", resume=True).losses == whole.losses


def test_resume_without_anything_to_resume_starts_at_the_beginning(data, tmp_path):
    config = settings(data, epochs=1)
    assert run(config, tmp_path / "new", resume=True).losses == run(config).losses


def test_a_run_with_other_settings_or_other_data_is_not_resumed(data, tmp_path, monkeypatch):
    stop_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        run(settings(data), tmp_path / "run")
    monkeypatch.undo()
    with pytest.raises(checkpoint.CheckpointError, match="lr: 0.002 → 0.003"):
        run(settings(data, lr=3e-3), tmp_path / "run", resume=True)
    other = tmp_path / os.path.basename(data)        # the same name, other sentences
    other.mkdir()
    for name in os.listdir(data):
        text = open(os.path.join(data, name), encoding="utf-8").read()
        (other / name).write_text(text.replace("goes on", "runs on"), encoding="utf-8")
    with pytest.raises(checkpoint.CheckpointError, match="made with other data"):
        run(settings(str(other)), tmp_path / "run", resume=True)
    assert len(run(settings(data), tmp_path / "run", resume=True).losses) == 24   # the refusals lost nothing


def test_a_damaged_checkpoint_is_refused_and_again_starts_over(data, tmp_path, monkeypatch):
    stop_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        run(settings(data), tmp_path / "run")
    monkeypatch.undo()
    last = tmp_path / "run" / "last.safetensors"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(checkpoint.CheckpointError, match="truncated or damaged"):
        run(settings(data), tmp_path / "run", resume=True)
    assert len(run(settings(data), tmp_path / "run", again=True).losses) == 24


def test_a_directory_in_use_is_refused(data, tmp_path):
    out = tmp_path / "run"
    run(settings(data, epochs=1), out)
    before = {name: (out / name).read_bytes() for name in os.listdir(out)}
    with pytest.raises(RunError, match="--resume, or start over by --again"):
        run(settings(data, epochs=1), out)
    with pytest.raises(RunError, match="finished"):
        run(settings(data, epochs=1), out, resume=True)
    assert {name: (out / name).read_bytes() for name in os.listdir(out)} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="this is a file"):
        run(settings(data), tmp_path / "file")
    with pytest.raises(RunError, match="can't be written"):
        run(settings(data), tmp_path / "file" / "below")
    (out / "notes.txt").write_text("mine")
    (out / "vectors.safetensors").write_text("mine")
    (out / "predictions.json").write_text("of a run on squad")
    run(settings(data, epochs=1), out, again=True)
    assert (out / "notes.txt").read_text() == "mine"             # --again removes what a run wrote, and nothing else
    assert (out / "vectors.safetensors").read_text() == "mine" and not (out / "predictions.json").exists()


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"again": True}])
def test_a_directory_with_a_models_weights_is_left_alone(data, tmp_path, options):
    """Its config.json looks like a run's, and advice to start over by --again would cost the reader the weights."""
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(RunError, match="a model's weights are here, and no run: choose another --out"):
        run(settings(data), tmp_path, **options)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == \
        dict.fromkeys(("config.json", "tokenizer.json", "model.safetensors"), "mine")


# ---- numbers that are none ---------------------------------------------------------------------------------------

def break_loss(monkeypatch, at, value):
    real, step = tasks.SentenceTask.loss, loop.training_step
    taken = []

    def loss(self, batch):
        mean, right, count = real(self, batch)
        return (mean * value if len(taken) == at + 1 else mean), right, count

    monkeypatch.setattr(tasks.SentenceTask, "loss", loss)
    monkeypatch.setattr(loop, "training_step", lambda *arguments: [taken.append(1), step(*arguments)][1])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_and_loses_nothing(data, tmp_path, monkeypatch, value):
    config = settings(data)
    whole = run(config)
    break_loss(monkeypatch, 12, value)
    with pytest.raises(TrainingStopped) as error:
        run(config, tmp_path / "run")
    message = str(error.value)
    assert "epoch 2, step 5 of 8" in message and f"the loss is {value}, first seen in the loss itself" in message
    assert f"everything up to epoch 1 of 3, step 4 of 8 of the next is kept in {tmp_path / 'run'}" in message
    order = batches([len(ids) for ids in whole.task.train_ids], 8, 0, 1)[4]
    assert ", ".join(f"train{i}" for i in order) in message and "\n" not in message
    monkeypatch.undo()
    assert run(config, tmp_path / "run", resume=True).losses == whole.losses


@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_the_weights_are_not_touched_by_a_bad_step(data, clip):
    task = tasks.make(settings(data))
    optimizer = loop.make_optimizer(task.model, lr=0.1)
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    real, task.loss = task.loss, lambda batch: (real(batch)[0] * float("nan"), 0, 1)
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        loop.training_step(task, task.batch([0, 1], 0), optimizer, CPU, clip)
    assert same(before, task.model.state_dict())


def breaks(name, where):
    """Break one layer of a model: its output, its gradient or its weights, and say how `first_bad_layer` should call it."""
    def harm(model):
        layer = model.get_submodule(name)
        if where == "output":
            layer.register_forward_hook(lambda module, inputs, output: output * float("inf"))
            return f"the output of {name}"
        if where == "gradient":
            layer.weight.register_hook(lambda gradient: gradient * float("nan"))
            return f"the gradient of {name}.weight"
        if where == "gradient of the output":
            # What comes after the layer gives finite numbers and a gradient that is none.
            def after(module, inputs, output):
                output.register_hook(lambda gradient: gradient * float("nan"))
            layer.register_forward_hook(after)
            return f"the gradient of the output of {name}"
        with torch.no_grad():
            layer.weight[0, 0] = float("nan")
        return f"the weights {name}.weight, which were no numbers before this step"
    return harm


@pytest.mark.parametrize("micro_batch", [0, 3])
@pytest.mark.parametrize("name", ["encoder.layers.0.down", "encoder.layers.1.up", "head"])
@pytest.mark.parametrize("where", ["output", "gradient", "gradient of the output", "weights"])
def test_the_first_bad_layer_is_found(data, name, where, micro_batch):
    task = tasks.make(settings(data))
    task.model.train()
    batch, random_numbers = task.batch(range(8), 0), checkpoint.random_state()
    assert loop.first_bad_layer(task, batch, CPU, random_numbers, micro_batch).startswith("no layer")
    expected = breaks(name, where)(task.model)
    assert loop.first_bad_layer(task, batch, CPU, random_numbers, micro_batch) == expected
    assert all(parameter.grad is None for parameter in task.model.parameters())


def test_the_second_pass_has_the_dropout_of_the_first(data):
    """A layer that only breaks where dropout left one certain entry alone."""
    task = tasks.make(settings(data, head_dropout=0.5))
    task.model.train()
    batch, verdicts = task.batch(range(8), 0), []
    task.model.dropout.register_forward_hook(
        lambda module, inputs, output: output / (output[0, 0] == 0).float().sub(1).abs())     # by 0 if dropped
    for _ in range(8):
        before = checkpoint.random_state()
        try:
            loop.forward_backward(task, batch, CPU)
            verdicts.append("no layer")
        except FloatingPointError:
            verdicts.append("the output of dropout")
        assert loop.first_bad_layer(task, batch, CPU, before).startswith(verdicts[-1])
    assert len(set(verdicts)) == 2


@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_a_gradient_that_is_no_number_stops_the_run_and_no_broken_weight_is_saved(data, tmp_path, monkeypatch, clip):
    config = settings(data, clip=clip, epochs=2)
    whole = run(config)
    make, count = tasks.make, [0]

    def broken(gradient):
        count[0] += 1
        return gradient * float("nan") if count[0] >= 6 else gradient

    def make_broken(*arguments):
        task = make(*arguments)
        task.model.encoder.layers[1].up.weight.register_hook(broken)
        return task

    monkeypatch.setattr(tasks, "make", make_broken)
    with pytest.raises(TrainingStopped) as error:
        run(config, tmp_path / "run", save_every=1e-9)
    if clip:
        assert "epoch 1, step 6 of 8" in str(error.value) and "the norm of the gradient is nan" in str(error.value)
        assert "first seen in the gradient of encoder.layers.1.up.weight" in str(error.value)
    else:                                            # nobody looked at the gradient: the weights are broken already
        assert "after step 6: the weights" in str(error.value) and "--clip 1" in str(error.value)
    assert "\n" not in str(error.value)
    assert checkpoint.load(tmp_path / "run" / "last.safetensors")[1]["progress"]["step"] == 5
    monkeypatch.undo()
    assert run(config, tmp_path / "run", resume=True).losses == whole.losses


def test_a_dev_score_that_is_no_number_stops_the_run_and_what_was_saved_stays(data, tmp_path, monkeypatch):
    """A record can't hold it: found at the end only, it would cost the whole run."""
    assert loop.broken_score({"tasks": {"sst": {"loss": 1.0}, "sts": {"pearson": math.nan}}}) == "sts pearson is nan"
    assert loop.broken_score({"loss": 1.0, "confusion": [[1]], "constant": True}) is None
    real, seen = tasks.SentenceTask.evaluate, []
    monkeypatch.setattr(tasks.SentenceTask, "evaluate", lambda self, arithmetic: {
        **real(self, arithmetic), **({"loss": math.inf} if seen.append(1) or len(seen) == 2 else {})})
    with pytest.raises(TrainingStopped, match="stopped after epoch 2: the dev loss is inf; what was saved before stays"):
        run(settings(data), tmp_path / "run")
    monkeypatch.undo()
    assert len(run(settings(data), tmp_path / "run", resume=True).losses) == 24


def test_broken_weights_get_no_score(data, monkeypatch):
    """The last step of an epoch breaks them, and there is neither clipping nor a directory."""
    make, count = tasks.make, [0]

    def make_broken(*arguments):
        task = make(*arguments)
        task.model.head.weight.register_hook(lambda g: [count.append(1), g * float("inf") if len(count) == 9 else g][1])
        return task

    monkeypatch.setattr(tasks, "make", make_broken)
    with pytest.raises(TrainingStopped, match="after step 8: the weights .* are no numbers any more"):
        run(settings(data, clip=0.0))


# ---- pieces ------------------------------------------------------------------------------------------------------

def test_clipping_only_scales_above_the_limit():
    def gradients(scale):
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(2))]
        for parameter in parameters[:2]:             # the last one has no gradient at all
            parameter.grad = torch.randn_like(parameter) * scale
        return parameters

    small, untouched = gradients(1e-3), gradients(1e-3)
    norm = loop.clip_gradients(small, 1.0)
    assert norm == pytest.approx(math.sqrt(sum(p.grad.square().sum().item() for p in untouched[:2])))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(small[:2], untouched))
    big, oracle = gradients(10), gradients(10)
    assert loop.clip_gradients(big, 1.0) == pytest.approx(nn.utils.clip_grad_norm_(oracle, 1.0).item())
    assert all(torch.allclose(a.grad, b.grad, atol=0, rtol=1e-6) for a, b in zip(big[:2], oracle))


def test_the_schedule():
    config = recipes.make(warmup=0.2)
    assert [10 * loop.schedule(config, step, 10) for step in range(10)] == pytest.approx(
        [0, 5, 10, 8.75, 7.5, 6.25, 5, 3.75, 2.5, 1.25])
    level = recipes.make(warmup=0.2, schedule="constant")
    assert [loop.schedule(level, step, 10) for step in range(4)] == [0, 0.5, 1, 1]
    assert loop.schedule(recipes.make(warmup=0.0, schedule="constant"), 0, 10) == 1


def test_each_group_keeps_its_own_learning_rate():
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": 1.0},
                                 {"params": [nn.Parameter(torch.zeros(1))], "lr": 0.1}])
    for factor in (0.5, 1.0, 0.25):                  # not multiplied up from step to step
        loop.set_learning_rate(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([factor, 0.1 * factor])


def test_predictions_come_in_the_order_asked_and_alone_as_in_a_batch(data):
    task = tasks.make(settings(data))
    task.model.train()
    together = tasks.predict(task.model, task.train_ids, CPU, batch_size=7)
    assert task.model.training                       # left as it was found
    assert not torch.allclose(together[0], together[1])
    for i in (0, 1, 2, 30, 59):
        assert torch.allclose(tasks.predict(task.model, [task.train_ids[i]], CPU)[0], together[i], atol=1e-6)


def test_evaluation_draws_no_random_number(data):
    task = tasks.make(settings(data))
    before = torch.get_rng_state()
    task.evaluate(CPU)
    assert torch.equal(torch.get_rng_state(), before)


# ---- precision and device ----------------------------------------------------------------------------------------

def test_float32_on_a_cpu_unless_asked(data, tmp_path):
    assert device.choose("cpu").precision == "fp32"
    plain, half = run(settings(data, epochs=1)), run(settings(data, epochs=1, precision="bf16"), tmp_path / "run")
    assert plain.record["config"]["precision"] == "fp32" and half.record["config"]["precision"] == "bf16"
    assert half.losses != plain.losses and half.losses == pytest.approx(plain.losses, abs=0.05)
    assert {p.dtype for p in half.task.model.parameters()} == {torch.float32}    # the weights themselves stay float32


def test_float16_skips_a_step_that_overflows_and_lowers_its_scale(data):
    arithmetic = device.choose("cpu", "fp16")
    task = tasks.make(settings(data, dropout=0.0))
    optimizer = loop.make_optimizer(task.model, lr=1e-2)
    before, scale = {n: t.clone() for n, t in task.model.state_dict().items()}, arithmetic.scaler.get_scale()
    hook = task.model.head.weight.register_hook(lambda gradient: gradient * float("inf"))
    loop.training_step(task, task.batch([0, 1], 0), optimizer, arithmetic, 1.0)
    assert same(before, task.model.state_dict()) and arithmetic.scaler.get_scale() == scale / 2
    hook.remove()
    loop.training_step(task, task.batch([0, 1], 0), optimizer, arithmetic, 1.0)
    assert not same(before, task.model.state_dict())


class Overflowing:
    """A stand-in for the loss scaling: in the steps named, the gradient overflows whatever the scale is."""

    def __init__(self, steps):
        self.steps, self.number, self.factor = steps, 0, 2.0**16

    def scale(self, loss):
        return loss * self.factor

    def unscale_(self, optimizer):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad /= self.factor

    def step(self, optimizer):
        if self.number not in self.steps:
            optimizer.step()

    def update(self):
        self.factor /= 2 if self.number in self.steps else 1
        self.number += 1

    def get_scale(self):
        return self.factor

    def state_dict(self):
        return {"number": self.number, "factor": self.factor}

    def load_state_dict(self, state):
        self.number, self.factor = state["number"], state["factor"]


def with_scaler(monkeypatch, steps):
    choose = device.choose
    monkeypatch.setattr(device, "choose", lambda *_: dataclasses.replace(choose("cpu", "fp32"), precision="fp16",
                                                                         scaler=Overflowing(steps)))


def test_steps_left_out_are_counted_and_a_few_are_no_fault(data, monkeypatch, tmp_path):
    with_scaler(monkeypatch, {0, 1, 2, 9})
    history = run(settings(data, precision="fp16")).record["epochs"]
    assert [entry["train"]["skipped"] for entry in history] == [3, 1, 0]
    # The count, and the scale, survive an interruption.
    stop_after(monkeypatch, 0, step=2)
    with pytest.raises(KeyboardInterrupt):
        run(settings(data, precision="fp16"), tmp_path / "run", save_every=1e-9)
    monkeypatch.undo()
    with_scaler(monkeypatch, {0, 1, 2, 9})
    again = run(settings(data, precision="fp16"), tmp_path / "run", resume=True).record["epochs"]
    assert [entry["train"]["skipped"] for entry in again] == [3, 1, 0]


def test_a_run_that_only_leaves_steps_out_stops(data, monkeypatch, tmp_path):
    with_scaler(monkeypatch, set(range(3, 99)))
    with pytest.raises(TrainingStopped) as error:
        run(settings(data, precision="fp16", epochs=9), tmp_path / "run")
    message = str(error.value)
    assert "epoch 5, step 2 of 8" in message                     # steps 3 … 32 were left out, step 33 was not tried
    assert f"overflowed float16 in each of the last {loop.SKIPS_IN_A_ROW} steps" in message
    assert "--precision fp32" in message and "step 1 of 8 of the next is kept" in message and "\n" not in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_an_error():
    with pytest.raises(device.DeviceError, match="PyTorch sees none"):
        device.choose("cuda")


def test_an_unknown_device_is_an_error():
    for name in ("gpu", "meta"):
        with pytest.raises(device.DeviceError, match="auto, cpu, cuda"):
            device.choose(name)


# ---- what the reader sees ----------------------------------------------------------------------------------------

def test_it_says_which_weights_data_and_device(data, capsys):
    run(settings(data, epochs=1, steps_per_epoch=1))
    out = capsys.readouterr().out
    assert "random" in out and os.path.basename(data) in out and "64 / 20 sentences" in out and "cpu, fp32" in out
    assert "meant for a GPU" not in out
    run(settings(data, epochs=1, steps_per_epoch=1, size="full"))
    assert "note     size full is meant for a GPU; on a CPU it takes days" in capsys.readouterr().out


def test_a_bar_shows_the_steps_and_words_say_that_the_dev_set_is_being_scored(data, monkeypatch):
    real, shown = loop.tqdm, []

    def bar(items, desc, **choices):
        shown.append((desc, choices.get("disable", False)))
        return real(items, desc=desc, **{**choices, "disable": True})

    monkeypatch.setattr(loop, "tqdm", bar)
    loop.train(settings(data, epochs=1), device="cpu")
    run(settings(data, epochs=1))                    # without progress
    assert shown == [(desc, quiet) for quiet in (False, True) for desc in ("epoch 1/1", "scoring on dev ...")]


def test_every_line_of_a_smoke_run_says_plumbing_only(capsys):
    loop.train(recipes.resolve("sst-full", "smoke", epochs=1), progress=True, device="cpu")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 4 and all(line.startswith("plumbing only") for line in lines)


def test_cut_sentences_are_counted_and_told(data, capsys):
    run(settings(data, epochs=1, steps_per_epoch=1, max_length=5))
    assert "64 of 64 sentences were longer than 5 tokens and were cut" in capsys.readouterr().out


# ---- starting points ---------------------------------------------------------------------------------------------

def test_a_checkpoint_directory_is_enough_to_predict(data, tmp_path):
    result = run(settings(data), tmp_path / "run")
    model, tokenizer, meta = build.load_classifier(tmp_path / "run")
    assert tokenizer.to_str() == result.task.tokenizer.to_str()
    assert meta["label_names"][0] == "very negative" and meta["metrics"]["dev"] == result.record["best"]["dev"]
    assert torch.equal(tasks.predict(model, result.task.dev_ids, CPU),
                       tasks.predict(result.task.model, result.task.dev_ids, CPU))


@pytest.mark.parametrize("encoder", ["bag", "attention"])
def test_the_other_encoders_come_back_too(data, tmp_path, encoder):
    result = run(settings(data, encoder=encoder, epochs=1), tmp_path / "run")
    model, _, _ = build.load_classifier(tmp_path / "run")
    assert same(weights_of(result), model.state_dict())


def test_a_vocabulary_learned_here_is_the_same_every_time(data):
    texts = [line for line in open(os.path.join(data, "ids-sst-train.csv"), encoding="utf-8")]
    config = settings(data)
    assert build.start(config, texts).tokenizer.to_str() == build.start(config, texts).tokenizer.to_str()


def test_random_weights_take_shape_and_vocabulary_but_no_weights(data, tmp_path):
    first = run(settings(data, task="mlm", epochs=1, recipe="masked-language-model"), tmp_path / "run")
    place = str(tmp_path / "run" / "encoder")
    fresh = build.start(settings(data, weights=place), [])
    loaded = build.start(settings(data, weights=place, init="pretrained", dropout=0.3), [])
    assert fresh.shape["layers"] == loaded.shape["layers"] == 2 and fresh.weights["sha256"] is None
    assert loaded.weights["sha256"] and loaded.encoder.config.hidden_dropout == loaded.encoder.config.attention_dropout == 0.3
    pretrained = first.task.model.bert.embeddings.word.weight
    assert torch.equal(loaded.encoder.embeddings.word.weight, pretrained)
    assert not torch.equal(fresh.encoder.embeddings.word.weight, pretrained)
    with pytest.raises(ValueError, match="max_length 500 is more than the 128 positions"):
        build.start(settings(data, weights=place, max_length=500), [])


# ---- pre-training ------------------------------------------------------------------------------------------------

def test_masked_pretraining_learns_and_beats_guessing_by_frequency(data):
    result = run(settings(data, task="mlm", epochs=25, hidden_size=32, lr=5e-3, dropout=0.0))
    base, best = result.record["data"]["unigram_baseline"], result.record["best"]["dev"]
    assert best["loss"] < 0.7 * base["loss"] and best["accuracy"] > base["accuracy"] + 0.2


def test_the_baseline_is_the_frequencies_of_the_training_text(data):
    """Computed again here, piece by piece."""
    task = tasks.make(settings(data, task="mlm"))
    counts = [1.0] * task.vocab_size
    for row in task.train_ids:
        for piece in row[1:-1]:
            counts[piece] += 1
    hidden = [label for batch in task.dev_batches for label in batch["labels"].flatten().tolist() if label != -100]
    losses = [-math.log(counts[piece] / sum(counts)) for piece in hidden]
    favourite = max(range(len(counts)), key=lambda piece: counts[piece])
    assert task.data["unigram_baseline"]["loss"] == pytest.approx(sum(losses) / len(losses))
    assert task.data["unigram_baseline"]["accuracy"] == pytest.approx(sum(p == favourite for p in hidden) / len(hidden))


def test_the_hidden_pieces_depend_on_seed_and_step_alone(data):
    task, again = (tasks.make(settings(data, task="mlm", dropout=0.0)) for _ in range(2))
    task.model.load_state_dict(again.model.state_dict())
    losses = [task.loss(task.batch(range(8), step))[0].item() for step in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]
    other = tasks.make(settings(data, task="mlm", seed=1))
    assert all(torch.equal(a["labels"], b["labels"]) for a, b in zip(task.dev_batches, other.dev_batches))


def test_a_short_batch_always_has_something_hidden(data):
    task = tasks.make(settings(data, task="mlm"))
    batch = {"input_ids": torch.tensor([[2, 9, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.int64)}
    assert all((task._masked(batch, number)["labels"] != -100).any() for number in range(40))


def test_dev_texts_are_not_trained_on(tmp_path):
    for split, rows in (("train", ["one text two", "held out text"]), ("dev", ["held out text", "another text"])):
        lines = ["\tid\tsentence\tsentiment"] + [f"{i}\t{i}\t{text}\t0" for i, text in enumerate(rows)]
        (tmp_path / f"ids-sst-{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = settings(str(tmp_path), task="mlm", vocab_size=60)
    task = tasks.make(config)
    assert len(task.train_ids) == 1 and task.data["train"]["texts"] == 1 and task.data["dev"]["texts"] == 2
    (tmp_path / "ids-sst-train.csv").write_text("\tid\tsentence\tsentiment\n0\t0\theld out text\t0\n", encoding="utf-8")
    with pytest.raises(DataError, match="no text is left to train on"):
        tasks.make(config)
    (tmp_path / "ids-sst-train.csv").write_text("\tid\tsentence\tsentiment\n0\t0\t一 二\t0\n", encoding="utf-8")
    with pytest.raises(DataError, match="no known word piece"):  # the dev texts are all [UNK] in this vocabulary
        tasks.make(config)


def test_the_pretrained_encoder_is_where_the_next_recipe_finds_it(data, tmp_path):
    small = dict(size="smoke", data=data, precision="fp32")
    config = settings(data, task="mlm", recipe="masked-language-model", epochs=1, size="smoke", precision="fp32")
    runs = tmp_path / "runs"
    user = recipes.resolve("small-bert-pretrained", **small)
    with pytest.raises(WeightsError, match="Run it first: minbert run masked-language-model --size smoke"):
        build.start(user, [], runs)
    with pytest.raises(WeightsError, match="is read from files.*or --data builtin"):     # --data hub can't pre-train
        build.start(dataclasses.replace(user, data="hub"), [], runs)
    first = run(config, runs / config.recipe / recipes.run_name(config))
    start = build.start(user, [], runs)
    assert torch.equal(start.encoder.layers[0].up.weight, first.task.model.bert.layers[0].up.weight)
    assert start.weights["name"] == f"run:masked-language-model ({recipes.run_name(config)})"
    assert str(tmp_path) not in json.dumps(start.weights)
    model, tokenizer, _ = load_pretrained(str(runs / config.recipe / recipes.run_name(config) / "encoder"))
    assert isinstance(model, BertModel) and isinstance(model.config, BertConfig) and tokenizer.get_vocab_size() <= 200
    with pytest.raises(checkpoint.CheckpointError, match="no classes to predict"):
        build.load_classifier(first.directory)


def test_a_config_cannot_be_changed_by_accident():
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipes.make().lr = 1
