"""Checks of chapter 9: which task comes next, streams that never end, and the gradients of several tasks.

The oracles: NumPy and PyTorch (softmax, cosine similarity), and plans simulated step by step.
"""

import math

import numpy
import torch
from torch import nn
from torch.nn import functional as F

from minbert import multitask as package
from minbert.checks.engine import Check, CheckFailed, not_answered

__all__ = ["task_probabilities", "capped_probabilities", "annealed_exponent", "repair_endless", "go_on", "gradient_cosines",
           "epochs_to_see"]

COURSE = (8544, 141498, 6040)  # SST, Quora, STS


def _numbers(check, got):
    """The answer as a tensor: a list of numbers is as good as an array."""
    try:
        return torch.as_tensor(numpy.asarray(got, dtype=float))
    except (TypeError, ValueError):
        check.fail("one number a task is asked for.", "an array of numbers", type(got).__name__)


# ---- 9.1 and 9.2 probabilities ----------------------------------------------------------------------------------------


def task_probabilities(answer):
    """Exercise: `task_probabilities(counts, exponent)`."""
    check = Check("task_probabilities", see='Chapter 9, "Drawing the next task"')

    def mistakes(counts, alpha):
        N = numpy.asarray(counts, dtype=float)
        weights = N**alpha
        p = weights / weights.sum()
        return {
            "α is not used: the probability is in proportion to N itself.": lambda: N / N.sum(),
            "All tasks have the same probability; N is not used.": lambda: numpy.full(len(N), 1 / len(N)),
            "The shares N / ΣN are raised to α and then used as they are. They no longer sum to 1: raise first, divide once, "
            "last.": lambda: (N / N.sum()) ** alpha,
            "It is divided twice, by ΣN^α and by ΣN. One division makes the sum 1, a second one unmakes it.": lambda: p / N.sum(),
            "It is divided by ΣN, and not by the sum of the N^α.": lambda: weights / N.sum(),
            "The N^α are not divided by their sum.": lambda: weights,
            "The exponent is 1/α, so that a smaller α favours the largest task even more.":
                lambda: (N / N.max()) ** (1 / alpha) / ((N / N.max()) ** (1 / alpha)).sum() if alpha else None,
            "It is divided by the largest N^α, not by their sum.": lambda: weights / weights.max(),
            "The power is taken of the sum, not of each N: (ΣN)^α.": lambda: N / N.sum() ** alpha,
            "The square root is always taken. The exponent is α.": lambda: N**0.5 / (N**0.5).sum(),
            "This is a softmax of N^α: e is raised to it once more.":
                lambda: numpy.exp(weights - weights.max()) / numpy.exp(weights - weights.max()).sum(),
            "Base and exponent are swapped: α is raised to N.":
                lambda: alpha**N / (alpha**N).sum() if (alpha**N).sum() else N * math.nan,
        }  # fmt: skip

    cases = [("N = (100, 400) and α = ½, so that the weights are 10 and 20,", (100, 400), 0.5, [1 / 3, 2 / 3]),
             ("N = (100, 400) and α = 0", (100, 400), 0.0, [0.5, 0.5])]
    # The oracle: N^α = exp(α log N), so p is a softmax of α log N.
    cases += [(f"N = {COURSE} and α = {alpha}", COURSE, alpha,
               torch.softmax(alpha * torch.tensor(COURSE, dtype=torch.float64).log(), 0)) for alpha in (1.0, 0.2)]
    for what, counts, alpha, want in cases:
        want = torch.as_tensor(want, dtype=torch.float64)
        with numpy.errstate(all="ignore"):
            got = _numbers(check, check.run(answer, list(counts), alpha))
            check.equal(got, want, f"p for {what}", mistakes(counts, alpha))
    check.passed()


def capped_probabilities(answer):
    """Exercise: `capped_probabilities(counts, cap, exponent)`."""
    check = Check("capped_probabilities", see='Chapter 9, "Drawing the next task"')

    def mistakes(counts, cap, alpha):
        N = numpy.asarray(counts, dtype=float)
        K = numpy.minimum(N, cap)

        def share(weights):
            return lambda: weights / weights.sum() if weights.sum() else None

        return {
            "The cap is not used.": share(N**alpha),
            "The larger of N and the cap is taken. A cap takes the smaller.": share(numpy.maximum(N, cap) ** alpha),
            "The cap is put on N^α. It belongs on N, before the exponent.": share(numpy.minimum(N**alpha, cap)),
            "The exponent is not used.": share(K),
            "A task above the cap gets a probability of 0. It should count as one with K examples.":
                share(numpy.where(N > cap, 0, N) ** alpha * (N <= cap)),
            "Every task counts as if it had K examples.": share(numpy.full(len(N), float(cap))),
            "It is divided by the sum of the uncapped N^α, so that p sums to less than 1.": lambda: K**alpha / (N**alpha).sum(),
            "The weights are not divided by their sum.": lambda: K**alpha,
        }  # fmt: skip

    cases = [("N = (4, 100, 9), K = 9, α = ½, so that the weights are 2, 3 and 3,", (4, 100, 9), 9, 0.5, [2 / 8, 3 / 8, 3 / 8]),
             ("N = (4, 100, 9), K = 5, α = ½", (4, 100, 9), 5, 0.5, None), (f"N = {COURSE}, K = 10,000, α = 1", COURSE, 10_000, 1.0, None),
             (f"N = {COURSE}, K = 10⁹ (no cap at all), α = 1", COURSE, 10**9, 1.0, None)]
    for what, counts, cap, alpha, want in cases:
        if want is None:
            want = torch.softmax(alpha * torch.tensor(counts, dtype=torch.float64).clamp(max=cap).log(), 0)
        want = torch.as_tensor(want, dtype=torch.float64)
        got = _numbers(check, check.run(answer, list(counts), cap, alpha))
        check.equal(got, want, f"p for {what}", mistakes(counts, cap, alpha))
    check.passed()


# ---- 9.3 the exponent -------------------------------------------------------------------------------------------------


def annealed_exponent(answer):
    """Exercise: `annealed_exponent(epoch, epochs)`."""
    check = Check("annealed_exponent", see='Chapter 9, "Annealing"')
    known = {ZeroDivisionError: "With one epoch in all, E − 1 is 0. There is nothing to anneal then: α = 1."}

    def mistakes(E):
        steps = [(e - 1) / (E - 1) for e in range(1, E + 1)]
        return {
            "The epochs are counted from 0 here: α has fallen in the first epoch already. Epoch 1 has α = 1.":
                lambda: [1 - 0.8 * e / (E - 1) for e in range(1, E + 1)],
            "It is divided by E. From the first epoch to the last there are E − 1 steps.":
                lambda: [1 - 0.8 * (e - 1) / E for e in range(1, E + 1)],
            "The epochs are counted from 0 and divided by E. Epoch 1 has α = 1, and from it to the last there are E − 1 steps.":
                lambda: [1 - 0.8 * e / E for e in range(1, E + 1)],
            "α grows. It begins at 1, in proportion to the sizes, and falls.": lambda: [0.2 + 0.8 * s for s in steps],
            "α falls to 0, where all tasks are alike. It ends at a fifth.": lambda: [1 - s for s in steps],
            "α falls by 0.2. It falls to 0.2, by 0.8.": lambda: [1 - 0.2 * s for s in steps],
            "α stays at 1 in all epochs.": lambda: [1.0] * E,
            "α is ½ in all epochs: that is square-root sampling.": lambda: [0.5] * E,
            "α falls by a constant factor. It falls along a straight line.": lambda: [0.2**s for s in steps],
            "Integer division (//) leaves only 1 and 0.2.": lambda: [1.0] * (E - 1) + [0.2],
        }  # fmt: skip

    def line(E):
        return [check.plain(check.run(answer, e, E, mistakes=known), f"α of epoch {e} of {E}") for e in range(1, E + 1)]

    check.equal(line(5), [1.0, 0.8, 0.6, 0.4, 0.2], "α in epochs 1 to 5 of 5", mistakes(5), 1e-6)
    check.equal(line(10), numpy.linspace(1, 0.2, 10).tolist(), "α in epochs 1 to 10 of 10", mistakes(10), 1e-6)
    check.equal(line(1), [1.0], "α in the only epoch of 1", {
        "The only epoch is treated as the last one. It is the first too, and begins with α = 1.": lambda: [0.2],
    })
    check.passed()


# ---- 9.4 streams ------------------------------------------------------------------------------------------------------


def _deal(number, size=12, batch=3):
    """The batches of a pass: 12 examples, shuffled by the number of the pass."""
    order = numpy.random.default_rng([9, number]).permutation(size).tolist()
    return [order[start : start + batch] for start in range(0, size, batch)]


def repair_endless(answer):
    """Exercise: `repair_endless(deal, count)` returns the first `count` batches of an endless stream."""
    check = Check("repair_endless", see='Chapter 9, "Streams"')
    count, n = 10, 4  # two passes and a half of four batches
    passes = [_deal(number) for number in range(count + 2)]
    want = [passes[k // n][k % n] for k in range(count)]
    mistakes = {
        "The first pass is repeated: the batches were shuffled once, and the same examples meet in every pass. Deal each pass anew.":
            lambda: [passes[0][k % n] for k in range(count)],
        "The first batch comes again and again: a new iterator is made in each step.": lambda: [passes[0][0]] * count,
        "It stops after one pass. A shorter task must go on as long as the longest needs it.": lambda: passes[0],
        "The passes are counted from 1. The first is number 0, or a resumed run deals other batches.":
            lambda: [passes[1 + k // n][k % n] for k in range(count)],
        "The last batch of each pass is left out: its examples are never seen in that pass.":
            lambda: [passes[k // (n - 1)][k % (n - 1)] for k in range(count)],
        "Each step takes the first batch of a pass of its own.": lambda: [passes[k][0] for k in range(count)],
        "Each step deals anew, so that within a pass some examples come twice and others never.":
            lambda: [passes[k][k % n] for k in range(count)],
        "From the second pass on, pass 1 is repeated. Each pass has a number of its own.":
            lambda: [passes[min(1, k // n)][k % n] for k in range(count)],
        "Whole passes are returned. The last one is to be cut off when there are `count` batches.":
            lambda: [batch for number in range(-(-count // n)) for batch in passes[number]],
        "There is one batch too many.": lambda: [passes[k // n][k % n] for k in range(count + 1)],
    }  # fmt: skip

    def first(function, deal, count):
        result = check.run(function, deal, count)
        check.true(isinstance(result, (list, tuple)), "a list of batches is asked for.", None, "a list", type(result).__name__)
        check.true(all(isinstance(batch, (list, tuple)) for batch in result), "each thing in the list should be a batch, itself a list.",
                   "The batches are taken apart: the list holds single examples.", "[[…], […], …]", result)
        return [list(batch) for batch in result]

    two = first(answer, lambda number: [[2 * number], [2 * number + 1]], 5)
    by_hand = [[0], [1], [2], [3], [4]]
    got = first(answer, _deal, count)
    named = next((text for text, wrong in mistakes.items() if got == wrong()), None)
    check.true(two == by_hand, "five batches of a stream whose pass n is [2n], [2n + 1] are not right.", named, by_hand, two)
    check.true(got == want, f"the first {count} batches of a stream with {n} batches a pass are not right.", named, want, got)
    check.passed()


# ---- 9.5 going on -----------------------------------------------------------------------------------------------------


def go_on(answer):
    """Exercise: `go_on(method, counts, batch_size, epochs, seed, steps, done)` returns (epoch, step, positions)."""
    check = Check("go_on", see='Chapter 9, "A number is enough"')

    def walk(method, counts, size, epochs, seed, steps, done, wrong=None):
        """Step by step through the run; `wrong` is one mistake."""
        positions, left = [0] * len(counts), done + (1 if wrong == "ahead" else 0)
        for epoch in range(1, epochs + 1):
            plan = package.make_plan(method, counts, size, 1 if wrong == "first plan" else epoch, epochs,
                                     0 if wrong == "seed" else seed, steps)
            if wrong == "same length":
                plan_of_1 = package.make_plan(method, counts, size, 1, epochs, seed, steps)
                plan = (plan * (len(plan_of_1) // len(plan) + 1))[: len(plan_of_1)]
            if wrong == "this epoch":
                positions = [0] * len(counts)
            taken = 0
            for step in plan:
                if not left:
                    break
                for task in range(len(counts)) if wrong == "all tasks" else step:
                    positions[task] += 1
                taken, left = taken + 1, left - 1
            stays = taken == len(plan) and not left and wrong == "boundary"
            if taken < len(plan) or stays:
                if wrong == "whole epoch":
                    for step in plan[taken:]:
                        for task in step:
                            positions[task] += 1
                number = epoch - 1 if wrong == "from 0" else epoch
                return number, taken - 1 if wrong == "ahead" else taken, positions
        return None

    texts = {
        "boundary": "When an epoch is just over, the next step is step 0 of the next epoch.",
        "this epoch": "The positions are those of this epoch alone. A stream goes on from epoch to epoch.",
        "all tasks": "Every step counts as a batch of every task. A step takes batches of the tasks in its tuple only.",
        "first plan": "The plan of epoch 1 is used in every epoch. Each epoch has its own.",
        "from 0": "The epochs are counted from 0. They count from 1.",
        "seed": "The seed is not handed on: this is the run of seed 0.",
        "ahead": "The next step is counted as done.",
        "whole epoch": "The whole epoch is counted, also the steps that are still to come.",
        "same length": "Every epoch is taken to be as long as the first. With phases they are not.",
    }
    # By hand: 17 examples make 3 batches, 8 make 1. An epoch has 4 steps; 6 are done: all of epoch 1, and (0), (0) of epoch 2.
    cases = [(("sequential", [17, 8], 8, 3, 0, 0, 6), (2, 2, [5, 1])),
             (("sequential", [17, 8], 8, 3, 0, 0, 4), (2, 0, [3, 1])),
             (("annealed", [40, 100, 20], 4, 4, 5, 9, 23), None), (("proportional", [40, 100, 20], 4, 4, 5, 9, 11), None),
             (("phases", [17, 8, 16], 8, 3, 0, 0, 5), (3, 1, [3, 1, 1])),
             (("round-robin", [40, 100, 20], 4, 4, 1, 0, 0), (1, 0, [0, 0, 0]))]
    for arguments, want in cases:
        got = check.run(answer, *arguments)
        check.true(isinstance(got, (list, tuple)) and len(got) == 3, "three things are asked for: the epoch, the step, and the "
                   "positions.", None, "(epoch, step, positions)", got)
        check.true(isinstance(got[2], (list, tuple)) and all(isinstance(k, (int, numpy.integer)) for k in (*got[:2], *got[2])),
                   "the epoch and the step should be integers, the positions a list of them.", None, "(2, 2, [5, 1]), for example", got)
        got = (int(got[0]), int(got[1]), [int(k) for k in got[2]])
        want = want or walk(*arguments)
        if got == want:
            continue
        named = next((text for wrong, text in texts.items() if walk(*arguments, wrong) == got), None)
        names = ("method", "counts", "batch_size", "epochs", "seed", "steps", "done")
        how = ", ".join(f"{name}={value!r}" for name, value in zip(names, arguments))
        check.fail(f"(epoch, step, positions) is not right for {how}.", want, got, named)
    check.passed()


# ---- 9.6 the cosines --------------------------------------------------------------------------------------------------


def gradient_cosines(answer):
    """Exercise: `gradient_cosines(losses, shared)`."""
    check = Check("gradient_cosines", see='Chapter 9, "Do the tasks pull the same way?"')

    def mistakes(rows, sizes):
        rows = torch.as_tensor(rows, dtype=torch.float64)
        lengths = rows.norm(dim=1)
        cosines = rows @ rows.T / (lengths[:, None] * lengths)
        parts = [F.normalize(part, dim=1) for part in rows.split(sizes, dim=1)]
        return {
            "These are the dot products. Divide by the lengths of both gradients.": lambda: rows @ rows.T,
            "It is divided by one length only, that of the row's task. Both belong below the line.":
                lambda: rows @ rows.T / lengths[:, None],
            "It is divided by one length only, that of the column's task. Both belong below the line.":
                lambda: rows @ rows.T / lengths,
            "It is divided by the squares of the lengths.": lambda: rows @ rows.T / (lengths[:, None] * lengths) ** 2,
            "The sign is lost. A negative cosine is what one looks for: a conflict.": lambda: cosines.abs(),
            "This is 1 − cosine, a distance.": lambda: 1 - cosines,
            "This is a correlation: each gradient's mean was subtracted first. A cosine leaves it in.": lambda: torch.corrcoef(rows),
            "This is the mean of the cosines of single tensors. A short tensor would count as much as a long one: "
            "take all numbers as one vector.": lambda: sum(part @ part.T for part in parts) / len(parts),
            "This is the angle, not its cosine.": lambda: cosines.clamp(-1, 1).arccos(),
            "Only signs are compared: each gradient was replaced by its signs.": lambda: rows.sign() @ rows.sign().T / rows.shape[1],
        }  # fmt: skip

    def problem(rows, shapes, seed=0):
        """Losses whose gradients are these rows, on parameters of these shapes."""
        generator = torch.Generator().manual_seed(seed)
        shared = [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]
        sizes = [parameter.numel() for parameter in shared]
        losses = []
        for row in torch.as_tensor(rows, dtype=torch.float64):
            losses.append(sum((part * p.flatten()).sum() for part, p in zip(row.split(sizes), shared)))
        return losses, shared, sizes

    small = [[3, 4], [4, -3], [-3, -4]]
    generator = torch.Generator().manual_seed(3)
    large = torch.randn(4, 18, generator=generator, dtype=torch.float64) + 0.4
    large[1] *= 10
    cases = [("the gradients (3, 4), (4, −3) and (−3, −4)", small, [(1,), (1,)], [[1, 0, -1], [0, 1, 0], [-1, 0, 1]]),
             ("four gradients of 18 numbers, in three tensors", large, [(2, 3), (4,), (2, 2, 2)],
              F.cosine_similarity(large[:, None], large[None], dim=-1))]
    got = []
    for _, rows, shapes, want in cases:
        losses, shared, sizes = problem(rows, shapes)
        found = check.run(answer, losses, shared)
        check.tensor(found, "the result", shape=(len(rows), len(rows)))
        check.true(all(p.grad is None for p in shared), "there is something in `.grad` afterwards.",
                   "`backward()` adds into `.grad`, where the optimizer would find it. `torch.autograd.grad` does not.")
        got.append((found, mistakes(rows, sizes)))
    # The large case knows every mistake apart; the small one is shown first.
    (first, _), (second, known) = got
    wanted = torch.as_tensor(cases[1][3])
    named = next((text for text, wrong in known.items() if torch.allclose(second.double(), wrong(), atol=1e-6)
                  and not torch.allclose(wrong(), wanted)), None)
    for (what, _, _, want), found in zip(cases, (first, second)):
        check.equal(found, torch.as_tensor(want, dtype=torch.float64), f"The cosines of {what}", named and {named: lambda found=found: found},
                    tolerance=1e-6)
    check.passed()


# ---- 9.7 until all has been shown -------------------------------------------------------------------------------------


def epochs_to_see(answer):
    """Exercise: the number of epochs of round robin, ended by the shortest task, that show all of Quora's pairs."""
    check = Check("epochs_to_see", see='Chapter 9, "Taking turns"')
    if answer is None:
        raise CheckFailed(not_answered("epochs_to_see"))
    check.number(answer, 0.0, math.inf, "The number of epochs")  # a number at all?
    sst, quora, sts = package.batches_of(COURSE, 8)
    value, want = float(answer), math.ceil(quora / sts)
    likely = None
    if value == want - 1:
        likely = "Rounded down. After that many epochs some batches of Quora are still to come."
    elif abs(value - quora / sts) < 0.5 and value != want:
        likely = "Whole epochs are asked for. In the last one only a part of the batches is new."
    elif abs(value - quora / sst) < 1:
        likely = "Here SST is the shortest task. Count the batches: STS has fewer."
    elif abs(value - COURSE[1] / sts) < 1:
        likely = "Pairs were divided by batches. Divide batches by batches."
    elif value == 10:
        likely = "Ten epochs is what S0 trained. The chapter's table says that they leave more than half of Quora out."
    elif value == 1:
        likely = "That is so when an epoch goes on until the longest task is spent. Here it ends with the shortest."
    check.true(value == want, "The number of epochs is not right.", likely,
               "the batches of one pass over Quora, divided by the batches that an epoch takes of it, rounded up", answer)
    check.passed()
