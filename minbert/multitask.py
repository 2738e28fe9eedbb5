"""Many tasks, one model: which task's batch comes next (chapter 9).

A *plan* is a list of steps, and a step is a tuple of task numbers: the tasks from which one batch each is taken. Plans and
batches are functions of the seed and the epoch alone, so that a plan can be printed before training and a run resumed in
the middle of an epoch with nothing saved but a number.

Sources: Stickland & Murray 2019, "BERT and PALs", section 4.1 (sampling, annealing); report S0 (round robin until the
shortest task is spent); report S4 (one batch of each task a step, losses summed).
"""

import math

import numpy as np
import torch
from torch import nn

from minbert.classify import TaskModel

METHODS = ("sequential", "phases", "round-robin", "proportional", "square-root", "annealed")


def task_probabilities(counts, exponent):
    """p_i = N_i^α / Σ_j N_j^α.

    Args:
        counts: the number of training examples N_i of each task.
        exponent: α. 1 samples in proportion to the size, ½ by its square root, 0 all tasks alike.

    Returns:
        the probabilities, float64 (tasks,).

    Raises:
        ValueError: no task, or a task without examples.
    """
    counts = np.asarray(counts, dtype=float)
    if len(counts) == 0 or (counts < 1).any():
        raise ValueError(f"every task needs at least one example, not {counts.astype(int).tolist()}")
    # BEGIN task_probabilities
    weights = counts**exponent
    return weights / weights.sum()  # once: a second division by anything would not sum to 1
    # END task_probabilities


def annealed_exponent(epoch, epochs):
    """α of an epoch, counted from 1: α = 1 - 0.8 (e - 1) / (E - 1), from 1 down to 0.2.

    Source: Stickland & Murray 2019, section 4.1. With one epoch in all there is nothing to anneal: α = 1.

    Raises:
        ValueError: an epoch outside 1…E.
    """
    if not 1 <= epoch <= epochs:
        raise ValueError(f"epoch {epoch} is not between 1 and {epochs}")
    # BEGIN annealed_exponent
    if epochs == 1:
        return 1.0
    return 1 - 0.8 * (epoch - 1) / (epochs - 1)
    # END annealed_exponent


def exponent_of(method, epoch, epochs):
    """α of a sampling method in an epoch (from 1), or None for a method that draws nothing."""
    return {"proportional": 1.0, "square-root": 0.5}.get(
        method, annealed_exponent(epoch, epochs) if method == "annealed" else None
    )


def batches_of(counts, batch_size):
    """⌈N_i / B⌉: the number of batches in one pass over each task."""
    return [math.ceil(count / batch_size) for count in counts]


def default_steps(counts, batch_size):
    """Steps of an epoch of sampling: half of all the batches, Σ⌈N_i/B⌉ / 2, as report S0's times suggest."""
    return max(1, sum(batches_of(counts, batch_size)) // 2)


def make_plan(method, counts, batch_size, epoch, epochs, seed=0, steps=0, stop="shortest", step="per_batch"):
    """The plan of one epoch.

    Args:
        method: one of METHODS.
            "sequential": all batches of the first task, then all of the second, and so on, in every epoch.
            "phases": the epochs are dealt out: the first E/n of them to the first task alone, and so on.
            "round-robin": one batch of each task in turn, again and again.
            "proportional", "square-root", "annealed": each step's task is drawn with `task_probabilities`.
        counts: the number of training examples of each task.
        batch_size: B.
        epoch, epochs: which epoch, from 1, of how many.
        seed: of the drawing.
        steps: how many steps a drawn epoch has; 0 for `default_steps`. The other methods count their own.
        stop: round robin ends when the "shortest" task is spent, or goes on until the "longest" is; a shorter task then
            begins anew.
        step: "per_batch": a step is one batch. "summed": round robin only; a step is one batch of each task.

    Returns:
        a list of tuples of task numbers.

    Raises:
        ValueError: an unknown method, stop or step, or epoch; the message names the known ones. A task without examples,
            or a batch size below 1.
    """
    for what, value, known in [("method", method, METHODS), ("stop", stop, ("shortest", "longest")),
                               ("step", step, ("per_batch", "summed"))]:
        if value not in known:
            raise ValueError(f"{what}: {value!r} is none of {', '.join(known)}")
    if step == "summed" and method != "round-robin":
        raise ValueError(f"step 'summed' takes a batch of every task: it goes with round-robin, not with {method}")
    if not 1 <= epoch <= epochs:
        raise ValueError(f"epoch {epoch} is not between 1 and {epochs}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if not len(counts) or min(counts) < 1:
        raise ValueError(f"every task needs at least one example, not {list(counts)}")
    passes = batches_of(counts, batch_size)
    tasks = range(len(counts))
    if method == "sequential":
        return [(task,) for task in tasks for _ in range(passes[task])]
    if method == "phases":
        if epochs < len(counts):
            raise ValueError(f"phases: {epochs} epochs are fewer than {len(counts)} tasks")
        task = (epoch - 1) * len(counts) // epochs
        return [(task,)] * passes[task]
    if method == "round-robin":
        rounds = min(passes) if stop == "shortest" else max(passes)
        return [tuple(tasks)] * rounds if step == "summed" else [(task,) for _ in range(rounds) for task in tasks]
    p = task_probabilities(counts, exponent_of(method, epoch, epochs))
    generator = np.random.default_rng([seed, epoch, 9])  # 9: another stream than the one that shuffles (seed, epoch)
    drawn = generator.choice(len(counts), size=steps or default_steps(counts, batch_size), p=p)
    return [(int(task),) for task in drawn]


def positions(plan, tasks, start=None):
    """How many batches of each task a plan takes, added to `start`: where each task's stream stands after it."""
    found = list(start or [0] * tasks)
    for step in plan:
        for task in step:
            found[task] += 1
    return found


class Stream:
    """The endless batches of one task: pass after pass over its examples, each pass shuffled anew.

    `stream[k]` is the k-th batch, whenever it is asked for: nothing is kept but the last pass, so nothing needs to be saved.

    Args:
        deal: a function from the number of a pass, 0, 1, …, to its list of batches (lists of indices).
    """

    def __init__(self, deal):
        self.deal = deal
        self.number, self.batches = 0, deal(0)

    def __getitem__(self, k):
        number, place = divmod(k, len(self.batches))
        if number != self.number:
            self.number, self.batches = number, self.deal(number)
        return self.batches[place]


class MultiTaskModel(TaskModel):
    """One encoder and one head a task.

    Args:
        encoder: the encoder that all share.
        models: {task's name: a model with this very encoder, such as a `SentenceClassifier` or a `JoinedPairs`}.

    A task's model keeps its own `forward`, but only this model owns the encoder: in `parameters()` and in a checkpoint the
    encoder is there once, and each entry of `heads` counts as what is on top of it.

    Raises:
        ValueError: no model, or one with another encoder.
    """

    def __init__(self, encoder, models):
        super().__init__()
        if not models:
            raise ValueError("a model of many tasks needs at least one")
        for name, model in models.items():
            if model.encoder is not encoder:
                raise ValueError(f"the model of {name!r} has an encoder of its own: build it on the shared one")
        self.encoder = encoder
        self.heads = nn.ModuleDict(models)
        for model in models.values():
            del model.encoder  # as a part of it …
            object.__setattr__(model, "encoder", encoder)  # … it stays as a plain reference

    def forward(self, task, *inputs):
        """What the model of this task says to its own inputs."""
        return self.heads[task](*inputs)

    def alone(self, task):
        """The model of one task as it was before: it owns the encoder again. This model is not to be used any more."""
        model = self.heads[task]
        model.__dict__.pop("encoder", None)
        model.encoder = self.encoder
        return model


def freeze_head(model, task):
    """Freeze the head of one task and let the rest learn (reports S2 and S3). Returns the model.

    Raises:
        ValueError: there is no such head; the message names those that there are.
    """
    if task not in model.heads:
        raise ValueError(f"freeze: there are several heads ({', '.join(model.heads)}): name one of them, not {task!r}")
    model.heads[task].requires_grad_(False)
    model.frozen = [*model.frozen, model.heads[task]]
    return model.train(model.training)


def task_gradients(losses, shared):
    """The gradient of each task's loss by the shared parameters, laid out as one row.

    Args:
        losses: one loss a task, tensors of shape (), all from the same state of the model.
        shared: the parameters that all tasks use, such as the encoder's. A parameter that a task does not use counts as 0.

    Returns:
        (tasks, numbers). No `.grad` is touched.

    Raises:
        ValueError: no loss, no parameter, or none that learns.
    """
    losses, shared = list(losses), [parameter for parameter in shared if parameter.requires_grad]
    if not losses or not shared:
        raise ValueError(f"gradients need losses and parameters that learn, not {len(losses)} and {len(shared)}")
    rows = []
    for loss in losses:
        found = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
        rows.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(shared, found)]))
    return torch.stack(rows)


def gradient_cosines(losses, shared):
    """The cosine between the gradients of each two tasks on what they share (Yu et al. 2020, section 2.2).

    Above 0, a small step for one task lowers the other's loss too. At 0 they leave each other alone, to first order. Below 0
    they *conflict*: what helps one harms the other. In millions of dimensions two random directions have a cosine near 0.

    Args:
        losses, shared: see `task_gradients`.

    Returns:
        (tasks, tasks), symmetric, 1 on the diagonal; NaN for a task whose gradient is 0: it has no direction.

    Raises:
        ValueError: see `task_gradients`.
    """
    rows = task_gradients(losses, shared).double()  # (tasks, numbers): sums over millions of products
    # BEGIN gradient_cosines
    lengths = rows.norm(dim=1)  # (tasks,)
    return rows @ rows.T / (lengths[:, None] * lengths)
    # END gradient_cosines
