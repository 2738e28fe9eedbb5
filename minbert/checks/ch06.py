"""Checks of chapter 6: the adapted layer, its size, from an update to an adapter, sums of adapters, and a step of one task."""

import math

import torch
from torch import nn
from torch.nn.functional import linear

from minbert.checks.engine import Check, CheckFailed, not_answered, random
from minbert.lora import LoRALinear

__all__ = ["lora_linear", "adapter_size", "extract_adapter", "add_adapters", "one_task_step", "sgd_ratio"]


# -- 6.1 lora_linear ------------------------------------------------------------------------------------------------


def given_linear(size, out, seed=0, bias=True):
    """A frozen-to-be `Linear` with random float64 numbers."""
    layer = nn.Linear(size, out, bias=bias).double()
    with torch.no_grad():
        layer.weight.copy_(random(out, size, seed=seed))
        if bias:
            layer.bias.copy_(random(out, seed=seed + 1))
    return layer


def fill(layer, tasks, seed=5):
    """Random numbers in both factors of each task."""
    with torch.no_grad():
        for number, task in enumerate(tasks):
            layer.A[task].copy_(random(*layer.A[task].shape, seed=seed + 2 * number))
            layer.B[task].copy_(random(*layer.B[task].shape, seed=seed + 2 * number + 1))


def lora_linear(answer):
    """Exercise: `answer` is the class `LoRALinear`."""
    check = Check("lora_linear", see='Chapter 6, "Two thin matrices"')
    tasks = ["sst", "sts"]

    # 1. add_task: shapes, kinds, and where the two factors begin.
    layer = check.module(answer, given_linear(400, 30), 50, 100.0)
    run_quietly(check, layer.add_task, "sst")
    A, B = (getattr(layer, name, {}) for name in "AB")
    check.true("sst" in A and "sst" in B, 'add_task("sst") should put a matrix into self.A["sst"] and one into self.B["sst"].')
    A, B = A["sst"], B["sst"]
    check.tensor(A, "A", (50, 400), torch.float64, shape_mistakes={
        (400, 50): "A is the wrong way round. It takes `in` numbers to r, and PyTorch stores such a matrix as (r, in).",
        (30, 50): "A and B are exchanged: A stands at the input, B at the output.",
    })
    check.tensor(B, "B", (30, 50), torch.float64, shape_mistakes={
        (50, 30): "B is the wrong way round. It takes r numbers to `out`, and PyTorch stores such a matrix as (out, r).",
    })
    for name, factor in (("A", A), ("B", B)):
        check.true(factor.requires_grad, f"{name} can't learn: it is no parameter, or requires no gradient.",
                   mistake=f"{name} is made with requires_grad=False. Only the `Linear` is frozen; its update learns.")  # fmt: skip
    nothing, something = A.abs().sum() == 0, B.abs().sum() > 0
    check.true(not (nothing and not something), "A and B are both 0 at the start.",
               mistake="Each factor's gradient is a product with the other one. With both at 0, both gradients are 0, and nothing ever learns.")  # fmt: skip
    check.true(not (nothing and something), "A is 0 at the start, and B is not.",
               mistake="The two are exchanged: here A begins at random and B at 0. (The mirror image would learn too, but it is not what is asked for.)")  # fmt: skip
    check.true(not something, "B is not 0 at the start.",
               mistake="Both factors are random, so the update is random too, and the model is damaged before its first step. B begins at 0.")  # fmt: skip
    edge = 1 / math.sqrt(400)
    ratio = A.detach().std().item() / (edge / math.sqrt(3))  # 1 for numbers that are even in ±edge
    known = {
        1 / edge * math.sqrt(3): "A's numbers are drawn from a standard normal distribution. They are to be even in ±1/√in, as in `nn.Linear`.",
        math.sqrt(3): "A's numbers are drawn from a normal distribution of standard deviation 1/√in. Here they are even in ±1/√in: nothing lies beyond the bound.",
        math.sqrt(6): "`kaiming_uniform_` was called without a=√5. With it the bound is 1/√in, without it √6 times as much.",
        math.sqrt(400 / 50): "A's bound is 1/√r. It is 1/√in: each of the r sums runs over `in` numbers.",
    }
    mistake = next((text for value, text in known.items() if abs(ratio / value - 1) < 0.05), None)
    check.true(abs(ratio - 1) < 0.05 and A.abs().max() <= edge * 1.0001, "A's first numbers have the wrong size.", mistake,
               f"even in ±{edge:.3g}", f"standard deviation {A.detach().std().item():.3g}, largest {A.abs().max().item():.3g}")  # fmt: skip

    # 2. forward, with no task and with a fresh one: exactly the frozen layer.
    linear_layer = given_linear(6, 6)
    layer = check.module(answer, linear_layer, 3, 6.0)  # α/r = 2
    for task in tasks:
        run_quietly(check, layer.add_task, task)
    x = random(4, 5, 6, seed=3)  # (B, T, in)
    frozen = linear(x, linear_layer.weight, linear_layer.bias)
    layer.task = "sst"
    check.equal(check.run(layer, x), frozen, "the result for a fresh task, whose update is 0,", {
        "The scaling is applied to the frozen layer too.": lambda: 2 * frozen,
        "The frozen layer's output is missing: only the update is returned.": lambda: torch.zeros_like(frozen),
        "The bias is added to the update too, so it counts twice.": lambda: frozen + linear_layer.bias,
    })

    # By hand, with r = 1 and α = 3: W x + b = (15, 31), A x = −1, s · B · A x = 3 · (2, 5) · (−1) = (−6, −15).
    tiny = nn.Linear(2, 2).double()
    with torch.no_grad():
        tiny.weight.copy_(torch.tensor([[1, 2], [3, 4]]))
        tiny.bias.copy_(torch.tensor([10, 20]))
    small = check.module(answer, tiny, 1, 3.0)
    run_quietly(check, small.add_task, "sst")
    with torch.no_grad():
        small.A["sst"].copy_(torch.tensor([[1, -1]]))
        small.B["sst"].copy_(torch.tensor([[2], [5]]))
    small.task = "sst"
    point = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    check.equal(check.run(small, point), torch.tensor([[9.0, 16.0]]), "the result of a case worked by hand",
                wrong_outputs(small, point, "sst"))

    # PyTorch's own linear layer, with the update added to the weight.
    fill(layer, tasks)
    weights = {task: linear_layer.weight + 2.0 * layer.B[task] @ layer.A[task] for task in tasks}
    for task in reversed(tasks):
        layer.task = task
        got = check.run(layer, x)
        check.tensor(got, "the result", (4, 5, 6), torch.float64)
        mistakes = wrong_outputs(layer, x, task)
        if task == "sts":
            mistakes["The first task's update is used, whatever `self.task` says."] = \
                lambda: linear(x, weights["sst"], linear_layer.bias)
            mistakes["The updates of all tasks are added up. Only that of `self.task` counts."] = \
                lambda: linear(x, weights["sst"] + weights["sts"] - linear_layer.weight, linear_layer.bias)
        check.equal(got, linear(x, weights[task], linear_layer.bias), f"the result for task {task!r}", mistakes)

    # A task for each row.
    rows = ["sts", "sst", "sts", "sst"]
    layer.task = rows
    got = check.run(layer, x, mistakes={TypeError: "`self.task` may be a list with a name for each row; then it can't be looked up in a dictionary as it is."})
    check.tensor(got, "the result with a task for each row", (4, 5, 6), torch.float64)
    each = torch.stack([linear(x[i], weights[task], linear_layer.bias) for i, task in enumerate(rows)])
    grouped = torch.cat([each[[0, 2]], each[[1, 3]]])
    sorted_rows = torch.cat([each[[1, 3]], each[[0, 2]]])
    both = linear(x, weights["sst"] + weights["sts"] - linear_layer.weight, linear_layer.bias)
    check.equal(got, each, "the result with a task for each row", {
        "All rows get the first row's task.": lambda: linear(x, weights["sts"], linear_layer.bias),
        "All rows get the last row's task.": lambda: linear(x, weights["sst"], linear_layer.bias),
        "The rows come out grouped by task. Each result belongs at its row's own place.": lambda: grouped,
        "The rows come out sorted by their task's name. Each result belongs at its row's own place.": lambda: sorted_rows,
        "Every row gets the updates of all tasks in the batch.": lambda: both,
        "With a list of tasks, the frozen layer alone answers.": lambda: frozen,
        "The tasks are exchanged among the rows.": lambda: torch.stack(
            [linear(x[i], weights["sst" if task == "sts" else "sts"], linear_layer.bias) for i, task in enumerate(rows)]),
    })
    for names, count, mistake in (
        (rows[:3], "three", "Nobody looks whether there are as many names as rows, so a row stays without an update in silence."),
        ([*rows, "sst"], "five", "Too few names are refused, too many are not: the last one is left out in silence."),
    ):  # fmt: skip
        layer.task, what = names, f"{count} names for four rows should be refused with a ValueError."
        try:
            layer(x)
        except ValueError:
            continue
        except Exception as error:  # whatever else it raises becomes a message
            check.fail(what, "ValueError", type(error).__name__,
                       "The number of names is not compared with that of the rows; something else stops later, and does not say why.")
        check.fail(what, "ValueError", "no error", mistake)

    # Gradients reach both factors, through either form of task, and not the frozen layer.
    for chosen in ("sst", rows):
        layer.task = chosen
        layer.zero_grad(set_to_none=True)
        result = check.run(layer, x).square().sum()
        if result.requires_grad:
            result.backward()
        check.true(layer.A["sst"].grad is not None and layer.B["sst"].grad is not None,
                   f"no gradient reaches A or B{'' if chosen == 'sst' else ' when each row has its task'}.",
                   mistake="The update is computed from `.data`, a detached copy, or under `torch.no_grad()`, so A and B never learn."
                   if chosen == "sst" else "With a task for each row, the update is detached from A and B.")  # fmt: skip

    # Dropout with p = 1 leaves nothing of its input, so its place can be seen exactly.
    layer = check.module(answer, linear_layer, 3, 6.0, 1.0)
    run_quietly(check, layer.add_task, "sst")
    fill(layer, ["sst"])
    layer.task = "sst"
    full = linear(x, linear_layer.weight + 2.0 * layer.B["sst"] @ layer.A["sst"], linear_layer.bias)
    update = full - frozen
    bias = linear_layer.bias.expand_as(frozen)
    check.equal(check.run(layer.train(), x), frozen, "the result in training mode, with dropout 1: the frozen layer's is left", {
        "Dropout is left out of the update.": lambda: full,
        "Dropout is on the frozen layer's input too. Only the update's input is dropped.": lambda: bias,
        "Dropout is on the frozen layer's input, and not on the update's.": lambda: bias + update,
        "Dropout is on the whole result.": lambda: torch.zeros_like(frozen),
    })
    check.equal(check.run(layer.eval(), x), full, "the result in evaluation mode, with dropout 1", {
        "Dropout is active in evaluation mode too. `F.dropout` is, unless it is told; the module `self.dropout` knows.": lambda: frozen,
    })
    check.passed("Equal to PyTorch's linear layer with W + s·B·A, for one task and for a task a row.")


def run_quietly(check, function, *args):
    """`check.run` for a function that returns nothing."""
    check.run(lambda *given: (function(*given), True)[1], *args)


def wrong_outputs(layer, x, task):
    """What well-known mistakes would give for one task."""
    W, b, s = layer.linear.weight, layer.linear.bias, layer.scale
    A, B = layer.A[task], layer.B[task]
    frozen, inner = linear(x, W, b), linear(x, B @ A)
    r = A.shape[0]
    return {
        "The scaling s is missing.": lambda: frozen + inner,
        "α stands where s = α/r should. `self.scale` holds s.": lambda: frozen + s * r * inner,
        "The scaling is applied twice.": lambda: frozen + s * s * inner,
        "The scaling is applied to the frozen layer too.": lambda: s * (frozen + inner),
        "The result is divided by r once more: s = α/r has done that.": lambda: frozen + s / r * inner,
        "The frozen layer's output is missing: only the update is returned.": lambda: s * inner,
        "The update is left out.": lambda: frozen,
        "The update is subtracted.": lambda: frozen - s * inner,
        "A and B are applied the wrong way round: the update is (B·A)ᵀ. First A, then B.": lambda: frozen + s * linear(x, (B @ A).T),
        "The update is computed from the frozen layer's output. Its input is x.": lambda: frozen + s * linear(frozen, B @ A),
        "The bias is added to the update too, so it counts twice.": lambda: frozen + s * inner + b,
    }


# -- 6.2 adapter_size -----------------------------------------------------------------------------------------------


def adapter_size(answer):
    """Exercise: `answer(layers, hidden_size, r, intermediate_size=0)`."""
    check = Check("adapter_size", see='Chapter 6, "What it costs"')

    def by_counting(layers, size, r, middle=0):
        """Every matrix of every layer, A and B each by its own shape."""
        shapes = [(size, size)] * 4 + ([(middle, size), (size, middle)] if middle else [])
        return sum(r * size_in + out * r for _ in range(layers) for out, size_in in shapes)

    def mistakes(L, D, r, F):
        right = by_counting(L, D, r, F)
        feed = 2 * L * r * (D + F) if F else 0
        attention = 8 * L * r * D
        values = {
            "Only one of the two factors is counted.": right / 2,
            "The rank is left out.": right / r,
            "The layers are left out.": right / L,
            "Three matrices of the attention are counted. The output makes four.": right - 2 * L * r * D,
            "A single matrix of the attention is counted. There are four: query, key, value, output.": right - 6 * L * r * D,
            "The frozen matrices are counted. Only A and B are stored for a task.": right + 4 * L * D * D + 2 * L * D * F,
            "A square of the rank is counted: B·A has r·(in + out) numbers, and no r × r matrix in the middle.": right + 4 * L * r * r,
        }
        if F:
            values = {
                "Of each feed-forward matrix only one side is counted, r · F. It has an A and a B: r · (D + F).": right - 2 * L * r * D,
                "The feed-forward matrices are left out, although `intermediate_size` is given.": attention,
                "Only one of the two feed-forward matrices is counted.": attention + feed / 2,
                "Each feed-forward matrix is counted as r · 2F. It has D on one side and F on the other.": attention + 4 * L * r * F,
                "Each feed-forward matrix is counted as r · D · F.": attention + 2 * L * r * D * F,
            } | values
        else:
            values["The feed-forward matrices are counted, although `intermediate_size` is 0."] = attention + 2 * L * r * (D + 4 * D)
            values["The part for the feed-forward matrices does not vanish when `intermediate_size` is 0."] = attention + 2 * L * r * D
        return {text: (lambda value=value: value) for text, value in values.items()}

    # By hand: three layers, D = 4, r = 1: 4 matrices, A with 4 numbers and B with 4, so 3 · 4 · 8 = 96.
    check.equal(check.run(answer, 3, 4, 1), 96, "adapter_size(3, 4, 1), worked by hand", mistakes(3, 4, 1, 0))
    for case in ((12, 768, 16, 0), (3, 10, 4, 26), (6, 384, 8, 1536)):
        got = check.run(answer, *case) if case[3] else check.run(answer, *case[:3])
        check.equal(got, by_counting(*case), f"adapter_size{case if case[3] else case[:3]}", mistakes(*case))
    check.passed("Equal to a count of every A and B.")


# -- 6.3 extract_adapter --------------------------------------------------------------------------------------------


def extract_adapter(answer):
    """Exercise: `answer(delta, r, scale)` returns A (r, in) and B (out, r)."""
    check = Check("extract_adapter", see='Chapter 6, "An update, looked at"')

    def turned(size, columns, seed):
        return torch.linalg.qr(random(size, columns, seed=seed))[0]  # (size, columns), orthonormal columns

    def tried(delta, r, scale, best, what):
        given = check.run(answer, delta, r, scale, mistakes={
            TypeError: "`scale` is a plain number. Is something applied to it that wants a tensor?",
        })
        check.true(isinstance(given, (tuple, list)) and len(given) == 2, "two tensors should be returned: A and B.")
        A, B = given
        out, size = delta.shape
        if torch.is_tensor(A) and torch.is_tensor(B) and A.shape == (out, r) and B.shape == (r, size):
            check.fail("A and B are exchanged.", f"A {(r, size)}, B {(out, r)}", f"A {tuple(A.shape)}, B {tuple(B.shape)}",
                       "Return A first. A (r, in) stands at the input, B (out, r) at the output.")
        check.tensor(A, "A", (r, size), torch.float64, shape_mistakes={
            (size, r): "A is the wrong way round: its rows are the input's directions.",
            (min(out, size), size): "All directions are kept. Only the r largest are asked for.",
        })
        check.tensor(B, "B", (out, r), torch.float64, shape_mistakes={
            (r, out): "B is the wrong way round: its columns are the output's directions.",
        })
        U, S, V = torch.linalg.svd(delta, full_matrices=False)
        cut = lambda power, s=1.0: s * (U[:, :r] * S[:r] ** power) @ V[:r]  # noqa: E731
        check.equal(scale * B @ A, best, what, {
            "The scaling is forgotten: s · B · A is the update, so B · A has to be the update divided by s.": lambda: cut(1, scale),
            "The result is multiplied by s instead of divided by it.": lambda: cut(1, scale**2),
            "Both factors are divided by s, so it is taken out twice.": lambda: cut(1, 1 / scale),
            "Both factors are divided by √s and multiplied by the singular values.": lambda: cut(2, 1 / scale),
            "The singular values are in both factors, so they count as squares.": lambda: cut(2),
            "The singular values are left out: all directions count alike.": lambda: cut(0),
            "Half of the singular values is missing: only one factor got their roots.": lambda: cut(0.5),
            "The smallest singular values are kept. `torch.linalg.svd` sorts them from the largest down.":
                lambda: (U[:, -r:] * S[-r:]) @ V[-r:],
            "The third result of `torch.linalg.svd` is Vᵀ already: its rows are the directions.":
                lambda: (U[:, :r] * S[:r]) @ V.T[:r] if V.shape[0] == V.shape[1] else torch.zeros_like(delta),
            "The first rows of the update are kept, not its largest directions.":
                lambda: torch.cat([delta[:r], torch.zeros_like(delta[r:])]),
            "The first columns of the update are kept, not its largest directions.":
                lambda: torch.cat([delta[:, :r], torch.zeros_like(delta[:, r:])], dim=1),
        }, tolerance=1e-6)  # the scale may have become a float32 tensor

    # By hand: four directions, each from one axis to another one; the largest is from the fourth to the third.
    axes, best = torch.zeros(4, 4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)
    axes[0, 1], axes[1, 0], axes[2, 3], axes[3, 2] = 2, 3, 5, 1
    best[2, 3] = 5
    tried(axes, 1, 2.0, best, "s · B · A for an update with the four numbers 2, 3, 5 and 1, and r = 1,")
    # A square update made of known directions: 4, 3, 2 and 1 times. The best with two of them is known without any SVD.
    left, right = turned(6, 4, 0), turned(6, 4, 1)
    strengths = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    square = (left * strengths) @ right.T
    tried(square, 2, 0.5, (left[:, :2] * strengths[:2]) @ right[:, :2].T, "s · B · A for an update of four known directions and r = 2")
    # Not square.
    left, right = turned(7, 4, 2), turned(5, 4, 3)
    wide = (left * strengths) @ right.T
    tried(wide, 3, 4.0, (left[:, :3] * strengths[:3]) @ right[:, :3].T, "s · B · A for a (7, 5) update and r = 3")
    check.passed("The best update of that rank, in every case.")


# -- 6.4 add_adapters -----------------------------------------------------------------------------------------------


def add_adapters(answer):
    """Exercise: `answer(adapters, weights)`; adapters a list of (A, B, scale). Returns one (A, B, scale)."""
    check = Check("add_adapters", see='Chapter 6, "One encoder, many tasks"')

    def made(ranks, scales, size=5, out=4):
        return [(random(r, size, seed=2 * i), random(out, r, seed=2 * i + 1), s) for i, (r, s) in enumerate(zip(ranks, scales))]

    def tried(ranks, scales, weights, what):
        adapters = made(ranks, scales)
        before = [(A.clone(), B.clone()) for A, B, _ in adapters]
        given = check.run(answer, adapters, weights, mistakes={
            RuntimeError: "The adapters have different ranks, so neither their A's nor their B's can be added up. They can stand beside each other.",
        })
        check.true(all(torch.equal(a, c) and torch.equal(b, d) for (a, b, _), (c, d) in zip(adapters, before)),
                   "an adapter was changed in place; its task still needs it.",
                   mistake="`A *= …` changes the caller's tensor. Make a new one: `A * …`.")  # fmt: skip
        check.true(isinstance(given, (tuple, list)) and len(given) == 3, "three things should be returned: A, B and the scale.",
                   mistake="The update ΔW itself is returned: a full matrix. What is asked for is an adapter." if torch.is_tensor(given) else None)  # fmt: skip
        A, B, scale = given
        total = sum(ranks)
        check.tensor(A, "A", (total, 5), torch.float64, shape_mistakes={
            (ranks[0], 5): "A has the rank of a single adapter. The sum of updates of ranks r₁ and r₂ has a rank of up to r₁ + r₂.",
            (5, total): "A is the wrong way round.",
        })
        check.tensor(B, "B", (4, total), torch.float64)
        update = lambda power_w=1, power_s=1: sum(  # noqa: E731
            w**power_w * s**power_s * b @ a for w, (a, b, s) in zip(weights, adapters))
        own = [s for _, _, s in adapters]
        check.equal(scale * B @ A, update(), what, {
            "The weights are on both A and B, so they count as squares.": lambda: update(power_w=2),
            "The adapters' own scales are left out.": lambda: update(power_s=0),
            "The scales are on both A and B, so they count as squares.": lambda: update(power_s=2),
            "The weights are left out.": lambda: update(power_w=0),
            "The first adapter's scale is used for all of them.": lambda: sum(w * own[0] * b @ a for w, (a, b, _) in zip(weights, adapters)),
            "The scales are put into the factors and returned as well, so the first one counts twice.": lambda: own[0] * update(),
            "The result is divided by the number of adapters: the weights have been chosen already.": lambda: update() / len(adapters),
            "The weights are made to add up to 1. They may be anything: a weight of −1 takes a task away.":
                lambda: update() / sum(weights) if sum(weights) else torch.zeros(4, 5),
            "A's parts and B's parts stand in different orders, so that each A meets another adapter's B.":
                lambda: sum(w * s * b @ a for w, (_, b, s), (a, _, _) in zip(weights, adapters, reversed(adapters)))
                if len(set(ranks)) == 1 else torch.zeros(4, 5),
        })

    # By hand: (1, 0) and (0, 1) at the input, both to the first output: 2 · 1 and 3 · 10.
    first = (torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0], [0.0]]), 1.0)
    second = (torch.tensor([[0.0, 1.0]]), torch.tensor([[3.0], [0.0]]), 10.0)
    result = check.run(answer, [first, second], [1.0, 1.0])
    if isinstance(result, (tuple, list)) and len(result) == 3 and torch.is_tensor(result[0]) and torch.is_tensor(result[1]) \
            and result[0].shape == (1, 2):
        A, B, scale = result
        cross = "The A's are added up, and so are the B's. (B₁ + B₂)(A₁ + A₂) has two terms too many, B₁A₂ and B₂A₁."
        mean = "The A's are averaged, and so are the B's. That is the best-known mistake with adapters: the product of means is not the mean of products."
        halves = bool(torch.allclose(A, torch.tensor([[0.5, 0.5]])))
        check.fail("the result has rank 1.", "A (2, 2), B (2, 2)", f"A {tuple(A.shape)}, B {tuple(B.shape)}", mean if halves else cross)
    tried([2, 2], [0.75, 3.0], [2.0, -0.5], "s · B · A for two adapters of rank 2")
    tried([1, 3, 2], [2.0, 0.25, 1.5], [0.5, 1.0, -1.0], "s · B · A for adapters of ranks 1, 3 and 2")
    check.passed("The sum of the updates, exactly, without ever making one.")


# -- 6.5 one_task_step ----------------------------------------------------------------------------------------------


def two_task_layer():
    """A small adapted layer with two tasks, both factors random, and AdamW over all of them with a strong decay."""
    layer = LoRALinear(given_linear(4, 3), r=2, alpha=2.0)
    for task in ("sst", "sts"):
        layer.add_task(task)
    fill(layer, ["sst", "sts"])
    optimizer = torch.optim.AdamW([p for p in layer.parameters() if p.requires_grad], lr=0.05, weight_decay=0.5)
    return layer, optimizer


def one_task_step(answer):
    """Exercise: `answer(layer, task, x, target, optimizer)` does one step on one task and returns the loss."""
    check = Check("one_task_step", see='Chapter 6, "One encoder, many tasks"')
    order = ["sst", "sts", "sts", "sst", "sts"]
    x, target = random(6, 4, seed=11), random(6, 3, seed=12)

    def taken(step):
        """The loss and both tasks' numbers after every step."""
        layer, optimizer = two_task_layer()
        history = []
        for task in order:
            loss = step(layer, task, x, target, optimizer)
            now = {name: torch.cat([layer.A[name].flatten(), layer.B[name].flatten()]).detach().clone() for name in layer.A}
            history.append((loss, now))
        return history

    def reference(set_to_none=True, clear="before", choose=True, reduction="mean", times=1, rows=slice(None), sign=1,
                  detach=False):
        """A step with PyTorch alone: W + s·B·A by hand, so that it does not rest on the layer's forward."""
        def step(layer, task, x, target, optimizer):
            name = task if choose else "sst"
            for _ in range(times):
                if clear == "before":
                    optimizer.zero_grad(set_to_none=set_to_none)
                A, B = layer.A[name], layer.B[name]
                weight = layer.linear.weight + layer.scale * B @ (A.detach() if detach else A)
                errors = (linear(x[rows], weight, layer.linear.bias) - target[rows]).square()
                loss = errors.mean() if reduction == "mean" else errors.sum()
                (sign * loss).backward()
                if clear == "after":
                    optimizer.zero_grad(set_to_none=set_to_none)
                optimizer.step()
            return loss.item()
        return step

    def first_loss(**switches):
        layer, optimizer = two_task_layer()
        return reference(**switches)(layer, "sts", x, target, optimizer)

    layer, optimizer = two_task_layer()
    loss = check.run(answer, layer, "sts", x, target, optimizer)
    check.true(isinstance(loss, float), "the loss should be a plain number.", mistake=(
        "A tensor is returned, which keeps the whole graph of its step alive. Return `loss.item()`."
        if torch.is_tensor(loss) else None))
    layer, optimizer = two_task_layer()
    layer.task = "sst"  # as an earlier step may have left it
    check.equal(check.run(answer, layer, "sts", x, target, optimizer), first_loss(), "the loss of a first step on \"sts\"", {
        "`layer.task` is not set, so the step is taken on whatever task came before.": lambda: first_loss(choose=False),
        "The loss is a sum. A mean is asked for, so that the step does not depend on the number of rows.": lambda: first_loss(reduction="sum"),
        "Two steps are taken instead of one.": lambda: first_loss(times=2),
        "Only the first row is used.": lambda: first_loss(rows=slice(0, 1)),
    })
    got = taken(lambda *given: check.run(answer, *given))
    good = taken(reference())
    for number, ((_, mine), (_, right)) in enumerate(zip(got, good)):
        for task in ("sst", "sts"):
            idle = task != order[number]
            what = f"step {number + 1} is on {order[number]!r}: after it the adapter of {task!r}{', which rests,' if idle else ''}"
            wanted = right[task]
            check.equal(mine[task], wanted, what, {
                "`zero_grad(set_to_none=False)` leaves an idle task a gradient of zeros. To AdamW that is a gradient: momentum and weight decay go on moving the adapter. With None it is skipped.":
                    lambda n=number, t=task: taken(reference(set_to_none=False))[n][1][t],
                "The gradients of earlier steps are still there: `backward` adds to them, and the idle task is moved by its old ones. `zero_grad` is missing.":
                    lambda n=number, t=task: taken(reference(clear="never"))[n][1][t],
                "The gradients are cleared between `backward` and `step`, so nothing is learned.":
                    lambda n=number, t=task: taken(reference(clear="after"))[n][1][t],
                "Two steps are taken instead of one.": lambda n=number, t=task: taken(reference(times=2))[n][1][t],
                "The step goes up the loss, not down.": lambda n=number, t=task: taken(reference(sign=-1))[n][1][t],
                "A is left out of the gradient: only B learns.": lambda n=number, t=task: taken(reference(detach=True))[n][1][t],
            })
    check.passed("Five steps, and an idle task's adapter kept its bits in each.")


# -- 6.6 sgd_ratio --------------------------------------------------------------------------------------------------


def sgd_ratio(answer):
    """Exercise: how much farther plain SGD's first step goes with s = α than with s = α/r, at r = α = 16."""
    check = Check("sgd_ratio", see='Chapter 6, "How large a step"')
    if answer is None:
        raise CheckFailed(not_answered("sgd_ratio"))
    check.number(answer, 0.0, math.inf, "the ratio")  # a number at all?
    value, r = float(answer), 16.0
    known = {r: "r is what Adam gives, which takes the size out of the gradient. SGD does not: where does s stand in the gradient of B?",
             1.0: "Both steps are equally long. Is `scaling` handed on to the layer, and is `update` of each looked at after its step?",
             r**-2: "It is divided the other way round: the step with s = α by the one with s = α/r is asked for.",
             r**0.5: "This is √r. Two factors of s stand in ΔW, and none of them is under a root.",
             2 * r: "This is 2r. The two factors multiply.",
             r**3: "One factor of r too many: B is 0 before the step, so A's gradient is 0 and A stays where it was."}
    likely = next((text for wrong, text in known.items() if abs(value / wrong - 1) < 0.02), None)
    check.true(abs(value - r**2) <= 2, "the ratio of the two updates is not right (to 2).", likely,
               "the norm of ΔW after a step with s = α, divided by that with s = α/r", answer)
    check.passed("One r for the update itself, and one more for the gradient that B gets.")
