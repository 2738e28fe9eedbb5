"""LoRA beside the field's library, peft: float64, every parameter random, both factors random, padded rows."""

import pytest
import torch
from torch import nn

from minbert import lora
from minbert.bert import BertConfig, BertModel
from minbert.checks.engine import randomise
from minbert.pretrained import hf_name

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

SIZES = dict(vocab_size=50, hidden_size=24, intermediate_size=40)
R, ALPHA = 4, 6.0
TASKS = ["sst", "sts"]
# Where our names differ from Hugging Face's; peft is told the latter.
ATTENTION = ["query", "key", "value", "attention.output.dense"]
FEED_FORWARD = ["intermediate.dense", r"layer\.\d+\.output.dense"]


def twins(scaling="alpha/r", feed_forward=False, dropout=0.0):
    """Our adapted encoder and peft's around Hugging Face's, with the same random numbers in every place."""
    ours = randomise(BertModel(BertConfig(**SIZES, layers=2, heads=4, max_positions=16,
                                          hidden_dropout=0.0, attention_dropout=0.0)))
    base = transformers.BertModel(transformers.BertConfig(
        **SIZES, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=16,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).double()
    base.load_state_dict({hf_name(name): p for name, p in ours.named_parameters()}, strict=False)
    lora.add_lora(ours, TASKS, R, ALPHA, dropout, scaling, feed_forward)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, layer in lora.adapted(ours):
            for parameter in [*layer.A.values(), *layer.B.values()]:
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)

    wanted = ATTENTION + (FEED_FORWARD if feed_forward else [])
    # peft scales by alpha / r: r times as much is S0's plain alpha.
    alpha = ALPHA * R if scaling == "alpha" else ALPHA
    config = peft.LoraConfig(r=R, lora_alpha=alpha, lora_dropout=dropout, bias="none",
                             target_modules=".*(" + "|".join(wanted) + ")$")
    theirs = peft.get_peft_model(base, config, adapter_name=TASKS[0])
    theirs.add_adapter(TASKS[1], config)
    with torch.no_grad():
        for name, layer in lora.adapted(ours):
            twin = layer_of(theirs, name)
            for task in TASKS:
                twin.lora_A[task].weight.copy_(layer.A[task])
                twin.lora_B[task].weight.copy_(layer.B[task])
    theirs.double()
    return ours.eval(), theirs.eval()


def layer_of(theirs, name):
    """peft's module for one of ours."""
    return theirs.base_model.model.get_submodule(hf_name(name + ".weight").removesuffix(".weight"))


def batch():
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, 50, (4, 7), generator=generator)
    mask = (torch.arange(7) < torch.tensor([7, 4, 6, 7])[:, None]).long()
    types = (torch.arange(7) >= 3).long().expand(4, 7)
    return ids * mask, mask, types


def outputs(ours, theirs, task, **given):
    ids, mask, types = batch()
    if isinstance(task, str):
        theirs.set_adapter(task)
    expected = theirs(input_ids=ids, attention_mask=mask, token_type_ids=types, **given)
    return lora.use_task(ours, task)(ids, mask, types)[1], expected.pooler_output


def close(a, b, tolerance=1e-9):
    return torch.allclose(a, b, atol=tolerance, rtol=0)


@pytest.mark.parametrize("feed_forward", [False, True])
@pytest.mark.parametrize("scaling", ["alpha/r", "alpha"])
def test_forward_of_every_task_equals_peft(scaling, feed_forward):
    ours, theirs = twins(scaling, feed_forward)
    results = [outputs(ours, theirs, task) for task in TASKS]
    assert all(close(*pair) for pair in results)
    assert not close(results[0][0], results[1][0], 1e-3)    # the two tasks do differ
    with theirs.disable_adapter():
        assert close(*outputs(ours, theirs, None))


@pytest.mark.parametrize("feed_forward", [False, True])
def test_what_is_trained_is_what_peft_trains(feed_forward):
    ours, theirs = twins(feed_forward=feed_forward)
    outputs(ours, theirs, "sst")
    theirs.set_adapter("sst")
    mine = sum(p.numel() for layer in (l for _, l in lora.adapted(ours)) for p in (layer.A["sst"], layer.B["sst"]))
    assert mine == theirs.get_nb_trainable_parameters()[0] == lora.adapter_size(2, 24, R, 40 if feed_forward else 0)


@pytest.mark.parametrize("task", TASKS)
def test_every_gradient_equals_pefts_and_the_other_task_has_none(task):
    ours, theirs = twins()
    mine, expected = outputs(ours, theirs, task)
    mine.square().sum().backward()
    expected.square().sum().backward()
    for name, layer in lora.adapted(ours):
        twin = layer_of(theirs, name)
        assert close(layer.A[task].grad, twin.lora_A[task].weight.grad) and layer.A[task].grad.abs().sum() > 0
        assert close(layer.B[task].grad, twin.lora_B[task].weight.grad) and layer.B[task].grad.abs().sum() > 0
        assert layer.linear.weight.grad is None and twin.base_layer.weight.grad is None
        for other in set(TASKS) - {task}:
            assert layer.A[other].grad is None and twin.lora_A[other].weight.grad is None


def test_five_steps_of_training_end_where_pefts_do():
    ours, theirs = twins()
    theirs.set_adapter("sst")
    lora.use_task(ours, "sst")
    ids, mask, types = batch()
    optimizers = [torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2) for model in (ours, theirs)]
    for _ in range(5):
        for optimizer, pooled in zip(optimizers, outputs(ours, theirs, "sst")):
            optimizer.zero_grad(set_to_none=True)
            pooled.square().sum().backward()
            optimizer.step()
    for name, layer in lora.adapted(ours):
        assert close(layer.A["sst"], layer_of(theirs, name).lora_A["sst"].weight, 1e-7)
        assert close(layer.B["sst"], layer_of(theirs, name).lora_B["sst"].weight, 1e-7)


@pytest.mark.parametrize("task", TASKS)
def test_merged_weights_equal_pefts(task):
    ours, theirs = twins()
    expected = outputs(ours, theirs, task)[1]
    lora.merge(ours, task)
    theirs.merge_adapter([task])
    for name, layer in lora.adapted(ours):
        assert close(layer.linear.weight, layer_of(theirs, name).base_layer.weight, 1e-12)
    assert close(lora.use_task(ours, task)(*batch())[1], expected)
    lora.unmerge(ours)
    theirs.unmerge_adapter()
    assert all(close(layer.linear.weight, layer_of(theirs, name).base_layer.weight, 1e-12) for name, layer in lora.adapted(ours))


def test_rows_of_different_tasks_equal_pefts_in_evaluation():
    ours, theirs = twins()
    rows = ["sts", "sst", None, "sts"]
    expected = [name or "__base__" for name in rows]
    mine = lora.use_task(ours, ["sts", "sst", "sts", "sts"])
    with torch.no_grad():
        pooled = mine(*batch())[1]
        ids, mask, types = batch()
        theirs_pooled = theirs(input_ids=ids, attention_mask=mask, token_type_ids=types, adapter_names=expected).pooler_output
    named = [i for i, name in enumerate(rows) if name]
    assert close(pooled[named], theirs_pooled[named])
    assert not close(pooled[2], theirs_pooled[2], 1e-3)     # ours has an adapter there, theirs none


def test_new_adapters_begin_alike():
    """Fresh pairs are random and can't be equal; what must be is B = 0 and the distribution of A."""
    linear = nn.Linear(300, 20)
    layer = lora.LoRALinear(linear, r=50)
    layer.add_task("a")
    model = nn.Sequential(nn.Linear(300, 20))
    twin = peft.get_peft_model(model, peft.LoraConfig(r=50, target_modules=["0"])).base_model.model[0]
    theirs_A, theirs_B = twin.lora_A["default"].weight, twin.lora_B["default"].weight
    assert layer.B["a"].abs().sum() == 0 == theirs_B.abs().sum()
    edge = 1 / 300**0.5
    for A in (layer.A["a"], theirs_A):
        assert A.abs().max() <= edge and abs(A.std() / (edge / 3**0.5) - 1) < 0.02 and abs(A.mean()) < 0.02 * edge
