"""Chapter 4: wrong versions from real mistakes, right versions written differently. See tests/test_checks.py."""

import math
import warnings

import numpy
import torch

from minbert import optim as package

# -- AdamW ----------------------------------------------------------------------------------------------------------


def optimizer(*, correct="mv", wd="as asked", order=None, eps="beside", square=True, root=True, mean=True, swapped=False,
              stored=False, counter="own", group="own", absent="skip", sign=1.0, course=None, obey=("form", "bias", "decoupled"),
              in_place=True, spoil=False, part=None, obey_in_course=("bias", "decoupled"), root_of=math.sqrt):  # fmt: skip
    """An AdamW with a switch for each mistake, from plain tensors: nothing of it is the package's."""

    class Switched(torch.optim.Optimizer):
        def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, form="torch", correct_bias=True,
                     decoupled=True):  # fmt: skip
            super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, form=form,
                                          correct_bias=correct_bias, decoupled=decoupled))  # fmt: skip
            self.calls = 0

        @torch.no_grad()
        def step(self):
            self.calls += 1
            for own in self.param_groups:
                chosen = self.param_groups[0] if group == "first" else own
                for p in own["params"]:
                    if p.grad is not None or absent == "zero":
                        self.one(p, torch.zeros_like(p) if p.grad is None else p.grad, chosen)

        def one(self, p, g, chosen):
            state = self.state[p]
            state.setdefault("t", 0)
            state.setdefault("m", torch.zeros_like(p))
            state.setdefault("v", torch.zeros_like(p))
            state["t"] += 1
            t = {"own": state["t"], "one": self.calls, "late": state["t"] + 1}[counter]
            lr, decay, small = chosen["lr"], chosen["weight_decay"], chosen["eps"]
            beta1, beta2 = chosen["betas"][::-1] if swapped else chosen["betas"]
            is_course = chosen["form"] == "course" and "form" in obey or course == "always"
            coupled = not chosen["decoupled"] and "decoupled" in obey
            seen = [option for option in obey if not is_course or option in obey_in_course]
            which = correct if chosen["correct_bias"] or "bias" not in seen else (part or "")
            if coupled and wd != "never" or wd == "l2":
                if spoil:
                    g.add_(decay * p)
                else:
                    g = g + decay * p
            state["m"] = m = beta1 * state["m"] + (1 - beta1 if mean else 1) * g
            state["v"] = v = beta2 * state["v"] + (1 - beta2) * (g * g if square else g)
            part1, part2 = 1 - beta1**t, 1 - beta2**t
            m = m / part1 if "m" in which else m
            v = v / part2 if "v" in which and root_of is math.sqrt else v
            if stored:
                state["m"], state["v"] = m, v
            if is_course and "v" in which and course != "corrected root":
                small = small / math.sqrt(part2)
            scale = 1.0 if root_of is math.sqrt or "v" not in which else root_of(part2)
            below = {"beside": lambda: (v.sqrt() if root else v) / scale + small, "inside": lambda: (v + small).sqrt(),
                     "none": lambda: v.sqrt()}[eps]()  # fmt: skip
            shrinks = not coupled or "decoupled" not in seen
            pull = {"as asked": lr * decay if shrinks else 0.0, "both": lr * decay, "l2": 0.0, "none": 0.0, "never":
                    0.0 if not chosen["decoupled"] else lr * decay, "no lr": decay,
                    "alpha": lr * math.sqrt(part2) / part1 * decay}[wd]  # fmt: skip
            last = (order or ("last" if is_course else "first")) == "last"
            theta = p.clone()
            theta = theta if last else theta - pull * theta
            theta = theta - sign * lr * m / below
            theta = theta - pull * theta if last else theta
            if in_place:
                p.copy_(theta)

    return Switched


class InTheCourseOrder(optimizer()):
    """The rate takes both corrections, ε is scaled along: another way to write PyTorch's form."""

    def one(self, p, g, group):
        state = self.state[p]
        state["t"] = t = state.get("t", 0) + 1
        lr, wd, (beta1, beta2) = group["lr"], group["weight_decay"], group["betas"]
        if not group["decoupled"]:
            g, wd = g + wd * p, 0.0
        state["m"] = torch.lerp(g, state.get("m", torch.zeros_like(p)), beta1)
        state["v"] = torch.lerp(g.square(), state.get("v", torch.zeros_like(p)), beta2)
        first, second = (1 - beta1**t, 1 - beta2**t) if group["correct_bias"] else (1.0, 1.0)
        eps = group["eps"] * (math.sqrt(second) if group["form"] == "torch" else 1.0)
        step = lr * math.sqrt(second) / first * state["m"] / (state["v"].sqrt() + eps)
        p.copy_((1 - lr * wd) * p - (step if group["form"] == "torch" else (1 - lr * wd) * step))


class WithNumpy(optimizer()):
    """The sums written out: m and v from the list of all gradients so far."""

    def one(self, p, g, group):
        past = self.state[p].setdefault("past", [])
        lr, wd, (beta1, beta2) = group["lr"], group["weight_decay"], group["betas"]
        past.append((g + (0.0 if group["decoupled"] else wd) * p).numpy().copy())
        wd = wd if group["decoupled"] else 0.0
        t = len(past)
        m = sum((1 - beta1) * beta1 ** (t - 1 - k) * old for k, old in enumerate(past))
        v = sum((1 - beta2) * beta2 ** (t - 1 - k) * old**2 for k, old in enumerate(past))
        theta = p.numpy()
        if group["form"] == "torch":
            theta = theta * (1 - lr * wd)
        if group["correct_bias"] and group["form"] == "torch":
            theta = theta - lr * (m / (1 - beta1**t)) / (numpy.sqrt(v / (1 - beta2**t)) + group["eps"])
        else:
            alpha = lr * math.sqrt(1 - beta2**t) / (1 - beta1**t) if group["correct_bias"] else lr
            theta = theta - alpha * m / (numpy.sqrt(v) + group["eps"])
        if group["form"] == "course":
            theta = theta * (1 - lr * wd)
        p.copy_(torch.from_numpy(theta))


# -- the schedule ---------------------------------------------------------------------------------------------------


def rises(up, down):
    """A schedule from its two pieces, functions of (t, w, T)."""
    return lambda step, warmup, total: up(step, warmup, total) if step < warmup else down(step, warmup, total)


def up(t, w, T):
    return t / w


def down(t, w, T):
    return max(0.0, (T - t) / max(1, T - w))


def schedule_as_least(step, warmup, total):
    """The lower of the two lines."""
    rising = step / warmup if warmup else 1.0
    falling = (total - step) / (total - warmup) if total > warmup else float(step < total)
    return max(0.0, min(rising, falling, 1.0))


def schedule_from_a_table(step, warmup, total):
    table = [k / warmup for k in range(warmup)] + [1 - k / (total - warmup) for k in range(total - warmup)] + [0.0]
    return table[min(step, total)]


def no_zero_warmup(step, warmup, total):
    rising = step / warmup
    return min(rising, 1.0) if step < warmup else down(step, warmup, total)


# -- the groups -----------------------------------------------------------------------------------------------------


def grouped(*, below=None, rate=None, decay=None, keep=None, obey=True, swap=False, split=False):
    """parameter_groups with a switch for each mistake; a group for each parameter."""

    def groups(model, lr, weight_decay, rates="same", rate_decay=0.8):
        layers, result = 2, []
        for name, p in model.named_parameters():
            if not (keep or (lambda name, p: p.requires_grad))(name, p):
                continue
            height = package.depth(name, layers)
            steps = layers + 2 - height
            scheme = {"layerwise": "tiers", "tiers": "layerwise"}.get(rates, rates) if swap == rates else rates
            if scheme == "tiers":
                steps = min(steps, 2)
            if scheme == "same" or not obey:
                steps = 0
            if below:
                steps = below(steps, name, rates)
            factor = (rate or (lambda d, k: d**k))(rate_decay, steps)
            wd = (decay or (lambda name, p: p.ndim > 1))(name, p)
            group = {"params": [p], "lr": lr * factor, "weight_decay": weight_decay if wd else 0.0}
            result += [group, group] if split else [group]
        return result

    return groups


def groups_by_sorting(model, lr, weight_decay, rates="same", rate_decay=0.8):
    """Two groups for each depth, the empty ones left out."""
    layers = len(model.encoder.layers)
    found = []
    for height in range(layers + 3):
        steps = {"same": 0, "layerwise": layers + 2 - height, "tiers": min(2, layers + 2 - height)}[rates]
        for flat in (False, True):
            params = [p for name, p in model.named_parameters()
                      if p.requires_grad and package.depth(name, layers) == height and (p.dim() < 2) == flat]
            if params:
                found.append(dict(params=params, lr=lr * math.pow(rate_decay, steps), weight_decay=weight_decay * (not flat)))
    return found


# -- AMSGrad --------------------------------------------------------------------------------------------------------


def ams(*, correct="mv", largest=None, back=False, inside=False, wd="decoupled", plain=False, last=False, scale=1.0):
    """amsgrad_step with a switch for each mistake."""

    def step(theta, g, m, v, v_max, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, decay=0.01):
        if wd == "l2":
            g = g + decay * theta
        m = m * beta1 + (1 - beta1) * g
        v = v * beta2 + (1 - beta2) * g.square()
        c1, c2 = 1 - beta1**t, 1 - beta2**t
        v_max = (largest or (lambda old, v, g, c2: torch.where(v > old, v, old)))(v_max, v, g, c2)
        v = v_max if back else v
        below = v if plain else v_max
        below = below / c2 if "v" in correct else below
        below = torch.sqrt(below + eps) if inside else torch.sqrt(below) + eps
        move = scale * lr * (m / c1 if "m" in correct else m) / below
        keep = {"decoupled": 1 - lr * decay, "no lr": 1 - decay}.get(wd, 1.0)
        theta = (theta - move) * keep if last else theta * keep - move
        return theta, m, v, v_max

    return step


def ams_with_a_root_in_float32(theta, g, m, v, v_max, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, decay=0.01):
    m, v = torch.lerp(g, m, beta1), torch.lerp(g * g, v, beta2)
    v_max = v_max.maximum(v)
    root = torch.sqrt(torch.tensor(1 - beta2**t))
    return theta - lr * (decay * theta + m / (1 - beta1**t) / (v_max.sqrt() / root + eps)), m, v, v_max


def ams_in_a_loop(theta, g, m, v, v_max, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, decay=0.01):
    """One number at a time."""
    rows = []
    for x, y, a, b, c in zip(*(tensor.flatten().tolist() for tensor in (theta, g, m, v, v_max))):
        a, b = beta1 * a + (1 - beta1) * y, beta2 * b + (1 - beta2) * y * y
        c = max(b, c)
        x -= lr * decay * x
        x -= lr * math.sqrt(1 - beta2**t) / (1 - beta1**t) * a / (math.sqrt(c) + eps * math.sqrt(1 - beta2**t))
        rows.append((x, a, b, c))
    return tuple(torch.tensor(column, dtype=theta.dtype).reshape(theta.shape) for column in zip(*rows))


# -- the loop -------------------------------------------------------------------------------------------------------


def looped(*, total="steps", warm="steps", when="batch", early=False, twice=False, never=False, schedule=True, clear="before",
           remade=False, rarely=False, scale=1.0):  # fmt: skip
    """repair_loop with a switch for each mistake."""

    def loop(*arguments):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns of a scheduler that steps first
            return train(*arguments)

    def train(loss, parameters, batches, epochs, lr, warmup):
        T = {"steps": epochs * len(batches), "epochs": epochs, "epoch": len(batches)}[total]
        w = {"steps": round(warmup * T), "epochs": round(warmup * epochs), "none": 0}[warm]

        def make():
            made = torch.optim.AdamW(parameters, lr=lr * scale)
            factor = (lambda step: package.linear_schedule(step, w, T)) if schedule else (lambda step: 1.0)
            return made, torch.optim.lr_scheduler.LambdaLR(made, factor)

        own, scheduler = make()
        losses, done = [], 0
        for epoch in range(epochs):
            if total == "epoch":
                scheduler.last_epoch = -1
                scheduler.step()
            if remade and epoch:
                own = torch.optim.AdamW(parameters, lr=lr)
            for number, batch in enumerate(batches):
                if clear == "before":
                    own.zero_grad()
                value = loss(batch)
                value.backward()
                if clear == "after":
                    own.zero_grad()
                if early and not never:
                    scheduler.step()
                if remade:
                    own.param_groups[0]["lr"] = lr * package.linear_schedule(done, w, T)
                if not rarely or number == len(batches) - 1:
                    own.step()
                done += 1
                if when == "batch" and not early and not never:
                    scheduler.step()
                    if twice:
                        scheduler.step()
                losses.append(value.item())
            if when == "epoch":
                scheduler.step()
        return losses

    return loop


def always_the_first(loss, parameters, batches, epochs, lr, warmup):
    return looped()(loss, parameters, [batches[0]] * len(batches), epochs, lr, warmup)


def loop_by_hand(loss, parameters, batches, epochs, lr, warmup):
    """No scheduler: the rate is written into the group; `set_to_none=False`; gradients by autograd.grad."""
    own = package.AdamW(parameters, lr=lr)
    total = epochs * len(batches)
    losses = []
    for step in range(total):
        value = loss(batches[step % len(batches)])
        for p, g in zip(parameters, torch.autograd.grad(value, parameters)):
            p.grad = g
        for group in own.param_groups:
            group["lr"] = lr * schedule_as_least(step, round(warmup * total), total)
        own.step()
        losses.append(value.item())
    return losses


# -- the lists ------------------------------------------------------------------------------------------------------

WRONG = {
    "adamw": {
        "no bias correction": optimizer(correct=""),
        "only m corrected": optimizer(correct="m"),
        "only v corrected": optimizer(correct="v"),
        "corrected moments stored": optimizer(stored=True),
        "L2 in the gradient": optimizer(wd="l2"),
        "decay without lr": optimizer(wd="no lr"),
        "decay with the corrected rate": optimizer(wd="alpha"),
        "no decay": optimizer(wd="none"),
        "decay last": optimizer(order="last"),
        "the course's form always": optimizer(course="always"),
        "ε inside the root": optimizer(eps="inside"),
        "no ε": optimizer(eps="none"),
        "ε beside the uncorrected root": optimizer(course="always", order="first"),
        "v not squared": optimizer(square=False),
        "no root": optimizer(root=False),
        "m is a sum": optimizer(mean=False),
        "betas swapped": optimizer(swapped=True),
        "one counter": optimizer(counter="one"),
        "t one too large": optimizer(counter="late"),
        "the first group's settings": optimizer(group="first"),
        "a missing gradient is 0": optimizer(absent="zero"),
        "uphill": optimizer(sign=-1.0),
        "not in place": optimizer(in_place=False),
        "the gradient is changed": optimizer(wd="l2", spoil=True),
        "form not looked at": optimizer(obey=("bias", "decoupled")),
        "course with decay first": optimizer(order="first"),
        "course with the corrected root": optimizer(course="corrected root"),
        "correct_bias not looked at": optimizer(obey=("form", "decoupled")),
        "m corrected always": optimizer(part="m"),
        "v corrected always": optimizer(part="v"),
        "decoupled not looked at": optimizer(obey=("form", "bias")),
        "L2 and decoupled": optimizer(wd="both"),
        "coupled has no decay": optimizer(wd="never"),
        "course: correct_bias not looked at": optimizer(obey_in_course=("decoupled",)),
        "course: L2 and decoupled": optimizer(obey_in_course=("bias",)),
    },
    "linear_schedule": {
        "no warm-up": lambda step, warmup, total: max(0.0, (total - step) / total),
        "fall from step 0": rises(up, lambda t, w, T: max(0.0, (T - t) / T)),
        "no fall": rises(up, lambda t, w, T: 1.0),
        "one step early": rises(lambda t, w, T: (t + 1) / w, down),
        "fall of T steps": rises(up, lambda t, w, T: max(0.0, 1 - (t - w) / T)),
        "over at T − 1": rises(up, lambda t, w, T: max(0.0, (T - 1 - t) / max(1, T - 1 - w))),
        "upside down": rises(lambda t, w, T: 1 - t / w, lambda t, w, T: 1 - down(t, w, T)),
        "integer division": rises(lambda t, w, T: t // w, lambda t, w, T: max(0, (T - t) // max(1, T - w))),
        "negative after T": rises(up, lambda t, w, T: (T - t) / max(1, T - w)),
        "cosine": rises(up, lambda t, w, T: (1 + math.cos(math.pi * min(1, (t - w) / (T - w)))) / 2),
        "divided by a warm-up of 0": no_zero_warmup,
        "divided by a fall of 0": rises(up, lambda t, w, T: max(0.0, (T - t) / (T - w))),
        "no fall left": rises(up, lambda t, w, T: down(t, w, T) if T > w else 1.0),
        "step 0 is always 0": lambda step, warmup, total: 0.0 if step == 0 else rises(up, down)(step, warmup, total),
    },
    "parameter_groups": {
        "a parameter in place of a list": lambda *arguments: [{**group, "params": group["params"][0]} for group in grouped()(*arguments)],
        "frozen ones too": grouped(keep=lambda name, p: True),
        "head forgotten": grouped(keep=lambda name, p: p.requires_grad and not name.startswith("head")),
        "biases forgotten": grouped(keep=lambda name, p: p.requires_grad and p.ndim > 1),
        "all decayed": grouped(decay=lambda name, p: True),
        "none decayed": grouped(decay=lambda name, p: False),
        "matrices free of decay": grouped(decay=lambda name, p: p.ndim == 1),
        "only biases free of decay": grouped(decay=lambda name, p: not name.endswith("bias")),
        "upside down": grouped(below=lambda k, name, rates: {"same": 0, "layerwise": 4 - k, "tiers": 2 - k}[rates]),
        "one step too low": grouped(below=lambda k, name, rates: k + 1),
        "head as low as the pooler": grouped(below=lambda k, name, rates: max(k, 1) if rates != "same" else 0),
        "pooler as high as the head": grouped(below=lambda k, name, rates: 0 if "pooler" in name else k),
        "embeddings with layer 0": grouped(below=lambda k, name, rates: min(k, 3)),
        "multiplied, not raised": grouped(rate=lambda d, k: d * k if k else 1.0),
        "rates not looked at": grouped(obey=False),
        "tiers are layer-wise": grouped(swap="tiers"),
        "layer-wise is tiers": grouped(swap="layerwise"),
        "each twice": grouped(split=True),
    },
    "amsgrad_step": {
        "plain AdamW": ams(plain=True),
        "stored as v": ams(back=True),
        "maximum of the corrected": lambda theta, g, m, v, v_max, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, decay=0.01:
            ams(correct="m", largest=lambda old, v, g, c2: torch.maximum(old, v / c2))(
                theta, g, m, v, v_max, t, lr, beta1, beta2, eps, decay),
        "minimum": ams(largest=lambda old, v, g, c2: torch.minimum(old, v)),
        "maximum of the squares": ams(largest=lambda old, v, g, c2: torch.maximum(old, g * g)),
        "one maximum for the tensor": ams(largest=lambda old, v, g, c2: torch.maximum(old, v.max())),
        "no correction": ams(correct=""),
        "m not corrected": ams(correct="v"),
        "maximum not corrected": ams(correct="m"),
        "ε inside": ams(inside=True),
        "L2": ams(wd="l2"),
        "decay without lr": ams(wd="no lr"),
        "no decay": ams(wd="none"),
        "decay last": ams(last=True),
    },
    "repair_loop": {
        "T in epochs": looped(total="epochs"),
        "scheduler once an epoch": looped(when="epoch"),
        "both in epochs": looped(when="epoch", total="epochs"),
        "scheduler first": looped(early=True),
        "scheduler twice": looped(twice=True),
        "scheduler never": looped(never=True),
        "no schedule": looped(schedule=False),
        "no warm-up": looped(warm="none"),
        "warm-up of epochs": looped(warm="epochs"),
        "anew in each epoch": looped(total="epoch"),
        "never cleared": looped(clear="never"),
        "cleared too late": looped(clear="after"),
        "optimizer anew in each epoch": looped(remade=True),
        "always the first batch": always_the_first,
        "optimizer once an epoch": looped(rarely=True),
    },
}

RIGHT = {
    "adamw": {"the package's": package.AdamW, "switchable": optimizer(), "corrections in the rate": InTheCourseOrder,
              "sums written out": WithNumpy,
              "a root in float32": optimizer(root_of=lambda part: torch.sqrt(torch.tensor(part)))},
    "linear_schedule": {"the package's": package.linear_schedule, "the lower of two lines": schedule_as_least,
                        "a table": schedule_from_a_table,
                        "in float32": lambda *arguments: torch.tensor(schedule_as_least(*arguments))},
    "parameter_groups": {"the package's": package.parameter_groups, "one group each": grouped(), "sorted": groups_by_sorting},
    "amsgrad_step": {"switchable": ams(), "one number at a time": ams_in_a_loop,
                     "a root in float32": ams_with_a_root_in_float32},
    "repair_loop": {"switchable": looped(), "by hand": loop_by_hand},
}

UNLISTED = {
    "adamw": optimizer(sign=1.001),
    "linear_schedule": rises(up, lambda t, w, T: down(t, w, T) ** 2),
    "parameter_groups": grouped(rate=lambda d, k: 1.01 * d**k),
    "amsgrad_step": ams(scale=1.001),
    "repair_loop": looped(scale=1.001),
}
