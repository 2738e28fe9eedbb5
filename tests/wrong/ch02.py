"""Chapter 2: wrong versions from real mistakes, right versions written differently. See tests/test_checks.py."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from minbert import attention as package

LOWEST = torch.finfo(torch.float32).min

# -- mask_bias ------------------------------------------------------------------------------------------------------


def biased(make):
    """A version of mask_bias from a function of the mask as (B, 1, 1, T) in the wanted dtype, and the dtype."""
    return lambda attention_mask, dtype=torch.float32: make(attention_mask[:, None, None, :].to(dtype), dtype)


def bias_by_where(attention_mask, dtype=torch.float32):
    zero, low = torch.zeros((), dtype=dtype), torch.full((), torch.finfo(dtype).min, dtype=dtype)
    return torch.where(attention_mask.bool(), zero, low)[:, None, None, :]


def bias_by_loop(attention_mask, dtype=torch.float32):
    batch, length = attention_mask.shape
    bias = torch.zeros(batch, 1, 1, length, dtype=dtype)
    for row in range(batch):
        for place in range(length):
            if attention_mask[row, place] == 0:
                bias[row, 0, 0, place] = torch.finfo(dtype).min
    return bias


# -- attention ------------------------------------------------------------------------------------------------------


def attend(q, k, v, bias=None, dropout=0.0, *, scale=None, axis=-1, before=None, after=None, use_bias=True,
           drop="probabilities", returned="before", swap=False, only=False, average="v"):  # fmt: skip
    """Attention with a switch for each mistake."""
    size = q.shape[-1]
    scale = {"none": 1.0, "dh": 1 / size, "times": math.sqrt(size), "d": 1 / math.sqrt(size * q.shape[1]),
             "t": 1 / math.sqrt(q.shape[-2])}.get(scale, 1 / math.sqrt(size))  # fmt: skip
    scores = before(q, k) * scale if before else q @ k.transpose(-2, -1) * scale
    if bias is not None and use_bias is True:
        scores = scores + bias
    if bias is not None and use_bias == "minus":
        scores = scores - bias
    if bias is not None and use_bias == "scaled":
        scores = scores + bias * scale
    if bias is not None and use_bias == "query":
        scores = scores + bias.transpose(-2, -1)
    if drop == "scores":
        scores = F.dropout(scores, dropout)
    kept = probabilities = scores.softmax(axis)
    if bias is not None and after:
        kept = probabilities = after(probabilities, bias)
    if drop == "probabilities":
        kept = F.dropout(probabilities, dropout)
    if drop == "half":
        kept = F.dropout(probabilities)
    if drop == "keep":
        kept = F.dropout(probabilities, 1 - dropout)
    if drop == "unscaled":
        kept = probabilities * (torch.rand_like(probabilities) >= dropout)
    context = kept.transpose(-2, -1) @ v if average == "transposed" else kept @ (k if average == "k" else v)
    if drop == "context":
        context = F.dropout(context, dropout)
    if only:
        return context
    result = context, (kept if returned == "after" else probabilities)
    return result[::-1] if swap else result


def attention_with(**switches):
    return lambda q, k, v, bias=None, dropout=0.0: attend(q, k, v, bias, dropout, **switches)


def attention_einsum(q, k, v, bias=None, dropout=0.0):
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) * q.shape[-1] ** -0.5
    probabilities = torch.softmax(scores if bias is None else scores + bias, dim=3)
    return torch.einsum("bhts,bhsd->bhtd", F.dropout(probabilities, p=dropout, training=True), v), probabilities


def attention_by_loops(q, k, v, bias=None, dropout=0.0):
    batch, heads, length, size = q.shape
    if bias is None:
        bias = torch.zeros(1, 1, 1, 1, dtype=q.dtype)
    bias = bias.expand(batch, heads, length, k.shape[2])
    rows = torch.empty(batch, heads, length, k.shape[2], dtype=q.dtype)
    for b in range(batch):
        for h in range(heads):
            for t in range(length):
                score = (k[b, h] * q[b, h, t]).sum(-1) / size**0.5 + bias[b, h, t]
                weight = (score - score.max()).exp()
                rows[b, h, t] = weight / weight.sum()
    keep = (torch.rand_like(rows) >= dropout).to(rows.dtype) / max(1 - dropout, 1e-9)
    return (rows * keep)[..., None].mul(v[:, :, None]).sum(3), rows


def attention_with_a_root_in_float32(q, k, v, bias=None, dropout=0.0):
    scores = q @ k.mT / torch.sqrt(torch.tensor(q.shape[-1]))  # the root of an integer is a float32 number
    probabilities = (scores if bias is None else scores + bias).softmax(-1)
    return F.dropout(probabilities, dropout) @ v, probabilities


def attention_by_torch(q, k, v, bias=None, dropout=0.0):
    identity = torch.eye(k.shape[2], dtype=q.dtype).expand(*k.shape[:2], -1, -1)
    rows = F.scaled_dot_product_attention(q, k, identity, attn_mask=bias)
    return F.dropout(rows, dropout) @ v, rows


# -- multi_head_attention -------------------------------------------------------------------------------------------


class Switched(package.MultiHeadAttention):
    """The module with a switch for each mistake."""

    split = merge = "right"
    output_used = residual = direct = False
    drop = "training"
    keep = "asked"
    roles = "qkv"
    bias_used = True
    scale = 1.0

    def forward(self, x, bias=None):
        batch, length, size = x.shape
        part = size // self.heads
        made = {"q": self.query(x), "k": self.key(x), "v": self.value(x), "x": x}
        cut = {
            "right": lambda y: y.view(batch, length, self.heads, part).transpose(1, 2),
            "view": lambda y: y.view(batch, self.heads, length, part),
            "one": lambda y: y[:, None],
            "deal": lambda y: y.view(batch, length, part, self.heads).permute(0, 3, 1, 2),
        }[self.split]
        q, k, v = (cut(made[role]) for role in self.roles)
        share = {"training": self.dropout if self.training else 0.0, "always": self.dropout, "never": 0.0,
                 "output": 0.0}[self.drop]  # fmt: skip
        attend = package.attention if self.direct else self.attend
        context, probabilities = attend(q * self.scale, k, v, bias if self.bias_used else None, share)
        if self.keep == "always" or (self.keep_probabilities and self.keep != "never"):
            self.probabilities = probabilities
        joined = {
            "right": lambda: context.permute(0, 2, 1, 3).flatten(2),
            "reshape": lambda: context.reshape(batch, length, size),
            "one": lambda: context[:, 0],
            "deal": lambda: context.permute(0, 2, 3, 1).reshape(batch, length, size),
            "none": lambda: context,
        }[self.merge]()
        if self.merge == "none":
            return joined
        result = joined if self.output_used == "no" else self.output(joined)
        if self.drop == "output":
            result = F.dropout(result, self.dropout, self.training)
        return x + result if self.residual else result


def module_with(**switches):
    return type("MultiHeadAttention", (Switched,), switches)


class OneHeadAfterTheOther(package.MultiHeadAttention):
    def forward(self, x, bias=None):
        part = x.shape[-1] // self.heads
        q, k, v = self.query(x), self.key(x), self.value(x)
        contexts, rows = [], []
        for h in range(self.heads):
            c = slice(h * part, (h + 1) * part)
            one, row = self.attend(q[:, None, :, c], k[:, None, :, c], v[:, None, :, c], bias, self.dropout * self.training)
            contexts.append(one[:, 0])
            rows.append(row)
        if self.keep_probabilities:
            self.probabilities = torch.cat(rows, dim=1)
        return self.output(torch.cat(contexts, dim=-1))


class ByEinsum(package.MultiHeadAttention):
    def forward(self, x, bias=None):
        def heads(linear):
            weight = linear.weight.view(self.heads, -1, x.shape[-1])  # (H, Dh, D)
            return torch.einsum("btd,hed->bhte", x, weight) + linear.bias.view(self.heads, 1, -1)

        share = self.dropout if self.training else 0.0
        context, rows = self.attend(heads(self.query), heads(self.key), heads(self.value), bias, share)
        self.probabilities = rows if self.keep_probabilities else None
        out = self.output.weight.view(x.shape[-1], self.heads, -1)
        return torch.einsum("bhte,dhe->btd", context, out) + self.output.bias


class Forgetful(Switched):
    """No diagnosis: the bias of the value layer is lost."""

    def forward(self, x, bias=None):
        kept, self.value.bias = self.value.bias, None
        try:
            return super().forward(x, bias)
        finally:
            self.value.bias = kept


# -- self_attention -------------------------------------------------------------------------------------------------


def mixed(split="right", merge="right", scale=None, axis=-1):
    def version(x, query, key, value, heads):
        batch, length, size = x.shape
        part = size // heads
        cut = {
            "right": lambda y: y.view(batch, length, heads, part).transpose(1, 2),
            "view": lambda y: y.view(batch, heads, length, part),
            "deal": lambda y: y.view(batch, length, part, heads).permute(0, 3, 1, 2),
            "one": lambda y: y[:, None],
        }[split]
        q, k, v = cut(x @ query), cut(x @ key), cut(x @ value)
        factor = {"d": size**-0.5, "none": 1.0}.get(scale, q.shape[-1] ** -0.5)
        context = (q @ k.transpose(-2, -1) * factor).softmax(axis) @ v
        return {
            "right": lambda: context.transpose(1, 2).reshape(batch, length, size),
            "view": lambda: context.reshape(batch, length, size),
            "deal": lambda: context.permute(0, 2, 3, 1).reshape(batch, length, size),
        }[merge]()

    return version


def self_attention_in_place(x, query, key, value, heads):
    parts = [y.unflatten(-1, (heads, -1)) for y in (x @ query, x @ key, x @ value)]  # (B, T, H, Dh)
    return F.scaled_dot_product_attention(*parts).flatten(2)


def self_attention_view(x, query, key, value, heads):
    parts = [y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (x @ query, x @ key, x @ value)]
    context = (parts[0] @ parts[1].mT).softmax(-1) @ parts[2]
    return context.transpose(1, 2).view(x.shape)


def self_attention_by_torch(x, query, key, value, heads):
    parts = [y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (x @ query, x @ key, x @ value)]
    return F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)


def self_attention_with_a_root_in_float32(x, query, key, value, heads):
    q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (x @ query, x @ key, x @ value))
    return attention_with_a_root_in_float32(q, k, v)[0].transpose(1, 2).flatten(2)


def self_attention_by_head(x, query, key, value, heads):
    found = []
    for q, k, v in zip(*((x @ w).chunk(heads, dim=-1) for w in (query, key, value))):
        found.append((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v)
    return torch.cat(found, dim=-1)


# -- local_attention ------------------------------------------------------------------------------------------------


def local(allowed, scaled=True, fill=-1e30):
    """A version from a function (distance of key from query (T, T), width, real keys (B, 1, 1, T)) -> who may be seen."""

    def version(q, k, v, attention_mask, width):
        place = torch.arange(q.shape[2])
        scores = q @ k.transpose(-2, -1) / (math.sqrt(q.shape[-1]) if scaled else 1.0)
        see = allowed(place[None, :] - place[:, None], width, attention_mask.bool()[:, None, None, :])
        return scores.masked_fill(~see, fill).softmax(-1) @ v

    return version


def local_after(q, k, v, attention_mask, width, product="probabilities"):
    place = torch.arange(q.shape[2])
    see = ((place[None, :] - place[:, None]).abs() <= width) & attention_mask.bool()[:, None, None, :]
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    return ((scores * see).softmax(-1) if product == "scores" else scores.softmax(-1) * see) @ v


def local_blocks(q, k, v, attention_mask, width):
    block = torch.arange(q.shape[2]) // max(width, 1)
    see = (block[:, None] == block[None, :]) & attention_mask.bool()[:, None, None, :]
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    return scores.masked_fill(~see, -1e30).softmax(-1) @ v


def local_by_torch(q, k, v, attention_mask, width):
    ones = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool)
    see = ones.triu(-width) & ones.tril(width) & attention_mask.bool()[:, None, None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=see | ~see.any(-1, keepdim=True))


def local_by_loops(q, k, v, attention_mask, width):
    context = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for t in range(q.shape[2]):
            near = range(max(0, t - width), min(q.shape[2], t + width + 1))
            seen = [s for s in near if attention_mask[b, s] == 1]
            if seen:
                scores = (k[b][:, seen] @ q[b, :, t, :, None]).squeeze(-1) / math.sqrt(q.shape[-1])  # (H, seen)
                context[b, :, t] = (scores.softmax(-1)[..., None] * v[b][:, seen]).sum(1)
    return context


def local_renormalised(q, k, v, attention_mask, width):
    """Multiplied after the softmax is right if the rows are divided by their sums."""
    place = torch.arange(q.shape[2])
    see = ((place[None, :] - place[:, None]).abs() <= width) & attention_mask.bool()[:, None, None, :]
    rows = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1) * see
    return rows / rows.sum(-1, keepdim=True).clamp(min=1e-30) @ v


def local_leaky(q, k, v, attention_mask, width):
    place = torch.arange(q.shape[2])
    see = ((place[None, :] - place[:, None]).abs() <= width) & attention_mask.bool()[:, None, None, :]
    return (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) - 5.0 * ~see).softmax(-1) @ v


# -- the lists --------------------------------------------------------------------------------------------------------

WRONG = {
    "mask_bias": {
        "inverted": biased(lambda m, dtype: m * torch.finfo(dtype).min),
        "the mask itself": biased(lambda m, dtype: m),
        "one for padding": biased(lambda m, dtype: 1 - m),
        "minus one for padding": biased(lambda m, dtype: m - 1),
        "largest for padding": biased(lambda m, dtype: (1 - m) * torch.finfo(dtype).max),
        "minus ten thousand": biased(lambda m, dtype: (1 - m) * -10000.0),
        "minus infinity": biased(lambda m, dtype: torch.zeros_like(m).masked_fill(m == 0, float("-inf"))),
        "zero times infinity": biased(lambda m, dtype: (1 - m) * float("-inf")),
        "minus a thousand million": biased(lambda m, dtype: (1 - m) * -1e9),
        "minus a thousand million by masked_fill": biased(lambda m, dtype: torch.zeros_like(m).masked_fill(m == 0, -1e9)),
        "dtype ignored": lambda mask, dtype=torch.float32: (1.0 - mask[:, None, None, :].float()) * LOWEST,
        "no axes": lambda mask, dtype=torch.float32: (1.0 - mask.to(dtype)) * torch.finfo(dtype).min,
        "one axis short": lambda mask, dtype=torch.float32: (1.0 - mask[:, None].to(dtype)) * torch.finfo(dtype).min,
        "query axis": lambda mask, dtype=torch.float32: (1.0 - mask[:, None, :, None].to(dtype)) * torch.finfo(dtype).min,
    },
    "attention": {
        "bias asked whether it is true": lambda q, k, v, bias=None, dropout=0.0: attend(
            q, k, v, bias if bias is not None and bias else None, dropout),
        "nothing added": lambda q, k, v, bias=None, dropout=0.0: attend(q, k, v, bias, dropout)[0] + bias,
        "not scaled": attention_with(scale="none"),
        "divided by Dh": attention_with(scale="dh"),
        "multiplied": attention_with(scale="times"),
        "divided by the root of D": attention_with(scale="d"),
        "divided by the root of T": attention_with(scale="t"),
        "softmax over queries": attention_with(axis=-2),
        "softmax over heads": attention_with(axis=1),
        "bias forgotten": attention_with(use_bias=False),
        "bias after the softmax": attention_with(use_bias=False, after=lambda p, b: p + b),
        "mask multiplied after the softmax": attention_with(use_bias=False, after=lambda p, b: p * (b == 0)),
        "bias multiplied after the softmax": attention_with(use_bias=False, after=lambda p, b: p * b),
        "bias subtracted": attention_with(use_bias="minus"),
        "bias scaled": attention_with(use_bias="scaled"),
        "bias on the query axis": attention_with(use_bias="query"),
        "keys not transposed": attention_with(before=lambda q, k: q @ k),
        "keys reshaped": attention_with(before=lambda q, k: q @ k.reshape(*k.shape[:2], k.shape[3], k.shape[2])),
        "queries and keys exchanged": attention_with(before=lambda q, k: k @ q.transpose(-2, -1)),
        "keys and values exchanged": lambda q, k, v, bias=None, dropout=0.0: attend(q, v, k, bias, dropout),
        "probabilities transposed": attention_with(average="transposed"),
        "keys averaged": attention_with(average="k"),
        "dropout left out": attention_with(drop="nowhere"),
        "dropout of a half": attention_with(drop="half"),
        "dropout as the share kept": attention_with(drop="keep"),
        "dropout on the scores": attention_with(drop="scores"),
        "dropout on the context": attention_with(drop="context"),
        "dropout without growth": attention_with(drop="unscaled"),
        "probabilities after dropout": attention_with(returned="after"),
        "only the context": attention_with(only=True),
        "the wrong way round": attention_with(swap=True),
    },
    "multi_head_attention": {
        "merged without transpose": module_with(merge="reshape"),
        "split without transpose": module_with(split="view"),
        "both without transpose": module_with(split="view", merge="reshape"),
        "not split": module_with(split="one", merge="one"),
        "dealt in turn": module_with(split="deal", merge="deal"),
        "not merged": module_with(merge="none"),
        "no output layer": module_with(output_used="no"),
        "residual inside": module_with(residual=True),
        "bias not passed on": module_with(bias_used=False),
        "keys as values": module_with(roles="qkk"),
        "queries as keys": module_with(roles="qqv"),
        "queries and keys exchanged": module_with(roles="kqv"),
        "keys and values exchanged": module_with(roles="qvk"),
        "x as values": module_with(roles="qkx"),
        "root of D": module_with(scale=2**-0.5),
        "dropout left out": module_with(drop="never"),
        "dropout in evaluation": module_with(drop="always"),
        "dropout on the output": module_with(drop="output"),
        "probabilities never kept": module_with(keep="never"),
        "probabilities always kept": module_with(keep="always"),
        "attend ignored": module_with(direct=True),
    },
    "self_attention": {
        "as given": mixed("view", "view"),
        "mended going out only": mixed("view", "right"),
        "mended going in only": mixed("right", "view"),
        "dealt in turn": mixed("deal", "deal"),
        "tokens and heads exchanged": self_attention_in_place,
        "view after transpose": self_attention_view,
        "mixed coming out": mixed("right", "deal"),
        "one head": lambda x, query, key, value, heads: mixed("right", "right")(x, query, key, value, 1),
        "root of D": mixed(scale="d"),
        "not scaled": mixed(scale="none"),
        "softmax over queries": mixed(axis=-2),
        "softmax over heads": mixed(axis=1),
    },
    "local_attention": {
        "only back": local(lambda d, w, real: (d <= 0) & (d >= -w) & real),
        "only ahead": local(lambda d, w, real: (d >= 0) & (d <= w) & real),
        "too narrow by one": local(lambda d, w, real: (d.abs() < w) & real),
        "width of the whole": local(lambda d, w, real: (d.abs() <= w // 2) & real),
        "padding seen": local(lambda d, w, real: (d.abs() <= w)[None, None]),
        "no window": local(lambda d, w, real: real),
        "either instead of both": local(lambda d, w, real: (d.abs() <= w) | real),
        "inverted": local(lambda d, w, real: (d.abs() > w) & real),
        "not negated": local(lambda d, w, real: ~((d.abs() <= w) & real)),
        "itself left out": local(lambda d, w, real: (d.abs() <= w) & (d != 0) & real),
        "end of the range left out": local(lambda d, w, real: (d >= -w) & (d < w) & real),
        "all ahead": local(lambda d, w, real: (d >= -w) & real),
        "all behind": local(lambda d, w, real: (d <= w) & real),
        "blocks": local_blocks,
        "after the softmax": local_after,
        "scores set to 0": lambda *args: local_after(*args, product="scores"),
        "not scaled": local(lambda d, w, real: (d.abs() <= w) & real, scaled=False),
        "mask left as int": lambda q, k, v, mask, width: (q @ k.mT).masked_fill(mask[:, None, None], -1e9).softmax(-1) @ v,
        "NaN where nothing is seen": local(lambda d, w, real: (d.abs() <= w) & real, fill=float("-inf")),
    },
}

RIGHT = {
    "mask_bias": {
        "where": bias_by_where,
        "loop": bias_by_loop,
        "masked_fill": biased(lambda m, dtype: torch.zeros_like(m).masked_fill(m == 0, torch.finfo(dtype).min)),
    },
    "attention": {"einsum": attention_einsum, "loops": attention_by_loops, "PyTorch's own": attention_by_torch,
                  "a root in float32": attention_with_a_root_in_float32},
    "multi_head_attention": {"head after head": OneHeadAfterTheOther, "einsum": ByEinsum},
    "self_attention": {"PyTorch's own": self_attention_by_torch, "head after head": self_attention_by_head,
                       "a root in float32": self_attention_with_a_root_in_float32},
    "local_attention": {
        "PyTorch's own": local_by_torch,
        "loops": local_by_loops,
        "renormalised": local_renormalised,
        "filled": local(lambda d, w, real: (d.abs() <= w) & real),
    },
}

UNLISTED = {
    "mask_bias": biased(lambda m, dtype: (1 - m) * torch.finfo(dtype).min + 0.25),
    "attention": lambda q, k, v, bias=None, dropout=0.0: attend(q, k, v, bias, dropout, before=lambda q, k: (q + 0.1) @ k.mT),
    "multi_head_attention": Forgetful,
    "self_attention": lambda x, query, key, value, heads: mixed()(x, query, key, value, heads) + x,
    "local_attention": local_leaky,
}
