"""Chapter 11: wrong versions from real mistakes, right versions written differently. See tests/test_checks.py."""

import collections
import re
import string

import numpy as np
import torch
from torch.nn import functional as F

from minbert import squad

# -- span_extractor -------------------------------------------------------------------------------------------------


def extractor(finish=None, forward=None):
    """A class with the stub's __init__. `finish(self, scores, mask)` makes the result from (B, T, 2)."""

    def usual(self, input_ids, attention_mask, token_type_ids):
        hidden, _ = self.encoder(input_ids, attention_mask, token_type_ids)
        return finish(self, self.head(hidden), attention_mask)

    return type("SpanExtractor", (squad.SpanExtractor,), {"forward": forward or usual})


def hidden_padding(scores, mask):
    return scores.masked_fill(mask[..., None] == 0, torch.finfo(scores.dtype).min)


def two(scores):
    return scores[..., 0], scores[..., 1]


def from_pooled(self, ids, mask, types):
    return two(self.head(self.encoder(ids, mask, types)[1]))


def without_mask(self, ids, mask, types):
    return two(hidden_padding(self.head(self.encoder(ids, torch.ones_like(mask), types)[0]), mask))


def without_types(self, ids, mask, types):
    return two(hidden_padding(self.head(self.encoder(ids, mask)[0]), mask))


def without_gradient(self, ids, mask, types):
    with torch.no_grad():
        hidden, _ = self.encoder(ids, mask, types)
    return two(hidden_padding(self.head(hidden), mask))


def without_bias(self, ids, mask, types):
    hidden, _ = self.encoder(ids, mask, types)
    return two(hidden_padding(hidden @ self.head.weight.T, mask))


def by_two_products(self, ids, mask, types):
    """Start and end one after the other, with torch.where."""
    hidden = self.encoder(ids, mask, types)[0]
    found = []
    for row in range(2):
        scores = torch.einsum("btd,d->bt", hidden, self.head.weight[row]) + self.head.bias[row]
        found.append(torch.where(mask.bool(), scores, torch.full_like(scores, torch.finfo(scores.dtype).min)))
    return tuple(found)


def by_addition(self, scores, mask):
    """The mask as something to add, as in attention: what is masked stays finite."""
    bias = (1 - mask.to(scores.dtype)) * (torch.finfo(scores.dtype).min / 2)
    return [x.squeeze(-1) + bias for x in scores.split(1, dim=-1)]


# -- best_spans -----------------------------------------------------------------------------------------------------


def searching(low=0, high=lambda limit, size: limit, starts=True, ends=True, join=np.add, key=None, cut=None, finish=None):
    """`best_spans` over the whole matrix, with a switch for each mistake."""

    def best_spans(start, end, allowed, n_best=20, max_answer=30):
        can_start, can_end = allowed if isinstance(allowed, tuple) else (allowed, allowed)
        size = len(start)
        matrix = join.outer(start, end)
        first, last = np.indices(matrix.shape)
        length = last - first
        inside = (length >= (low if low is not None else -size)) & (length < high(max_answer, size))
        inside &= can_start[:, None] if starts else True
        inside &= can_end[None, :] if ends else True
        found = [(float(matrix[i, j]), int(i), int(j)) for i, j in zip(*np.nonzero(inside))]
        if cut:
            found = cut(found, start, can_start)
        found = sorted(found, key=key or (lambda s: (-s[0], s[2] - s[1], s[1])))[:n_best]
        return finish(found) if finish else found

    return best_spans


def from_the_best_start(found, start, can_start):
    best = max(np.flatnonzero(can_start), key=lambda i: start[i])
    return [span for span in found if span[1] == best]


def one_end_each(found, start, can_start):
    best = {}
    for span in found:
        if span[1] not in best or (span[0], -span[2]) > (best[span[1]][0], -best[span[1]][2]):
            best[span[1]] = span
    return list(best.values())


def kth_too_large(start, end, allowed, n_best=20, max_answer=30):
    total = np.add.outer(start, end).ravel()
    np.argpartition(-total, n_best - 1)
    return searching()(start, end, allowed, n_best, max_answer)


def by_loops(start, end, allowed, n_best=20, max_answer=30):
    can_start, can_end = allowed if isinstance(allowed, tuple) else (allowed, allowed)
    spans = []
    for length in range(max_answer):  # the shorter first, so that a stable sort keeps the order of equals
        for i in range(len(start) - length):
            if can_start[i] and can_end[i + length]:
                spans.append((float(start[i] + end[i + length]), i, i + length))
    spans.sort(key=lambda span: span[0], reverse=True)
    return spans[:n_best]


def by_numpy_numbers(start, end, allowed, n_best=20, max_answer=30):
    return [(np.float64(score), np.int64(i), np.int64(j)) for score, i, j in by_loops(start, end, allowed, n_best, max_answer)]


def by_many(start, end, allowed, n_best=20, max_answer=30):
    can_start, can_end = allowed if isinstance(allowed, tuple) else (allowed, allowed)
    start, end = np.where(can_start, start, -np.inf)[None], np.where(can_end, end, -np.inf)[None]
    scores, begins, lasts = squad.best_spans_of_many(start, end, 10**4, max_answer)
    rows = [(float(s), int(b), int(e)) for s, b, e in zip(scores[0], begins[0], lasts[0]) if s > -np.inf]
    return sorted(rows, key=lambda span: (-span[0], span[2] - span[1], span[1]))[:n_best]


# -- f1_score -------------------------------------------------------------------------------------------------------


def counted(words=lambda text: squad.normalise_answer(text).split(), count=collections.Counter, both=1.0, one=0.0, join=None, times=1):
    """`f1_score` with a switch for each mistake."""

    def f1_score(said, gold):
        said, gold = words(said), words(gold)
        if not said or not gold:
            return times * (both if not said and not gold else one)
        said, gold = count(said), count(gold)
        common = sum((said & gold).values())
        if not common:
            return 0.0
        precision, recall = common / sum(said.values()), common / sum(gold.values())
        return times * (join or (lambda p, r: 2 * p * r / (p + r)))(precision, recall)

    return f1_score


def no_empty_case(said, gold):
    said, gold = squad.normalise_answer(said).split(), squad.normalise_answer(gold).split()
    common = sum((collections.Counter(said) & collections.Counter(gold)).values())
    if said and gold and not common:
        return 0.0
    precision, recall = common / len(said), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def no_zero_case(said, gold):
    said, gold = squad.normalise_answer(said).split(), squad.normalise_answer(gold).split()
    if not said or not gold:
        return float(said == gold)
    common = sum((collections.Counter(said) & collections.Counter(gold)).values())
    precision, recall = common / len(said), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def jaccard(said, gold):
    said, gold = (set(squad.normalise_answer(text).split()) for text in (said, gold))
    if not said or not gold:
        return float(said == gold)
    return len(said & gold) / len(said | gold)


def every_word(said, gold):
    said, gold = squad.normalise_answer(said).split(), squad.normalise_answer(gold).split()
    if not said or not gold:
        return float(said == gold)
    common = sum(word in gold for word in said)
    return 2 * common / (len(said) + len(gold)) if common else 0.0


def common_as_a_set(said, gold):
    said, gold = squad.normalise_answer(said).split(), squad.normalise_answer(gold).split()
    if not said or not gold:
        return float(said == gold)
    common = len(set(said) & set(gold))
    if common == 0:
        return 0.0
    precision, recall = common / len(said), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def by_crossing_out(said, gold):
    """Cross out each word that is found; F1 = 2 · common / (both lengths)."""
    clean = []
    for text in (said, gold):
        text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
        clean.append([word for word in text.split() if word not in {"a", "an", "the"}])
    said, gold = clean
    if not said or not gold:
        return 1.0 if said == gold else 0.0
    left, common = list(gold), 0
    for word in said:
        if word in left:
            left.remove(word)
            common += 1
    return 2 * common / (len(said) + len(gold))


def by_counters(said, gold):
    said, gold = (collections.Counter(squad.normalise_answer(text).split()) for text in (said, gold))
    total = said.total() + gold.total()
    if not (said and gold):
        return float(not total)
    return 2 * (said & gold).total() / total


# -- joint_span_loss ------------------------------------------------------------------------------------------------


def spanning(low=0, high=lambda limit, size: limit, starts=True, ends=True, null=True, finish=None):
    """`joint_span_loss` with a switch for each mistake."""

    def joint_span_loss(start, end, can, first, last, limit=30):
        size = len(start)
        total = start[:, None] + end[None, :]
        row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        ahead = column - row
        inside = (ahead >= (low if low is not None else -limit + 1)) & (ahead < high(limit, size))
        inside &= can[:, None] if starts else torch.ones(size, 1, dtype=bool)
        inside &= can[None, :] if ends else torch.ones(1, size, dtype=bool)
        inside[0, 0] = null
        scores, right = total[inside], total[first, last]
        return (finish or (lambda s, r: s.logsumexp(0) - r))(scores, right)

    return joint_span_loss


def apart(times):
    def joint_span_loss(start, end, can, first, last, limit=30):
        first, last = torch.tensor([first]), torch.tensor([last])
        return times * (F.cross_entropy(start[None], first) + F.cross_entropy(end[None], last))
    return joint_span_loss


def detached(start, end, can, first, last, limit=30):
    return spanning()(start.detach(), end.detach(), can, first, last, limit)


def by_cross_entropy(start, end, can, first, last, limit=30):
    """The allowed spans as classes of one cross-entropy."""
    places = [(0, 0)] + [(i, j) for i in range(len(start)) for j in range(i, min(i + limit, len(start))) if can[i] and can[j]]
    scores = torch.stack([start[i] + end[j] for i, j in places])
    return F.cross_entropy(scores.unsqueeze(0), torch.tensor([places.index((first, last))]))


def by_masking(start, end, can, first, last, limit=30):
    """What is not allowed gets minus infinity; log-softmax over the whole matrix laid flat."""
    size = len(start)
    total = start.view(-1, 1) + end.view(1, -1)
    inside = torch.ones(size, size, dtype=bool).triu().tril(limit - 1) & torch.outer(can, can)
    inside[0, 0] = True
    return -total.masked_fill(~inside, float("-inf")).flatten().log_softmax(0)[first * size + last]


# -- final_answer ---------------------------------------------------------------------------------------------------


def merging(null=lambda windows: min(w[0] for w in windows), pick=lambda windows: max(windows, key=lambda w: w[1])[2],
            none=lambda odds, tau: odds > tau):  # fmt: skip
    """`final_answer` with a switch for each mistake."""

    def final_answer(windows, tau=0.0):
        odds = null(windows) - max(w[1] for w in windows)
        return "" if none(odds, tau) else pick(windows)

    return final_answer


def each_for_itself(windows, tau=0.0):
    left = [(score, text) for null, score, text in windows if null - score <= tau]
    return max(left)[1] if left else ""


def by_numpy(windows, tau=0.0):
    nulls, scores = (np.array([w[k] for w in windows]) for k in (0, 1))
    return windows[int(scores.argmax())][2] if (nulls <= scores.max() + tau).any() else ""


def by_sorting(windows, tau=0.0):
    null, score, text = min(windows, key=lambda w: -w[1])
    lowest = sorted(w[0] for w in windows)[0]
    return text if lowest - score <= tau else ""


WRONG = {
    "span_extractor": {
        "one tensor": extractor(lambda self, scores, mask: hidden_padding(scores, mask)),
        "pooled": extractor(forward=from_pooled),
        "not squeezed": extractor(lambda self, scores, mask: hidden_padding(scores, mask).split(1, dim=-1)),
        "no mask to the encoder": extractor(forward=without_mask),
        "no token types": extractor(forward=without_types),
        "exchanged": extractor(lambda self, scores, mask: two(hidden_padding(scores, mask))[::-1]),
        "mask turned round": extractor(lambda self, scores, mask: two(hidden_padding(scores, 1 - mask))),
        "softmax": extractor(lambda self, scores, mask: two(hidden_padding(scores, mask).softmax(1))),
        "softmax over the pair": extractor(lambda self, scores, mask: two(hidden_padding(scores.softmax(-1), mask))),
        "log-softmax": extractor(lambda self, scores, mask: two(hidden_padding(scores, mask).log_softmax(1))),
        "no bias": extractor(forward=without_bias),
        "start twice": extractor(lambda self, scores, mask: (two(hidden_padding(scores, mask))[0],) * 2),
        "padding not masked": extractor(lambda self, scores, mask: two(scores)),
        "multiplied by the mask": extractor(lambda self, scores, mask: two(scores * mask[..., None])),
        "-1e9": extractor(lambda self, scores, mask: two(scores.masked_fill(mask[..., None] == 0, -1e9))),
        "-1e4": extractor(lambda self, scores, mask: two(scores.masked_fill(mask[..., None] == 0, -1e4))),
        "-inf": extractor(lambda self, scores, mask: two(scores.masked_fill(mask[..., None] == 0, -np.inf))),
        "no gradient to the encoder": extractor(forward=without_gradient),
    },
    "best_spans": {
        "any order": searching(low=None),
        "no limit": searching(high=lambda limit, size: size),
        "one too long": searching(high=lambda limit, size: limit + 1),
        "one too short": searching(high=lambda limit, size: limit - 1),
        "two pieces at least": searching(low=1),
        "ends anywhere": searching(ends=False),
        "starts anywhere": searching(starts=False),
        "anywhere": searching(starts=False, ends=False),
        "greedy": searching(cut=from_the_best_start),
        "one end each": searching(cut=one_end_each),
        "worst first": searching(key=lambda s: (s[0], s[2] - s[1], s[1])),
        "unsorted": searching(finish=lambda found: sorted(found, key=lambda s: s[1:])),
        "earlier first": searching(key=lambda s: (-s[0], s[1], s[2])),
        "longer first": searching(key=lambda s: (-s[0], s[1] - s[2], s[1])),
        "product": searching(join=np.multiply),
        "more than there are": kth_too_large,
    },
    "f1_score": {
        "sets": counted(count=lambda words: collections.Counter(set(words))),
        "common words as a set, lengths as lists": common_as_a_set,
        "not normalised": counted(words=str.split),
        "only lower case": counted(words=lambda text: text.lower().split()),
        "both empty": counted(both=0.0),
        "one empty": counted(one=1.0),
        "letters": counted(words=lambda text: list(squad.normalise_answer(text))),
        "arithmetic mean": counted(join=lambda p, r: (p + r) / 2),
        "precision": counted(join=lambda p, r: p),
        "recall": counted(join=lambda p, r: r),
        "Jaccard": jaccard,
        "per cent": counted(times=100),
        "no factor": counted(join=lambda p, r: p * r / (p + r)),
        "every word": every_word,
        "0/0, empty": no_empty_case,
        "0/0, nothing in common": no_zero_case,
    },
    "joint_span_loss": {
        "apart": apart(1),
        "apart, mean": apart(0.5),
        "any order": spanning(low=None),
        "no limit": spanning(high=lambda limit, size: size),
        "one too long": spanning(high=lambda limit, size: limit + 1),
        "two pieces at least": spanning(low=1),
        "anywhere": spanning(starts=False, ends=False),
        "ends anywhere": spanning(ends=False),
        "starts anywhere": spanning(starts=False),
        "no null": spanning(null=False),
        "sign": spanning(finish=lambda s, r: r - s.logsumexp(0)),
        "probability": spanning(finish=lambda s, r: (r - s.logsumexp(0)).exp()),
        "mean": spanning(finish=lambda s, r: s.logsumexp(0) - np.log(len(s)) - r),
        "only the normaliser": spanning(finish=lambda s, r: s.logsumexp(0)),
        "exp of large scores": spanning(finish=lambda s, r: s.exp().sum().log() - r),
        "detached": detached,
        "one side detached": lambda start, end, *others: spanning()(start, end.detach(), *others),
    },
    "final_answer": {
        "largest null": merging(null=lambda windows: max(w[0] for w in windows)),
        "mean null": merging(null=lambda windows: float(np.mean([w[0] for w in windows]))),
        "first null": merging(null=lambda windows: windows[0][0]),
        "last null": merging(null=lambda windows: windows[-1][0]),
        "its own null": merging(null=lambda windows: max(windows, key=lambda w: w[1])[0]),
        "sum of nulls": merging(null=lambda windows: sum(w[0] for w in windows)),
        "sign of τ": merging(none=lambda odds, tau: odds > -tau),
        "no τ": merging(none=lambda odds, tau: odds > 0),
        "at least": merging(none=lambda odds, tau: odds >= tau),
        "turned round": merging(none=lambda odds, tau: odds < tau),
        "worst text": merging(pick=lambda windows: min(windows, key=lambda w: w[1])[2]),
        "first text": merging(pick=lambda windows: windows[0][2]),
        "each for itself": each_for_itself,
        "never silent": merging(none=lambda odds, tau: False),
    },
}

RIGHT = {
    "span_extractor": {
        "the package's": squad.SpanExtractor,
        "two products": extractor(forward=by_two_products),
        "mask added": extractor(by_addition),
    },
    "best_spans": {
        "the package's": squad.best_spans,
        "with switches, none on": searching(),
        "loops": by_loops,
        "many windows": by_many,
        "NumPy's numbers": by_numpy_numbers,
    },
    "f1_score": {
        "the package's": squad.f1_score,
        "with switches, none on": counted(),
        "crossing out": by_crossing_out,
        "counters": by_counters,
    },
    "joint_span_loss": {
        "with switches, none on": spanning(),
        "cross-entropy": by_cross_entropy,
        "masking": by_masking,
    },
    "final_answer": {
        "with switches, none on": merging(),
        "numpy": by_numpy,
        "sorting": by_sorting,
    },
}

UNLISTED = {
    "span_extractor": extractor(lambda self, scores, mask: two(hidden_padding(2 * scores, mask))),
    "best_spans": searching(low=2),
    "f1_score": lambda said, gold: float(bool(re.search(r"\w", said))) / 3,
    "joint_span_loss": spanning(finish=lambda s, r: 2 * (s.logsumexp(0) - r)),
    "final_answer": merging(none=lambda odds, tau: odds > tau + 1),
}
