"""Optimizers, learning-rate schedules, and which parameter learns at which rate (chapter 4).

Source: Kingma and Ba 2015 (Adam, algorithm 1 and the remark under it); Loshchilov and Hutter 2019 (AdamW, algorithm 2);
Clark et al. 2020, the appendix on fine-tuning (layer-wise rates).
"""

import difflib
import math

import torch

FORMS = ("torch", "course")
RATES = ("same", "layerwise", "tiers")


class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay, one tensor after another.

    A tensor's `t`-th gradient g moves it from θ:

        m = β₁ m + (1 − β₁) g                         the mean of the last gradients
        v = β₂ v + (1 − β₂) g²                        the mean of their squares
        α = lr √(1 − β₂ᵗ) / (1 − β₁ᵗ)                 m and v start at 0; this takes that out of m / √v

        "torch"    θ = (1 − lr λ) θ − α m / (√v + ε √(1 − β₂ᵗ))        as in `torch.optim.AdamW`
        "course"   θ = (1 − lr λ) (θ − α m / (√v + ε))                 the decay comes last, ε is not corrected

    Args:
        params: parameters, or groups of them (dicts that may override each option below).
        lr: the learning rate.
        betas: β₁ and β₂, each from 0 up to but not 1.
        eps: ε. It keeps 0 / 0 from being NaN where every gradient so far was 0, such as at a word that did not occur.
        weight_decay: λ.
        form: "torch" or "course".
        correct_bias: False leaves both corrections out (α = lr). With form "torch", that is Google's BERT, with ε = 1e-6.
        decoupled: False adds λθ to the gradient and shrinks nothing: Adam with an L2 penalty.

    A parameter whose gradient is None is left alone: no step, no decay, and its t stands still.

    Raises:
        ValueError: unknown form, or a number out of its range. RuntimeError: a sparse gradient.
    """

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, form="torch", correct_bias=True,
                 decoupled=True):  # fmt: skip
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, form=form, correct_bias=correct_bias,
                        decoupled=decoupled)  # fmt: skip
        super().__init__(params, defaults)
        for group in self.param_groups:
            for name in ("lr", "eps", "weight_decay"):
                if not group[name] >= 0:  # written so that NaN fails too
                    raise ValueError(f"AdamW: {name} must not be negative, not {group[name]}")
            if not all(0 <= beta < 1 for beta in group["betas"]):
                raise ValueError(f"AdamW: betas must be from 0 up to but not 1, not {group['betas']}")
            if group["form"] not in FORMS:
                raise _unknown("form", group["form"], FORMS)

    @torch.no_grad()
    def step(self, closure=None):
        """Move every parameter that has a gradient. `closure`, if given, computes the loss anew; its value is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, parameter.grad, group)
        return loss

    def update(self, theta, gradient, group):
        """Move one tensor, in place. What Adam remembers of it is in `self.state[theta]`: t, m and v, its own for each."""
        if gradient.is_sparse:
            raise RuntimeError("AdamW: a sparse gradient; make the embedding with sparse=False")
        lr, decay, (beta1, beta2) = group["lr"], group["weight_decay"], group["betas"]
        state = self.state[theta]
        if not state:
            state.update(t=0, m=torch.zeros_like(theta), v=torch.zeros_like(theta))
        # BEGIN update
        state["t"] += 1
        t, m, v = state["t"], state["m"], state["v"]
        if not group["decoupled"]:
            gradient = gradient + decay * theta
        m.lerp_(gradient, 1 - beta1)  # m + (1 − β₁)(g − m)
        v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)

        root = math.sqrt(1 - beta2**t) if group["correct_bias"] else 1.0
        alpha = lr * root / (1 - beta1**t) if group["correct_bias"] else lr
        eps = group["eps"] * root if group["form"] == "torch" else group["eps"]
        shrink = 1 - lr * decay if group["decoupled"] else 1.0

        if group["form"] == "torch":
            theta.mul_(shrink)
        theta.addcdiv_(m, v.sqrt().add_(eps), value=-alpha)  # θ − α m / (√v + ε)
        if group["form"] == "course":
            theta.mul_(shrink)
        # END update


# Each makes an optimizer from parameter groups and a learning rate.
OPTIMIZERS = {
    "adamw-torch": lambda groups, lr: torch.optim.AdamW(groups, lr=lr, fused=True),  # the fastest
    "adamw": lambda groups, lr: AdamW(groups, lr=lr),
    "adamw-course": lambda groups, lr: AdamW(groups, lr=lr, form="course"),
    "adamw-uncorrected": lambda groups, lr: AdamW(groups, lr=lr, correct_bias=False),
    "adam-l2": lambda groups, lr: AdamW(groups, lr=lr, decoupled=False),
}


def make_optimizer(model, name="adamw-torch", lr=3e-5, weight_decay=0.01, rates="same", rate_decay=0.8):
    """An optimizer over what may be trained.

    Args:
        model: any module; parameters with `requires_grad = False` are left out.
        name: one of OPTIMIZERS: "adamw-torch" (PyTorch's fused AdamW), "adamw" (ours, equal to it), "adamw-course",
            "adamw-uncorrected", "adam-l2".
        lr, weight_decay, rates, rate_decay: see `parameter_groups`.

    Raises:
        ValueError: an unknown name, or as `parameter_groups`.
    """
    if name not in OPTIMIZERS:
        raise _unknown("optimizer", name, OPTIMIZERS)
    return OPTIMIZERS[name](parameter_groups(model, lr, weight_decay, rates, rate_decay), lr)


# ---- which parameter learns at which rate ------------------------------------------------------------------------


def parameter_groups(model, lr, weight_decay, rates="same", rate_decay=0.8):
    """Sort the trainable parameters into groups, each with its own rate and decay.

    Biases and layer-normalisation weights (all parameters with one axis) are not decayed.

    Args:
        model: any module; for "layerwise" and "tiers", one whose encoder has `layers`.
        lr: the head's learning rate; with "same", everybody's.
        weight_decay: λ, for what is decayed.
        rates: "same". "layerwise": each step down from the head multiplies the rate by `rate_decay`, so that
            a parameter learns at lr · rate_decay^(L + 2 − depth), see `depth` (ELECTRA). "tiers": heads at lr,
            pooler or projection at lr · rate_decay, all below at lr · rate_decay² (report S3; it gives no values).
        rate_decay: from above 0 to 1.

    Returns:
        a list of dicts with `params`, `lr` and `weight_decay`, from the embeddings up. Every trainable parameter is in
        exactly one of them.

    Raises:
        ValueError: nothing to train, an unknown scheme, a decay out of its range, or a model without layers.
    """
    if rates not in RATES:
        raise _unknown("rates", rates, RATES)
    if not 0 < rate_decay <= 1:
        raise ValueError(f"rate_decay must be above 0 and at most 1, not {rate_decay}")
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not named:
        raise ValueError("nothing to train: every parameter is frozen; freeze less, or only evaluate")
    # Frozen layers count too: what lies above them keeps its depth.
    layers = max(_layer(name) for name, _ in model.named_parameters()) + 1
    if rates != "same" and not layers:
        raise ValueError(f"rates: {rates!r} needs a model with layers, this one has none; choose 'same'")
    # BEGIN groups
    groups = {}
    for name, parameter in named:
        below = 0 if rates == "same" else layers + 2 - depth(name, layers)  # steps down from the head
        if rates == "tiers":
            below = min(below, 2)
        decays = parameter.ndim > 1
        group = {"params": [], "lr": lr * rate_decay**below, "weight_decay": weight_decay if decays else 0.0}
        groups.setdefault((-below, not decays), group)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]
    # END groups


def depth(name, layers):
    """How high in the model the parameter of this name stands: embeddings 0, encoder layer i (from 0) i + 1,
    pooler or projection `layers` + 1, everything else (the heads) `layers` + 2.

    Source: Clark et al. 2020, released code.
    """
    # BEGIN depth
    if _layer(name) >= 0:
        return _layer(name) + 1
    parts = name.split(".")
    if "embeddings" in parts:
        return 0
    if "pooler" in parts or "projection" in parts:
        return layers + 1
    return layers + 2
    # END depth


def _layer(name):
    """The encoder layer of the parameter of this name, from 0; -1 if it is in none. A head's own layers do not count."""
    parts = name.split(".")
    if "layers" not in parts or "head" in parts or "heads" in parts:
        return -1
    return int(parts[parts.index("layers") + 1])


# ---- the schedule ------------------------------------------------------------------------------------------------


def linear_schedule(step, warmup, total):
    """The factor on the learning rate at a step (from 0): up from 0 to 1 over `warmup` steps, then down to 0 at `total`.

    Source: Devlin et al. 2019, appendix A.2.
    """
    if step < warmup:
        return step / warmup
    return max(0.0, (total - step) / max(1, total - warmup))


def _unknown(what, name, known):
    """The error for a name that does not exist: what there is, and the nearest."""
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
    return ValueError(f"{what}: {name!r} is none of {', '.join(known)}; did you mean {near!r}?")
