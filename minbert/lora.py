"""LoRA: fine-tuning a frozen matrix through a small one beside it (chapter 6).

A fine-tuned `Linear` computes (W + ΔW) x. LoRA writes the update as a product of two thin matrices, ΔW = s · B · A, and
trains only those. Each task has its own pair (A, B), so that one encoder serves many tasks.

Source: Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1. One pair per task and the
plain scaling α: report S0.
"""

import json
import math
from pathlib import Path

import torch
from torch import nn

from minbert.files import write_atomically

ATTENTION = ("query", "key", "value", "output")     # the four matrices of an attention, as report S0 adapts them
FEED_FORWARD = ("up", "down")
SCALINGS = {"alpha/r": lambda alpha, r: alpha / r, "alpha": lambda alpha, r: alpha}


class LoRALinear(nn.Module):
    """A frozen `Linear` with a trained low-rank update for each task: y = W x + b + s · B_t · A_t · dropout(x).

    Args:
        linear: the `Linear` (in → out). It is frozen here.
        r: the rank.
        alpha: α of the scaling.
        dropout: on the input of the update, in training only.
        scaling: "alpha/r" (Hu et al.: s = α/r) or "alpha" (report S0: s = α, which is r times more).

    `task` says which update is used: a task's name for the whole batch, a list with a name for each row, or None for
    the frozen layer alone. `use_task` sets it in a whole model.

    Raises:
        ValueError: a rank below 1, or an unknown scaling.
    """

    def __init__(self, linear, r=16, alpha=16.0, dropout=0.0, scaling="alpha/r"):
        super().__init__()
        if r < 1:
            raise ValueError(f"LoRA: the rank must be at least 1, not {r}")
        if scaling not in SCALINGS:
            raise ValueError(f"LoRA: scaling {scaling!r} is none of {', '.join(SCALINGS)}")
        self.linear = linear.requires_grad_(False)
        self.r, self.scale = r, SCALINGS[scaling](alpha, r)
        self.dropout = nn.Dropout(dropout)
        # A parameter of its own for each task. One stacked tensor would give an idle task a gradient of zeros, and
        # momentum and weight decay would then move it.
        self.A, self.B = nn.ParameterDict(), nn.ParameterDict()
        self.task = None
        self.merged = None

    def add_task(self, task):
        """A new pair: A random, B zero. So the update begins as exactly 0, and B has a gradient from the first step.

        Raises:
            ValueError: the task is there already, or its name can't name a parameter (a dot, "copy", "keys" …).
        """
        if task in self.A:
            raise ValueError(f"LoRA: {task!r} is there already")
        if not task or "." in task or hasattr(self.A, task):
            raise ValueError(f"LoRA: {task!r} can't be a task's name, choose another")
        out, size = self.linear.weight.shape
        like = dict(dtype=self.linear.weight.dtype, device=self.linear.weight.device)
        # BEGIN add_task
        A = torch.empty(self.r, size, **like)  # (r, in)
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))  # as `nn.Linear` begins: even in ±1/√in
        self.A[task] = nn.Parameter(A)
        self.B[task] = nn.Parameter(torch.zeros(out, self.r, **like))  # (out, r)
        # END add_task

    def forward(self, x):
        """x (B, …, in) to (B, …, out)."""
        y = self.linear(x)
        if self.merged is not None:
            if self.task not in (None, self.merged):
                raise RuntimeError(f"LoRA: {self.merged!r} is merged into the weights; unmerge before {self.task!r}")
            return y
        if self.task is None:
            return y
        # BEGIN forward
        x = self.dropout(x)
        if isinstance(self.task, str):
            return y + self.scale * (x @ self.A[self.task].T) @ self.B[self.task].T  # (B, …, out)
        if len(self.task) != len(x):
            raise ValueError(f"LoRA: {len(self.task)} task names for {len(x)} rows")
        update = torch.zeros_like(y)
        for task in dict.fromkeys(self.task):  # each task once, with all of its rows
            rows = torch.tensor([i for i, name in enumerate(self.task) if name == task], device=x.device)
            part = self.scale * (x[rows] @ self.A[task].T) @ self.B[task].T  # (rows, …, out)
            update = update.index_copy(0, rows, part.to(update.dtype))
        return y + update
        # END forward

    def update(self, task):
        """ΔW = s · B · A of a task: (out, in)."""
        return self.scale * self.B[task] @ self.A[task]

    @torch.no_grad()
    def merge(self, task):
        """Add a task's update to the frozen matrix: the same outputs at no extra cost, for this task alone."""
        if self.merged is not None:
            raise RuntimeError(f"LoRA: {self.merged!r} is merged already")
        self.before = self.linear.weight.clone()  # subtracting again would leave a rounding error
        self.linear.weight += self.update(task)
        self.merged = task

    @torch.no_grad()
    def unmerge(self):
        """Take the update out again. The frozen matrix is then bit for bit what it was."""
        if self.merged is None:
            raise RuntimeError("LoRA: nothing is merged")
        self.linear.weight.copy_(self.before)
        self.merged, self.before = None, None


def add_lora(model, tasks, r=16, alpha=16.0, dropout=0.0, scaling="alpha/r", feed_forward=False):
    """Freeze an encoder and put a `LoRALinear` around the attention matrices of each layer.

    Args:
        model: a `BertModel`, or anything that holds `BertLayer`s.
        tasks: names; each gets its own update.
        r, alpha, dropout, scaling: see `LoRALinear`.
        feed_forward: adapt the two feed-forward matrices too.

    Returns:
        the model. Only the updates can learn; no task is chosen yet (`use_task`).

    Raises:
        ValueError: no task, a task twice or a name that can't be one (see `LoRALinear.add_task`), a rank below 1, an unknown
            scaling, adapted already, or nothing to adapt. The model is then as it was.
    """
    if not tasks or isinstance(tasks, str):
        raise ValueError("LoRA: give a list with at least one task's name")
    if adapted(model):
        raise ValueError("LoRA: this model is adapted already; add_task adds one more task")
    # What can't be is refused before anything is changed. A layer on "meta" has no numbers, and draws none.
    trial = LoRALinear(nn.Linear(1, 1, device="meta"), r, alpha, dropout, scaling)
    for task in tasks:
        trial.add_task(task)
    names = ATTENTION + (FEED_FORWARD if feed_forward else ())
    found = [
        (parent, name) for parent in model.modules() for name, child in parent.named_children()
        if name in names and type(child) is nn.Linear
    ]  # fmt: skip
    if not found:
        raise ValueError(f"LoRA: no Linear named {', '.join(names)} in this model")
    model.requires_grad_(False)
    for parent, name in found:
        layer = LoRALinear(getattr(parent, name), r, alpha, dropout, scaling)
        setattr(parent, name, layer.train(parent.training))
    for task in tasks:
        add_task(model, task)
    return model


def adapted(model):
    """The (name, LoRALinear) pairs of a model."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoRALinear)]


def add_task(model, task):
    """One more task: a new update in every adapted layer. The other tasks' outputs stay bit for bit the same."""
    for _, layer in adapted(model):
        layer.add_task(task)


def use_task(model, task):
    """Choose the task: a name, a list with a name for each row of the batch, or None for the frozen model (with what is
    merged into it). Returns the model.

    Raises:
        ValueError: a task that was never added; the message names the known ones.
    """
    for _, layer in _with_tasks(model, [task] if isinstance(task, str) else set(task or ())):
        layer.task = task
    return model


def _with_tasks(model, tasks):
    """`adapted`, or ValueError if one of these tasks was never added."""
    layers = adapted(model)
    known = list(layers[0][1].A) if layers else []
    for task in tasks:
        if task not in known:
            raise ValueError(f"LoRA: no task {task!r}; known: {', '.join(known) or 'none'}")
    return layers


def merge(model, task):
    """Merge a task's update into every adapted matrix, see `LoRALinear.merge`. Returns the model.

    Raises:
        ValueError: a task that was never added.
        RuntimeError: one is merged already.
    """
    for _, layer in _with_tasks(model, [task]):
        layer.merge(task)
    return model


def unmerge(model):
    """Undo `merge`. Returns the model.

    Raises:
        RuntimeError: nothing is merged.
    """
    for _, layer in adapted(model):
        layer.unmerge()
    return model


def adapter_size(layers, hidden_size, r, intermediate_size=0):
    """The number of parameters of one task, in closed form.

    A square matrix of size D takes r · 2D; the four of an attention 8rD; with `intermediate_size` F, the two
    feed-forward matrices another 2r(D + F).
    """
    attention = 4 * r * 2 * hidden_size
    feed_forward = 2 * r * (hidden_size + intermediate_size) if intermediate_size else 0
    return layers * (attention + feed_forward)


def adapter_tensors(model, task):
    """The tensors of one task by name: {"layers.0.attention.query.A": (r, in), …}.

    Raises:
        ValueError: no such task.
    """
    tensors = {}
    for name, layer in _with_tasks(model, [task]):
        tensors[f"{name}.A"], tensors[f"{name}.B"] = layer.A[task].detach(), layer.B[task].detach()
    return tensors


def save_adapter(model, task, path):
    """Write one task's update alone as safetensors: 4 · `adapter_size` bytes in float32, 1.2 MB for MiniLM at rank 16. The
    file is there whole or not at all.

    Raises:
        ValueError: no such task.
        OSError: the file can't be written.
    """
    from safetensors.torch import save

    layers = _with_tasks(model, [task])
    tensors = {name: tensor.cpu().contiguous() for name, tensor in adapter_tensors(model, task).items()}
    meta = {"task": task, "r": layers[0][1].r, "scale": layers[0][1].scale}
    return write_atomically(path, save(tensors, metadata={"minbert-adapter": json.dumps(meta)}))


def load_adapter(model, path, task=None):
    """Add the update in a file to a model that has `LoRALinear`s of the same shape.

    Args:
        model: what `add_lora` returned.
        path: what `save_adapter` wrote.
        task: another name for it here.

    Returns:
        the task's name.

    Raises:
        ValueError: no adapter file, damaged, another rank, scale or shape, or the task is there already. Nothing has
            been added then.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with safe_open(path, "pt") as file:
            meta = json.loads((file.metadata() or {})["minbert-adapter"])
            meta = {key: meta[key] for key in ("task", "r", "scale")}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (KeyError, TypeError):
        raise ValueError(f"{path}: holds no adapter (save_adapter writes one)") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path}: can't be read ({' '.join(str(error).split())}); write or fetch it again") from None
    task, layers = task or meta["task"], adapted(model)
    if not layers:
        raise ValueError(f"{path}: this model has no adapted layers; call add_lora first")
    for name, mine in (("r", layers[0][1].r), ("scale", layers[0][1].scale)):
        if meta[name] != mine:
            raise ValueError(f"{path}: made with {name} {meta[name]}, this model has {mine}")
    wanted = {}
    for name, layer in layers:
        out, size = layer.linear.weight.shape
        wanted[f"{name}.A"], wanted[f"{name}.B"] = (layer.r, size), (out, layer.r)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != wanted:
        odd = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise ValueError(f"{path}: made for another model ({odd[0]}: {found.get(odd[0])} in the file, "
                         f"{wanted.get(odd[0])} here)")
    add_task(model, task)
    with torch.no_grad():
        for name, layer in layers:
            layer.A[task].copy_(tensors[f"{name}.A"])
            layer.B[task].copy_(tensors[f"{name}.B"])
    return task
