"""Chapter 9: wrong versions from real mistakes, right versions written differently. See tests/test_checks.py."""

import itertools
import math

import numpy as np
import torch

from minbert import multitask as package

# -- probabilities --------------------------------------------------------------------------------------------------


def shares(weigh):
    """p from a function (N, α) → weights."""
    return lambda counts, exponent: (lambda w: w / w.sum())(weigh(np.asarray(counts, dtype=float), exponent))


def plain(make):
    """p from a function (N, α) → p, without any division after it."""
    return lambda counts, exponent: make(np.asarray(counts, dtype=float), exponent)


def swapped(N, alpha):
    with np.errstate(all="ignore"):
        return alpha**N / (alpha**N).sum()


def inverse(N, alpha):
    return (N / N.max()) ** (1 / alpha) if alpha else np.ones(len(N))


def softmax_of_weights(counts, exponent):
    return torch.softmax(torch.tensor(counts, dtype=torch.float64) ** exponent, 0)


def probabilities_with_fractions(counts, exponent):
    """No array at all, and a task's odds against each other."""
    return [1 / math.fsum((other / count) ** exponent for other in counts) for count in counts]


def capped(weigh):
    def capped_version(counts, cap, exponent=1.0):
        weights = weigh(np.asarray(counts, dtype=float), cap, exponent)
        return weights / weights.sum()

    return capped_version


def cap_without_its_sum(counts, cap, exponent=1.0):
    N = np.asarray(counts, dtype=float)
    return np.minimum(N, cap) ** exponent / (N**exponent).sum()


def cap_by_hand(counts, cap, exponent=1.0):
    weights = [(count if count < cap else cap) ** exponent for count in counts]
    return [weight / sum(weights) for weight in weights]


def cap_with_the_package(counts, cap, exponent=1.0):
    return package.task_probabilities([min(count, cap) for count in counts], exponent)


# -- the exponent ---------------------------------------------------------------------------------------------------


def falls(along, alone=1.0):
    """α from a function of (e, E); `alone` is what one epoch in all gives."""
    return lambda epoch, epochs: alone if epochs == 1 else along(epoch, epochs)


def exponent_by_steps(epoch, epochs):
    alpha = 1.0
    for _ in range(epoch - 1):
        alpha -= 0.8 / (epochs - 1)
    return alpha


# -- streams --------------------------------------------------------------------------------------------------------


def chosen(which):
    """The first batches of a stream, from a function (k, n) → (pass, place)."""

    def stream(deal, count):
        n = len(deal(0))
        return [deal(number)[place] for number, place in (which(k, n) for k in range(count))]

    return stream


def frozen_cycle(deal, count):
    return list(itertools.islice(itertools.cycle(deal(0)), count))


def always_the_first(deal, count):
    return [next(iter(deal(0))) for _ in range(count)]


def endless_list(deal, count):
    found, number = [], 0
    while len(found) < count:
        found += deal(number)
        number += 1
    return found[:count]


def endless_stream(deal, count):
    stream = package.Stream(deal)
    return [stream[k] for k in range(count)]


# -- going on -------------------------------------------------------------------------------------------------------


def went(*, epoch_of=lambda epoch: epoch, keep=True, everyone=False, seed_of=lambda seed: seed, early=False, whole=False,
         late=False, ahead=0):  # fmt: skip
    """go_on with a switch for each mistake."""

    def go(method, counts, batch_size, epochs, seed, steps, done):
        taken, left = [0] * len(counts), done + ahead
        for epoch in range(1, epochs + 1):
            plan = package.make_plan(method, counts, batch_size, epoch_of(epoch), epochs, seed_of(seed), steps)
            taken = taken if keep else [0] * len(counts)
            part = plan[:left]
            for step in part:
                for task in range(len(counts)) if everyone else step:
                    taken[task] += 1
            if left < len(plan) or (late and left == len(plan)):
                if whole:
                    taken = package.positions(plan[left:], len(counts), taken)
                return (epoch - 1 if early else epoch), left - ahead, taken
            left -= len(plan)

    return go


def same_length(method, counts, batch_size, epochs, seed, steps, done):
    """divmod by the length of the first epoch."""
    n = len(package.make_plan(method, counts, batch_size, 1, epochs, seed, steps))
    before, left = divmod(done, n)
    taken = [0] * len(counts)
    for epoch in range(1, before + 2):
        plan = package.make_plan(method, counts, batch_size, epoch, epochs, seed, steps)
        plan = (plan * n)[: n if epoch <= before else left]
        taken = package.positions(plan, len(counts), taken)
    return before + 1, left, taken


def with_one_long_list(method, counts, batch_size, epochs, seed, steps, done):
    """All steps of the run, each with its epoch and number."""
    run = [(epoch, number, step) for epoch in range(1, epochs + 1)
           for number, step in enumerate(package.make_plan(method, counts, batch_size, epoch, epochs, seed, steps))]
    epoch, number, _ = run[done]
    return epoch, number, [sum(step.count(task) for _, _, step in run[:done]) for task in range(len(counts))]


# -- cosines --------------------------------------------------------------------------------------------------------


def from_rows(make):
    """gradient_cosines from a function of the rows (tasks, numbers)."""
    return lambda losses, shared: make(package.task_gradients(losses, list(shared)).double())


def cosine(rows):
    lengths = rows.square().sum(1).sqrt()
    return rows @ rows.T / torch.outer(lengths, lengths)


def mean_of_tensors(losses, shared):
    shared = list(shared)
    return sum(cosine(package.task_gradients(losses, [p])) for p in shared) / len(shared)


def with_backward(losses, shared):
    rows = []
    for loss in losses:
        for p in shared:
            p.grad = None
        loss.backward(retain_graph=True)
        rows.append(torch.cat([p.grad.flatten() for p in shared]))
    return cosine(torch.stack(rows))


def cosines_pair_by_pair(losses, shared):
    rows = package.task_gradients(losses, list(shared))
    return torch.stack([torch.stack([torch.nn.functional.cosine_similarity(a, b, dim=0) for b in rows]) for a in rows])


def cosines_of_unit_vectors(losses, shared):
    shared = list(shared)
    unit = []
    for loss in losses:
        parts = torch.autograd.grad(loss, shared, retain_graph=True)
        length = math.sqrt(sum(part.square().sum().item() for part in parts))
        unit.append([part / length for part in parts])
    return torch.stack([torch.stack([sum((a * b).sum() for a, b in zip(one, two)) for two in unit]) for one in unit])


# -- the lists ------------------------------------------------------------------------------------------------------

WRONG = {
    "task_probabilities": {
        "no exponent": shares(lambda N, a: N),
        "all alike": shares(lambda N, a: np.ones(len(N))),
        "shares to the power": plain(lambda N, a: (N / N.sum()) ** a),
        "divided twice": plain(lambda N, a: N**a / (N**a).sum() / N.sum()),
        "divided by the examples": plain(lambda N, a: N**a / N.sum()),
        "not divided": plain(lambda N, a: N**a),
        "one over the exponent": shares(inverse),
        "divided by the largest": plain(lambda N, a: N**a / (N**a).max()),
        "always the root": shares(lambda N, a: np.sqrt(N)),
        "softmax": softmax_of_weights,
        "swapped": plain(swapped),
    },
    "capped_probabilities": {
        "no cap": capped(lambda N, K, a: N**a),
        "the larger": capped(lambda N, K, a: np.maximum(N, K) ** a),
        "cap on the weights": capped(lambda N, K, a: np.minimum(N**a, K)),
        "no exponent": capped(lambda N, K, a: np.minimum(N, K)),
        "large tasks left out": capped(lambda N, K, a: np.where(N > K, 0.0, N**a)),
        "all at the cap": capped(lambda N, K, a: np.full(len(N), float(K)) ** a),
        "the uncapped sum": cap_without_its_sum,
        "not divided": lambda counts, cap, exponent=1.0: np.minimum(np.asarray(counts, dtype=float), cap) ** exponent,
    },
    "annealed_exponent": {
        "counted from 0": falls(lambda e, E: 1 - 0.8 * e / (E - 1)),
        "divided by E": falls(lambda e, E: 1 - 0.8 * (e - 1) / E),
        "growing": falls(lambda e, E: 0.2 + 0.8 * (e - 1) / (E - 1)),
        "down to 0": falls(lambda e, E: 1 - (e - 1) / (E - 1)),
        "by a fifth": falls(lambda e, E: 1 - 0.2 * (e - 1) / (E - 1)),
        "constant": falls(lambda e, E: 1.0),
        "the root": falls(lambda e, E: 0.5),
        "geometric": falls(lambda e, E: 0.2 ** ((e - 1) / (E - 1))),
        "integers": falls(lambda e, E: 1 - 0.8 * ((e - 1) // (E - 1))),
        "one epoch divides by 0": lambda e, E: 1 - 0.8 * (e - 1) / (E - 1),
        "one epoch is the last": falls(lambda e, E: 1 - 0.8 * (e - 1) / (E - 1), alone=0.2),
    },
    "repair_endless": {
        "frozen": frozen_cycle,
        "always the first": always_the_first,
        "one pass": lambda deal, count: deal(0)[:count],
        "passes from 1": chosen(lambda k, n: (1 + k // n, k % n)),
        "the last left out": chosen(lambda k, n: (k // (n - 1), k % (n - 1))),
        "a pass a step": chosen(lambda k, n: (k, 0)),
        "dealt at each step": chosen(lambda k, n: (k, k % n)),
        "pass 1 for ever": chosen(lambda k, n: (min(1, k // n), k % n)),
        "one too many": lambda deal, count: endless_list(deal, count + 1),
        "taken apart": lambda deal, count: [example for batch in endless_list(deal, count) for example in batch],
    },
    "go_on": {
        "stays at the end": went(late=True),
        "this epoch alone": went(keep=False),
        "all tasks": went(everyone=True),
        "the first plan": went(epoch_of=lambda epoch: 1),
        "epochs from 0": went(early=True),
        "no seed": went(seed_of=lambda seed: 0),
        "one ahead": went(ahead=1),
        "the whole epoch": went(whole=True),
        "same length": same_length,
    },
    "gradient_cosines": {
        "dot products": from_rows(lambda g: g @ g.T),
        "one length, row": from_rows(lambda g: g @ g.T / g.norm(dim=1, keepdim=True)),
        "one length, column": from_rows(lambda g: g @ g.T / g.norm(dim=1)),
        "squares": from_rows(lambda g: g @ g.T / torch.outer(g.square().sum(1), g.square().sum(1))),
        "absolute": from_rows(lambda g: cosine(g).abs()),
        "distance": from_rows(lambda g: 1 - cosine(g)),
        "correlation": from_rows(torch.corrcoef),
        "mean over tensors": mean_of_tensors,
        "angle": from_rows(lambda g: torch.arccos(cosine(g).clamp(-1, 1))),
        "signs": from_rows(lambda g: g.sign() @ g.sign().T / g.shape[1]),
        "through .grad": with_backward,
    },
}

RIGHT = {
    "task_probabilities": {"the package's": package.task_probabilities, "fractions": probabilities_with_fractions,
                           "from shares": shares(lambda N, a: (N / N.sum()) ** a)},
    "capped_probabilities": {"by hand": cap_by_hand, "with the package's": cap_with_the_package},
    "annealed_exponent": {"the package's": package.annealed_exponent, "step by step": exponent_by_steps,
                          "between two ends": falls(lambda e, E: ((E - e) + 0.2 * (e - 1)) / (E - 1))},
    "repair_endless": {"a list that grows": endless_list, "the package's stream": endless_stream,
                       "by division": chosen(lambda k, n: divmod(k, n))},
    "go_on": {"switchable": went(), "one long list": with_one_long_list},
    "gradient_cosines": {"the package's": package.gradient_cosines, "pair by pair": cosines_pair_by_pair,
                         "unit vectors": cosines_of_unit_vectors},
}

UNLISTED = {
    "task_probabilities": shares(lambda N, a: N**a + 1),
    "capped_probabilities": capped(lambda N, K, a: np.minimum(N, K) ** a + 1),
    "annealed_exponent": falls(lambda e, E: 1.001 - 0.8 * (e - 1) / (E - 1)),
    "repair_endless": lambda deal, count: [list(reversed(batch)) for batch in endless_list(deal, count)][::-1],
    "go_on": lambda *arguments: (lambda found: (found[0], found[1], found[2][::-1]))(went()(*arguments)),
    "gradient_cosines": from_rows(lambda g: 1.001 * cosine(g)),
}
