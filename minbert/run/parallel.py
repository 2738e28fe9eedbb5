"""One training run in several processes, each with a GPU of its own: data parallelism.

`torchrun` starts the same program several times and tells each process, by environment variables, which one it is.

    torchrun --nproc-per-node 2 -m minbert.run.cli run first-finetune

Every process has the whole model and deals the same batches, for their order depends on the seed alone.  Of each batch it
takes its share: process r of n the examples r, r + n, r + 2n, …  They are of one task and of nearly one length, and nobody
had to ask for them.  Backward, PyTorch's `DistributedDataParallel` takes the mean of the processes' gradients, so that all
take the same step and stay equal.  The batch size is that of all processes together, and the result is that of one process
but for rounding and for dropout, which each process draws for itself.

The first process alone evaluates, writes and speaks.  On a CPU the processes talk by gloo, on GPUs by nccl.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import math
import os
import warnings

import numpy as np
import torch
from torch import distributed, nn

PATIENCE = datetime.timedelta(hours=12)              # the others wait while the first one evaluates


class ParallelError(ValueError):
    """These processes can't train together; the message says how many could."""


def world() -> tuple[int, int]:
    """(which process this is, from 0; how many there are), as torchrun says; (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def is_first() -> bool:
    """True in the process that evaluates, writes and speaks."""
    return world()[0] == 0


def own_device(device: str) -> str:
    """The device asked for; with a GPU for each process, this one's."""
    if world()[1] > 1 and device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return device


def meet(batch_size: int, device: torch.device) -> None:
    """Meet the other processes, if there are any.  Raises ParallelError if there is not an example for each in a batch."""
    processes = world()[1]
    if processes > batch_size:
        raise ParallelError(f"{processes} processes can't share a batch of {batch_size}: start at most {batch_size} "
                            f"(torchrun --nproc-per-node {batch_size}), or take a larger batch")
    if processes == 1 or distributed.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Small things (sums of losses, a wish to stop) go by gloo in any case; the gradients go where the model is.
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    atexit.register(distributed.destroy_process_group)


class LossOf(nn.Module):
    """A task's loss as a module, for DistributedDataParallel wraps modules and follows what `forward` returns."""

    def __init__(self, task):
        super().__init__()
        self.task, self.model = task, task.model
        # PyTorch warns where it looks for unused parameters and finds none: it always finds this one.
        self.idle = nn.Parameter(next(task.model.parameters()).detach().new_zeros(()))

    def forward(self, part: dict):
        """(mean loss, right answers, answers) of a part of a batch."""
        return self.task.loss(part)


def wrap(task):
    """The task's loss, its gradients averaged over the processes; None if there is one process only."""
    if world()[1] == 1:
        return None
    # Most steps leave some heads or adapters unused, and the processes must not wait for their gradients.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)   # 2.13 has a new name for broadcast_buffers, 2.11 only this one
        return nn.parallel.DistributedDataParallel(LossOf(task), find_unused_parameters=True, broadcast_buffers=False)


def own_parts(task, batch: dict, micro_batch: int, rank: int, processes: int) -> list[tuple[dict, float]]:
    """This process's share of a batch in parts of at most `micro_batch` examples (0: any number): [(part, weight)].

    The loss of the whole batch, over all processes, is Σ weight · (mean loss of the part).  A process that has no example in
    the batch takes part in the step all the same, with weight 0: the others wait for its gradients.
    """
    found, idle = [], []
    for whole in task.parts(batch, 0):               # one for each task in the step
        own = task.part(whole, slice(rank, None, processes))
        if own is None:
            idle.append((task.part(whole, slice(1)), 0.0))
            continue
        for part in task.parts(own, micro_batch):
            weight = task.answers(part) / task.answers(whole)
            (found if weight else idle).append((part, weight))   # the idle: no hidden piece to guess
    return found or idle[:1]


def forward_backward_together(wrapped, batch: dict, arithmetic, micro_batch: int = 0):
    """As `minbert.run.loop.forward_backward`, in all processes together.

    `batch` is the whole batch.  Loss, right answers and answers are those of all processes, and the same in each.
    Raises FloatingPointError in every process when the loss of any is NaN or infinite.
    """
    task, (rank, processes) = wrapped.module.task, world()
    parts = own_parts(task, batch, micro_batch, rank, processes)
    sums = torch.zeros(3, dtype=torch.float64)       # loss, right answers, answers
    for place, (part, weight) in enumerate(parts, 1):
        # The sum of all parts' gradients travels with the last part.
        with contextlib.nullcontext() if place == len(parts) else wrapped.no_sync():
            with arithmetic.autocast():
                loss, right, count = wrapped(part)
            # Times the number of processes, because DistributedDataParallel divides by it: weights are shares of the whole.
            arithmetic.scaler.scale(loss * (weight * processes)).backward()
        if weight:
            sums += torch.tensor([loss.item() * weight, float(right), count], dtype=torch.float64)
    distributed.all_reduce(sums)
    value, right, count = sums.tolist()
    if not math.isfinite(value):                     # told only now: a process that left earlier would be waited for
        raise FloatingPointError(f"the loss is {value}")
    return value, int(right), int(count)


def seed_step(seed: int, step: int) -> None:
    """Start this process's random numbers for a step: other dropout in each process, and the same when a run is resumed."""
    rank, _ = world()
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]))


def in_any(*wishes) -> list[bool]:
    """For each wish, whether any process has it.  All processes get the same answer, after all have asked."""
    wishes = [bool(wish) for wish in wishes]
    if world()[1] == 1:
        return wishes
    told = torch.tensor(wishes, dtype=torch.int32)
    distributed.all_reduce(told, distributed.ReduceOp.MAX)
    return told.bool().tolist()


def wait() -> None:
    """Go on when all processes have come here."""
    in_any(False)


def first_then_others(compute):
    """`compute()` in each process, first in the first: what it downloads or keeps on disk, the others find there."""
    first = is_first()
    if not first:
        wait()
    result = compute()
    if first:
        wait()
    return result


def from_first(compute):
    """`compute()` in the first process; its result in all."""
    rank, processes = world()
    if processes == 1:
        return compute()
    box = [compute() if rank == 0 else None]
    distributed.broadcast_object_list(box, src=0)
    return box[0]
