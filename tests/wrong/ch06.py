"""Wrong and right versions of chapter 6's exercises; tests/test_checks.py says what must hold of them."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from minbert import lora
from minbert.lora import LoRALinear


# -- 6.1 lora_linear ------------------------------------------------------------------------------------------------


def frozen(self, x):
    return self.linear(x)


def update(self, x, task):
    return self.scale * (x @ self.A[task].T) @ self.B[task].T


def each_row(self, x, part):
    """A task for each row; `part(rows of x, task)` is a task's share of the update."""
    result = torch.zeros_like(frozen(self, x))
    for task in dict.fromkeys(self.task):
        rows = torch.tensor([i for i, name in enumerate(self.task) if name == task])
        result = result.index_copy(0, rows, part(x[rows], task))
    return result


def right_forward(self, x):
    """`forward`, written with the helpers above."""
    y, x = self.linear(x), self.dropout(x)
    if self.task is None:
        return y
    if isinstance(self.task, str):
        return y + update(self, x, self.task)
    if len(self.task) != len(x):
        raise ValueError("so many names, so many rows")
    return y + each_row(self, x, lambda rows, task: update(self, rows, task))


def version(one=None, many=None, forward=None, add=None):
    """`LoRALinear` with another `forward` (`one(self, x)` for a single task, `many(self, x)` for a list) or another `add_task`."""

    class Version(LoRALinear):
        def forward(self, x):
            if forward is not None:
                return forward(self, x)
            if isinstance(self.task, str) and one is not None:
                return one(self, x)
            if isinstance(self.task, list) and many is not None:
                return many(self, x)
            return right_forward(self, x)

        if add is not None:
            def add_task(self, task):
                out, size = self.linear.weight.shape
                like = dict(dtype=self.linear.weight.dtype)
                A, B = torch.empty(self.r, size, **like), torch.zeros(out, self.r, **like)
                nn.init.kaiming_uniform_(A, a=math.sqrt(5))
                A, B = add(A, B)
                self.A[task] = A if isinstance(A, nn.Parameter) else nn.Parameter(A)
                self.B[task] = B if isinstance(B, nn.Parameter) else nn.Parameter(B)

    return Version


def inner(self, x):
    return x @ self.A[self.task].T @ self.B[self.task].T


def grouped(order):
    def many(self, x):
        if len(self.task) != len(x):
            raise ValueError("so many names, so many rows")
        return torch.cat([frozen(self, x[rows]) + update(self, x[rows], task) for task in order(self.task)
                          for rows in [[i for i, name in enumerate(self.task) if name == task]]])
    return many


def too_few_only(self, x):
    if len(self.task) < len(x):
        raise ValueError("too few names")
    return frozen(self, x) + torch.stack([update(self, row, task) for row, task in zip(x, self.task)])


def detached_rows(self, x):
    if len(self.task) != len(x):
        raise ValueError("so many names, so many rows")
    with torch.no_grad():
        part = each_row(self, x, lambda rows, task: update(self, rows, task))
    return frozen(self, x) + part


def dropout_inside(self, x):
    x = self.dropout(x)
    return self.linear(x) + update(self, x, self.task)


def by_rows(self, x):
    """Row after row, with einsum."""
    y = self.linear(x)
    if self.task is None:
        return y
    names = [self.task] * len(x) if isinstance(self.task, str) else self.task
    if len(names) != len(x):
        raise ValueError("so many names, so many rows")
    dropped = self.dropout(x)
    parts = [torch.einsum("...i,ri,or->...o", dropped[i], self.A[name], self.B[name]) for i, name in enumerate(names)]
    return y + self.scale * torch.stack(parts)


def by_stacking(self, x):
    """All rows' matrices at once, in one batched product."""
    names = [self.task] * len(x) if isinstance(self.task, str) else self.task
    if names is None:
        return self.linear(x)
    if len(names) != len(x):
        raise ValueError("so many names, so many rows")
    A = torch.stack([self.A[name] for name in names])  # (B, r, in)
    B = torch.stack([self.B[name] for name in names])  # (B, out, r)
    shape = x.shape
    flat = self.dropout(x).reshape(shape[0], -1, shape[-1])
    out = flat @ A.transpose(1, 2) @ B.transpose(1, 2)
    return self.linear(x) + self.scale * out.reshape(*shape[:-1], -1)


def uniform(A, B):
    edge = 1 / math.sqrt(A.shape[1])
    return nn.init.uniform_(A, -edge, edge), B


# -- 6.2 adapter_size -----------------------------------------------------------------------------------------------


def size_by(formula):
    return lambda layers, hidden_size, r, intermediate_size=0: formula(layers, hidden_size, r, intermediate_size)


def by_shapes(layers, hidden_size, r, intermediate_size=0):
    shapes = [(hidden_size, hidden_size)] * 4
    if intermediate_size:
        shapes += [(hidden_size, intermediate_size), (intermediate_size, hidden_size)]
    return layers * sum(r * (a + b) for a, b in shapes)


def by_model(layers, hidden_size, r, intermediate_size=0):
    """Build the thin matrices and count them."""
    total = 0
    for _ in range(layers):
        pairs = [(hidden_size, hidden_size)] * 4 + [(hidden_size, intermediate_size)] * (2 if intermediate_size else 0)
        total += sum(nn.Linear(a, r, bias=False).weight.numel() + nn.Linear(r, b, bias=False).weight.numel() for a, b in pairs)
    return total


# -- 6.3 extract_adapter --------------------------------------------------------------------------------------------


def extracting(power=(0.5, 0.5), scale_at=lambda A, B, s: (A, B / s), pick="largest", transpose=False, swap=False, turn=False):
    """`extract_adapter` with a switch for each mistake: the powers of the singular values in A and in B, and so on."""

    def extract_adapter(delta, r, scale):
        U, S, V = torch.linalg.svd(delta, full_matrices=False)
        if transpose and V.shape[0] == V.shape[1]:
            V = V.T
        chosen = slice(0, r) if pick == "largest" else slice(-r, None) if pick == "smallest" else slice(None)
        A = S[chosen, None] ** power[0] * V[chosen]
        B = U[:, chosen] * S[chosen] ** power[1]
        A, B = scale_at(A, B, scale)
        if turn:
            A, B = A.T.contiguous(), B.T.contiguous()
        return (B, A) if swap else (A, B)

    return extract_adapter


def first_rows(delta, r, scale):
    out, size = delta.shape
    return delta[:r].clone(), torch.eye(out, r, dtype=delta.dtype) / scale


def first_columns(delta, r, scale):
    out, size = delta.shape
    return torch.eye(r, size, dtype=delta.dtype), delta[:, :r] / scale


def by_eigenvectors(delta, r, scale):
    """The input's directions are the eigenvectors of ΔWᵀΔW; B is what the update does to them."""
    _, vectors = torch.linalg.eigh(delta.T @ delta)  # from the smallest up
    A = vectors[:, -r:].T.contiguous()
    return A, delta @ A.T / scale


def by_numpy(delta, r, scale):
    import numpy as np

    u, s, v = np.linalg.svd(delta.numpy())
    return torch.tensor(v[:r] * np.sqrt(s[:r])[:, None] / scale), torch.tensor(u[:, :r] * np.sqrt(s[:r]))


# -- 6.4 add_adapters -----------------------------------------------------------------------------------------------


def adding(at_A=lambda w, s: 1.0, at_B=lambda w, s: w * s, result=lambda adapters: 1.0, order=lambda items: items,
           before=lambda weights: weights):
    """`add_adapters` with a switch for each mistake: what is multiplied into A and into B, and the scale that is returned."""

    def add_adapters(adapters, weights):
        weights = before(weights)
        A = torch.cat([at_A(w, s) * a for w, (a, _, s) in order(list(zip(weights, adapters)))])
        B = torch.cat([at_B(w, s) * b for w, (_, b, s) in zip(weights, adapters)], dim=1)
        return A, B, result(adapters)

    return add_adapters


def sums(adapters, weights):
    return (sum(w * a for w, (a, _, _) in zip(weights, adapters)),
            sum(s * b for (_, b, s) in adapters), 1.0)


def means(adapters, weights):
    return (sum(w * a for w, (a, _, _) in zip(weights, adapters)) / len(adapters),
            sum(s * b for (_, b, s) in adapters) / len(adapters), 1.0)


def in_place(adapters, weights):
    for w, (a, _, s) in zip(weights, adapters):
        a *= w * s
    return torch.cat([a for a, _, _ in adapters]), torch.cat([b for _, b, _ in adapters], dim=1), 1.0


def whole_update(adapters, weights):
    return sum(w * s * b @ a for w, (a, b, s) in zip(weights, adapters))


def by_blocks(adapters, weights):
    """Places for all ranks first, then filled one by one; the first adapter's scale is kept."""
    total, (first, B0, scale) = sum(len(a) for a, _, _ in adapters), adapters[0]
    A, B = first.new_zeros(total, first.shape[1]), B0.new_zeros(B0.shape[0], total)
    at = 0
    for w, (a, b, s) in zip(weights, adapters):
        A[at : at + len(a)], B[:, at : at + len(a)] = a * w * s / scale, b
        at += len(a)
    return A, B, scale


# -- 6.5 one_task_step ----------------------------------------------------------------------------------------------


def stepping(set_to_none=True, clear="before", choose=True, reduction="mean", times=1, item=True, rows=slice(None),
             sign=1, detach=False):
    """`one_task_step` with a switch for each mistake."""

    def one_task_step(layer, task, x, target, optimizer):
        layer.task = task if choose else "sst"
        for _ in range(times):
            if clear == "before":
                optimizer.zero_grad(set_to_none=set_to_none)
            if detach:
                out = layer.linear(x) + layer.scale * (x @ layer.A[task].detach().T) @ layer.B[task].T
            else:
                out = layer(x)
            errors = (out[rows] - target[rows]).square()
            loss = errors.mean() if reduction == "mean" else errors.sum()
            (sign * loss).backward()
            if clear == "after":
                optimizer.zero_grad()
            optimizer.step()
        return loss.item() if item else loss

    return one_task_step


def cleared_at_the_end(layer, task, x, target, optimizer):
    layer.task = [task] * len(x)
    loss = F.mse_loss(layer(x), target)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def only_the_task(layer, task, x, target, optimizer):
    """Gradients of the task's own two matrices, by torch.autograd.grad."""
    layer.task = task
    loss = (layer(x) - target).pow(2).mean()
    for p in layer.parameters():
        p.grad = None
    pair = [layer.A[task], layer.B[task]]
    for p, gradient in zip(pair, torch.autograd.grad(loss, pair)):
        p.grad = gradient
    optimizer.step()
    return loss.item()


WRONG = {
    "lora_linear": {
        "A transposed": version(add=lambda A, B: (A.T.contiguous(), B)),
        "A and B exchanged": version(add=lambda A, B: (B, A)),
        "B transposed": version(add=lambda A, B: (A, B.T.contiguous())),
        "A frozen": version(add=lambda A, B: (nn.Parameter(A, requires_grad=False), B)),
        "B frozen": version(add=lambda A, B: (A, nn.Parameter(B, requires_grad=False))),
        "both zero": version(add=lambda A, B: (torch.zeros_like(A), B)),
        "A zero": version(add=lambda A, B: (torch.zeros_like(A), nn.init.normal_(B))),
        "both random": version(add=lambda A, B: (A, nn.init.normal_(B, std=0.01))),
        "standard normal": version(add=lambda A, B: (nn.init.normal_(A), B)),
        "without √5": version(add=lambda A, B: (nn.init.kaiming_uniform_(A), B)),
        "bound by r": version(add=lambda A, B: (nn.init.uniform_(A, -1 / math.sqrt(len(A)), 1 / math.sqrt(len(A))), B)),
        "no scaling": version(one=lambda self, x: frozen(self, x) + inner(self, x)),
        "plain α": version(one=lambda self, x: frozen(self, x) + self.scale * self.r * inner(self, x)),
        "scaled twice": version(one=lambda self, x: frozen(self, x) + self.scale**2 * inner(self, x)),
        "frozen scaled": version(one=lambda self, x: self.scale * (frozen(self, x) + inner(self, x))),
        "divided by r": version(one=lambda self, x: frozen(self, x) + self.scale / self.r * inner(self, x)),
        "update only": version(one=lambda self, x: update(self, x, self.task)),
        "frozen only": version(one=lambda self, x: frozen(self, x) + 0 * update(self, x, self.task)
                               if self.B[self.task].abs().sum() == 0 else frozen(self, x)),
        "subtracted": version(one=lambda self, x: frozen(self, x) - update(self, x, self.task)),
        "transposed": version(one=lambda self, x: frozen(self, x) + self.scale * (x @ self.B[self.task]) @ self.A[self.task]
                              if x.shape[-1] == len(self.B[self.task]) else right_forward(self, x)),
        "on the output": version(one=lambda self, x: frozen(self, x) + update(self, frozen(self, x), self.task)
                                 if x.shape[-1] == len(self.B[self.task]) else right_forward(self, x)),
        "bias twice": version(one=lambda self, x: frozen(self, x) + update(self, x, self.task) + self.linear.bias),
        "first task": version(one=lambda self, x: frozen(self, x) + update(self, x, next(iter(self.A)))),
        "all tasks": version(one=lambda self, x: frozen(self, x) + sum(update(self, x, task) for task in self.A)),
        "list as a key": version(forward=lambda self, x: self.linear(x) + self.scale * (self.dropout(x) @ dict(self.A)[self.task].T)
                                 @ dict(self.B)[self.task].T),
        "first row's": version(many=lambda self, x: frozen(self, x) + update(self, x, self.task[0])),
        "last row's": version(many=lambda self, x: frozen(self, x) + update(self, x, self.task[-1])),
        "grouped": version(many=grouped(dict.fromkeys)),
        "sorted": version(many=grouped(lambda names: sorted(set(names)))),
        "every task of the batch": version(many=lambda self, x: frozen(self, x) + sum(update(self, x, task) for task in set(self.task))),
        "a list is nothing": version(many=lambda self, x: frozen(self, x)),
        "exchanged": version(many=lambda self, x: frozen(self, x) + torch.stack(
            [update(self, row, "sst" if task == "sts" else "sts") for row, task in zip(x, self.task)])),
        "one name after the other": version(many=lambda self, x: frozen(self, x) + torch.stack(
            [update(self, x[i], self.task[i]) for i in range(len(x))])),
        "too few names only": version(many=too_few_only),
        "not counted": version(many=lambda self, x: frozen(self, x) + each_row(self, x, lambda rows, task: update(self, rows, task))),
        "detached": version(one=lambda self, x: frozen(self, x) + update(self, x, self.task).detach()),
        "rows detached": version(many=detached_rows),
        "no dropout": version(one=lambda self, x: frozen(self, x) + update(self, x, self.task)),
        "dropout on both": version(one=dropout_inside),
        "dropout on the frozen": version(one=lambda self, x: frozen(self, self.dropout(x)) + update(self, x, self.task)),
        "dropout on the result": version(one=lambda self, x: self.dropout(frozen(self, x) + update(self, x, self.task))),
        "dropout always": version(one=lambda self, x: frozen(self, x) + update(self, F.dropout(x, self.dropout.p), self.task)),
    },
    "adapter_size": {
        "one factor": size_by(lambda L, D, r, F: by_shapes(L, D, r, F) // 2),
        "no rank": size_by(lambda L, D, r, F: by_shapes(L, D, 1, F)),
        "one layer": size_by(lambda L, D, r, F: by_shapes(1, D, r, F)),
        "three matrices": size_by(lambda L, D, r, F: by_shapes(L, D, r, F) - 2 * L * r * D),
        "one matrix": size_by(lambda L, D, r, F: by_shapes(L, D, r, F) - 6 * L * r * D),
        "with the frozen": size_by(lambda L, D, r, F: by_shapes(L, D, r, F) + L * (4 * D * D + 2 * D * F)),
        "a middle matrix": size_by(lambda L, D, r, F: by_shapes(L, D, r, F) + 4 * L * r * r),
        "attention only": size_by(lambda L, D, r, F: 8 * L * r * D),
        "one feed-forward": size_by(lambda L, D, r, F: 8 * L * r * D + (L * r * (D + F) if F else 0)),
        "F on both sides": size_by(lambda L, D, r, F: 8 * L * r * D + 4 * L * r * F),
        "D times F": size_by(lambda L, D, r, F: 8 * L * r * D + 2 * L * r * D * F),
        "F guessed": size_by(lambda L, D, r, F: 8 * L * r * D + 2 * L * r * (D + (F or 4 * D))),
        "does not vanish": size_by(lambda L, D, r, F: 8 * L * r * D + 2 * L * r * (D + F)),
    },
    "extract_adapter": {
        "exchanged": extracting(swap=True),
        "A turned": lambda delta, r, scale: (lambda A, B: (A.T.contiguous(), B))(*extracting()(delta, r, scale)),
        "B turned": lambda delta, r, scale: (lambda A, B: (A, B.T.contiguous()))(*extracting()(delta, r, scale)),
        "all directions": extracting(pick="all"),
        "no scale": extracting(scale_at=lambda A, B, s: (A, B)),
        "times the scale": extracting(scale_at=lambda A, B, s: (A, B * s)),
        "scale twice": extracting(scale_at=lambda A, B, s: (A / s, B / s)),
        "squares and √s": extracting(power=(1, 1), scale_at=lambda A, B, s: (A / s, B / s)),
        "squares": extracting(power=(1, 1)),
        "no singular values": extracting(power=(0, 0)),
        "half": extracting(power=(0.5, 0)),
        "smallest": extracting(pick="smallest"),
        "Vᵀ turned": extracting(transpose=True),
        "first rows": first_rows,
        "first columns": first_columns,
        "torch.sqrt of a number": lambda delta, r, scale: (torch.sqrt(scale), delta),
    },
    "add_adapters": {
        "sums of the factors": sums,
        "means of the factors": means,
        "weights twice": adding(at_A=lambda w, s: w),
        "no scales": adding(at_B=lambda w, s: w),
        "scales twice": adding(at_A=lambda w, s: s),
        "no weights": adding(at_B=lambda w, s: s),
        "first scale": adding(at_B=lambda w, s: w, result=lambda adapters: adapters[0][2]),
        "first scale twice": adding(result=lambda adapters: adapters[0][2]),
        "mean": adding(at_B=lambda w, s: w * s / 2),
        "weights to 1": adding(before=lambda weights: [w / sum(weights) for w in weights]),
        "orders differ": adding(order=lambda items: items[::-1]),
        "in place": in_place,
        "ΔW": whole_update,
        "only the first's rank": lambda adapters, weights: (adapters[0][0], adapters[0][1], 1.0) if len({len(a) for a, _, _ in adapters}) == 1
        and len(adapters[0][0]) > 1 else adding()(adapters, weights),
        "different ranks": lambda adapters, weights: adding()(adapters, weights) if len({len(a) for a, _, _ in adapters}) == 1
        else sums(adapters, weights),
    },
    "one_task_step": {
        "zeros": stepping(set_to_none=False),
        "never cleared": stepping(clear="never"),
        "cleared too late": stepping(clear="after"),
        "task not set": stepping(choose=False),
        "sum": stepping(reduction="sum"),
        "two steps": stepping(times=2),
        "a tensor": stepping(item=False),
        "first row": stepping(rows=slice(0, 1)),
        "uphill": stepping(sign=-1),
        "only B": stepping(detach=True),
    },
}

RIGHT = {
    "lora_linear": {
        "the package's": LoRALinear,
        "with switches, none on": version(),
        "row by row": version(forward=by_rows),
        "stacked matrices": version(forward=by_stacking, add=uniform),
    },
    "adapter_size": {
        "the package's": lora.adapter_size,
        "by shapes": by_shapes,
        "by counting": by_model,
    },
    "extract_adapter": {
        "with switches, none on": extracting(),
        "all in B": extracting(power=(0, 1)),
        "the root of the scale, in float32": extracting(
            power=(0.5, 0.5), scale_at=lambda A, B, s: (A / torch.tensor(s).sqrt(), B / torch.tensor(s).sqrt())),
        "eigenvectors": by_eigenvectors,
        "numpy": by_numpy,
    },
    "add_adapters": {
        "with switches, none on": adding(),
        "in A": adding(at_A=lambda w, s: w * s, at_B=lambda w, s: 1.0),
        "by blocks": by_blocks,
    },
    "one_task_step": {
        "with switches, none on": stepping(),
        "cleared at the end": cleared_at_the_end,
        "only the task's": only_the_task,
    },
}

UNLISTED = {
    "lora_linear": version(one=lambda self, x: frozen(self, x) + 1.5 * update(self, x, self.task)),
    "adapter_size": size_by(lambda L, D, r, F: by_shapes(L, D, r, F) + 5),
    "extract_adapter": extracting(scale_at=lambda A, B, s: (A, 1.5 * B / s)),
    "add_adapters": adding(at_B=lambda w, s: w * s + 0.25),
    "one_task_step": stepping(times=3),
}
