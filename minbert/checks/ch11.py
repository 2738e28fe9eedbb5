"""Checks of chapter 11: the span head, the search for the best span, F1 of two texts, no answer."""

import re
from fractions import Fraction

import numpy as np
import torch
from torch import nn
from torch.nn.functional import linear

from minbert.checks.ch05 import GivenEncoder
from minbert.checks.engine import Check, not_answered, random, CheckFailed

__all__ = ["span_extractor", "best_spans", "f1_score", "joint_span_loss", "final_answer", "length_limit"]


# -- 11.1 span_extractor --------------------------------------------------------------------------------------------


def span_extractor(answer):
    """Exercise: `answer` is the class `SpanExtractor`."""
    check = Check("span_extractor", see='Chapter 11, "Two scores a token"')
    ids = torch.tensor([[2, 5, 3, 6, 3], [2, 7, 3, 0, 0]])  # the second row is padded
    mask, types = (ids != 0).long(), torch.tensor([[0, 0, 0, 1, 1], [0, 0, 1, 0, 0]])

    def make(hidden, weight=None, bias=None):
        model = check.run(answer, GivenEncoder(hidden, torch.zeros(len(hidden), hidden.shape[-1])))
        check.true(isinstance(getattr(model, "head", None), nn.Linear), "the part `head` is gone from __init__.")
        model.double()
        with torch.no_grad():
            model.head.weight.copy_(random(2, hidden.shape[-1], seed=5) if weight is None else weight)
            model.head.bias.copy_(torch.tensor([0.3, -0.2]) if bias is None else bias)
        return model.eval()

    model = make(random(2, 5, 6))
    got = check.run(model, ids, mask, types)
    check.true(not torch.is_tensor(got), "two tensors are asked for, the start scores and the end scores.",
               "Start and end stand in one tensor, side by side. Take it apart along its last axis.",
               "(B, T) and (B, T)", f"a tensor of shape {tuple(got.shape) if torch.is_tensor(got) else ''}")
    check.true(isinstance(got, (tuple, list)) and len(got) == 2, "two tensors are asked for, the start and the end scores.")
    check.true(not any(torch.is_tensor(scores) and scores.isinf().any() for scores in got), "padding has an infinite score.",
               "With −inf, a softmax over nothing but padding is NaN. The lowest *number* of the type, `torch.finfo(scores.dtype).min`, does the same without that.")
    for scores, name in zip(got, ("start", "end")):
        check.tensor(scores, f"the {name} scores", (2, 5), torch.float64, {
            (2,): "One score a window: the head is applied to `pooled`. It is applied to every token's vector.",
            (2, 2): "One pair of scores a window: the head is applied to `pooled`. It is applied to every token's vector.",
            (2, 5, 1): "`squeeze` is missing, or take `scores[..., 0]`.",
        })  # fmt: skip
    for name, given in (("attention_mask", mask), ("token_type_ids", types)):
        asked = model.encoder.asked.get(name)
        check.true(asked is not None and torch.equal(asked, given), f"the encoder was not given the {name}.",
                   {"attention_mask": "Without the mask the encoder attends to padding, and a window's scores depend on its batch.",
                    "token_type_ids": "`token_type_ids` are not handed on: the encoder could not tell question and passage apart."}[name])  # fmt: skip

    # By hand: vectors (1, 2) and (3, 0); start weights (1, 1), bias 1; end weights (0, 2), bias −1.
    # Start: 1 + 2 + 1 = 4 and 3 + 0 + 1 = 4. End: 4 − 1 = 3 and 0 − 1 = −1.
    tiny = make(torch.tensor([[[1.0, 2.0], [3.0, 0.0]]]).double(), torch.tensor([[1.0, 1.0], [0.0, 2.0]]), torch.tensor([1.0, -1.0]))
    one = torch.tensor([[2, 3]]), torch.ones(1, 2, dtype=torch.long), torch.zeros(1, 2, dtype=torch.long)
    by_hand = check.run(tiny, *one)
    check.equal(list(by_hand), [torch.tensor([[4.0, 4]]), torch.tensor([[3.0, -1]])], "the result of a case worked by hand",
                wrong_span_scores(tiny, one[1]))

    # PyTorch's own linear layer, on the real tokens.
    right = linear(model.encoder.hidden, model.head.weight, model.head.bias)
    real = mask == 1
    wrong = {text: (lambda f=f: [x[real] for x in f()]) for text, f in wrong_span_scores(model, mask).items()}
    check.equal([x[real] for x in got], [right[..., 0][real], right[..., 1][real]], "the scores of the real tokens", wrong)

    # Padding: no share of the softmax.
    padding = [x[~real] for x in got]
    check.true(not all(torch.equal(x, y[~real]) for x, y in zip(padding, right.unbind(-1))), "padding has scores like any token.",
               "Padding is not masked. A window could answer with a place that does not exist.")
    check.true(not all((x == 0).all() for x in padding), "padding has the score 0.",
               "The scores are multiplied by the mask. 0 is a score like any other, and often the highest: padding needs the lowest.")
    share = torch.cat([x.softmax(-1)[~real] for x in got])
    check.equal(share, torch.zeros_like(share), "the share of the softmax that goes to padding")
    with torch.no_grad():
        model.head.bias.sub_(1e6)
    share = torch.cat([x.softmax(-1)[~real] for x in check.run(model, ids, mask, types)])
    check.true(not share.any(), "where all scores are near minus a million, padding has a share of the softmax.",
               "A fixed number such as −1e4 stands in for padding. Scores may lie below it, and then padding wins.")
    with torch.no_grad():
        model.head.bias.add_(1e6)
    sixteen = [x.detach() for x in check.run(model.half(), ids, mask, types, mistakes={
        RuntimeError: lambda said: "−1e9 does not fit into 16 bits. `torch.finfo(scores.dtype).min` is the lowest number of every type."
        if re.search("overflow", said) else None,
    })]  # fmt: skip
    check.true(all(x.isfinite().all() for x in sixteen), "in float16 the scores are not finite.")
    model.double()
    sum(x[real].sum() for x in check.run(model, ids, mask, types)).backward()
    check.true(model.encoder.hidden.grad is not None, "no gradient flows back to the encoder, so it would never be fine-tuned.",
               "The encoder is called under `torch.no_grad()`, or its output is detached.")
    check.passed("Equal to PyTorch's linear layer, with padding left out.")


def wrong_span_scores(model, mask):
    """What well-known mistakes would give, as [start, end]."""
    hidden, weight, bias = model.encoder.hidden, model.head.weight, model.head.bias
    right = linear(hidden, weight, bias)  # (B, T, 2)
    low = torch.finfo(right.dtype).min
    inverted = right.masked_fill(mask.unsqueeze(-1) == 1, low)
    return {
        "Start and end are exchanged: the first of the head's two numbers is the start.": lambda: [right[..., 1], right[..., 0]],
        "The mask is turned round: the real tokens are masked, and padding is left.": lambda: list(inverted.unbind(-1)),
        "Softmax is taken already. Cross-entropy does that itself, and decoding adds plain scores.":
            lambda: list(masked(right, mask).softmax(1).unbind(-1)),
        "The softmax runs over start and end (the last axis). It belongs over the tokens, and to the loss.":
            lambda: list(right.softmax(-1).unbind(-1)),
        "Log-softmax is taken already. Then the scores of two windows can't be compared.":
            lambda: list(masked(right, mask).log_softmax(1).unbind(-1)),
        "The bias of the head is missing.": lambda: list((hidden @ weight.T).unbind(-1)),
        "Both are the start scores.": lambda: [right[..., 0], right[..., 0]],
    }  # fmt: skip


def masked(scores, mask):
    return scores.masked_fill(mask.unsqueeze(-1) == 0, torch.finfo(scores.dtype).min)


# -- 11.2 best_spans ------------------------------------------------------------------------------------------------


def best_spans(answer):
    """Exercise: `answer(start, end, allowed, n_best=20, max_answer=30)` returns a list of (score, start, end)."""
    check = Check("best_spans", see='Chapter 11, "Decoding: a search over an upper triangle"')
    # By hand. Sums: (0,0) 3, (0,1) 7, (0,2) 3, (1,1) 6.9, (1,2) 2.9, (2,2) 0. With spans of one piece, (1,1) is best.
    start, end, every = np.array([3.0, 2.9, 0.0]), np.array([0.0, 4.0, 0.0]), np.ones(3, bool)
    cases = [
        ((start, end, every, 2, 3), [(7.0, 0, 1), (6.9, 1, 1)], "the two best spans of a case worked by hand"),
        ((start, end, every, 6, 1), [(6.9, 1, 1), (3.0, 0, 0), (0.0, 2, 2)], "the spans of one piece, by hand"),
        ((np.zeros(3), np.zeros(3), every, 4, 3), [(0.0, 0, 0), (0.0, 1, 1), (0.0, 2, 2), (0.0, 0, 1)],
         "the order of equal scores: the shorter first, then the earlier"),
        ((np.array([0.0, 4.0, 0.0]), np.array([5.0, 0.0, 1.0]), every, 1, 3), [(5.0, 0, 0)],
         "the best span where the best end stands before the best start"),
        ((start, end, np.array([True, False, True]), 5, 3), [(3.0, 0, 0), (3.0, 0, 2), (0.0, 2, 2)],
         "the spans when the piece in the middle can be no end of an answer"),
    ]  # fmt: skip
    rng = np.random.default_rng(3)
    for size, n, limit in ((12, 5, 4), (12, 200, 30), (7, 3, 1), (25, 20, 6)):
        allowed = rng.random(size) < 0.8
        allowed[size // 2] = True
        given = rng.normal(size=size), rng.normal(size=size), allowed, n, limit
        cases.append((given, spans_by_triangle(*given), f"the {n} best of {size} pieces, at most {limit} long,"))
    can_start, can_end = rng.random(12) < 0.5, rng.random(12) < 0.7
    given = rng.normal(size=12), rng.normal(size=12), (can_start, can_end), 6, 5
    cases.append((given, spans_by_triangle(*given), "the result where starts and ends are allowed at other places"))
    for given, want, what in cases:
        before = [np.copy(x) for x in given[:2]]
        got = check.run(answer, *given, mistakes={
            ValueError: lambda said: "`argpartition` is asked for more places than there are: take the smaller of n_best and the number of spans."
            if "kth" in said else None,
        })  # fmt: skip
        check.true(all(np.array_equal(x, y) for x, y in zip(before, given[:2])), "the scores that were given are changed in place.")
        check.true(isinstance(got, list) and all(isinstance(span, (tuple, list)) for span in got), "a list of spans is asked for.",
                   expected="[(score, start, end), …]", got=got)  # fmt: skip
        known = {text: (lambda kind=kind, given=given: spans_with(kind, *given)) for kind, text in SPAN_FAULTS.items()}
        check.equal([tuple(span) for span in got], want, what, known)
    check.passed("Equal to trying every span.")


SPAN_FAULTS = {
    "any order": "Spans that end before they start are among them: only the upper triangle is allowed.",
    "no limit": "`max_answer` is not used: spans of any length are among them.",
    "limit + 1": "The limit is one too long: a span of `max_answer` pieces ends at start + max_answer − 1.",
    "limit - 1": "The limit is one too short: a span of `max_answer` pieces ends at start + max_answer − 1.",
    "start < end": "A span of one piece is missing: start and end may be the same piece.",
    "ends anywhere": "The ends are not kept to the allowed pieces: an answer could run into [SEP].",
    "starts anywhere": "The starts are not kept to the allowed pieces: an answer could begin in the question.",
    "anywhere": "`allowed` is not used: the question itself could be the answer.",
    "greedy": "The best start is chosen first, and then its ends. A good pair may have a start that is only second best.",
    "one end each": "Only the best end of each start is kept. The second best span may have the same start.",
    "worst first": "The list begins with the lowest scores. The best comes first.",
    "unsorted": "The right spans, not sorted by their scores: `argpartition` finds the best n, and leaves them in any order.",
    "earlier first": "Of equal scores, the earlier stands first. The shorter is asked for, and then the earlier.",
    "longer first": "Of equal scores, the longer stands first. The shorter is asked for.",
    "product": "The scores are multiplied. They are logarithms of probabilities, up to a constant: their sum counts.",
}  # fmt: skip


def spans_by_triangle(start, end, allowed, n, limit):
    """The right answer by PyTorch: triu and tril of the whole matrix, then a stable sort."""
    can_start, can_end = allowed if isinstance(allowed, tuple) else (allowed, allowed)
    total = torch.tensor(start)[:, None] + torch.tensor(end)[None, :]  # (T, T)
    inside = torch.ones_like(total).triu().tril(limit - 1).bool() & torch.tensor(can_start)[:, None] & torch.tensor(can_end)[None, :]
    places = sorted(inside.nonzero().tolist(), key=lambda place: (place[1] - place[0], place[0]))  # shorter, then earlier
    scores = torch.tensor([total[i, j] for i, j in places])
    order = scores.argsort(descending=True, stable=True)[:n].tolist()
    return [(float(scores[k]), *places[k]) for k in order]


def spans_with(fault, start, end, allowed, n, limit):
    """The spans that a faulty search would give."""
    can_start, can_end = allowed if isinstance(allowed, tuple) else (allowed, allowed)
    size = len(start)
    can_start = np.ones(size, bool) if fault in ("starts anywhere", "anywhere") else can_start
    can_end = np.ones(size, bool) if fault in ("ends anywhere", "anywhere") else can_end
    low = {"any order": -size, "start < end": 1}.get(fault, 0)
    high = {"no limit": size, "limit + 1": limit + 1, "limit - 1": limit - 1}.get(fault, limit)
    found = [(float(start[i] * end[j] if fault == "product" else start[i] + end[j]), i, j) for i in range(size) for j in range(size)
             if low <= j - i < high and can_start[i] and can_end[j]]  # fmt: skip
    if fault == "greedy":
        best = int(np.argmax(np.where(can_start, start, -np.inf)))
        found = [span for span in found if span[1] == best]
    if fault == "one end each":
        found = [max((span for span in found if span[1] == i), key=lambda span: (span[0], -span[2]))
                 for i in sorted({span[1] for span in found})]  # fmt: skip
    if fault == "earlier first":
        return sorted(found, key=lambda span: (-span[0], span[1], span[2]))[:n]
    if fault == "longer first":
        return sorted(found, key=lambda span: (-span[0], span[1] - span[2], span[1]))[:n]
    if fault == "worst first":
        return sorted(found, key=lambda span: (span[0], span[2] - span[1], span[1]))[:n]
    found = sorted(found, key=lambda span: (-span[0], span[2] - span[1], span[1]))[:n]
    return sorted(found, key=lambda span: (span[1], span[2])) if fault == "unsorted" else found


# -- 11.3 f1_score --------------------------------------------------------------------------------------------------

# By hand: what is said, the gold answer, F1.
TEXTS = [
    ("the old mill", "The Mill", Fraction(2, 3)),  # 1 word of 2, and 1 of 1
    ("in the spring of 1803", "1803", Fraction(2, 5)),  # 1 of 4 (the article goes), 1 of 1
    ("two brothers", "two brothers, Émile and Ott", Fraction(4, 7)),  # 2 of 2, 2 of 5
    ("rye, rye and rye", "rye bread and rye", Fraction(3, 4)),  # 3 in common (rye twice, and), of 4 and of 4
    ("mill", "wheat", Fraction(0)),
    ("", "", Fraction(1)),
    ("", "mill", Fraction(0)),
    ("mill", "", Fraction(0)),
    ("The!", "", Fraction(1)),  # nothing is left of it
    ("eleven", "eleven", Fraction(1)),
]


def f1_score(answer):
    """Exercise: `answer(said, gold)` returns F1, a number from 0 to 1."""
    check = Check("f1_score", see='Chapter 11, "Exact match and F1 by hand"')
    got = []
    for said, gold, _ in TEXTS:
        value = check.run(answer, said, gold, mistakes={
            ZeroDivisionError: lambda known, empty=not said.strip("The!") or not gold: "There is no word on one side, so that precision or recall is 0/0. Answer this case first."
            if empty else "There is no word in common, so that precision and recall are both 0. Answer this case before the harmonic mean.",
        })  # fmt: skip
        check.true(isinstance(value, (int, float)), "a number is asked for.", expected="a number", got=type(value).__name__)
        got.append(float(value))
    known = {text: (lambda kind=kind: [f1_with(kind, said, gold) for said, gold, _ in TEXTS]) for kind, text in F1_FAULTS.items()}
    check.equal(got, [float(value) for _, _, value in TEXTS],
                "F1 of " + "; ".join(f"{said!r} against {gold!r}" for said, gold, _ in TEXTS[:4]) + "; …", known)
    check.passed("Ten cases, equal to fractions worked by hand.")


F1_FAULTS = {
    "sets": "A word that occurs twice counts once: sets are used. Count with `collections.Counter`.",
    "common set": "The common words are counted as a set, the texts' words are not: a word that both have twice counts once. "
                  "The common part of two bags is asked for: `collections.Counter(said) & collections.Counter(gold)`.",
    "not normalised": "The texts are not normalised: capitals, punctuation and articles make a difference.",
    "only lower case": "Punctuation and articles still count. `normalise_answer` takes all of it away.",
    "both empty 0": "Two empty answers get 0. They agree: the right answer to a question without one is \"\", and scores 1.",
    "one empty 1": "An empty answer against a full one gets 1. They disagree, in either direction.",
    "letters": "Letters are counted. Words are asked for: `.split()`.",
    "mean": "The mean of precision and recall is the arithmetic one. F1 is the harmonic mean.",
    "precision": "This is the precision. Recall is missing.",
    "recall": "This is the recall. Precision is missing.",
    "overlap": "Common words are divided by all different words: that is Jaccard's measure, not F1.",
    "per cent": "These are per cent. A number from 0 to 1 is asked for.",
    "no factor": "The factor 2 of the harmonic mean is missing.",
    "all words": "Every word of the prediction that the gold answer has is counted, however often the gold answer has it.",
}  # fmt: skip


def f1_with(fault, said, gold):
    """F1 with a fault, by sorted word lists."""
    def words(text):
        if fault in ("not normalised", "only lower case"):
            return (text.lower() if fault == "only lower case" else text).split()
        text = re.sub(r"[!-/:-@\[-`{-~]", "", text.lower())
        text = " ".join(word for word in text.split() if word not in ("a", "an", "the"))
        return list(text) if fault == "letters" else text.split()

    said, gold = words(said), words(gold)
    if fault == "sets":
        said, gold = sorted(set(said)), sorted(set(gold))
    if not said or not gold:
        score = float(said == gold)
        if fault == "both empty 0":
            score = 0.0
        if fault == "one empty 1":
            score = 1.0
        return 100 * score if fault == "per cent" else score
    common = sum(min(said.count(word), gold.count(word)) for word in set(said))
    if fault == "all words":
        common = sum(word in gold for word in said)
    if fault == "common set":
        common = len(set(said) & set(gold))
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(gold)
    harmonic = 2 * precision * recall / (precision + recall)
    return {"mean": (precision + recall) / 2, "precision": precision, "recall": recall,
            "overlap": len(set(said) & set(gold)) / len(set(said) | set(gold)), "per cent": 100 * harmonic,
            "no factor": harmonic / 2}.get(fault, harmonic)  # fmt: skip


# -- 11.4 joint_span_loss -------------------------------------------------------------------------------------------


def joint_span_loss(answer):
    """Exercise: `answer(start, end, can, first, last, limit=30)` returns a loss."""
    check = Check("joint_span_loss", see='Chapter 11, "Two scores a token"')
    # By hand: 4 places, [CLS] and three pieces of which the last is [SEP]; all scores 0 but the start of piece 1, log 2.
    # Allowed: none (0, 0) 1, (1, 1) 2, (1, 2) 2, (2, 2) 1: the sum is 6.
    start, end = torch.tensor([0.0, np.log(2), 0, 0]).double(), torch.zeros(4).double()
    can = torch.tensor([False, True, True, False])
    cases = [
        ((start, end, can, 1, 2, 5), np.log(6) - np.log(2), "the loss of a case worked by hand"),
        ((start, end, can, 0, 0, 5), np.log(6), "the loss of a case worked by hand, with no answer"),
    ]  # fmt: skip
    for seed, (first, last), limit in ((0, (4, 6), 3), (1, (0, 0), 3), (2, (5, 5), 2), (3, (4, 6), 30)):
        places = torch.arange(9)
        given = random(9, seed=seed), random(9, seed=seed + 10), (places >= 3) & (places < 8), first, last, limit
        cases.append((given, joint_with(None, *given), f"the loss for the span {first} to {last}, at most {limit} pieces long,"))
    for given, want, what in cases:
        got = check.run(answer, *given)
        check.tensor(got, "the loss", (), torch.float64, {
            (9, 9): "A loss for each pair is returned. One number is asked for.",
            (4, 4): "A loss for each pair is returned. One number is asked for.",
            (1,): "The loss has an axis left. One number is asked for.",
        })  # fmt: skip
        known = {text: (lambda kind=kind, given=given: joint_with(kind, *given)) for kind, text in JOINT_FAULTS.items()}
        check.equal(got, want, what, known)
    far = torch.tensor([0.0, 900.0, 0.0, 0.0]).double()
    got = check.run(answer, far, torch.zeros(4).double(), can, 2, 2, 5)
    check.true(bool(torch.isfinite(got)), "for scores far apart, the loss is not finite.",
               "The exponentials overflow: e^900 is no number of any type. Take `logsumexp` of the scores.")
    check.equal(got, 900 + np.log(2), "the loss for scores far apart")
    # Gradients: by the scores, the probability of each place as a start, minus 1 for the right one.
    start, end, places = random(9, seed=7).requires_grad_(), random(9, seed=8).requires_grad_(), torch.arange(9)
    can = (places >= 3) & (places < 8)
    loss = check.run(answer, start, end, can, 4, 5, 3)
    check.true(loss.requires_grad, "no gradient flows through the loss.", "It is computed from `.item()`, `.detach()` or numpy.")
    loss.backward()
    for row, name in ((start, "start"), (end, "end")):
        check.true(row.grad is not None, f"no gradient flows back to the {name} scores.", "One of the two is detached: only the other would learn.")
        slopes = []
        for place in range(9):  # by small steps to both sides
            step = torch.zeros(9, dtype=row.dtype)
            step[place] = 1e-5
            up, down = ((start + way * step, end) if row is start else (start, end + way * step) for way in (1, -1))
            slopes.append((joint_with(None, *up, can, 4, 5, 3) - joint_with(None, *down, can, 4, 5, 3)) / 2e-5)
        check.equal(row.grad, torch.tensor(slopes, dtype=row.dtype), f"the gradient by the {name} scores", tolerance=1e-6)
    check.passed("Equal to the sum over every span, one by one.")


JOINT_FAULTS = {
    "apart": "This is the sum of two cross-entropies over all places: start and end are still chosen apart.",
    "apart, mean": "This is `span_loss`: the mean of two cross-entropies. One softmax over spans is asked for.",
    "any order": "Spans that end before they start take part. They should have no probability.",
    "no limit": "`limit` is not used: longer spans take part.",
    "limit + 1": "The limit is one too long: a span of `limit` pieces ends at first + limit − 1.",
    "start < end": "Spans of one piece do not take part. Start and end may be the same piece.",
    "anywhere": "`can` is not used: spans in the question and over [SEP] take part.",
    "ends anywhere": "Only the starts are kept to the passage. The ends are to be kept there too.",
    "starts anywhere": "Only the ends are kept to the passage. The starts are to be kept there too.",
    "no null": "\"No answer\", the place (0, 0), does not take part. It competes with the spans.",
    "sign": "The sign is turned round: a loss falls as the right span's score rises.",
    "probability": "This is the probability. The loss is minus its logarithm.",
    "mean": "The spans' exponentials are averaged. Softmax divides by their sum.",
    "only normaliser": "The score of the right span is missing: this is the log-sum-exp alone.",
}  # fmt: skip


def joint_with(fault, start, end, can, first, last, limit):
    """The loss by a loop over all pairs, in numpy; with a fault."""
    start, end = start.detach().double().numpy(), end.detach().double().numpy()
    size = len(start)
    if fault in ("apart", "apart, mean"):
        total = np.logaddexp.reduce(start) - start[first] + np.logaddexp.reduce(end) - end[last]
        return total / 2 if fault == "apart, mean" else total
    sums = [] if fault == "no null" else [start[0] + end[0]]
    for i in range(size):
        for j in range(size):
            inside = (can[i] or fault in ("anywhere", "starts anywhere")) and (can[j] or fault in ("anywhere", "ends anywhere"))
            low = {"any order": -limit + 1, "start < end": 1}.get(fault, 0)
            high = {"no limit": size, "limit + 1": limit + 1}.get(fault, limit)
            if (i, j) != (0, 0) and inside and low <= j - i < high:
                sums.append(start[i] + end[j])
    whole = np.logaddexp.reduce(sums)
    right = start[first] + end[last]
    return {"sign": right - whole, "probability": np.exp(right - whole), "mean": whole - np.log(len(sums)) - right,
            "only normaliser": whole}.get(fault, whole - right)  # fmt: skip


# -- 11.5 final_answer ----------------------------------------------------------------------------------------------

# (windows: null score, best span's score, its text), τ
MERGED = [
    ([(2.0, 5.0, "rye")], 0.0),
    ([(5.0, 2.0, "rye")], 0.0),
    ([(3.0, 3.0, "rye")], 0.0),  # equal: not above
    ([(9.0, 1.0, "wheat"), (2.0, 6.0, "rye")], 0.0),  # the first window says "not here", the second has it
    ([(2.0, 6.0, "rye"), (9.0, 1.0, "wheat")], 0.0),
    ([(3.0, 4.0, "wheat"), (8.0, 5.0, "rye")], 0.0),  # the best span stands where "not here" is high
    ([(6.0, 2.0, "wheat"), (7.0, 5.0, "rye")], 0.0),
    ([(4.0, 3.0, "wheat"), (6.0, 3.5, "rye"), (9.0, 1.0, "oats")], 0.0),
    ([(3.0, 5.0, "rye"), (3.0, 1.0, "wheat")], 0.0),
    ([(4.0, 3.0, "rye")], 2.0),
    ([(3.0, 4.0, "rye")], 2.0),
    ([(4.0, 3.0, "rye")], 1.0),
    ([(3.0, 4.0, "rye")], -2.0),
    ([(3.0, 4.0, "rye")], -1.0),
    ([(1.0, 4.0, "rye"), (4.0, 3.0, "wheat")], -2.0),
]  # fmt: skip


def final_answer(answer):
    """Exercise: `answer(windows, tau=0.0)` returns a text."""
    check = Check("final_answer", see='Chapter 11, "The null answer and its threshold"')
    got = [check.run(answer, [tuple(w) for w in windows], tau) for windows, tau in MERGED]
    for value in got:
        check.true(isinstance(value, str), "a text is asked for.", "The score is returned beside the text, or instead of it." if value else None,
                   "a text", type(value).__name__)
    known = {text: (lambda kind=kind: [merged_with(kind, *case) for case in MERGED]) for kind, text in MERGE_FAULTS.items()}
    want = [said_by_all(*case) for case in MERGED]
    place = next((k for k, (a, b) in enumerate(zip(got, want)) if a != b), 0)
    check.equal(got, want, f"what is answered to the windows {MERGED[place][0]} with τ = {MERGED[place][1]:g}", known)
    check.equal(check.run(answer, MERGED[0][0]), "rye", "the answer without the second argument")
    check.passed("Every case as by hand.")


MERGE_FAULTS = {
    "max": "The null score is the largest over the windows. A single window that says \"not here\" then silences all the others; it must be the smallest.",
    "mean": "The null score is the mean over the windows. Most windows of a long passage rightly say \"not here\": it must be the smallest.",
    "first": "The null score is that of the first window. It is the smallest over the windows.",
    "last": "The null score is that of the last window. It is the smallest over the windows.",
    "own": "The null score is that of the window with the best span. It is the smallest over all windows.",
    "sum": "The null scores are added up. The smallest counts.",
    "tau's sign": "τ has the wrong sign: the answer is \"\" if null − best is *above* τ.",
    "no tau": "τ is not used.",
    "at least": "At null − best = τ the answer is given: \"\" only if it is *above* τ.",
    "turned round": "The comparison is turned round: \"\" is said where the span is better.",
    "worst text": "The text is that of the lowest score.",
    "first text": "The text is that of the first window, not of the one with the best span.",
    "any window": "Each window decides for itself, with its own null score, before the spans are compared.",
    "never": "There is always an answer, never \"\".",
}  # fmt: skip


def said_by_all(windows, tau):
    """In other words: "" if the null score of every window is more than τ above the best span."""
    ranked = sorted(windows, key=lambda w: w[1])
    return "" if all(null > tau + ranked[-1][1] for null, _, _ in windows) else ranked[-1][2]


def merged_with(fault, windows, tau):
    nulls = [w[0] for w in windows]
    _, best, text = max(windows, key=lambda w: w[1])
    null = {"max": max(nulls), "mean": sum(nulls) / len(nulls), "first": nulls[0], "last": nulls[-1], "sum": sum(nulls),
            "own": max(windows, key=lambda w: w[1])[0]}.get(fault, min(nulls))  # fmt: skip
    if fault == "any window":
        left = [w for w in windows if not w[0] - w[1] > tau]
        return max(left, key=lambda w: w[1])[2] if left else ""
    if fault == "worst text":
        text = min(windows, key=lambda w: w[1])[2]
    if fault == "first text":
        text = windows[0][2]
    odds, tau = null - best, {"tau's sign": -tau, "no tau": 0.0}.get(fault, tau)
    none = {"at least": odds >= tau, "turned round": odds < tau, "never": False}.get(fault, odds > tau)
    return "" if none else text


# -- 11.6 length_limit ----------------------------------------------------------------------------------------------

BEST_OF_THREE = 0.958  # F1 of the best spans of at most 3 pieces, over the dev questions that have an answer
NOT_THE_BEST = [  # (what comes, margin, why), each from a run of that mistake
    (0.888, 0.005, "These are spans of at most 2 pieces. The end of a range is not in it: j goes from i to i + 2."),
    (0.984, 0.005, "These are spans of at most 4 pieces: j goes from i to i + 2."),
    (0.729, 0.005, "These are spans of a single piece."),
    (1.0, 0.003, "There is no limit on the length, or one that is too long to matter."),
    (0.972, 0.003, "The questions without an answer are counted too. \"\" has an F1 of 1 there."),
    (0.639, 0.005, "The sum is divided by the number of all questions. Divide by that of the questions with an answer."),
    (0.907, 0.005, "Only the first gold answer of each question is used. The best over all of them counts."),
    (0.870, 0.005, "These are the train questions. The dev questions are asked for."),
    (0.8, 0.005, "This is the share of exact matches. F1 is asked for."),
    (95.8, 1.0, "These are per cent. A number from 0 to 1 is asked for."),
]


def length_limit(answer):
    """Exercise: `answer` is a number from 0 to 1."""
    check = Check("length_limit", see='Chapter 11, "Decoding: a search over an upper triangle"')
    if answer is None:
        raise CheckFailed(not_answered("length_limit"))
    check.number(answer, 0.0, np.inf, "The mean F1")  # a number at all?
    value = float(answer)
    likely = next((text for known, margin, text in NOT_THE_BEST if abs(value - known) <= margin), None)
    check.true(abs(value - BEST_OF_THREE) <= 0.01, "The mean F1 is not right (to 0.01).", likely,
               "the best F1 of any span of 1 to 3 pieces, and its mean over the questions with an answer", answer)  # fmt: skip
    check.passed(f"The best is {BEST_OF_THREE:.2f}.")
