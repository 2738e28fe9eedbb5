"""Checks of chapter 4: the optimizer, the schedule, the groups.

The oracle for an optimizer is `torch.optim`. The trial has three tensors of different shapes in two groups, gradients
of very different sizes, and one tensor whose first gradient comes late: with a single tensor, many wrong optimizers
are right.
"""

import math

import numpy
import torch
from torch import nn

from minbert.bert import BertConfig, BertModel
from minbert.checks.engine import Check, CheckFailed, not_answered, same
from minbert.classify import SentenceClassifier, freeze

__all__ = ["adamw", "linear_schedule", "parameter_groups", "amsgrad_step", "repair_loop", "uncorrected_rates"]


def _name(got, want, mistakes, tolerance=1e-9):
    """The first of {text: a function that recomputes what this mistake gives} that fits a wrong result, or None."""
    if same(got, want, tolerance):
        return None
    return next((text for text, make in mistakes.items()
                 if not same(wrong := make(), want, tolerance) and same(got, wrong, tolerance)), None)  # fmt: skip


# ---- 4.1 the optimizer ------------------------------------------------------------------------------------------------

SHAPES = ((3, 4), (4,), (2, 3, 2))
STEPS, LATE = 8, 3  # the last tensor's first gradient comes in step LATE, counted from 0
GROUPS = [dict(lr=0.1, weight_decay=0.3), dict(lr=0.03, weight_decay=0.1)]  # tensor 0; tensors 1 and 2
BETAS, EPS = (0.8, 0.95), 1e-7
DIGITS = 1e-7  # a root or a rate may well have been computed in float32, as `torch.sqrt(torch.tensor(0.05))` is


def _trial():
    """The first values of three tensors, and the gradients of each step (None: it has none)."""
    generator = torch.Generator().manual_seed(4)
    values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    steps = []
    for step in range(STEPS):
        drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) * 10.0 ** (-3 * i)
                 for i, shape in enumerate(SHAPES)]  # of sizes 1, 1e-3 and 1e-6
        steps.append([g if i < 2 or step >= LATE else None for i, g in enumerate(drawn)])
    return values, steps


def _flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def _group(i):
    return GROUPS[min(i, 1)]


def _oracle(form="torch", correct_bias=True, decoupled=True):
    """What PyTorch makes of the trial: an optimizer for each tensor, its rate and ε set so that it takes the other form."""
    values, steps = _trial()
    result = []
    for i, value in enumerate(values):
        p, lr, decay = nn.Parameter(value.clone()), _group(i)["lr"], _group(i)["weight_decay"]
        kind = torch.optim.AdamW if decoupled else torch.optim.Adam
        optimizer = kind([p], lr=lr, betas=BETAS, eps=EPS, weight_decay=decay if form == "torch" or not decoupled else 0.0)
        t = 0
        for gradients in steps:
            if gradients[i] is None:
                continue
            t += 1
            part = math.sqrt(1 - BETAS[1] ** t)
            before = p.detach().clone()
            # ε beside the uncorrected root is ε / √(1 − β₂ᵗ) beside the corrected one.
            optimizer.param_groups[0]["eps"] = EPS if form == "torch" and correct_bias else EPS / part
            p.grad = gradients[i].clone()
            optimizer.step()
            with torch.no_grad():
                if not correct_bias:  # the step without the decay, made longer
                    shrunk = before * (1 - lr * decay) if form == "torch" and decoupled else before
                    p.copy_(shrunk + (p - shrunk) * (1 - BETAS[0] ** t) / part)
                if form == "course" and decoupled:
                    p.mul_(1 - lr * decay)
        result.append(p)
    return _flat(result)


def _simulate(form="torch", correct="mv", decay="decoupled", order=None, eps="beside", square=True, root=True, mean=True,
              swapped=False, stored=False, counter="own", group="own", absent="skip", sign=1):  # fmt: skip
    """The trial with a mistake: each argument but the first is a switch for one."""
    values, steps = _trial()
    theta = [value.clone() for value in values]
    m, v, counts = [torch.zeros_like(x) for x in theta], [torch.zeros_like(x) for x in theta], [0, 0, 0]
    beta1, beta2 = BETAS[::-1] if swapped else BETAS
    order = order or ("first" if form == "torch" else "last")
    for step, gradients in enumerate(steps):
        for i, g in enumerate(gradients):
            chosen = GROUPS[0] if group == "first" else _group(i)
            lr, wd = chosen["lr"], chosen["weight_decay"]
            if g is None:
                if absent == "skip":
                    continue
                g = torch.zeros_like(theta[i])
            counts[i] += 1
            t = {"own": counts[i], "one": step + 1, "late": counts[i] + 1}[counter]
            if decay in ("l2", "both"):
                g = g + wd * theta[i]
            m[i] = beta1 * m[i] + ((1 - beta1) if mean else 1.0) * g
            v[i] = beta2 * v[i] + (1 - beta2) * (g * g if square else g)
            m_hat = m[i] / (1 - beta1**t) if "m" in correct else m[i]
            v_hat = v[i] / (1 - beta2**t) if "v" in correct else v[i]
            if stored:
                m[i], v[i] = m_hat, v_hat
            small = EPS / math.sqrt(1 - beta2**t) if form == "course" and "v" in correct else EPS
            if eps == "inside":
                below = (v_hat + small).sqrt()
            else:
                below = (v_hat.sqrt() if root else v_hat) + (small if eps == "beside" else 0.0)
            alpha = lr * math.sqrt(1 - beta2**t) / (1 - beta1**t)
            pull = {"decoupled": lr * wd, "both": lr * wd, "l2": 0.0, "none": 0.0, "no lr": wd, "alpha": alpha * wd}[decay]
            if order == "first":
                theta[i] = theta[i] - pull * theta[i]
            theta[i] = theta[i] - sign * lr * m_hat / below
            if order == "last":
                theta[i] = theta[i] - pull * theta[i]
    return _flat(theta)


ADAMW_MISTAKES = {
    "There is no bias correction: m and v begin at 0, so the first steps are too large.": dict(correct=""),
    "Only m is corrected. v begins at 0 too, and it is in the denominator.": dict(correct="m"),
    "Only v is corrected. m begins at 0 too.": dict(correct="v"),
    "The corrected moments are stored, and corrected again in the next step. Keep m and v as they are.": dict(stored=True),
    "The decay is added to the gradient (L2), so that it is divided by √v. AdamW shrinks the weight itself.": dict(decay="l2"),
    "The decay is not multiplied by the learning rate.": dict(decay="no lr"),
    "The decay is multiplied by the corrected rate α. It is lr · λ, in every step.": dict(decay="alpha"),
    "There is no weight decay.": dict(decay="none"),
    "The weight is shrunk after the step. In PyTorch's form that comes first.": dict(order="last"),
    "This is the course's form, for PyTorch's too: ε is beside the uncorrected root, and the decay comes last.":
        dict(form="course"),
    "ε is inside the root, where it acts like √ε. It belongs beside the root.": dict(eps="inside"),
    "ε is missing from the denominator.": dict(eps="none"),
    "ε is beside the uncorrected root, as in the course's form. PyTorch's form corrects the root first, then adds ε.":
        dict(form="course", order="first"),
    "v is a mean of the gradients, not of their squares. The root of a negative number is NaN.": dict(square=False),
    "The step is divided by v, not by its root.": dict(root=False),
    "m adds the whole gradient. A mean takes (1 − β₁) of it.": dict(mean=False),
    "β₁ and β₂ are swapped: the first belongs to m, the second to v.": dict(swapped=True),
    "One count of steps serves all tensors. A tensor whose first gradient comes late needs its own t.": dict(counter="one"),
    "t is one too large: it must be 1 in a tensor's first step.": dict(counter="late"),
    "The first group's rate and decay are used for all. Each parameter has its own group's.": dict(group="first"),
    "A tensor without a gradient is treated as if its gradient were 0. It must be skipped: no step, no decay.":
        dict(absent="zero"),
    "The step goes up the gradient. It must go down.": dict(sign=-1),
}


def adamw(answer):
    """Exercise: the class `AdamW`, of which `update` is to be written."""
    check = Check("adamw", see='Chapter 4, "AdamW in small steps"')

    def train(**options):
        """The trial with the reader's optimizer."""
        values, steps = _trial()
        parameters = [nn.Parameter(value.clone()) for value in values]
        groups = [{"params": parameters[:1], **GROUPS[0]}, {"params": parameters[1:], **GROUPS[1]}]
        optimizer = check.run(answer, groups, betas=BETAS, eps=EPS, **options)
        for gradients in steps:
            for p, g in zip(parameters, gradients):
                p.grad = None if g is None else g.clone()
            check.run(lambda: (optimizer.step(), True))
            for p, g in zip(parameters, gradients):
                check.true(g is None or torch.equal(p.grad, g), "a gradient was changed in place.",
                           "λθ is added into p.grad itself. Whoever looks at the gradient afterwards finds something else.")
        return _flat(parameters)

    # The tiny case comes first for the reader; the name of a mistake is looked for in the large one, where all differ.
    got, want = train(), _oracle()
    start = _flat(_trial()[0])
    mistakes = {"The parameter does not change. `theta` must be changed in place: it is the model's own tensor.":
                lambda: start,
                **{text: lambda switches=switches: _simulate(**switches) for text, switches in ADAMW_MISTAKES.items()}}
    named = _name(got, want, mistakes)
    check.true(bool(got.isfinite().all()), "after some steps, the parameters are no longer finite.", named)

    # By hand: θ = 1, g = 2, lr = 0.1, λ = 0.5. m̂/√v̂ = 1, so θ = 1 − 0.1·0.5 − 0.1 = 0.85.
    one = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = check.run(answer, [one], lr=0.1, weight_decay=0.5, eps=0.0)
    one.grad = torch.full((1,), 2.0, dtype=torch.float64)
    check.run(lambda: (optimizer.step(), True))
    check.equal(one, torch.tensor([0.85], dtype=torch.float64), "θ = 1 after its first step, with g = 2, lr = 0.1, λ = 0.5,",
                named and {named: lambda: one.detach().clone()}, DIGITS)

    check.equal(got, want, "Three tensors in two groups, one of which gets its first gradient late,",
                named and {named: lambda: got}, DIGITS)
    check.equal(train(form="course"), _oracle("course"), "The same in the course's form", {
        "`form` is not looked at: this is PyTorch's form.": lambda: _simulate(),
        "In the course's form ε stands beside the uncorrected root.": lambda: _simulate(order="last"),
        "In the course's form the weight is shrunk last, the step included.": lambda: _simulate("course", order="first"),
    }, DIGITS)
    check.equal(train(correct_bias=False), _oracle(correct_bias=False), "The same with correct_bias=False", {
        "`correct_bias` is not looked at: the moments are corrected.": lambda: _simulate(),
        "m is still corrected. Without correction, both moments are used as they are.": lambda: _simulate(correct="m"),
        "v is still corrected. Without correction, both moments are used as they are.": lambda: _simulate(correct="v"),
    }, DIGITS)
    check.equal(train(decoupled=False), _oracle(decoupled=False), "The same with decoupled=False (L2)", {
        "`decoupled` is not looked at: the weights are shrunk.": lambda: _simulate(),
        "λθ is in the gradient, and the weights are shrunk as well. It is one or the other.": lambda: _simulate(decay="both"),
        "With decoupled=False there is no decay at all. λθ belongs into the gradient.": lambda: _simulate(decay="none"),
    }, DIGITS)
    # Two options at once: what is looked at in one form only shows here.
    check.equal(train(form="course", correct_bias=False), _oracle("course", correct_bias=False),
                "The same in the course's form with correct_bias=False", {
                    "In the course's form `correct_bias` is not looked at: without correction, α is lr.": lambda: _simulate("course"),
                }, DIGITS)  # fmt: skip
    check.equal(train(form="course", decoupled=False), _oracle("course", decoupled=False),
                "The same in the course's form with decoupled=False", {
                    "In the course's form the weight is shrunk although λθ is in the gradient. It is one or the other, in both forms.":
                        lambda: _simulate("course", decay="both"),
                }, DIGITS)  # fmt: skip
    check.passed()


# ---- 4.2 the schedule -------------------------------------------------------------------------------------------------


def linear_schedule(answer):
    """Exercise: `linear_schedule(step, warmup, total)`."""
    check = Check("linear_schedule", see='Chapter 4, "The schedule"')

    def curve(warmup, total, steps):
        known = {ZeroDivisionError: "With a warm-up of 0 steps, something is divided by 0." if warmup == 0 else
                 "With a warm-up to the very end, there are no steps left for the fall, and something is divided by 0."}
        return [check.plain(check.run(answer, step, warmup, total, mistakes=known), f"The factor in step {step}") for step in steps]

    def compare(warmup, total, steps, want, what, mistakes):
        check.equal(curve(warmup, total, steps), want, what, mistakes, 1e-6)  # a factor may well be a float32 number

    def mistakes(warmup, total, steps):
        """Each mistake on the same steps; t is a step."""
        w, T = warmup, total

        def each(up, down):
            return lambda: [up(t) if t < w else down(t) for t in steps]

        def right_up(t):
            return t / w

        def right_down(t):
            return max(0.0, (T - t) / max(1, T - w))

        return {
            "There is no warm-up.": lambda: [max(0.0, (T - t) / T) for t in steps],
            "The fall is measured from step 0, (T − t) / T. It must begin at 1, where the warm-up ends.":
                each(right_up, lambda t: max(0.0, (T - t) / T)),
            "There is no fall after the warm-up.": each(right_up, lambda t: 1.0),
            "The warm-up is one step early: (t + 1) / w. Step 0 has a rate of 0.": each(lambda t: (t + 1) / w, right_down),
            "The fall takes T steps, counted from the end of the warm-up. It must be over at step T.":
                each(right_up, lambda t: max(0.0, (T - (t - w)) / T)),
            "The fall ends one step early, at T − 1.": each(right_up, lambda t: max(0.0, (T - 1 - t) / max(1, T - 1 - w))),
            "The warm-up falls and the rest rises: the two pieces are upside down.":
                each(lambda t: 1 - t / w, lambda t: 1 - right_down(t)),
            "Integer division (//) leaves only 0 and 1.": each(lambda t: t // w, lambda t: max(0, (T - t) // max(1, T - w))),
            "After step T the rate becomes negative: the model would go up the gradient. It stays at 0.":
                each(right_up, lambda t: (T - t) / max(1, T - w)),
            "The fall is a cosine. Here it is a straight line.":
                each(right_up, lambda t: 0.5 * (1 + math.cos(math.pi * min(1.0, (t - w) / max(1, T - w))))),
        }

    # By hand: up in 2 steps, down in 8, each an eighth.
    steps = range(10)
    golden = [0, 0.5, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    compare(2, 10, steps, golden, "The factor in steps 0 to 9, with a warm-up of 2 and 10 steps in all,", mistakes(2, 10, steps))
    # The oracle: NumPy's interpolation between the three corners. Beyond the last corner it stays at 0.
    steps = range(60)
    for warmup, total in ((7, 50), (1, 13)):
        want = numpy.interp(list(steps), [0, warmup, total], [0.0, 1.0, 0.0]).tolist()
        compare(warmup, total, steps, want, f"The factor with a warm-up of {warmup} and {total} steps in all",
                mistakes(warmup, total, steps))
    want = numpy.interp(list(steps), [0, 50], [1.0, 0.0]).tolist()
    compare(0, 50, steps, want, "The factor with no warm-up",
            {"With a warm-up of 0 steps, step 0 must have the full rate.": lambda: [0.0, *want[1:]]})
    compare(3, 3, range(5), [0.0, 1 / 3, 2 / 3, 0.0, 0.0], "The factor in steps 0 to 4, with a warm-up of 3 of 3 steps,", {
        "With a warm-up to the very end, the rate stays up after it. From step T on it is 0.": lambda: [0.0, 1 / 3, 2 / 3, 1.0, 1.0],
    })
    check.passed()


# ---- 4.3 the groups ---------------------------------------------------------------------------------------------------

TINY = BertConfig(vocab_size=7, hidden_size=4, layers=2, heads=2, intermediate_size=6, max_positions=5)
# Steps down from the head, by hand. A tier is never lower than 2.
BELOW = {"encoder.embeddings.": 4, "encoder.layers.0.": 3, "encoder.layers.1.": 2, "encoder.pooler.": 1, "head.": 0}


def _below(name):
    return next(steps for start, steps in BELOW.items() if name.startswith(start))


def _placed(model, lr, decay, rates, ratio, wrong=None):
    """{name: (rate, decay)}, worked out from the names; `wrong` is one mistake."""
    result = {}
    for name, p in model.named_parameters():
        if not p.requires_grad and wrong != "frozen":
            continue
        below = _below(name)
        if rates == "tiers" and wrong != "layerwise":
            below = min(below, 2)
        if rates == "layerwise" and wrong == "tiers":
            below = min(below, 2)
        if rates == "same" or wrong == "same":
            below = 0
        if wrong == "upside down":
            below = 4 - below if rates == "layerwise" else 2 - below
        if wrong == "one too many":
            below += 1
        if wrong == "head as pooler" and name.startswith("head."):
            below = 1
        if wrong == "pooler as head" and name.startswith("encoder.pooler."):
            below = 0
        if wrong == "embeddings as layer" and name.startswith("encoder.embeddings."):
            below = min(below, 3)
        factor = ratio * below if wrong == "times" and below else ratio**below
        flat = p.ndim == 1
        if wrong == "matrices free":
            flat = not flat
        if wrong == "by name":
            flat = name.endswith("bias")
        if wrong == "head forgotten" and name.startswith("head."):
            continue
        if wrong == "biases forgotten" and flat:
            continue
        result[name] = (lr * factor, 0.0 if flat and wrong != "all decay" or wrong == "none decays" else decay)
    return result


GROUP_MISTAKES = {
    "Frozen parameters are in a group. With momentum and decay they would still move.": "frozen",
    "The head is in no group: it would keep its random values, and no error would tell.": "head forgotten",
    "Biases and normalisations are in no group: not to be decayed does not mean not to be trained.": "biases forgotten",
    "Everything is decayed. What has one axis, biases and normalisations, should not be.": "all decay",
    "Nothing is decayed.": "none decays",
    "It is upside down: what has one axis is decayed, and the matrices are not.": "matrices free",
    "Only biases are free of decay. The weights of the layer normalisations have one axis too.": "by name",
    "The rates are upside down: the embeddings get the highest. The lowest layers should move least.": "upside down",
    "Every rate is one step too low: the head itself must learn at lr.": "one too many",
    "The head has the rate of the pooler. It stands one step higher.": "head as pooler",
    "The pooler has the rate of the head. It stands one step lower.": "pooler as head",
    "The embeddings have the rate of the first layer. They stand one step lower.": "embeddings as layer",
    "rate_decay is multiplied by the number of steps. It must be raised to that power.": "times",
    "Every parameter has the same rate: `rates` is not looked at.": "same",
    "This is the layer-wise scheme, for tiers too. The encoder is one tier: one rate for all its layers.": "layerwise",
    "This is the scheme of three tiers, for layer-wise too.": "tiers",
}


def parameter_groups(answer):
    """Exercise: `parameter_groups(model, lr, weight_decay, rates, rate_decay)`."""
    check = Check("parameter_groups", see='Chapter 4, "Which tensor gets which rate"')
    for rates in ("same", "layerwise", "tiers"):
        model = freeze(SentenceClassifier(BertModel(TINY), classes=3), "none")
        model.encoder.layers[0].up.weight.requires_grad = False
        names = {id(p): name for name, p in model.named_parameters()}
        groups = check.run(answer, model, 1.0, 0.3, rates, 0.5)
        check.true(isinstance(groups, list) and all(isinstance(group, dict) and "params" in group for group in groups),
                   "a list of dicts is asked for, each with `params`, `lr` and `weight_decay`.", None, "a list of dicts", groups)
        check.true(all(isinstance(group["params"], (list, tuple)) and all(id(p) in names for p in group["params"]) for group in groups),
                   "`params` should be a list of the model's own parameters.",
                   "One parameter alone is no list: put it into brackets. And a generator is empty after the first look.", "a list of parameters",
                   ", ".join(sorted({type(group["params"]).__name__ for group in groups})))  # fmt: skip
        found = [(names.get(id(p), "?"), (group.get("lr", 1.0), group.get("weight_decay", 0.3)))
                 for group in groups for p in group["params"]]
        placed = dict(found)
        want = _placed(model, 1.0, 0.3, rates, 0.5)
        twice = sorted({name for name, _ in found if [other for other, _ in found].count(name) > 1})
        check.true(not twice, f"with rates={rates!r}, {len(twice)} parameters are in more than one group.",
                   "A parameter goes into a group for its rate and into another for its decay. Each combination of the two "
                   "is a group of its own.", "each parameter once", ", ".join(twice[:3]))
        wrong = [name for name in {**want, **placed} if placed.get(name) != want.get(name)
                 and not same(placed.get(name), want.get(name), 1e-9)]
        if wrong:
            likely = None
            for text, mistake in GROUP_MISTAKES.items():
                other = _placed(model, 1.0, 0.3, rates, 0.5, mistake)
                if not same(other, want, 1e-9) and same(placed, other, 1e-9):
                    likely = text
                    break
            first = wrong[0]

            def say(pair):
                return "in no group" if pair is None else f"lr {pair[0]:g}, weight_decay {pair[1]:g}"
            check.fail(f"with rates={rates!r}, lr = 1, rate_decay = 0.5, weight_decay = 0.3 and two layers: {first} is not where "
                       f"it should be ({len(wrong)} parameters are not).", say(want.get(first)), say(placed.get(first)), likely)
        # The oracle: PyTorch accepts the groups, and one step moves what should move.
        optimizer = torch.optim.SGD(groups, lr=1.0)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for _, p in model.named_parameters():
            p.grad = torch.ones_like(p) if p.requires_grad else None
        optimizer.step()
        for name, p in model.named_parameters():
            rate, decay = want.get(name, (0.0, 0.0))
            moved = before[name] - rate * (1 + decay * before[name]) if name in want else before[name]
            check.equal(p, moved, f"After one step of SGD, {name}", tolerance=1e-5)
    check.passed()


# ---- 4.4 AMSGrad ------------------------------------------------------------------------------------------------------


def amsgrad_step(answer):
    """Exercise: `amsgrad_step(theta, g, m, v, v_max, t, lr, beta1, beta2, eps, decay)`."""
    check = Check("amsgrad_step", see='Chapter 4, "AdamW in small steps"')
    shape, steps = (2, 3), 8
    generator = torch.Generator().manual_seed(5)
    start = torch.randn(shape, generator=generator, dtype=torch.float64)
    sizes = [1.0, 3.0, 0.1, 0.01, 2.0, 1e-3, 1e-5, 0.5]  # v rises and falls, so that its maximum shows
    gradients = [size * torch.randn(shape, generator=generator, dtype=torch.float64) for size in sizes]
    options = dict(lr=0.1, beta1=0.7, beta2=0.8, eps=1e-4, decay=0.3)

    def walk(step):
        """All values of θ, (steps, 2, 3)."""
        theta, m, v, v_max = start.clone(), *(torch.zeros(shape, dtype=torch.float64) for _ in range(3))
        path = []
        for t, g in enumerate(gradients, 1):
            theta, m, v, v_max = step(theta, g, m, v, v_max, t)
            path.append(theta)
        return torch.stack(path)

    def own(theta, g, m, v, v_max, t):
        result = check.run(answer, theta, g, m, v, v_max, t, **options)
        check.true(isinstance(result, (tuple, list)) and len(result) == 4, "four tensors are asked for: θ, m, v, v_max.",
                   None, "(theta, m, v, v_max)", type(result).__name__)
        for value, what in zip(result, ("θ", "m", "v", "v_max")):
            check.tensor(value, what, shape=shape, dtype=torch.float64, shape_mistakes={
                (): "The maximum over all numbers of a tensor is taken. Each number has its own maximum over time."})
        return tuple(result)

    def variant(correct="mv", largest="own", back=False, eps="beside", decay="decoupled", use="max", order="first"):
        lr, beta1, beta2, small, wd = options.values()

        def step(theta, g, m, v, v_max, t):
            if decay == "l2":
                g = g + wd * theta
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
            part = 1 - beta2**t
            if largest == "own":
                v_max = torch.maximum(v_max, v)
            elif largest == "corrected":
                v_max = torch.maximum(v_max, v / part)
            elif largest == "smallest":
                v_max = torch.minimum(v_max, v)
            elif largest == "squares":
                v_max = torch.maximum(v_max, g * g)
            elif largest == "all":
                v_max = torch.maximum(v_max, v.max())
            if back:
                v = v_max
            below = v_max if use == "max" else v
            if "v" in correct and not (largest == "corrected"):
                below = below / part
            below = (below + small).sqrt() if eps == "inside" else below.sqrt() + small
            m_hat = m / (1 - beta1**t) if "m" in correct else m
            shrink = {"decoupled": 1 - lr * wd, "no lr": 1 - wd}.get(decay, 1.0)
            theta = theta * shrink if order == "first" else theta
            theta = theta - lr * m_hat / below
            return theta if order == "first" else theta * shrink, m, v, v_max

        return lambda: walk(step)

    mistakes = {
        "This is plain AdamW: the maximum is not used.": variant(use="v"),
        "The maximum is stored as v, so that v can only grow. v goes on as before, and the maximum is kept beside it.":
            variant(back=True),
        "The maximum is taken of the corrected v. Take it of v itself, and correct what comes out.":
            variant(largest="corrected"),
        "The smaller of the two is kept, not the larger.": variant(largest="smallest"),
        "The maximum is of the squared gradients, not of their running mean v.": variant(largest="squares"),
        "The maximum over all numbers of a tensor is taken. Each number has its own maximum over time.": variant(largest="all"),
        "There is no bias correction.": variant(correct=""),
        "m is not corrected.": variant(correct="v"),
        "The maximum is not corrected by 1 − β₂ᵗ.": variant(correct="m"),
        "ε is inside the root.": variant(eps="inside"),
        "The decay is added to the gradient (L2).": variant(decay="l2"),
        "The decay is not multiplied by the learning rate.": variant(decay="no lr"),
        "There is no weight decay.": variant(decay="none"),
        "The weight is shrunk after the step. PyTorch's form does that first.": variant(order="last"),
    }
    got = walk(own)
    p = nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([p], lr=options["lr"], betas=(options["beta1"], options["beta2"]), eps=options["eps"],
                                  weight_decay=options["decay"], amsgrad=True)
    path = []
    for g in gradients:
        p.grad = g.clone()
        optimizer.step()
        path.append(p.detach().clone())
    want = torch.stack(path)
    named = _name(got, want, mistakes)

    # By hand: gradients 2, then 0, with β₁ = 0, β₂ = 1/2, no decay, lr = 1, ε = 0. v = 2, then 1; the maximum stays 2.
    # Step 1: 2 / √(2 / (1/2)) = 1. Step 2: m = 0, nothing moves; v is 1, v_max is 2.
    zero = torch.zeros(1, dtype=torch.float64)
    by_hand = dict(lr=1.0, beta1=0.0, beta2=0.5, eps=0.0, decay=0.0)
    state = (zero.clone(), zero.clone(), zero.clone(), zero.clone())
    for t, g in enumerate((2.0, 0.0), 1):
        theta, *moments = state
        state = tuple(check.run(answer, theta, torch.tensor([g], dtype=torch.float64), *moments, t, **by_hand))
    check.equal(torch.cat([value.reshape(-1) for value in state]), torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64),
                "(θ, m, v, v_max) after the gradients 2 and 0, with β₁ = 0, β₂ = 1/2, lr = 1, no decay,",
                named and {named: lambda: torch.cat([value.reshape(-1) for value in state])}, DIGITS)
    check.equal(got, want, "θ over eight steps, against torch.optim.AdamW(amsgrad=True),", named and {named: lambda: got}, DIGITS)
    check.passed()


# ---- 4.5 a training loop ----------------------------------------------------------------------------------------------


def repair_loop(answer):
    """Exercise: `repair_loop(loss, parameters, batches, epochs, lr, warmup)` returns the loss of every step."""
    check = Check("repair_loop", see='Chapter 4, "The schedule"')
    epochs, lr, warmup = 3, 0.5, 0.25
    batches = [torch.tensor([float(i), 1.0, 0.5 * i * i], dtype=torch.float64) for i in (1, 3, 2, 4)]  # (3,) each
    total = epochs * len(batches)  # 12 steps, 3 of them warm-up

    def factor(step, w=round(warmup * total), T=total):
        return float(numpy.interp(step, [0, w, T], [0.0, 1.0, 0.0])) if w else float(numpy.interp(step, [0, T], [1.0, 0.0]))

    def train(rate, keep_gradients=False, cleared=False, remade=False, first_only=False, last=False):
        """θ before each step and at the end, (13, 3). `rate(epoch, step)` is the factor of a step; the rest are mistakes."""
        p = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
        make = lambda: torch.optim.AdamW([p], lr=lr)  # noqa: E731
        optimizer, path, step = make(), [], 0
        for epoch in range(epochs):
            if remade and epoch:
                optimizer = make()
            for number, batch in enumerate(batches):
                path.append(p.detach().clone())
                if not keep_gradients:
                    optimizer.zero_grad()
                (0.5 * (p * (batches[0] if first_only else batch)).sum() ** 2).backward()
                if cleared:
                    optimizer.zero_grad()
                optimizer.param_groups[0]["lr"] = lr * rate(epoch, step)
                if not last or number == len(batches) - 1:
                    optimizer.step()
                step += 1
        path.append(p.detach().clone())
        return torch.stack(path)

    def right(epoch, step):
        return factor(step)

    wide = round(warmup * epochs)
    mistakes = {
        "T is counted in epochs: after as many steps as there are epochs, the rate is 0 and nothing is learned. "
        "T is the number of batches of all epochs together.": lambda: train(lambda e, s: factor(s, wide, epochs)),
        "The scheduler steps once an epoch, while T counts batches: the rate hardly leaves 0.":
            lambda: train(lambda e, s: factor(e)),
        "Both the scheduler and T count epochs: the rate stays the same within an epoch.":
            lambda: train(lambda e, s: factor(e, wide, epochs)),
        "The scheduler steps before the optimizer, so every step has the next step's rate.":
            lambda: train(lambda e, s: factor(s + 1)),
        "The scheduler steps twice a batch.": lambda: train(lambda e, s: factor(2 * s)),
        # Neither this nor the next moves anything; what is left in `p.grad` tells them apart.
        "The gradients are cleared between backward and step: the optimizer never sees one.":
            lambda: train(right, cleared=True) if p.grad is None else None,
        "The scheduler never steps, so the rate stays at its first value, 0.": lambda: train(lambda e, s: 0.0),
        "There is no schedule: the rate is the same in all steps.": lambda: train(lambda e, s: 1.0),
        "There is no warm-up.": lambda: train(lambda e, s: factor(s, 0)),
        "The warm-up is a share of the epochs, not of all steps.": lambda: train(lambda e, s: factor(s, wide)),
        "The schedule begins anew in each epoch: T is the number of batches of one epoch.":
            lambda: train(lambda e, s: factor(s - len(batches) * e, round(warmup * len(batches)), len(batches))),
        "The gradients are never cleared, so each step uses the sum of all so far.":
            lambda: train(right, keep_gradients=True),
        "The optimizer is made anew in each epoch, so that m, v and t are lost.": lambda: train(right, remade=True),
        "The first batch is used in every step.": lambda: train(right, first_only=True),
        "The optimizer steps once an epoch. It steps after every batch.": lambda: train(right, last=True),
    }

    p, path = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)), []

    def loss(batch):
        path.append(p.detach().clone())
        return 0.5 * (p * batch).sum() ** 2

    losses = check.run(answer, loss, [p], batches, epochs, lr, warmup)
    check.true(isinstance(losses, (list, tuple)) and len(losses) == total and len(path) == total,
               f"{epochs} epochs of {len(batches)} batches are {total} steps, with one loss each.", None, total,
               len(losses) if isinstance(losses, (list, tuple)) else type(losses).__name__)
    got, want = torch.stack([*path, p.detach().clone()]), train(right)
    named = _name(got, want, mistakes)
    # By hand: the first step has a rate of 0, so θ does not move. The first step in which they differ is shown.
    for done, (theirs, ours) in enumerate(zip(got, want)):
        check.equal(theirs, ours, f"θ after {done} steps",
                    named and {named: lambda theirs=theirs: theirs})
    values = [float(value) for value in losses]
    check.equal(values, [0.5 * float((row * batches[i % 4]).sum()) ** 2 for i, row in enumerate(want[:-1])], "The losses")
    check.passed()


# ---- 4.6 what a missing correction does to the rate ----------------------------------------------------------------------


def uncorrected_rates(answer):
    """Exercise: how much longer all steps of a run are together without bias correction."""
    check = Check("uncorrected_rates", see='Chapter 4, "The first steps"')
    if answer is None:
        raise CheckFailed(not_answered("uncorrected_rates"))
    check.number(answer, 0.0, math.inf, "The ratio")  # a number at all?

    def ratio(steps=267, warmup=27, power=1, schedule=True, first=1):
        rates = [numpy.interp(s, [0, warmup, steps], [0.0, 1.0, 0.0]) if warmup else 1 - s / steps for s in range(steps)]
        rates = rates if schedule else [1.0] * steps
        long = [rate * (1 - 0.9 ** (s + first)) ** power / math.sqrt(1 - 0.999 ** (s + first)) for s, rate in enumerate(rates)]
        return sum(long) / sum(rates)

    value, want, tolerance = float(answer), ratio(), 0.01
    known = {
        "The schedule is missing: these are the factors alone. Weigh each step with its rate.": ratio(schedule=False),
        "This is without warm-up.": ratio(warmup=0),
        "These are the steps of three epochs. One is asked for.": ratio(steps=801, warmup=80),
        "Only v's correction is counted; m's belongs to it: (1 − β₁ᵗ) / √(1 − β₂ᵗ).": ratio(power=0),
        "This is the inverse: the corrected run divided by the uncorrected one.": 1 / want,
    }
    likely = [text for text, wrong in known.items() if abs(value - wrong) < tolerance]
    check.true(abs(value - want) <= tolerance, f"The ratio is not right (to {tolerance}).", likely[0] if likely else None,
               "the sum of the rates times the factor, divided by the sum of the rates", answer)
    check.passed()
