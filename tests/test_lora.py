"""LoRA: the update by hand, one pair a task, merging, counting, saving; and that what is frozen stays frozen."""

import errno

import pytest
import torch
from torch import nn

from minbert import files, lora
from minbert.bert import BertConfig, BertModel

TINY = BertConfig(vocab_size=60, hidden_size=16, layers=2, heads=2, intermediate_size=32, max_positions=32,
                  hidden_dropout=0.0, attention_dropout=0.0)


def made(tasks=("sst", "sts"), **options):
    """A small adapted encoder in float64 whose updates are no longer 0."""
    torch.manual_seed(0)
    model = lora.add_lora(BertModel(TINY).double().eval(), list(tasks), r=4, alpha=8, **options)
    for _, layer in lora.adapted(model):
        for parameter in [*layer.A.values(), *layer.B.values()]:
            nn.init.normal_(parameter, std=0.3)
    return model


def batch(rows=4, length=7):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    return ids, mask


def output(model, task, rows=slice(None)):
    ids, mask = batch()
    with torch.no_grad():
        return lora.use_task(model, task)(ids[rows], mask[rows])[1]


def test_one_layer_by_hand():
    linear = nn.Linear(2, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        linear.bias.copy_(torch.tensor([10.0, 20.0]))
    layer = lora.LoRALinear(linear, r=1, alpha=3)
    layer.add_task("a")
    with torch.no_grad():
        layer.A["a"].copy_(torch.tensor([[1.0, -1.0]]))       # (1, 2)
        layer.B["a"].copy_(torch.tensor([[2.0], [5.0]]))      # (2, 1)
    layer.task = "a"
    # W x + b = (1 + 4 + 10, 3 + 8 + 20); A x = -1; 3 · B · (-1) = (-6, -15)
    assert layer(torch.tensor([[1.0, 2.0]])).tolist() == [[9.0, 16.0]]
    assert layer.update("a").tolist() == [[6.0, -6.0], [15.0, -15.0]]


@pytest.mark.parametrize("scaling, factor", [("alpha/r", 2.0), ("alpha", 8.0)])
def test_both_scalings_have_the_factor_of_their_source(scaling, factor):
    layer = lora.adapted(made(scaling=scaling))[0][1]
    expected = factor * layer.B["sst"] @ layer.A["sst"]
    assert layer.scale == factor and torch.equal(layer.update("sst"), expected)


def test_a_new_task_changes_nothing_and_can_learn_from_the_first_step():
    torch.manual_seed(0)
    plain = BertModel(TINY).eval()
    ids, mask = batch()
    before = plain(ids, mask)[1]
    model = lora.add_lora(plain, ["sst"])
    after = lora.use_task(model, "sst")(ids, mask)[1]
    assert torch.equal(before, after)
    after.sum().backward()
    layer = lora.adapted(model)[0][1]
    assert layer.B["sst"].grad.abs().sum() > 0 and layer.A["sst"].grad.abs().sum() == 0


def test_with_both_factors_zero_nothing_ever_learns():
    model = made(["sst"])
    for _, layer in lora.adapted(model):
        nn.init.zeros_(layer.A["sst"])
        nn.init.zeros_(layer.B["sst"])
    ids, mask = batch()
    lora.use_task(model, "sst")(ids, mask)[1].sum().backward()
    assert all(p.grad.abs().sum() == 0 for _, layer in lora.adapted(model) for p in (layer.A["sst"], layer.B["sst"]))


def test_what_is_refused_leaves_the_model_as_it_was_and_what_is_not_draws_only_for_its_updates():
    model = BertModel(TINY)
    for tasks, more in ((["a", "a"], {}), (["a", "b.c"], {}), (["a"], {"r": 0}), (["a"], {"scaling": "r"})):
        with pytest.raises(ValueError):
            lora.add_lora(model, tasks, **more)
        assert not lora.adapted(model) and all(p.requires_grad for p in model.parameters())
    torch.manual_seed(3)
    drawn = nn.init.kaiming_uniform_(torch.empty(4, 16), a=5**0.5)
    torch.manual_seed(3)
    assert torch.equal(lora.adapted(lora.add_lora(model, ["a"], r=4))[0][1].A["a"], drawn)


def test_the_updates_are_in_training_or_not_as_the_model_was():
    for training in (False, True):
        model = lora.add_lora(BertModel(TINY).train(training), ["a"], dropout=0.5)
        assert all(module.training == training for module in model.modules())


def test_only_the_updates_can_learn():
    model = made()
    assert all((".A." in name or ".B." in name) == p.requires_grad for name, p in model.named_parameters())


@pytest.mark.parametrize("layers, size, r, wanted", [(12, 768, 16, 1_179_648), (2, 16, 4, 1024)])
def test_the_closed_form_of_the_count(layers, size, r, wanted):
    assert lora.adapter_size(layers, size, r) == wanted


@pytest.mark.parametrize("feed_forward", [False, True])
def test_the_closed_form_is_what_the_model_has(feed_forward):
    model = made(["sst", "sts", "qqp"], feed_forward=feed_forward)
    counted = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counted == 3 * lora.adapter_size(2, 16, 4, 32 if feed_forward else 0)


def test_a_batch_of_mixed_rows_equals_each_row_with_its_own_task():
    model = made()
    names = ["sts", "sst", "sst", "sts"]
    mixed = output(model, names)
    alone = torch.cat([output(model, name, slice(i, i + 1)) for i, name in enumerate(names)])
    assert torch.allclose(mixed, alone, atol=1e-12)
    assert not torch.allclose(mixed, output(model, "sst"), atol=1e-3)


def test_gradients_of_mixed_rows_go_to_each_rows_own_task():
    model, names = made(), ["sts", "sst", "sst", "sts"]
    ids, mask = batch()

    def gradients():
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return found

    lora.use_task(model, names)(ids, mask)[1].square().sum().backward()
    mixed = gradients()
    for task in ("sst", "sts"):
        rows = [i for i, name in enumerate(names) if name == task]
        lora.use_task(model, task)(ids[rows], mask[rows])[1].square().sum().backward()
    separate = gradients()
    assert mixed.keys() == separate.keys()
    assert all(torch.allclose(mixed[name], separate[name], atol=1e-11) for name in mixed)


def test_an_idle_task_is_not_moved_by_momentum_or_decay():
    model = made()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)
    ids, mask = batch()

    def step(task):
        optimizer.zero_grad(set_to_none=True)
        lora.use_task(model, task)(ids, mask)[1].square().sum().backward()
        optimizer.step()

    step("sst")
    step("sts")
    before = {name: t.clone() for name, t in lora.adapter_tensors(model, "sst").items()}
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    for _ in range(3):
        step("sts")
    assert all(torch.equal(before[name], t) for name, t in lora.adapter_tensors(model, "sst").items())
    assert all(torch.equal(frozen[name], p) for name, p in model.named_parameters() if name in frozen)


def test_a_task_added_later_leaves_the_others_bit_identical():
    model = made()
    before = output(model, "sst")
    lora.add_task(model, "late")
    assert torch.equal(output(model, "sst"), before)
    assert torch.equal(output(model, "late"), output(model, None))


def test_merging_gives_the_same_outputs_and_unmerging_the_same_bits():
    model = made()
    weights = {name: layer.linear.weight.clone() for name, layer in lora.adapted(model)}
    adapted_output, other = output(model, "sst"), output(model, "sts")
    lora.merge(model, "sst")
    assert torch.allclose(output(model, "sst"), adapted_output, atol=1e-12)
    with pytest.raises(RuntimeError, match="'sst' is merged .* unmerge before 'sts'"):
        output(model, "sts")
    lora.unmerge(model)
    assert all(torch.equal(layer.linear.weight, weights[name]) for name, layer in lora.adapted(model))
    assert torch.equal(output(model, "sts"), other)


def test_dropout_is_on_the_update_only_and_in_training_only():
    torch.manual_seed(0)
    layer = lora.LoRALinear(nn.Linear(5, 3), r=2, alpha=2, dropout=1.0)
    layer.add_task("a")
    nn.init.normal_(layer.B["a"])
    layer.task = "a"
    x = torch.randn(4, 5)
    assert torch.equal(layer.train()(x), layer.linear(x))
    assert not torch.allclose(layer.eval()(x), layer.linear(x))


def test_an_adapter_saved_alone_gives_the_same_outputs_in_another_copy(tmp_path):
    model, path = made(), tmp_path / "sst.safetensors"
    lora.save_adapter(model, "sst", path)
    assert path.stat().st_size < 8 * lora.adapter_size(2, 16, 4) + 3000       # float64, and the header
    assert [p.name for p in tmp_path.iterdir()] == ["sst.safetensors"]
    torch.manual_seed(0)
    other = lora.add_lora(BertModel(TINY).double().eval(), ["sts"], r=4, alpha=8)
    assert lora.load_adapter(other, path) == "sst"
    assert torch.equal(output(other, "sst"), output(model, "sst"))
    assert lora.load_adapter(other, path, task="twin") == "twin"
    assert torch.equal(output(other, "twin"), output(model, "sst"))


def test_an_adapter_that_can_not_be_written_leaves_the_earlier_one(tmp_path, monkeypatch):
    model, path = made(), tmp_path / "sst.safetensors"
    before = lora.save_adapter(model, "sst", path).read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        lora.save_adapter(model, "sts", path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["sst.safetensors"]


@pytest.mark.parametrize("change, message", [
    (lambda: lora.add_lora(BertModel(TINY), ["x"], r=2), "made with r 4, this model has 2"),
    (lambda: lora.add_lora(BertModel(TINY), ["x"], r=4, alpha=4), "made with scale 2.0, this model has 1.0"),
    (lambda: lora.add_lora(BertModel(TINY), ["x"], r=4, alpha=8, feed_forward=True), "made for another model"),
    (lambda: lora.add_lora(BertModel(TINY), ["sst"], r=4, alpha=8), "is there already"),
    (lambda: BertModel(TINY), "call add_lora first"),
])
def test_an_adapter_that_does_not_fit_is_refused(tmp_path, change, message):
    path = lora.save_adapter(made(), "sst", tmp_path / "sst.safetensors")
    with pytest.raises(ValueError, match=message):
        lora.load_adapter(change(), path)


def test_a_damaged_or_foreign_file_is_refused_in_one_line(tmp_path):
    path = lora.save_adapter(made(), "sst", tmp_path / "sst.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="can't be read") as error:
        lora.load_adapter(made(["x"]), path)
    assert "\n" not in str(error.value)
    from safetensors.torch import save_file

    for meta in (None, {"minbert-adapter": "{}"}, {"minbert-adapter": "[4]"}):
        save_file({"a": torch.zeros(1)}, path, metadata=meta)
        with pytest.raises(ValueError, match="holds no adapter"):
            lora.load_adapter(made(["x"]), path)
    with pytest.raises(ValueError, match="can't be read"):
        lora.load_adapter(made(["x"]), tmp_path / "none.safetensors")


@pytest.mark.parametrize("call, message", [
    (lambda: lora.add_lora(BertModel(TINY), []), "at least one task"),
    (lambda: lora.add_lora(BertModel(TINY), "sst"), "give a list"),
    (lambda: lora.add_lora(BertModel(TINY), ["a", "a"]), "'a' is there already"),
    (lambda: lora.add_lora(BertModel(TINY), ["a.b"]), "can't be a task's name"),
    (lambda: lora.add_lora(BertModel(TINY), ["copy"]), "can't be a task's name"),
    (lambda: lora.add_lora(made(), ["c"]), "adapted already"),
    (lambda: lora.add_lora(nn.Sequential(nn.Linear(2, 2)), ["a"]), "no Linear named query"),
    (lambda: lora.add_lora(BertModel(TINY), ["a"], r=0), "rank must be at least 1"),
    (lambda: lora.add_lora(BertModel(TINY), ["a"], scaling="r"), "none of alpha/r, alpha"),
    (lambda: lora.use_task(made(), "qqp"), "no task 'qqp'; known: sst, sts"),
    (lambda: lora.use_task(made(), ["sst", "qqp"]), "no task 'qqp'"),
    (lambda: lora.save_adapter(made(), "qqp", "x"), "no task 'qqp'"),
    (lambda: lora.merge(made(), "qqp"), "no task 'qqp'; known: sst, sts"),
    (lambda: lora.adapter_tensors(made(), "qqp"), "no task 'qqp'"),
    (lambda: output(made(), ["sst", "sts"]), "2 task names for 4 rows"),
])
def test_what_can_not_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
