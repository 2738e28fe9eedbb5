"""The optimizer against PyTorch, against a second calculation, and by hand; the rates of each parameter; the schedule."""

import io
import math

import pytest
import torch
from torch import nn

from minbert import optim
from minbert.bert import BertConfig, BertModel
from minbert.classify import FREEZE_MODES, SentenceClassifier, freeze, trainable
from minbert.embeddings import BagOfEmbeddings
from minbert.mlm import MaskedLanguageModel
from minbert.optim import OPTIMIZERS, AdamW, depth, linear_schedule, make_optimizer, parameter_groups
from minbert.run import checkpoint
from minbert.run.recipes import CHOICES

TINY = BertConfig(50, 24, 3, 4, 40, max_positions=16, hidden_dropout=0.0, attention_dropout=0.0)
SHAPES = [(7,), (3, 4), (2, 3, 2), ()]
FIRST = [0, 5, 0, 2]  # the step of each tensor's first gradient


def tensors(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in SHAPES]


def gradients(steps, first=FIRST):
    """For each step a gradient for each tensor, None before its first. From 1 down to a millionth, and sometimes 0."""
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        scale = [10.0 ** -(6 * torch.rand((), generator=generator, dtype=torch.float64)) for _ in SHAPES]
        drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) * s for shape, s in zip(SHAPES, scale)]
        drawn[0][step % 7] = 0.0
        yield [g if step >= start else None for g, start in zip(drawn, first)]


def two_groups(parameters):
    return [{"params": parameters[:2], "weight_decay": 0.3}, {"params": parameters[2:], "lr": 0.02, "betas": (0.8, 0.95)}]


def run(make, steps=40, first=FIRST, grouped=two_groups):
    """The tensors after some steps of the optimizer that `make` builds from parameter groups."""
    parameters = tensors()
    optimizer = make(grouped(parameters))
    for step in gradients(steps, first):
        for parameter, gradient in zip(parameters, step):
            parameter.grad = None if gradient is None else gradient.clone()
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def apart(ours, theirs):
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


# ---- AdamW -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, theirs", [
    ({}, torch.optim.AdamW),
    (dict(lr=0.05, weight_decay=0.3, eps=1e-3), torch.optim.AdamW),
    (dict(lr=0.05, weight_decay=0.3, decoupled=False), torch.optim.Adam),
])  # fmt: skip
def test_it_equals_pytorch_over_several_tensors_and_groups(options, theirs):
    same = {key: value for key, value in options.items() if key != "decoupled"}
    difference = apart(run(lambda groups: AdamW(groups, **options)), run(lambda groups: theirs(groups, **same)))
    assert difference <= 1e-12


def by_another_hand(formula, beta1, beta2):
    """One number after another in plain Python; `formula` is (θ, m, v, t) → θ, whatever the form."""
    last = []
    for k, start in enumerate(tensors()):
        values, m, v, t = start.detach().reshape(-1).tolist(), [0.0] * start.numel(), [0.0] * start.numel(), 0
        for step in gradients(40):
            if step[k] is None:
                continue
            t += 1
            for i, g in enumerate(step[k].reshape(-1).tolist()):
                m[i] = beta1 * m[i] + (1 - beta1) * g
                v[i] = beta2 * v[i] + (1 - beta2) * g * g
                values[i] = formula(values[i], m[i], v[i], t)
        last.append(torch.tensor(values, dtype=torch.float64).reshape(start.shape))
    return last


@pytest.mark.parametrize("form", ["course", "google"])
def test_the_other_forms_equal_a_second_calculation(form):
    lr, beta1, beta2, eps, decay = 0.05, 0.9, 0.99, 1e-6, 0.3

    def course(theta, m, v, t):  # the course's handout: an α of its own for each step, decay after the update
        theta = theta - lr * math.sqrt(1 - beta2**t) / (1 - beta1**t) * m / (math.sqrt(v) + eps)
        return theta - lr * decay * theta

    def google(theta, m, v, t):  # BERT's released code: the decay is part of the update, no correction
        return theta - lr * (m / (math.sqrt(v) + eps) + decay * theta)

    choice = {"course": (course, dict(form="course")), "google": (google, dict(correct_bias=False))}
    formula, options = choice[form]
    settings = dict(lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay)
    ours = run(lambda groups: AdamW(groups, **settings, **options), grouped=lambda parameters: [{"params": parameters}])
    assert apart(ours, by_another_hand(formula, beta1, beta2)) <= 1e-12


@pytest.mark.parametrize("options, expected", [
    (dict(form="torch"), 0.97 - 0.1 / 1.25),                      # ε √(1 − β₂) = 1/4
    (dict(form="course"), (1 - 0.1 / 1.5) * 0.97),
    (dict(correct_bias=False), 0.97 - 0.1 / 1.5),
    (dict(form="course", correct_bias=False), (1 - 0.1 / 1.5) * 0.97),
    (dict(decoupled=False), 1 - 0.1 * 1.15 / (1.15 + 0.25)),      # g = 2.3: m = 1.15, √v = 1.15
])  # fmt: skip
def test_one_step_by_hand(options, expected):
    # θ = 1, g = 2: m = 1, v = 1, α = 0.1 · √(1/4) / (1/2) = 0.1, shrink = 1 − 0.1 · 0.3 = 0.97.
    theta = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    theta.grad = torch.tensor(2.0, dtype=torch.float64)
    AdamW([theta], lr=0.1, betas=(0.5, 0.75), eps=0.5, weight_decay=0.3, **options).step()
    assert theta.item() == pytest.approx(expected, abs=1e-15)


class OneClock(AdamW):
    """A mistake: the step count belongs to the optimizer, not to each tensor."""

    clock = 0

    def update(self, theta, gradient, group):
        super().update(theta, gradient, group)
        self.clock += 1
        for state in self.state.values():
            state["t"] = self.clock


class OneMemory(AdamW):
    """A mistake: the state is found by shape, so that tensors of one shape share it."""

    def update(self, theta, gradient, group):
        known = [p for p in self.state if p.shape == theta.shape]
        if known:
            self.state[theta] = self.state[known[0]]
        super().update(theta, gradient, group)


@pytest.mark.parametrize("wrong", [OneClock, OneMemory])
def test_a_test_with_one_tensor_passes_what_several_tensors_refuse(wrong):
    def compared(kind, shapes):
        parameters = [nn.Parameter(torch.ones(shape, dtype=torch.float64)) for shape in shapes]
        optimizer = kind(parameters, lr=0.05)
        for step in range(10):
            for k, parameter in enumerate(parameters):
                parameter.grad = torch.full_like(parameter, math.sin(step + k)) if step >= k else None
            optimizer.step()
        return [parameter.detach() for parameter in parameters]

    one, several = [(3,)], [(3,), (3,), (2, 2)]
    assert apart(compared(wrong, one), compared(torch.optim.AdamW, one)) <= 1e-12
    assert apart(compared(wrong, several), compared(torch.optim.AdamW, several)) > 1e-3
    assert apart(compared(AdamW, several), compared(torch.optim.AdamW, several)) <= 1e-12


def test_a_tensor_without_gradient_is_left_alone_and_its_clock_stands_still():
    parameters = tensors()
    before = parameters[1].detach().clone()
    optimizer = AdamW(parameters, weight_decay=0.3)
    for step in gradients(5):  # the second tensor's first gradient would come at the sixth
        for parameter, gradient in zip(parameters, step):
            parameter.grad = gradient
        optimizer.step()
    assert torch.equal(parameters[1], before) and parameters[1] not in optimizer.state
    assert [optimizer.state[p]["t"] for p in parameters if p in optimizer.state] == [5, 5, 3]


@pytest.mark.parametrize("form", optim.FORMS)
@pytest.mark.parametrize("stop", [1, 3, 12])
def test_a_saved_state_continues_bit_for_bit(form, stop):
    def stepped(optimizer, parameters, steps):
        for step in steps:
            for parameter, gradient in zip(parameters, step):
                parameter.grad = gradient
            optimizer.step()

    every = list(gradients(20))
    straight = tensors(torch.float32)
    every = [[None if g is None else g.float() for g in step] for step in every]
    stepped(AdamW(two_groups(straight), form=form), straight, every)

    first = tensors(torch.float32)
    optimizer = AdamW(two_groups(first), form=form)
    stepped(optimizer, first, every[:stop])
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    second = [nn.Parameter(p.detach().clone()) for p in first]
    again = AdamW(two_groups(second), lr=9.0, form="torch")  # the saved options replace these
    again.load_state_dict(torch.load(file, weights_only=True))
    stepped(optimizer, first, [[None if g is None else -g for g in step] for step in every[:2]])  # shares no memory
    stepped(again, second, every[stop:])
    assert all(torch.equal(a, b) for a, b in zip(straight, second))


def batch(step):
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(1, 50, (4, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    return ids, mask, torch.randint(5, (4,), generator=generator)


def trained(name, dtype, steps=100):
    """A small BERT's parameters and losses after training, without dropout."""
    torch.manual_seed(0)
    model = SentenceClassifier(BertModel(TINY), 5, dropout=0.0).to(dtype)
    optimizer = make_optimizer(model, name, lr=5e-3, weight_decay=0.1, rates="layerwise")
    rates = [group["lr"] for group in optimizer.param_groups]
    losses = []
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate * linear_schedule(step, 10, steps)
        ids, mask, labels = batch(step % 7)
        loss = nn.functional.cross_entropy(model(ids, mask), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return [p.detach() for p in model.parameters()], losses


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_a_hundred_steps_of_a_small_bert_equal_pytorchs_fused_optimizer(dtype, tolerance):
    (ours, losses), (theirs, their_losses) = trained("adamw", dtype), trained("adamw-torch", dtype)
    assert losses[-1] < 0.5 * losses[0]
    assert max(abs(a - b) for a, b in zip(losses, their_losses)) <= tolerance
    if dtype == torch.float64:  # the key's bias has no effect on the loss: in float32 its gradient is rounding alone
        assert apart(ours, theirs) <= tolerance


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in ("adamw", "adamw-torch")])
def test_the_other_optimizers_are_others(name):
    assert apart(trained(name, torch.float64, 12)[0], trained("adamw", torch.float64, 12)[0]) > 1e-9


def test_a_run_with_our_optimizer_goes_on_from_its_checkpoint_bit_for_bit(tmp_path):
    def stepped(model, optimizer, steps):
        for step in steps:
            ids, mask, labels = batch(step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(ids, mask), labels).backward()
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    def fresh(seed):
        torch.manual_seed(seed)
        model = freeze(SentenceClassifier(BertModel(TINY), 5, dropout=0.0), "embeddings")
        return model, make_optimizer(model, "adamw-course", lr=1e-2, weight_decay=0.1, rates="tiers")

    straight = stepped(*fresh(0), range(6))
    first = fresh(0)
    stepped(*first, range(3))
    checkpoint.save_training(tmp_path / "last.safetensors", *first, {})
    second = fresh(1)
    checkpoint.load_training(tmp_path / "last.safetensors", *second)
    assert all(torch.equal(a, b) for a, b in zip(straight, stepped(*second, range(3, 6))))


def test_the_closure_is_called_with_gradients_on_and_its_loss_returned():
    theta = nn.Parameter(torch.ones(2))
    optimizer = AdamW([theta], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = theta.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0 and (theta < 1).all()
    assert optimizer.step() is None


@pytest.mark.parametrize("options, text", [
    (dict(lr=-1e-3), "lr must not be negative, not -0.001"),
    (dict(lr=float("nan")), "lr must not be negative, not nan"),
    (dict(eps=-1e-8), "eps"),
    (dict(weight_decay=-0.1), "weight_decay"),
    (dict(betas=(1.0, 0.999)), "betas"),
    (dict(betas=(0.9, -0.1)), "betas"),
    (dict(form="pytorch"), "form: 'pytorch' is none of torch, course; did you mean 'torch'"),
    (dict(form="coarse"), "did you mean 'course'"),
])  # fmt: skip
def test_impossible_options_are_refused_for_all_and_for_one_group(options, text):
    with pytest.raises(ValueError, match=text):
        AdamW(tensors(), **options)
    parameters = tensors()
    with pytest.raises(ValueError, match=text):
        AdamW([{"params": parameters[:1]}, {"params": parameters[1:], **options}])
    if "form" not in options and not math.isnan(options.get("lr", 0)):
        with pytest.raises(ValueError):
            torch.optim.AdamW(tensors(), **options)


def test_sparse_gradients_are_refused():
    table = nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    for kind in (AdamW, torch.optim.AdamW):
        with pytest.raises(RuntimeError, match="sparse"):
            kind(table.parameters()).step()


@pytest.mark.parametrize("dtype, eps, finite", [
    (torch.float32, 1e-8, True),
    (torch.float32, 0.0, False),
    (torch.float16, 1e-8, False),  # 1e-8 is 0 in float16: keep the weights in float32
])  # fmt: skip
def test_eps_keeps_a_zero_gradient_from_becoming_nan(dtype, eps, finite):
    for kind in (AdamW, torch.optim.AdamW):
        theta = nn.Parameter(torch.ones(3, dtype=dtype))
        theta.grad = torch.zeros_like(theta)
        kind([theta], lr=0.1, eps=eps, weight_decay=0.0).step()
        assert torch.equal(theta.detach(), torch.ones(3, dtype=dtype)) if finite else theta.isnan().all()


# ---- which parameter learns at which rate ------------------------------------------------------------------------


def classifier():
    torch.manual_seed(0)
    return SentenceClassifier(BertModel(TINY), classes=5, dropout=0.0)


@pytest.mark.parametrize("name, expected", [
    ("encoder.embeddings.word.weight", 0), ("embeddings.norm.bias", 0), ("bert.embeddings.position.weight", 0),
    ("encoder.layers.0.attention.query.weight", 1), ("layers.2.up.bias", 3), ("encoder.layers.11.output_norm.weight", 12),
    ("encoder.pooler.weight", 13), ("projection.weight", 13),
    ("head.weight", 14), ("bias", 14), ("heads.sst.layers.0.weight", 14), ("dense.weight", 14),
])  # fmt: skip
def test_the_depth_of_a_parameter_by_hand(name, expected):
    assert depth(name, layers=12) == expected


def rate_of(groups):
    return {id(p): group["lr"] for group in groups for p in group["params"]}


@pytest.mark.parametrize("rates, expected", [
    # L = 3, lr = 8, half at each step: embeddings, layers 0 to 2, pooler, head
    ("same", (8, 8, 8, 8, 8, 8)),
    ("layerwise", (8 / 32, 8 / 16, 8 / 8, 8 / 4, 8 / 2, 8)),
    ("tiers", (2, 2, 2, 2, 4, 8)),
])  # fmt: skip
def test_rates_by_hand(rates, expected):
    model = classifier()
    encoder = model.encoder
    rate = rate_of(parameter_groups(model, 8.0, 0.01, rates, 0.5))
    for part, lr in zip([encoder.embeddings, *encoder.layers, encoder.pooler, model.head], expected, strict=True):
        assert {rate[id(p)] for p in part.parameters()} == {lr}


def test_a_frozen_layer_does_not_change_the_rates_above_it():
    model = classifier()
    rate = rate_of(parameter_groups(model, 8.0, 0.01, "layerwise", 0.5))
    left = rate_of(parameter_groups(freeze(model, "partial", 2), 8.0, 0.01, "layerwise", 0.5))
    assert left == {key: rate[key] for key in left} and len(left) < len(rate)


@pytest.mark.parametrize("rates", optim.RATES)
@pytest.mark.parametrize("mode", [mode for mode in FREEZE_MODES if mode != "all"])
def test_every_trainable_parameter_is_in_exactly_one_group_and_only_matrices_decay(mode, rates):
    model = freeze(classifier(), mode, layers=1 if mode == "partial" else 0)
    optimizer = make_optimizer(model, "adamw", lr=1.0, weight_decay=0.25, rates=rates, rate_decay=0.5)
    ids = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(ids) == len(set(ids)) and set(ids) == {id(p) for _, p in trainable(model)}
    for group in optimizer.param_groups:
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] == 0.25}


def test_a_table_used_twice_is_in_one_group_with_the_embeddings():
    model = MaskedLanguageModel(BertModel(TINY))  # its output scores use the word-embedding table again
    rate = rate_of(parameter_groups(model, 1.0, 0.0, "layerwise", 0.5))
    assert len(rate) == len(list(model.parameters()))
    assert rate[id(model.bert.embeddings.word.weight)] == 0.5**5 and rate[id(model.dense.weight)] == 1.0


@pytest.mark.parametrize("call, text", [
    (lambda: make_optimizer(classifier(), "adam-w"), "optimizer: 'adam-w' is none of .*; did you mean 'adamw'"),
    (lambda: parameter_groups(classifier(), 1.0, 0.0, "layerwize"), "rates: .*; did you mean 'layerwise'"),
    (lambda: parameter_groups(classifier(), 1.0, 0.0, "tiers", 0.0), "rate_decay must be above 0 and at most 1, not 0.0"),
    (lambda: parameter_groups(classifier(), 1.0, 0.0, "tiers", 1.5), "rate_decay must be above 0 and at most 1, not 1.5"),
    (lambda: parameter_groups(SentenceClassifier(BagOfEmbeddings(9, 4), 2), 1.0, 0.0, "tiers"), "needs a model with layers"),
    (lambda: make_optimizer(classifier().requires_grad_(False)), "nothing to train: every parameter is frozen"),
])  # fmt: skip
def test_what_can_not_be_is_refused_in_one_line(call, text):
    with pytest.raises(ValueError, match=text) as error:
        call()
    assert "\n" not in str(error.value)


def test_the_settings_of_a_run_know_the_same_names():
    assert CHOICES["optimizer"] == tuple(OPTIMIZERS) and CHOICES["rates"] == optim.RATES
    assert CHOICES["freeze"] == FREEZE_MODES


# ---- the schedule ------------------------------------------------------------------------------------------------


def test_the_schedule_by_hand():
    # Two steps of warm-up, ten in all, a rate of 10.
    assert [10 * linear_schedule(t, 2, 10) for t in range(10)] == [0, 5, 10, 8.75, 7.5, 6.25, 5, 3.75, 2.5, 1.25]
    assert linear_schedule(10, 2, 10) == 0
    assert linear_schedule(0, 0, 4) == 1


def test_the_schedule_equals_hugging_faces():
    transformers = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = transformers.get_linear_schedule_with_warmup(optimizer, 7, 31)
    for step in range(31):
        assert linear_schedule(step, 7, 31) == pytest.approx(theirs.get_last_lr()[0], abs=1e-15)
        optimizer.step()
        theirs.step()
