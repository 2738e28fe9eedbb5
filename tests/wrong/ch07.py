"""Chapter 7: wrong versions from real mistakes, right versions written differently. See tests/test_checks.py."""

import math

import numpy
import torch
from torch.nn import functional as F

from minbert import pairs
from minbert.attention import attention, mask_bias, merge_heads, split_heads

# -- joined_ids -----------------------------------------------------------------------------------------------------


def joining(cut_side=None, finish=None, measure=True, least=0, front=False):
    """`joined_ids` with another choice of the side that is cut, and another finish."""

    def joined_ids(first, second, max_length=128):
        if measure and max_length < 5:
            raise ValueError(max_length)
        a, b, turns = first[1:-1], second[1:-1], 0
        before = len(a), len(b)
        while len(a) + len(b) + 3 > max_length - least and turns < before[0] + before[1] + 3 - max_length + least:
            side = (cut_side or (lambda a, b, turns: "a" if len(a) > len(b) else "b"))(a, b, turns)
            if side == "a":
                a = a[1:] if front else a[:-1]
            else:
                b = b[1:] if front else b[:-1]
            turns += 1
        return (finish or usual_finish)(a, b, before, max_length)

    return joined_ids


def usual_finish(a, b, before, most):
    ids = [2, *a, 3, *b, 3]
    return ids, [0] * (len(a) + 2) + [1] * (len(b) + 1), sum(before) + 3 > most


def finishing(ids=None, types=None, cut=None):
    def finish(a, b, before, most):
        right = usual_finish(a, b, before, most)
        return (ids(a, b) if ids else right[0], types(a, b, before) if types else right[1], cut(right[2], before, most) if cut else right[2])

    return joining(finish=finish)


def sliced(first, second, max_length=128):
    if max_length < 5:
        raise ValueError(max_length)
    ids = first + second[1:]
    types = [0] * len(first) + [1] * (len(second) - 1)
    return ids[:max_length], types[:max_length], len(ids) > max_length


def room_refused(first, second, max_length=128):
    if max_length <= 5:
        raise ValueError("no room")
    return joining()(first, second, max_length)


def never_cut(first, second, max_length=128):
    if max_length < 5:
        raise ValueError(max_length)
    return first + second[1:], [0] * len(first) + [1] * (len(second) - 1), len(first) + len(second) - 1 > max_length


def by_shares(first, second, max_length=128):
    """Without a loop: how long each side may be."""
    if max_length < 5:
        raise ValueError("no room")
    a, b = first[1:-1], second[1:-1]
    room = max_length - 3
    keep_a, keep_b = len(a), len(b)
    if keep_a + keep_b > room:
        if keep_a <= room // 2:
            keep_b = room - keep_a
        elif keep_b <= room // 2:
            keep_a = room - keep_b
        else:
            keep_a, keep_b = room - room // 2, room // 2
    ids = [first[0]] + a[:keep_a] + [first[-1]] + b[:keep_b] + [second[-1]]
    return ids, [int(i > keep_a + 1) for i in range(len(ids))], keep_a + keep_b < len(a) + len(b)


def with_pops(first, second, max_length=128):
    if max_length < 5:
        raise ValueError("no room")
    a, b, sep = list(first[:-1]), list(second[1:-1]), first[-1]
    cut = False
    while len(a) + len(b) + 2 > max_length:
        (a if len(a) > len(b) + 1 else b).pop()
        cut = True
    left, right = [*a, sep], [*b, sep]
    return left + right, [0 for _ in left] + [1 for _ in right], cut


def in_place(first, second, max_length=128):
    second.pop(0)
    return usual_finish(first[1:-1], second[:-1], (0, 0), max_length)


# -- apart_pairs ----------------------------------------------------------------------------------------------------


def apart(*, embed=None, compare=None, spoil=1.0):
    """A class with the stub's __init__ and other methods; `embed(self, ids, mask)`, `compare(self, vectors)`."""

    def own_embed(self, input_ids, attention_mask):
        return (embed or plain_embed)(self, input_ids, attention_mask) * spoil

    def forward(self, input_ids, attention_mask):
        return (compare or plain_compare)(self, self.embed(input_ids, attention_mask))

    return type("ApartPairs", (pairs.ApartPairs,), {"embed": own_embed, "forward": forward})


def plain_embed(self, ids, mask, given=None, counted=None, pool=None, project=None, types=None):
    hidden, pooled = self.encoder(ids, mask if given is None else given, *([] if types is None else [types]))
    counted = mask if counted is None else counted
    mean = (hidden * counted.unsqueeze(-1)).sum(1) / counted.sum(1, keepdim=True)
    vectors = pool(self, hidden, mean, pooled) if pool else (mean if self.pooling == "mean" else pooled)
    return (project or self.projection)(vectors)


def plain_compare(self, vectors, split=lambda x: x.chunk(2), order=lambda u, v: (u, v), drop=lambda self, x: self.dropout(x)):
    return self.head(*order(*split(drop(self, vectors))))


def embedding(**changes):
    return apart(embed=lambda self, ids, mask: plain_embed(self, ids, mask, **{
        name: change(ids, mask) if name in ("given", "counted", "types") else change for name, change in changes.items()}))  # fmt: skip


def comparing(**changes):
    return apart(compare=lambda self, vectors: plain_compare(self, vectors, **changes))


def apart_class(forward, embed=None):
    return type("ApartPairs", (pairs.ApartPairs,), {"forward": forward, **({"embed": embed} if embed else {})})


def side_by_side(self, ids, mask):
    half = len(ids) // 2
    u, v = (self.dropout(self.embed(ids[rows], mask[rows])) for rows in (slice(half), slice(half, None)))
    return self.head(u, v)


def once_for_each_side(self, ids, mask):
    half = len(ids) // 2
    return self.head(self.dropout(self.embed(ids, mask))[:half], self.dropout(self.embed(ids, mask))[half:])


def second_type(self, ids, mask):
    types = torch.zeros_like(ids)
    types[len(ids) // 2:] = 1
    return plain_compare(self, plain_embed(self, ids, mask, types=types))


def project_one_side(self, ids, mask):
    vectors = self.dropout(plain_embed(self, ids, mask, project=lambda x: x))
    u, v = vectors.chunk(2)
    return self.head(self.projection(u), v)


def dropout_first(self, ids, mask):
    return self.head(*self.projection(self.dropout(plain_embed(self, ids, mask, project=lambda x: x))).chunk(2))


def wrong_row_of_mask(ids, mask):
    return mask.roll(len(mask) // 2, 0)


def without_mask(self, ids, mask):
    hidden, pooled = self.encoder(ids)
    return pooled


def with_view(self, ids, mask):
    """The two sides as an axis of their own, and dropout as a function."""
    vectors = torch.nn.functional.dropout(self.embed(ids, mask), self.dropout.p, self.training)
    u, v = vectors.view(2, -1, vectors.shape[-1])
    return self.head(u, v)


def sentence_by_sentence(self, ids, mask):
    hidden, pooled = self.encoder(input_ids=ids, attention_mask=mask)
    if self.pooling != "mean":
        return self.projection(pooled)
    return torch.stack([self.projection(row[: int(real.sum())]).mean(0) for row, real in zip(hidden, mask)])


def by_halves(self, ids, mask):
    half = len(ids) // 2
    vectors = self.embed(ids, mask)
    return self.head(self.dropout(vectors[:half]), self.dropout(vectors[half:]))


# -- cross_attention ------------------------------------------------------------------------------------------------


def crossing(*, keys=None, values="second", asking="first", mask="right", scale=None, axis=-1, heads=None, merge=merge_heads, output=True,
             residual=False, layers=("query", "key", "value"), dropout="right", refuse=True, both=False, spoil=0.0):  # fmt: skip
    """A class with the stub's __init__, and a forward pass with a switch for each mistake."""

    def forward(self, first, second, second_mask):
        sides = {"first": first, "second": second}
        keys_from = sides[keys or ("second" if self.form == "standard" else "first")]
        if refuse and keys_from.shape[1] != second.shape[1]:
            raise ValueError("the lengths differ")
        if not refuse:
            length = min(keys_from.shape[1], second.shape[1])
            keys_from, second, second_mask = keys_from[:, :length], second[:, :length], second_mask[:, :length]
            sides["second"] = second
        count = heads or self.heads
        q, k, v = (split_heads(getattr(self, layer)(x), count) for layer, x in zip(layers, (sides[asking], keys_from, sides[values])))
        scores = q @ k.transpose(-2, -1) / math.sqrt(scale(self, q) if scale else q.shape[-1])
        bias = {"right": lambda: mask_bias(second_mask, q.dtype), "none": lambda: 0.0, "inverted": lambda: mask_bias(1 - second_mask, q.dtype),
                "0 and 1": lambda: second_mask[:, None, None, :], "float32": lambda: mask_bias(second_mask)}[mask]()  # fmt: skip
        probabilities = (scores + bias + spoil * scores**2).softmax(axis)
        if dropout == "right":
            probabilities = F.dropout(probabilities, self.dropout, self.training)
        elif dropout == "always":
            probabilities = F.dropout(probabilities, self.dropout)
        context = probabilities @ v
        merged = merge(context)
        result = self.output(merged) if output else merged
        result = first + result if residual else result
        if dropout == "on the result":
            result = F.dropout(result, self.dropout, self.training)
        if dropout == "always, on the result":
            result = F.dropout(result, self.dropout)
        return (result, probabilities) if both else result

    return type("CrossAttention", (pairs.CrossAttention,), {"forward": forward})


def plain_view(x):
    return x.reshape(x.shape[0], x.shape[2], -1)


def torch_refuses(self, first, second, second_mask):
    """No test of the lengths: PyTorch stops somewhere inside."""
    keys_from = second if self.form == "standard" else first
    q, k, v = (split_heads(layer(x), self.heads) for layer, x in ((self.query, first), (self.key, keys_from), (self.value, second)))
    context, _ = attention(q, k, v, mask_bias(second_mask, first.dtype), self.dropout if self.training else 0.0)
    return self.output(merge_heads(context))


def by_torch(self, first, second, second_mask):
    keys_from = {"standard": second, "printed": first}[self.form]
    if keys_from.shape[1] != second.shape[1]:
        raise ValueError("both must have one length")
    context, _ = F.multi_head_attention_forward(
        first.transpose(0, 1), keys_from.transpose(0, 1), second.transpose(0, 1), first.shape[-1], self.heads,
        torch.cat([self.query.weight, self.key.weight, self.value.weight]), torch.cat([self.query.bias, self.key.bias, self.value.bias]),
        None, None, False, self.dropout, self.output.weight, self.output.bias, training=self.training,
        key_padding_mask=second_mask == 0, need_weights=False)  # fmt: skip
    return context.transpose(0, 1)


def head_by_head(self, first, second, second_mask):
    keys_from = first if self.form == "printed" else second
    if len(keys_from[0]) != len(second[0]):
        raise ValueError("both must have one length")
    size = first.shape[-1] // self.heads
    parts = []
    for q, k, v in zip(self.query(first).split(size, -1), self.key(keys_from).split(size, -1), self.value(second).split(size, -1)):
        scores = torch.einsum("btd,bsd->bts", q, k) / size**0.5
        weights = scores.masked_fill(second_mask.unsqueeze(1) == 0, -1e30).softmax(-1)
        parts.append(torch.einsum("bts,bsd->btd", F.dropout(weights, self.dropout, self.training), v))
    return self.output(torch.cat(parts, -1))


def cross_class(forward):
    return type("CrossAttention", (pairs.CrossAttention,), {"forward": forward})


# -- soft_class_loss ------------------------------------------------------------------------------------------------


def shares(labels, classes):
    """(B, K) the distance of each label from each class."""
    return (labels.unsqueeze(1) - torch.arange(classes, dtype=labels.dtype)).abs()


def softly(target=lambda d: (1 - d).clamp(min=0), log_p=lambda z: z.log_softmax(-1), finish=lambda rows: rows.sum(1).mean(),
           labels=lambda y: y):  # fmt: skip
    return lambda logits, y: finish(-target(shares(labels(y), logits.shape[1])) * log_p(logits))


def two_indices(logits, labels, guard=True, swap=False):
    low = labels.floor().long()
    if guard:
        low = low.clamp(max=logits.shape[1] - 2)
    share = (labels - low).clamp(0, 1)
    share = 1 - share if swap else share
    log_p = logits.log_softmax(-1)
    rows = torch.arange(len(labels))
    return -((1 - share) * log_p[rows, low] + share * log_p[rows, low + 1]).mean()


def soft_in_float32(labels, classes):
    """(B, K), pair by pair, in a tensor of PyTorch's usual dtype."""
    target = torch.zeros(len(labels), classes)
    for row, label in zip(target, labels.tolist()):
        low = int(label)
        row[low] = 1 - (label - low)
        if low + 1 < classes:
            row[low + 1] = label - low
    return target


def pair_by_pair(logits, labels):
    losses = []
    for row, label in zip(logits, labels.tolist()):
        low = min(int(label), len(row) - 2)
        norm = row.logsumexp(0)
        losses.append(norm - (low + 1 - label) * row[low] - (label - low) * row[low + 1])
    return sum(losses) / len(losses)


def unsafe(logits, labels):
    p = logits.exp() / logits.exp().sum(1, keepdim=True)
    return -((1 - shares(labels, logits.shape[1])).clamp(min=0) * p.log()).sum(1).mean()


def expected_error(logits, labels):
    return ((logits.softmax(-1) @ torch.arange(logits.shape[1], dtype=logits.dtype) - labels) ** 2).mean()


# -- closest_pairs --------------------------------------------------------------------------------------------------


def closest(score=None, places="upper", pick=None, order=lambda values: -values, limit=True):
    """`closest_pairs` from a matrix of scores; what is returned as the cosine is the score."""

    def closest_pairs(vectors, k):
        unit = F.normalize(vectors, dim=-1)
        matrix = (score or (lambda v, u: u @ u.T))(vectors, unit)
        n = len(vectors)
        chosen = [(i, j) for i in range(n) for j in range(n)
                  if {"upper": i < j, "with itself": i <= j, "both": i != j}[places]]  # fmt: skip
        values = numpy.array([matrix[i, j].item() for i, j in chosen])
        if not limit and k > len(values):
            raise RuntimeError("selected index k out of range")
        best = numpy.argsort(order(values), kind="stable")[:k]
        result = [(*chosen[place], float(values[place])) for place in best]
        return pick(result) if pick else result

    return closest_pairs


def with_numpy_integers(vectors, k):
    unit = F.normalize(vectors, dim=-1).numpy()
    i, j = numpy.triu_indices(len(unit), 1)
    cosines = (unit @ unit.T)[i, j]
    best = numpy.argsort(-cosines)[:k]
    return list(zip(i[best], j[best], cosines[best]))


def by_distance(vectors, k):
    n = len(vectors)
    rows = sorted(((vectors[i] - vectors[j]).norm().item(), i, j) for i in range(n) for j in range(i + 1, n))[:k]
    return [(i, j, F.cosine_similarity(vectors[i], vectors[j], dim=0).item()) for _, i, j in rows]


def nearest_only(vectors, k):
    unit = F.normalize(vectors, dim=-1)
    cosine = unit @ unit.T
    cosine.fill_diagonal_(-2)
    found = {}
    for i in range(len(unit)) if len(unit) > 1 else ():
        j = cosine[i].argmax().item()
        found[min(i, j), max(i, j)] = cosine[i, j].item()
    return sorted(((i, j, c) for (i, j), c in found.items()), key=lambda row: -row[2])[:k]


def with_masked_matrix(vectors, k):
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    cosine = (unit @ unit.T).masked_fill(torch.ones(len(unit), len(unit)).tril().bool(), -torch.inf)
    values, places = cosine.flatten().sort(descending=True)
    n = len(unit)
    return [(p // n, p % n, v) for v, p in zip(values[: min(k, n * (n - 1) // 2)].tolist(), places.tolist())]


def with_combinations(vectors, k):
    from itertools import combinations

    rows = [(i, j, F.cosine_similarity(vectors[i], vectors[j], dim=0).item()) for i, j in combinations(range(len(vectors)), 2)]
    return sorted(rows, key=lambda row: row[2], reverse=True)[:k]


# -- similarity_loss ------------------------------------------------------------------------------------------------


def losing(error=lambda s, y: s[:, 0] - y, finish=lambda e: (e**2).mean(), mask=lambda m: m):
    """`similarity_loss` with another error and another finish."""

    def similarity_loss(model, batch):
        return finish(error(model(batch["input_ids"], mask(batch["attention_mask"])), batch["labels"]))

    return similarity_loss


# -- dev_correlation ------------------------------------------------------------------------------------------------


def joined_up(batches):
    return torch.cat([s for s, _ in batches]), torch.cat([y for _, y in batches])


def r_by(formula):
    """`dev_correlation` by a formula of all scores and all labels."""
    return lambda batches: float(formula(*joined_up(batches)))


def centred(x, y):
    return x - x.mean(), y - y.mean()


def r(x, y):
    x, y = centred(x, y)
    return (x @ y / (x.norm() * y.norm())).item()


def ranks(values):
    return torch.tensor([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values], dtype=torch.float64)


def with_sums(batches):
    """From five running sums: no list of all scores is kept."""
    n = sx = sy = sxx = syy = sxy = 0.0
    for x, y in batches:
        n, sx, sy = n + len(x), sx + x.sum().item(), sy + y.sum().item()
        sxx, syy, sxy = sxx + (x @ x).item(), syy + (y @ y).item(), sxy + (x @ y).item()
    below = (n * sxx - sx**2) * (n * syy - sy**2)
    return (n * sxy - sx * sy) / math.sqrt(below) if below > 0 else math.nan


def with_numpy(batches):
    x, y = (side.numpy() for side in joined_up(batches))
    with numpy.errstate(all="ignore"):
        return float(numpy.corrcoef(x, y)[0, 1])


def centred_by_batch(batches):
    parts = [centred(x, y) for x, y in batches]
    x, y = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    return (x @ y / (x.norm() * y.norm())).item()


def never_nan(batches):
    x, y = centred(*joined_up(batches))
    return (x @ y / (x.norm() * y.norm() + 1e-12)).item()


def no_batch_without_r(batches):
    return r(*joined_up([(x, y) for x, y in batches if len(set(y.tolist())) > 1]))


WRONG = {
    "joined_ids": {
        "second [CLS]": finishing(lambda a, b: [2, *a, 3, 2, *b, 3], lambda a, b, before: [0] * (len(a) + 2) + [1] * (len(b) + 2)),
        "no [SEP] between": finishing(lambda a, b: [2, *a, *b, 3], lambda a, b, before: [0] * (len(a) + 1) + [1] * (len(b) + 1)),
        "no [SEP] at the end": finishing(lambda a, b: [2, *a, 3, *b], lambda a, b, before: [0] * (len(a) + 2) + [1] * len(b)),
        "exchanged": lambda first, second, most=128: pairs.joined_ids(second, first, most),
        "types 0": finishing(types=lambda a, b, before: [0] * (len(a) + len(b) + 3)),
        "[SEP] is the second's": finishing(types=lambda a, b, before: [0] * (len(a) + 1) + [1] * (len(b) + 2)),
        "last [SEP] has type 0": finishing(types=lambda a, b, before: [0] * (len(a) + 2) + [1] * len(b) + [0]),
        "types exchanged": finishing(types=lambda a, b, before: [1] * (len(a) + 2) + [0] * (len(b) + 1)),
        "types 1 and 2": finishing(types=lambda a, b, before: [1] * (len(a) + 2) + [2] * (len(b) + 1)),
        "types of what was": finishing(types=lambda a, b, before: [0] * (before[0] + 2) + [1] * (before[1] + 1)),
        "slice": sliced,
        "second only": joining(lambda a, b, turns: "b"),
        "first only": joining(lambda a, b, turns: "a"),
        "the shorter": joining(lambda a, b, turns: "a" if len(a) < len(b) else "b"),
        "in turns": joining(lambda a, b, turns: "a" if turns % 2 == 0 else "b"),
        "from the front": joining(front=True),
        "not cut": never_cut,
        "one too many": joining(least=1),
        "never cut, it says": finishing(cut=lambda cut, before, most: False),
        "flag exchanged": finishing(cut=lambda cut, before, most: not cut),
        "flag when full": finishing(cut=lambda cut, before, most: sum(before) + 3 >= most),
        "no room": joining(measure=False),
        "room refused": room_refused,
    },
    "apart_pairs": {
        "mask of ones": embedding(given=lambda ids, mask: torch.ones_like(mask)),
        "mask left out": apart(embed=without_mask),
        "mean over padding": embedding(counted=lambda ids, mask: torch.ones_like(mask)),
        "another row's mask": embedding(counted=wrong_row_of_mask),
        "always pooled": embedding(pool=lambda self, hidden, mean, pooled: pooled),
        "always the mean": embedding(pool=lambda self, hidden, mean, pooled: mean),
        "first token": embedding(pool=lambda self, hidden, mean, pooled: mean if self.pooling == "mean" else hidden[:, 0]),
        "not pooled": embedding(pool=lambda self, hidden, mean, pooled: hidden),
        "no projection": embedding(project=lambda x: x),
        "unit length": apart(embed=lambda self, ids, mask: F.normalize(plain_embed(self, ids, mask), dim=-1)),
        "half a batch": apart(embed=lambda self, ids, mask: plain_embed(self, ids, mask).chunk(2)[1]),
        "in turns": comparing(split=lambda x: (x[::2], x[1::2])),
        "exchanged": comparing(order=lambda u, v: (v, u)),
        "u twice": comparing(order=lambda u, v: (u, u)),
        "the difference": comparing(order=lambda u, v: (u, u - v)),
        "cut along the numbers": comparing(split=lambda x: x.chunk(2, dim=-1)),
        "not cut": comparing(split=lambda x: (x, x)),
        "cut in three": comparing(split=lambda x: x.chunk(3)[:2]),
        "one argument": apart(compare=lambda self, vectors: self.head(torch.cat(vectors.chunk(2), dim=-1))),
        "no head": apart(compare=lambda self, vectors: F.cosine_similarity(*vectors.chunk(2)).unsqueeze(-1)),
        "two passes": apart_class(side_by_side),
        "two passes for all": apart_class(once_for_each_side),
        "type 1": apart_class(second_type),
        "projection of u": apart_class(project_one_side),
        "dropout before the projection": apart_class(dropout_first, plain_embed),
        "dropout always": comparing(drop=lambda self, x: F.dropout(x, self.dropout.p)),
        "no dropout": comparing(drop=lambda self, x: x),
        "dropout on the outputs": apart(compare=lambda self, vectors: self.dropout(self.head(*vectors.chunk(2)))),
        "dropout on u": apart(compare=lambda self, vectors: self.head(self.dropout(vectors.chunk(2)[0]), vectors.chunk(2)[1])),
        "dropout on v": apart(compare=lambda self, vectors: self.head(vectors.chunk(2)[0], self.dropout(vectors.chunk(2)[1]))),
        "no gradient": comparing(drop=lambda self, x: self.dropout(x.detach())),
    },
    "cross_attention": {
        "keys of sentence 1": crossing(keys="first"),
        "keys of sentence 2": crossing(keys="second"),
        "values of sentence 1": crossing(values="first"),
        "queries of sentence 2": crossing(asking="second"),
        "no mask": crossing(mask="none"),
        "inverted mask": crossing(mask="inverted"),
        "mask as 0 and 1": crossing(mask="0 and 1"),
        "bias in float32": crossing(mask="float32"),
        "unscaled": crossing(scale=lambda self, q: 1.0),
        "√D": crossing(scale=lambda self, q: q.shape[-1] * self.heads),
        "softmax over queries": crossing(axis=-2),
        "one head": crossing(heads=1),
        "view": crossing(merge=plain_view),
        "heads left apart": crossing(merge=lambda x: x, output=False),
        "no output": crossing(output=False),
        "residual": crossing(residual=True),
        "key for query": crossing(layers=("key", "query", "value")),
        "key for value": crossing(layers=("query", "key", "key")),
        "two results": crossing(both=True),
        "cut to one length": crossing(refuse=False),
        "PyTorch refuses": cross_class(torch_refuses),
        "dropout always": crossing(dropout="always"),
        "dropout always, on the result": crossing(dropout="always, on the result"),
        "no dropout": crossing(dropout="none"),
        "dropout on the result": crossing(dropout="on the result"),
    },
    "soft_class_loss": {
        "exchanged": lambda logits, y: two_indices(logits, y, swap=True),
        "rounded": lambda logits, y: F.cross_entropy(logits, (y + 0.5).floor().long()),
        "cut off": lambda logits, y: F.cross_entropy(logits, y.long()),
        "rounded up": lambda logits, y: F.cross_entropy(logits, y.ceil().long()),
        "no maximum": softly(target=lambda d: 1 - d),
        "sum": softly(finish=lambda rows: rows.sum()),
        "mean over classes": softly(finish=lambda rows: rows.mean()),
        "a loss a pair": softly(finish=lambda rows: rows.sum(1)),
        "a number a class": softly(finish=lambda rows: rows),
        "scores": softly(log_p=lambda z: z),
        "probabilities": softly(log_p=lambda z: z.softmax(-1)),
        "softmax twice": softly(log_p=lambda z: z.softmax(-1).log_softmax(-1)),
        "sign": softly(finish=lambda rows: -rows.sum(1).mean()),
        "expected class": expected_error,
        "squared distance": softly(target=lambda d: (1 - d**2).clamp(min=0)),
        "no class above the last": lambda logits, y: two_indices(logits, y, guard=False),
        "a number": lambda logits, y: softly()(logits, y).item(),
        "log of 0": unsafe,
        "detached": lambda logits, y: softly()(logits.detach(), y),
    },
    "closest_pairs": {
        "dot products": closest(lambda v, u: v @ v.T),
        "one side": closest(lambda v, u: u @ v.T),
        "itself": closest(places="with itself"),
        "twice": closest(places="both"),
        "the last": closest(order=lambda values: values),
        "rising": closest(pick=lambda rows: rows[::-1]),
        "unsorted": closest(pick=sorted),
        "j < i": closest(pick=lambda rows: [(j, i, c) for i, j, c in rows]),
        "absolute": closest(order=lambda values: -abs(values)),
        "distance": by_distance,
        "nearest only": nearest_only,
        "from one": closest(pick=lambda rows: [(i + 1, j + 1, c) for i, j, c in rows]),
        "too many": closest(limit=False),
        "tensors": closest(pick=lambda rows: [(torch.tensor(i), torch.tensor(j), c) for i, j, c in rows]),
    },
    "similarity_loss": {
        "broadcast": losing(lambda s, y: s - y),
        "cut off": losing(lambda s, y: s[:, 0] - y.long()),
        "rounded": losing(lambda s, y: s[:, 0] - (y + 0.5).floor()),
        "scaled": losing(lambda s, y: s[:, 0] - y / 5),
        "sum": losing(finish=lambda e: (e**2).sum()),
        "root": losing(finish=lambda e: (e**2).mean().sqrt()),
        "absolute": losing(finish=lambda e: e.abs().mean()),
        "half": losing(finish=lambda e: 0.5 * (e**2).mean()),
        "signed": losing(finish=lambda e: e.mean()),
        "no mask": losing(mask=torch.ones_like),
        "first only": losing(finish=lambda e: e[0] ** 2),
        "huber": losing(finish=lambda e: F.huber_loss(e, torch.zeros_like(e))),
        "square of the mean": losing(finish=lambda e: e.mean() ** 2),
        "a square a pair": losing(finish=lambda e: e**2),
        "every square": losing(lambda s, y: s - y, finish=lambda e: e**2),
        "a number": losing(finish=lambda e: (e**2).mean().item()),
        "detached": losing(lambda s, y: s[:, 0].detach() - y),
    },
    "dev_correlation": {
        "by batch": lambda batches: sum(r(*batch) for batch in batches) / len(batches),
        "by batch, weighted": lambda batches: sum(len(x) * r(x, y) for x, y in batches) / sum(len(x) for x, _ in batches),
        "centred by batch": centred_by_batch,
        "cosine": r_by(lambda x, y: F.cosine_similarity(x, y, dim=0)),
        "one mean": r_by(lambda x, y: F.cosine_similarity(x - x.mean(), y, dim=0)),
        "N - 1": r_by(lambda x, y: (x - x.mean()) @ (y - y.mean()) / (len(x) - 1) / (x.std(correction=0) * y.std(correction=0))),
        "covariance": r_by(lambda x, y: ((x - x.mean()) * (y - y.mean())).mean()),
        "squared": r_by(lambda x, y: r(x, y) ** 2),
        "absolute": r_by(lambda x, y: abs(r(x, y))),
        "ranks": r_by(lambda x, y: r(ranks(x), ranks(y))),
        "first batch": lambda batches: r(*batches[0]),
        "last batch": lambda batches: r(*batches[-1]),
        "slope": r_by(lambda x, y: (x - x.mean()) @ (y - y.mean()) / ((x - x.mean()) ** 2).sum()),
        "never NaN": never_nan,
    },
}

RIGHT = {
    "joined_ids": {"by shares": by_shares, "with pop": with_pops},
    "apart_pairs": {
        "an axis for the sides": apart_class(with_view, plain_embed),
        "sentence by sentence, after one pass": apart_class(by_halves, sentence_by_sentence),
    },
    "cross_attention": {"PyTorch's function": cross_class(by_torch), "head by head": cross_class(head_by_head)},
    "soft_class_loss": {
        "two indices": two_indices,
        "pair by pair": pair_by_pair,
        "two indices, the target in float32": lambda logits, y: -(soft_in_float32(y, logits.shape[1]) * logits.log_softmax(-1)).sum(1).mean(),
        "PyTorch's": lambda logits, y: F.cross_entropy(logits, (1 - shares(y, logits.shape[1])).clamp(min=0)),
    },
    "closest_pairs": {"masked matrix": with_masked_matrix, "combinations": with_combinations,
                      "NumPy's integers": with_numpy_integers},
    "similarity_loss": {
        "squeeze(1)": lambda model, batch: F.mse_loss(model(batch["input_ids"], batch["attention_mask"]).squeeze(1), batch["labels"]),
        "labels with a second axis": losing(lambda s, y: s - y.unsqueeze(1)),
        "dot product": losing(finish=lambda e: e @ e / len(e)),
    },
    "dev_correlation": {"five sums": with_sums, "NumPy": with_numpy},
}

UNLISTED = {
    "joined_ids": finishing(lambda a, b: [2, *a, 3, *b[::-1], 3]),
    "apart_pairs": apart(spoil=1.1),
    "cross_attention": crossing(spoil=0.1),
    "soft_class_loss": softly(target=lambda d: (1 - d).clamp(min=0) ** 3),
    "closest_pairs": closest(lambda v, u: (u @ u.T) ** 3),
    "similarity_loss": losing(finish=lambda e: (e**4).mean()),
    "dev_correlation": no_batch_without_r,
}
