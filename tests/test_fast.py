"""The fast twins against their plain forms: outputs, every gradient, training, checkpoints."""

import copy
import json

import pytest
import torch
from torch.nn.functional import cross_entropy

from minbert.attention import MultiHeadAttention
from minbert.bert import BertConfig, BertModel
from minbert.checks.engine import randomise
from minbert.classify import SentenceClassifier, freeze, trainable
from minbert.embeddings import BagOfEmbeddings
from minbert.fast import (
    CLSLayer, LoRAAttention, OccurringRows, together, use_cls_only, use_fast, use_fast_lora, use_occurring_rows,
)  # fmt: skip
from minbert.lora import adapted, add_lora, load_adapter, merge, save_adapter, unmerge, use_task
from minbert.optim import make_optimizer
from minbert.pretrained import load_pretrained, save_pretrained
from minbert.run import build, device, loop, recipes
from minbert.run.recipes import RecipeError
from minbert.run.tasks import predict, prepare

V = 50
TINY = BertConfig(V, 24, 3, 4, 40, max_positions=16, hidden_dropout=0.0, attention_dropout=0.0)
DATA = [[2, 7, 9, 3], [2, 11, 3], [2, 7, 30, 41, 12, 9, 3], [2, 3]]  # the pieces 13 to 29, for example, never occur


def classifier(seed=0, config=TINY):
    return randomise(SentenceClassifier(BertModel(config), classes=5, dropout=0.0), seed).train()


def batch():
    """Rows of 4, 3, 7 and 2 tokens: (B, T), the mask, labels."""
    length = max(map(len, DATA))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in DATA])
    return ids, (ids != 0).long(), torch.tensor([0, 4, 2, 1])


def gradients(model):
    ids, mask, labels = batch()
    logits = model(ids, mask)
    model.zero_grad()
    cross_entropy(logits, labels).backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters()}


def train(model, steps=6, weight_decay=0.0):
    """Real steps of the recipes' optimizer on the two halves of the data in turn."""
    optimizer = make_optimizer(model, lr=0.01, weight_decay=weight_decay)
    ids, mask, labels = batch()
    for step in range(steps):
        half = slice(0, 2) if step % 2 else slice(2, 4)
        optimizer.zero_grad()
        cross_entropy(model(ids[half], mask[half]), labels[half]).backward()
        optimizer.step()
    return model


def close(a, b):
    return torch.allclose(a, b, atol=1e-12, rtol=1e-12)


# ---- [CLS] only --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_cls_only_gives_the_same_scores_and_every_gradient(seed, fused):
    plain, fast = use_fast(classifier(seed), fused), use_cls_only(use_fast(classifier(seed), fused))
    (expected, expected_grads), (logits, grads) = gradients(plain), gradients(fast)
    assert close(logits, expected)
    assert grads.keys() == expected_grads.keys()
    for name in grads:
        assert close(grads[name], expected_grads[name]), name
    assert all(grad.abs().max() > 0 for name, grad in grads.items() if "key.bias" not in name)


def test_cls_only_is_the_plain_layers_first_row():
    layer = randomise(BertModel(TINY)).eval().layers[1]
    x, bias = torch.randn(3, 7, 24, dtype=torch.float64), torch.zeros(3, 1, 1, 7, dtype=torch.float64)
    bias[1, ..., 4:] = -1e9
    assert close(CLSLayer(layer)(x, bias), layer(x, bias)[:, :1])


def test_cls_only_shares_the_parameters_and_keeps_their_names():
    model = classifier()
    before = dict(model.named_parameters())
    after = dict(use_cls_only(use_cls_only(model)).named_parameters())
    assert list(before) == list(after) and all(before[name] is after[name] for name in before)
    assert model.encoder(*batch()[:2])[0].shape == (4, 1, 24)


def test_cls_only_drops_where_the_plain_layer_drops():
    # With p = 1 everything that dropout acts on is 0: only the residual path is left.
    config = BertConfig(V, 24, 1, 4, 40, max_positions=16, hidden_dropout=1.0, attention_dropout=1.0)
    layer = randomise(BertModel(config)).train().layers[0]
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    fast = CLSLayer(layer)
    assert close(fast(x), layer(x)[:, :1]) and close(fast(x), layer.output_norm(layer.attention_norm(x[:, :1])))
    assert not close(fast.eval()(x), layer.output_norm(layer.attention_norm(x[:, :1])))


@pytest.mark.parametrize("first", [True, False])
def test_freezing_before_or_after_makes_no_difference(first):
    model = classifier()
    if first:
        use_cls_only(model)
    freeze(model, "partial", layers=3)
    if not first:
        use_cls_only(model)
    model.train()
    assert not any(name.startswith("encoder.layers") for name, _ in trainable(model))
    assert not model.encoder.layers[2].dropout.training and not model.encoder.layers[2].attention.training


# ---- only the rows that occur ------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", [0, 1])
def test_occurring_rows_give_the_same_scores_and_every_gradient(seed):
    plain, fast = classifier(seed), use_occurring_rows(classifier(seed), DATA)
    (expected, expected_grads), (logits, grads) = gradients(plain), gradients(fast)
    assert close(logits, expected)
    name, rows = "encoder.embeddings.word.weight", fast.encoder.embeddings.word.rows
    assert rows.tolist() == [0, 2, 3, 7, 9, 11, 12, 30, 41]  # [PAD] is always there
    table = torch.zeros(V, 24, dtype=torch.float64).index_copy(0, rows, grads.pop(name))
    assert close(table, expected_grads.pop(name))
    for name in expected_grads:
        assert close(grads[name], expected_grads[name]), name


def test_training_with_occurring_rows_is_training_when_nothing_decays():
    plain, fast = train(classifier()), train(use_occurring_rows(classifier(), DATA))
    state = plain.state_dict()
    assert list(state) == list(fast.state_dict())
    assert all(close(tensor, state[name]) for name, tensor in fast.state_dict().items())


def test_with_weight_decay_only_the_rows_that_never_occur_differ():
    start = classifier().encoder.embeddings.word.weight.detach().clone()
    plain, fast = (train(model, weight_decay=0.5) for model in (classifier(), use_occurring_rows(classifier(), DATA)))
    ours, theirs = fast.state_dict(), plain.state_dict()
    word = "encoder.embeddings.word.weight"
    rows = fast.encoder.embeddings.word.rows
    never = torch.tensor([i for i in range(V) if i not in rows.tolist()])
    assert close(ours[word][rows], theirs[word][rows])
    assert torch.equal(ours[word][never], start[never])  # left alone here …
    assert close(theirs[word][never], start[never] * (1 - 0.01 * 0.5) ** 6)  # … and shrunk there, as the docstring says
    assert all(close(tensor, theirs[name]) for name, tensor in ours.items() if name != word)


def test_the_optimizer_sees_fewer_numbers_and_a_checkpoint_all_of_them():
    model = use_occurring_rows(use_occurring_rows(classifier(), DATA), DATA)
    assert dict(trainable(model))["encoder.embeddings.word.weight"].shape == (9, 24)
    state = train(model).state_dict()
    assert state["encoder.embeddings.word.weight"].shape == (V, 24)
    plain = classifier(seed=5)
    plain.load_state_dict(state)
    ids, mask = torch.randint(1, V, (3, 6)), torch.ones(3, 6)  # pieces never trained on are among them
    assert close(plain(ids, mask), model(ids, mask))
    other = use_occurring_rows(classifier(seed=6), DATA)
    other.load_state_dict(state)
    assert close(other(ids, mask), model(ids, mask)) and close(copy.deepcopy(other)(ids, mask), model(ids, mask))
    with pytest.raises(RuntimeError, match="size mismatch for encoder.embeddings.word.weight"):
        other.load_state_dict(state | {"encoder.embeddings.word.weight": torch.zeros(V + 1, 24)})


def test_saving_an_encoder_puts_the_full_table_back(tmp_path):
    model, tokenizer, _ = load_pretrained("minilm", dropout=0.0)
    want = model.embeddings.word.weight.detach().clone()
    use_occurring_rows(use_cls_only(model), [[101, 2023, 102]])
    with torch.no_grad():
        model.embeddings.word.weight += 1.0
    save_pretrained(model, tokenizer, tmp_path / "kept")
    got = load_pretrained(str(tmp_path / "kept"))[0].embeddings.word.weight
    changed = (got != want).any(dim=1).nonzero().flatten().tolist()
    assert changed == [0, 101, 102, 2023]


@pytest.mark.parametrize("use", [use_cls_only, lambda model: use_occurring_rows(model, DATA)])
def test_what_has_no_bert_inside_is_refused(use):
    with pytest.raises(ValueError, match="SentenceClassifier holds no BertModel"):
        use(SentenceClassifier(BagOfEmbeddings(V, 8), classes=2))


# ---- in a run ----------------------------------------------------------------------------------------------------

FAST = dict(attention="fast", last_layer="cls", embedding_rows="occurring")


def settings(**changes):
    defaults = dict(weights="scratch", init="random", vocab_size=400, layers=2, hidden_size=16, heads=2,
                    intermediate_size=32, data="builtin", epochs=2, steps_per_epoch=10, batch_size=8, lr=2e-3,
                    weight_decay=0.0, dropout=0.0, head_dropout=0.0, max_length=32)
    return recipes.make(**{**defaults, **changes})


def run(config, out=None, **more):
    return loop.train(config, out=out, progress=False, device="cpu", **more)


def test_a_run_with_all_of_them_gives_the_same_losses_and_dev_predictions():
    plain, fast = run(settings()), run(settings(**FAST))
    assert plain.losses == pytest.approx(fast.losses, abs=1e-5) and fast.losses[-1] != fast.losses[0]
    assert plain.record["best"]["dev"]["confusion"] == fast.record["best"]["dev"]["confusion"]
    arithmetic = device.choose("cpu", "fp32")
    ours, theirs = (predict(r.task.model, r.task.dev_ids, arithmetic) for r in (fast, plain))
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1)) and torch.allclose(ours, theirs, atol=1e-4)
    assert plain.record["parameters"]["stored"] == fast.record["parameters"]["stored"]
    assert plain.record["parameters"]["trained"] > fast.record["parameters"]["trained"]


@pytest.mark.parametrize("freezing", [{}, {"freeze": "partial", "freeze_layers": 1}])
def test_a_run_with_dropout_repeats_and_its_checkpoint_predicts_what_it_did(tmp_path, freezing):
    config = settings(dropout=0.2, head_dropout=0.2, **FAST, **freezing)
    first, second = run(config, out=tmp_path / "run"), run(config)
    assert first.losses == second.losses
    model, _, _ = build.load_classifier(tmp_path / "run")
    assert isinstance(model.encoder.layers[-1], CLSLayer)
    assert not isinstance(model.encoder.embeddings.word, OccurringRows)
    arithmetic = device.choose("cpu", "fp32")
    again, before = (predict(m, first.task.dev_ids, arithmetic) for m in (model, first.task.model))
    assert torch.allclose(again, before, atol=1e-6)
    json.dumps(first.record)


def test_an_interrupted_run_goes_on_with_the_same_rows(tmp_path, monkeypatch):
    config = settings(dropout=0.2, **FAST)
    whole = run(config)
    with monkeypatch.context() as patch:
        real, calls = loop.save_epoch, []

        def save_then_stop(*arguments, **more):
            real(*arguments, **more)
            calls.append(1)
            raise KeyboardInterrupt

        patch.setattr(loop, "save_epoch", save_then_stop)
        with pytest.raises(KeyboardInterrupt):
            run(config, out=tmp_path / "run")
    assert run(config, out=tmp_path / "run", resume=True).losses == whole.losses


@pytest.mark.parametrize("changes", [{"encoder": "bag"}, {"task": "mlm"}])
@pytest.mark.parametrize("key, value", [("last_layer", "cls"), ("embedding_rows", "occurring")])
def test_where_the_other_tokens_or_rows_are_read_the_setting_is_refused(changes, key, value):
    with pytest.raises(RecipeError, match=f"{key} '{value}' is for a BERT that classifies"):
        settings(**changes, **{key: value})


# ---- LoRA: one product for the A of several matrices ---------------------------------------------------------------

def adapted_classifier(feed_forward=False, scaling="alpha"):
    """A classifier in float64 with three tasks, none of whose parameters is zero."""
    model = classifier()
    add_lora(model.encoder, ["sst", "quora", "sts"], r=3, alpha=2.0, scaling=scaling, feed_forward=feed_forward)
    return randomise(model, 1)


ROWS = ["sst", "sts", "sst", "sts"]                     # quora is idle


@pytest.mark.parametrize("feed_forward, scaling", [(False, "alpha"), (True, "alpha/r")])
@pytest.mark.parametrize("cls", [False, True])
@pytest.mark.parametrize("task", ["quora", ROWS, ["sts"] * 4, None], ids=["a batch", "rows", "rows of one", "none"])
def test_fast_lora_has_the_outputs_and_gradients_of_the_plain_form(task, cls, feed_forward, scaling):
    plain = use_task(adapted_classifier(feed_forward, scaling), task)
    fast = use_fast_lora(use_task(adapted_classifier(feed_forward, scaling), task))
    if cls:
        use_cls_only(fast)
    assert [type(layer.attention) for layer in fast.encoder.layers] == [LoRAAttention] * 3
    (want, wanted), (got, found) = gradients(plain), gradients(fast)
    assert close(got, want) and wanted.keys() == found.keys()
    learned = 0
    for name, gradient in wanted.items():
        if gradient is None:
            assert found[name] is None, name             # frozen, or of a task that is not in this batch
        else:
            assert close(found[name], gradient), name
            learned += gradient.abs().max().item() > 0
    assert learned >= (0 if task is None else 2 * 4 * 3)


def test_fast_lora_can_be_merged_saved_switched_off_and_refuses_what_the_plain_form_refuses(tmp_path):
    model = use_fast_lora(use_fast(use_task(adapted_classifier(), "sts")))
    ids, mask, _ = batch()
    want = model(ids, mask)
    assert close(merge(model, "sts")(ids, mask), want)
    with pytest.raises(RuntimeError, match="'sts' is merged into the weights"):
        use_task(model, "sst")(ids, mask)
    unmerge(model)
    with pytest.raises(ValueError, match="3 task names for 4 rows"):
        use_task(model, ROWS[:3])(ids, mask)
    names = list(model.state_dict())
    assert names == list(adapted_classifier().state_dict())
    save_adapter(use_task(model, "sts"), "sts", tmp_path / "sts.safetensors")
    assert load_adapter(model, tmp_path / "sts.safetensors", "again") == "again"
    assert torch.equal(use_task(model, "again")(ids, mask), use_task(model, "sts")(ids, mask))
    off = use_fast_lora(model, on=False)
    assert not any(isinstance(module, LoRAAttention) for module in off.modules()) and close(off(ids, mask), want)
    assert use_fast_lora(classifier()).encoder.layers[0].attention.__class__.__name__ == "MultiHeadAttention"
    for training in (False, True):                           # in either form dropout is on in training only
        model = use_fast_lora(adapted_classifier().train(training))
        assert all(module.training == training for module in model.modules())
        assert all(module.training != training for module in use_fast_lora(model.train(not training), on=False).modules())


def test_fast_lora_trains_as_the_plain_form_does():
    plain, fast = use_task(adapted_classifier(), ROWS[:2]), use_fast_lora(use_task(adapted_classifier(), ROWS[:2]))
    want, found = train(plain, weight_decay=0.1).state_dict(), train(fast, weight_decay=0.1).state_dict()
    assert all(torch.allclose(found[name], want[name], atol=1e-9, rtol=1e-9) for name in want)


def test_fast_lora_in_bfloat16_and_with_dropout_on_the_updates():
    model = use_fast_lora(use_task(adapted_classifier().float(), "sst")).eval()
    ids, mask, _ = batch()
    want = model(ids, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(model(ids, mask).float(), want, atol=0.1 * want.abs().max().item())
    layers = [layer for _, layer in adapted(model)][:3]
    for layer in layers:
        layer.dropout.p = 1.0
    x = torch.randn(2, 5, 24)
    assert not torch.equal(together(layers, x)[0], layers[0].linear(x))            # evaluation: nothing is dropped
    model.train()
    for output, layer in zip(together(layers, x), layers):
        assert torch.allclose(output, layer.linear(x))                              # all of the update is dropped


@pytest.mark.parametrize("attention, form", [("fast", LoRAAttention), ("plain", MultiHeadAttention)])
def test_a_run_with_adapters_takes_the_form_that_its_attention_asks_for(attention, form):
    model = classifier()
    prepare(recipes.make(task="sst", adapt="lora", lora_r=3, attention=attention), model, ["sst"], DATA, "sst")
    assert [type(layer.attention) for layer in model.encoder.layers] == [form] * 3
