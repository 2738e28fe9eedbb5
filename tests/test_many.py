"""Pairs and several tasks in training: right gradients, right order, resumed bit for bit, nothing moved that should stay."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

from minbert import lora, metrics
from minbert.bert import BertConfig, BertModel
from minbert.classify import SentenceClassifier, freeze
from minbert.multitask import MultiTaskModel, freeze_head
from minbert.run import checkpoint, cli, device, loop, pair_task, recipes, report, tasks

CPU = device.choose("cpu", "fp32")
SMALL = dict(recipes.SMOKE, hidden_size=16, intermediate_size=32, steps_per_epoch=6, vocab_size=300)
THREE = dict(task="sst+quora+sts", sampling="round-robin")


def settings(**changes):
    return recipes.make(**{**SMALL, **changes})


def run(config, out=None, **options):
    return loop.train(config, out=out, progress=False, device="cpu", **options)


def in_float64(**changes):
    """A task with double the digits, no dropout and random parameters."""
    loop.seed_everything(0)
    task = tasks.make(settings(dropout=0.0, head_dropout=0.0, **changes))
    task.model.double().train()
    for parameter in task.model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return task


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.allclose(found[name], expected[name], rtol=0, atol=1e-11), name


# ---- pairs -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("changes", [
    dict(task="quora"), dict(task="quora", pair_head="vector", paraphrase="bce"), dict(task="sts", pair_head="cosine-learned"),
    dict(task="sts", pair_head="cross-both", similarity="huber"),
    dict(task="sts", pair_head="cosine", similarity="cosine", pooling="mean"),
], ids=lambda c: "-".join(c.values()))
@pytest.mark.parametrize("rows", [1, 3, 7])
def test_a_batch_of_pairs_in_parts_has_the_gradient_of_the_whole(changes, rows):
    task = in_float64(**changes)
    batch = task.batch([0, 1, 2, 3, 7, 8, 14], 0)
    batch["labels"] = batch["labels"].double()
    task.loss(batch)[0].backward()
    expected = gradients(task.model)
    task.model.zero_grad()
    loss, right, count = loop.forward_backward(task, batch, CPU, rows)
    whole = task.loss(batch)
    assert loss == pytest.approx(whole[0].item(), rel=1e-6) and (right, count) == (whole[1], whole[2])
    assert len(task.parts(batch, rows)) == -(-7 // rows)
    for name, gradient in gradients(task.model).items():         # paraphrase losses are taken in float32
        assert torch.allclose(gradient, expected[name], rtol=1e-5, atol=1e-7), name


def test_the_two_sides_of_a_pair_are_in_their_halves_and_padded_alike():
    task = tasks.make(settings(task="sts", pair_head="vector"))
    batch = task.batch([5, 2], 0)
    assert batch["input_ids"].shape[0] == 4
    for row, (pair, side) in enumerate([(5, 0), (2, 0), (5, 1), (2, 1)]):
        ids = task.sides[pair][side]
        assert batch["input_ids"][row, :len(ids)].tolist() == ids and batch["attention_mask"][row].sum() == len(ids)
    assert batch["labels"].tolist() == pytest.approx([task.train_labels[5], task.train_labels[2]])


@pytest.mark.parametrize("changes", [dict(task="quora"), dict(task="sts", pair_head="cross-printed", similarity="mse")])
def test_dev_scores_do_not_depend_on_the_batches(changes):
    task = tasks.make(settings(**changes))
    many, few = task.evaluate(CPU, batch_size=64), task.evaluate(CPU, batch_size=1)
    assert many["predictions"] == pytest.approx(few["predictions"], abs=1e-5)
    assert many["loss"] == pytest.approx(few["loss"], abs=1e-5)


def test_a_constant_prediction_counts_as_no_correlation_and_is_said():
    task = tasks.make(settings(task="sts"))
    with torch.no_grad():
        task.model.head.weight.zero_()
        task.model.head.bias.copy_(torch.tensor([0., 0, 9, 0, 0, 0]))
    scores = task.evaluate(CPU)
    assert set(scores["predictions"]) == {2} and scores["pearson"] == 0 and scores["constant"] is True


def test_a_constant_prediction_is_never_the_best_where_there_is_an_r(monkeypatch):
    scores = [{"pearson": 0.0, "constant": True}, {"pearson": -0.2}, {"pearson": -0.1}, {"pearson": 0.0, "constant": True}]
    given = iter([{"pearson": 0.3}, *scores])        # the first is that of the untrained model
    monkeypatch.setattr(pair_task.SentencePairTask, "evaluate", lambda *_: next(given))
    record = run(settings(task="sts", epochs=4, steps_per_epoch=1)).record
    assert record["best"]["epoch"] == 3 and [epoch["dev"] for epoch in record["epochs"]] == scores
    given = iter([{"pearson": 0.3}, scores[0], scores[3]])
    assert run(settings(task="sts", epochs=2, steps_per_epoch=1)).record["best"]["epoch"] == 1


def test_a_batch_of_one_pair_trains():
    result = run(settings(task="sts", similarity="mse", pair_head="vector", batch_size=1, epochs=1, steps_per_epoch=3))
    assert len(result.losses) == 3 and result.record["untrained"]["dev"]["mse"] > 0


@pytest.mark.parametrize("changes, message", [
    (dict(task="sts", pair_head="cosine"), "head 'cosine' can't serve 'classes' for similarity; it takes cosine"),
    (dict(task="quora", pair_head="cosine"), "heads for it: joined"),
    (dict(task="sst+quora+sts", pair_head="cosine-fixed", paraphrase="bce"), "can't serve 'bce' for paraphrase; it takes ce2"),
])
def test_what_does_not_fit_together_is_refused_with_what_would(changes, message):
    with pytest.raises(ValueError, match=message):
        tasks.make(settings(**changes))


@pytest.mark.parametrize("changes, message", [
    (dict(task="sst+quorra"), "unknown task 'quorra'; did you mean quora"),
    (dict(task="sst+sst"), "named twice"), (dict(task="sst+mlm"), "stands alone"),
    (dict(trained="sts"), "'sts' is none of the tasks sst"),
    (dict(task="sst+sts", step_form="summed"), "choose --sampling round-robin"),
    (dict(task="sst+sts", sampling="phases", epochs=1), "too few"),
    (dict(task="sst+sts", freeze="head"), "--freeze-task, one of sst, sts"),
    (dict(freeze_task="sst"), "freeze is 'none'"),
    (dict(adapt="lora", freeze="full"), "leave freeze at 'none'"), (dict(adapt="lora", lora_r=0), "at least 1"),
    (dict(task="sts", pair_head="cross-printed", last_layer="cls"), "leave it at 'all'"),
    (dict(task="sst+sts", pair_head="vector", pooling="mean", last_layer="cls"), "leave it at 'all'"),
])
def test_settings_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(recipes.RecipeError, match=message):
        settings(**changes)


# ---- several tasks -----------------------------------------------------------------------------------------------

def test_the_order_of_an_epoch_passes_over_each_task_without_loss():
    """Epoch after epoch, each task's batches go on where they stopped: no example twice before all were there once."""
    task = tasks.make(settings(task="sst+sts", sampling="annealed", steps_per_epoch=40, epochs=4))
    seen = {name: [] for name in task.trained}
    for epoch in range(4):
        order = task.order(epoch)
        assert order == task.order(epoch) and len(order) == task.steps(epoch) == 40
        for step in order:
            for name, indices in step:
                seen[name] += indices
    for name, indices in seen.items():
        size = len(task.every[name].train_labels)
        assert len(indices) > size / 2
        for first in range(0, len(indices), size):
            part = indices[first:first + size]
            assert len(set(part)) == len(part), name
    drawn = task.drawn()
    assert [sum(batches) for batches in drawn["batches_by_epoch"]] == [40] * 4
    assert drawn["names"] == ["sst", "sts"] and drawn["counts"] == [340, 312]


@pytest.mark.parametrize("rows", [0, 3])
def test_a_summed_step_has_the_sum_of_the_tasks_gradients(rows):
    task = in_float64(**THREE, step_form="summed")
    batch = task.batch([(name, [0, 1, 2, 7]) for name in task.every], 0)
    assert list(batch) == ["sst", "quora", "sts"]
    expected = {}
    for name, own in batch.items():                  # each task alone, its own mean
        task.model.zero_grad()
        task.every[name].loss(own)[0].backward()
        for key, gradient in gradients(task.model).items():
            expected[key] = expected.get(key, 0) + gradient
    task.model.zero_grad()
    loop.forward_backward(task, batch, CPU, rows)
    found = gradients(task.model)
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("changes", [
    dict(THREE, step_form="summed", micro_batch=3), dict(THREE, sampling="annealed", adapt="lora"),
    dict(task="sst+quora", sampling="phases"), dict(task="sign+score", projection=8, pooling="mean", sampling="proportional"),
    dict(task="sts", pair_head="vector", similarity="mse"),
    dict(task="squad", freeze="partial", freeze_layers=1), dict(task="sst+quora+sts+squad", cosine_every=2),
], ids=["summed", "adapters", "phases", "projection", "pairs", "squad", "four"])
def test_a_resumed_run_of_several_tasks_continues_bit_for_bit(tmp_path, monkeypatch, changes):
    config = settings(**changes)
    whole = run(config, tmp_path / "whole")
    real, count = loop.training_step, itertools.count()

    def training_step(*arguments):
        if next(count) == 8:                         # in the middle of the second epoch
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(loop, "training_step", training_step)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "part", save_every=1e-9)
    monkeypatch.undo()
    torch.rand(5)
    resumed = run(config, tmp_path / "part", resume=True)
    assert resumed.losses == whole.losses and len(whole.losses) == 12
    for key in ("untrained", "best", "gradient_cosines", "plan"):
        old, new = ({**result.record.get(key, {}), "train": 0} for result in (whole, resumed))
        assert old == new, key
    old, new = (checkpoint.load(result.checkpoint)[0] for result in (whole, resumed))
    assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)


def test_what_is_not_trained_stays_bit_for_bit():
    """The head of a task that is only scored, and the adapters of a task that had no batch."""
    for changes in (dict(trained="sst+sts"), dict(trained="sst+sts", adapt="lora")):
        config = settings(**{**THREE, **changes}, epochs=1)
        loop.seed_everything(0)
        before = {name: t.clone() for name, t in tasks.make(config).model.state_dict().items()}
        after = run(config).task.model.state_dict()
        idle = [name for name in before if "quora" in name]
        assert idle and all(torch.equal(before[name], after[name]) for name in idle)
        assert not torch.equal(before["heads.sts.head.weight"], after["heads.sts.head.weight"])


def test_adapters_are_kept_apart_from_the_checkpoint_and_give_the_same_scores(tmp_path):
    config = settings(task="sst+sts", adapt="lora", lora_r=2)
    result = run(config, tmp_path / "run")
    found = sorted(path.name for path in (tmp_path / "run").glob("adapter-*"))
    assert found == ["adapter-sst.safetensors", "adapter-sts.safetensors"]
    trained, stored = result.record["parameters"].values()
    heads = 16 * 5 + 5 + 16 * 6 + 6
    assert trained == 2 * lora.adapter_size(2, 16, 2) + heads < stored
    loop.seed_everything(0)
    fresh = tasks.make(config)
    for task in ("sst", "sts"):                      # what was trained, put into what was not
        lora.load_adapter(fresh.model.encoder, tmp_path / "run" / f"adapter-{task}.safetensors", f"{task}-again")
        lora.use_task(fresh.model.encoder, f"{task}-again")
        lora.use_task(result.task.model.encoder, task)
        ids, mask = torch.tensor([[2, 9, 3]]), torch.ones(1, 3, dtype=torch.long)
        fresh.model.eval(), result.task.model.eval()
        with torch.no_grad():
            assert torch.equal(fresh.model.encoder(ids, mask)[1], result.task.model.encoder(ids, mask)[1])


def test_scores_are_taken_without_dropout_and_training_goes_on_with_it():
    task = tasks.make(settings(**THREE, dropout=0.5, head_dropout=0.5))
    task.model.train()
    first, second = task.evaluate(CPU), task.evaluate(CPU)
    assert json.dumps(first) == json.dumps(second)
    assert all(module.training for module in task.model.modules())
    scores = [first["tasks"]["sst"]["accuracy"], first["tasks"]["quora"]["accuracy"], first["tasks"]["sts"]["pearson"]]
    assert first["average"] == pytest.approx(np.mean(scores)) == first["average_plain"]
    scores[2] = (scores[2] + 1) / 2
    assert first["average_shifted"] == pytest.approx(np.mean(scores))


def test_looking_at_the_gradients_changes_nothing_and_sees_them():
    plain = run(settings(**THREE, dropout=0.3))
    looked = run(settings(**THREE, dropout=0.3, cosine_every=5))
    assert looked.losses == plain.losses and looked.record["best"] | {"train": 0} == plain.record["best"] | {"train": 0}
    found = looked.record["gradient_cosines"]
    assert found["tasks"] == ["sst", "quora", "sts"] and [step for step, _ in found["at"]] == [0, 5, 10]
    assert "gradient_cosines" not in plain.record

    task = in_float64(**THREE)                       # against gradients taken one after the other by backward()
    task.config = dataclasses.replace(task.config, batch_size=400)           # every example: no draw
    cosines = np.array(task.cosines(0))
    rows = []
    for name in task.every:
        task.model.zero_grad()
        task.every[name].loss(task.every[name].batch(list(range(len(task.every[name].train_ids))), 0))[0].backward()
        rows.append(torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel(), dtype=p.dtype)
                               for p in task.model.encoder.parameters()]).numpy())
    for i, j in itertools.product(range(3), repeat=2):
        expected = rows[i] @ rows[j] / np.linalg.norm(rows[i]) / np.linalg.norm(rows[j])
        assert cosines[i, j] == pytest.approx(expected, abs=1e-3)


def test_the_model_of_many_tasks_owns_its_encoder_once():
    torch.manual_seed(0)
    encoder = BertModel(BertConfig(vocab_size=20, hidden_size=8, layers=1, heads=2, intermediate_size=16))
    single = {name: SentenceClassifier(encoder, classes) for name, classes in (("a", 2), ("b", 3))}
    ids, mask = torch.tensor([[1, 2, 3]]), torch.ones(1, 3, dtype=torch.long)
    before = {name: model.eval()(ids, mask) for name, model in single.items()}
    model = MultiTaskModel(encoder, single).eval()
    for name in before:
        assert torch.equal(model(name, ids, mask), before[name])
    own = sum(p.numel() for p in encoder.parameters())
    assert sum(p.numel() for p in model.parameters()) == own + 2 * 8 + 2 + 3 * 8 + 3
    assert sum(t.numel() for t in model.state_dict().values()) == own + 2 * 8 + 2 + 3 * 8 + 3
    freeze_head(model, "a")
    assert not model.heads["a"].head.weight.requires_grad and model.heads["b"].head.weight.requires_grad
    model.train()                                            # what is frozen has no dropout, the rest has
    assert not model.heads["a"].dropout.training and model.heads["b"].dropout.training and encoder.training
    with pytest.raises(ValueError, match=r"several heads \(a, b\)"):
        freeze_head(model, "c")
    with pytest.raises(ValueError, match="encoder of its own"):
        MultiTaskModel(BertModel(encoder.config), {"a": SentenceClassifier(encoder, 2)})
    freeze(model, "all")
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(module.training for child in model.train().children() for module in child.modules())


# ---- the rows of report S0's table -------------------------------------------------------------------------------

def test_table1_shows_what_was_run_and_leaves_gaps(tmp_path, monkeypatch):
    """Records made by the runner with tiny models; the average is of the three tasks, or not there."""
    plt = pytest.importorskip("matplotlib.pyplot")
    resolve = recipes.resolve
    monkeypatch.setattr(recipes, "resolve", lambda name, size="small", **k: recipes.make(
        recipe=name, size="small", **{**SMALL, **{key: value for key, value in recipes.RECIPES[name].settings.items()
                                                  if key in ("task", "pair_head", "sampling", "adapt")}}))
    monkeypatch.chdir(tmp_path)
    root = str(tmp_path / "records")
    names = ["annealed", "quora-cosine", "sts-cosine"]
    assert cli.main(["run", *names, "--seeds", "0", "--device", "cpu", "--quiet", "--root", root, "--runs", "runs"]) == 0
    monkeypatch.setattr(recipes, "resolve", resolve)
    rows = {row[0]: row[1:] for row in report.table1(root).rows}
    annealed = rows["one model, round robin, annealed sampling"]
    sst, quora, sts, average, shifted = (float(cell.split()[0]) for cell in annealed)
    assert average == pytest.approx((sst + quora + sts) / 3, abs=1e-3)
    assert shifted == pytest.approx((sst + quora + (sts + 1) / 2) / 3, abs=1e-3)
    cosine = rows["Siamese, cosine, per task"]
    assert cosine[0] == cosine[3] == cosine[4] == "not run" and cosine[1].endswith("(n=1)")
    assert rows["frozen encoder (\"pretrain\", lower baseline)"] == ["not run"] * 5
    text = report.table_text(names, root)
    assert "Paraphrase" in text and "Similarity" in text and "Three tasks, one model" in text
    assert "published" in text and ".795 (S0" in text

    figure = report.curves(names, root)              # a row a kind, each with the score of its own kind
    assert [ax.get_ylabel() for ax in figure.axes[1::2]] == ["accuracy", "Pearson's r", "average"]
    figure = report.task_curves(["annealed", "sequential"], root)
    drawn, gap = figure.axes
    assert gap.get_title() == "sequential: not run" and not gap.get_lines()
    record = json.loads(next((tmp_path / "records" / "annealed").glob("*.json")).read_text())
    line = drawn.get_lines()[0].get_ydata()
    assert line[0] == record["untrained"]["dev"]["tasks"]["sst"]["accuracy"] and len(line) == 1 + len(record["epochs"])

    assert not record.get("gradient_cosines")          # SMALL has no cosine_every: a gap, not a crash
    assert report.cosine_curves(["annealed"], root).axes[0].get_title() == "annealed: not run"
    plt.close("all")


def test_every_row_of_table1_is_a_recipe_with_the_reports_row():
    for row, names in recipes.TABLE1.items():
        for name in names:
            published = recipes.find(name).published
            if not name.startswith("sst-full"):      # which stands in each row of single tasks
                assert any(entry[:3] == ("S0", "dev", row) for entry in published), (row, name)


def test_the_reports_averages_come_out():
    """Report S0's dev column, and S1's last row, to the digits printed."""
    assert round(metrics.averages(.517, .887, .853)[0], 3) == .752
    assert round(metrics.averages(.516, .807, .838)[1], 3) == .747


def test_pearson_is_numpys_and_undefined_where_a_side_is_constant():
    generator = np.random.default_rng(0)
    for _ in range(20):
        x, y = generator.normal(size=(2, 7)) * generator.choice([1e-200, 1, 1e9])
        assert metrics.pearson(x, y) == pytest.approx(np.corrcoef(x / abs(x).max(), y / abs(y).max())[0, 1], abs=1e-12)
    assert metrics.pearson([1, 2, 3], [2, 4, 6]) == pytest.approx(1) and metrics.pearson([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert metrics.pearson([0, 1, 2], [0, 3, 0]) == 0
    assert np.isnan(metrics.pearson([1, 1, 1], [1, 2, 3])) and np.isnan(metrics.pearson([1], [2]))
    with pytest.raises(ValueError, match="no number"):
        metrics.pearson([1, float("nan")], [1, 2])


def test_the_f1_of_paraphrases_by_hand():
    assert metrics.binary_f1([1, 1, 0, 0, 1], [1, 0, 1, 0, 1]) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert metrics.binary_f1([0, 0], [0, 0]) == 0
