"""Questions with their answer in a text, or with none: SQuAD 2.0 (chapter 11).

    question + passage → windows → two scores a token → the best span, or "no answer" → its characters → EM and F1

Sources: Rajpurkar et al. 2018, "Know What You Don't Know" (task, scores); Devlin et al. 2019, section 4.2 (start and end
vectors, the loss) and 4.3 (the null score, its threshold); the released code of BERT (windows, max-context). Scores follow
the rules of the official evaluation script.
"""

import bisect
import collections
import collections.abc
import re
import string
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from minbert.classify import TaskModel

# ---- features: from characters to windows of word pieces ---------------------------------------------------------


@dataclass
class Question:
    """A question on a passage. Without answers it can't be answered from the passage."""

    id: str
    question: str
    context: str
    answers: tuple = ()  # (text, first character) pairs; any of them is right


@dataclass
class Window:
    """A part of a passage behind its question: [CLS] question [SEP] part [SEP]."""

    question: int  # which question: its place in the list
    ids: list
    first: int  # the place of the part's first piece in `ids`; before it stand [CLS], the question and [SEP]
    offsets: np.ndarray  # (pieces of the part, 2): first character of each piece in the passage, and one past its last
    best: np.ndarray  # (pieces of the part,) bool: this window shows the piece with the most context
    start: int = 0  # place of the answer's first and last piece in `ids`; (0, 0), which is [CLS], for none
    end: int = 0

    @property
    def types(self):
        """Token types: 0 up to the first [SEP], 1 after it."""
        return [0] * self.first + [1] * (len(self.ids) - self.first)


def featurise(tokenizer, questions, max_length=384, max_question=64, step=128, progress=None):
    """Cut questions and passages into windows.

    Args:
        tokenizer: from `minbert.tokens`.
        questions: a list of `Question`.
        max_length: pieces of a window, [CLS] and both [SEP] included.
        max_question: pieces of a question; the rest of a longer one is cut.
        step: by how many pieces of the passage one window follows another (Google's `doc_stride`; Hugging Face's `stride`
            is the overlap instead).
        progress: called with the number of questions done, now and then.

    Yields:
        the windows, question by question, each passage from its beginning to its end. At no time are more than those of
        one chunk of questions in memory.

    Raises:
        ValueError: lengths that leave no room, or a step longer than a window's part (pieces would be left out).
    """
    if step < 1 or max_question < 1:
        raise ValueError(f"step and max_question must be at least 1, not {step} and {max_question}")
    room = max_length - max_question - 3
    if room < 1:
        raise ValueError(f"max_length {max_length} leaves no room for a passage behind a question of {max_question} pieces")
    if step > room:
        raise ValueError(f"step {step} is longer than the {room} pieces of a passage in a window: some would never be seen; "
                         f"give a step of {room} or less")
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    chunk = 512
    passage, encoded, bounds = None, None, None
    for begin in range(0, len(questions), chunk):
        part = questions[begin : begin + chunk]
        asked = tokenizer.encode_batch([q.question for q in part], add_special_tokens=False)
        for number, (q, ask) in enumerate(zip(part, asked), start=begin):
            if q.context is not passage and q.context != passage:  # questions on one passage follow each other
                passage = q.context
                encoded = tokenizer.encode(passage, add_special_tokens=False)
                bounds = np.array(encoded.offsets, dtype=np.int32).reshape(-1, 2)  # (pieces, 2)
            yield from _windows(number, q, ask.ids[:max_question], encoded.ids, bounds, max_length, step, cls, sep)
        if progress:
            progress(len(part))


def _windows(number, question, ask, ids, bounds, max_length, step, cls, sep):
    """The windows of one question, whose pieces are `ask`, on a passage of pieces `ids` with `bounds` (pieces, 2)."""
    size = max_length - len(ask) - 3
    begins = [0]
    while begins[-1] + size < len(ids):  # the last window reaches the end
        begins.append(begins[-1] + step)
    lengths = [min(size, len(ids) - begin) for begin in begins]
    span = _pieces_of(question, bounds)
    best = _best_windows(begins, lengths, len(ids))
    for w, (begin, length) in enumerate(zip(begins, lengths)):
        first = len(ask) + 2
        start = end = 0
        if span and begin <= span[0] and span[1] < begin + length:
            start, end = (first + piece - begin for piece in span)
        yield Window(
            number, [cls, *ask, sep, *ids[begin : begin + length], sep], first, bounds[begin : begin + length],
            best[begin : begin + length] == w, start, end,
        )  # fmt: skip


def _pieces_of(question, bounds):
    """The first and last piece of the first answer, or None for none. A piece that the answer only touches belongs to it.

    Raises:
        ValueError: the answer is not at its place in the passage, or holds no piece.
    """
    if not question.answers:
        return None
    text, begin = question.answers[0]
    end = begin + len(text)
    if question.context[begin:end] != text or not text:
        found = question.context[begin:end]
        raise ValueError(f"question {question.id}: its answer {text!r} is not at character {begin} of the passage, "
                         f"where {found!r} stands")
    first = int(np.searchsorted(bounds[:, 1], begin, side="right"))  # the first piece that ends after the beginning
    last = int(np.searchsorted(bounds[:, 0], end, side="left")) - 1  # the last one that begins before the end
    if last < first:
        raise ValueError(f"question {question.id}: its answer {text!r} holds no word piece")
    return first, last


def _best_windows(begins, lengths, pieces):
    """(pieces,): for each piece, the window that shows it with the most context: the largest
    min(left, right) + .01 · length (released code of BERT)."""
    best, score = np.zeros(pieces, dtype=np.int64), np.full(pieces, -np.inf)
    if len(begins) == 1:  # nothing to compare: most passages fit in one window
        return best
    for w, (begin, length) in enumerate(zip(begins, lengths)):
        left = np.arange(length)
        here = np.minimum(left, length - 1 - left) + 0.01 * length
        part = slice(begin, begin + length)
        better = here > score[part]  # of two equals the first stays
        best[part] = np.where(better, w, best[part])
        score[part] = np.where(better, here, score[part])
    return best


# ---- head and loss -----------------------------------------------------------------------------------------------


class SpanExtractor(TaskModel):
    """Two scores a token: is it the answer's first one, is it its last one?

    Args:
        encoder: as in `minbert.classify`.
    """

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.hidden_size, 2)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, input_ids, attention_mask, token_type_ids):
        """(B, T) each to start and end scores, (B, T) each. Padding has the lowest number there is, so that it takes no
        part in the softmax."""
        hidden, _ = self.encoder(input_ids, attention_mask, token_type_ids)  # (B, T, D)
        scores = self.head(hidden)  # (B, T, 2)
        scores = scores.masked_fill(attention_mask.unsqueeze(-1) == 0, torch.finfo(scores.dtype).min)
        return scores[..., 0], scores[..., 1]


def span_loss(start_scores, end_scores, starts, ends):
    """The mean of the two cross-entropies: scores (B, T) each, the right places (B,) each; (0, 0) for no answer.

    Source: Devlin et al. 2019, section 4.2; the place (0, 0) is from section 4.3.
    """
    cross_entropy = nn.functional.cross_entropy
    if start_scores.dtype in (torch.float16, torch.bfloat16):  # a softmax over 384 places in 16 bits loses digits
        start_scores, end_scores = start_scores.float(), end_scores.float()
    return (cross_entropy(start_scores, starts) + cross_entropy(end_scores, ends)) / 2


# ---- decoding: a search over an upper triangle -------------------------------------------------------------------


@dataclass
class Answer:
    """What the model says to one question."""

    text: str  # characters of the passage
    begin: int  # the first of them
    score: float  # start score + end score
    null: float  # the score of "no answer": the smallest over the windows
    others: collections.abc.Sequence  # the next best: (text, begin, score) each

    @property
    def odds(self):
        """null − score: above a threshold τ, the question counts as unanswerable."""
        return self.null - self.score

    @property
    def none_probability(self):
        """The softmax over the null score and the scores of the best spans, for null: from 0 to 1."""
        scores = np.array([self.null, self.score, *(score for _, _, score in self.others)])
        return float(np.exp(scores[0] - scores.max()) / np.exp(scores - scores.max()).sum())


def best_spans(start, end, allowed, n_best=20, max_answer=30):
    """The best spans of a window, over all of them.

    All pairs with start ≤ end < start + max_answer lie on a band of the upper triangle of the matrix start_i + end_j.
    Row l of `total` below holds the spans of length l + 1, so the band is searched as a whole.

    Args:
        start, end: (T,) scores, numpy.
        allowed: (T,) bool, or two of them (for the start, for the end): the pieces of the passage.
        n_best: how many.
        max_answer: the longest span, in pieces.

    Returns:
        at most n_best (score, start, end), the best first; of equals, the shorter and then the earlier.
    """
    can_start, can_end = allowed if isinstance(allowed, tuple) else (allowed, allowed)
    size = len(start)
    # BEGIN best_spans
    first = np.where(can_start, start, -np.inf)
    last = np.full(size + max_answer - 1, -np.inf)
    last[:size] = np.where(can_end, end, -np.inf)
    total = first + np.lib.stride_tricks.sliding_window_view(last, size)  # (max_answer, T): length - 1, start
    flat = total.ravel()
    n = min(n_best, flat.size)
    order = np.argpartition(-flat, n - 1)[:n]
    order = order[np.lexsort((order, -flat[order]))]
    # END best_spans
    return [(float(flat[i]), int(i % size), int(i % size + i // size)) for i in order if flat[i] > -np.inf]


def best_spans_of_many(start, end, n_best=20, max_answer=30):
    """`best_spans` for W windows at once, without looking at every span.

    The best spans begin at the starts whose best span is best. So the best end of every start is found first (a maximum
    over a sliding window, by doubling its width), and only the n_best best starts are tried with all their ends.

    Args:
        start, end: (W, T) scores, -inf where no span can begin or end, and for padding.
        n_best, max_answer: as there.

    Returns:
        scores, starts and ends, (W, n) each with n ≤ n_best, the best first, in the order of `best_spans`. Where there are
        fewer spans than n the score is -inf.
    """
    windows, size = start.shape
    last = np.full((windows, size + max_answer - 1), -np.inf, dtype=end.dtype)
    last[:, :size] = end
    best_end, width = last, 1  # best_end[:, i]: the maximum of `width` ends from i on
    while width < max_answer:
        step = min(width, max_answer - width)
        best_end = np.maximum(best_end[:, : best_end.shape[1] - step], best_end[:, step:])
        width += step
    tried = min(n_best, size)
    starts = np.argpartition(-(start + best_end), tried - 1, axis=1)[:, :tried]  # (W, tried)
    row = np.arange(windows)[:, None]
    ends = np.lib.stride_tricks.sliding_window_view(last, max_answer, axis=1)[row, starts]  # (W, tried, max_answer)
    total = (start[row, starts][:, :, None] + ends).reshape(windows, -1)
    n = min(n_best, total.shape[1])
    order = np.argpartition(-total, n - 1, axis=1)[:, :n]  # (W, n)
    score, begin, length = total[row, order], starts[row, order // max_answer], order % max_answer
    order = np.lexsort((begin, length, -score), axis=1)  # of equals the shorter, then the earlier
    begin = begin[row, order]
    return score[row, order], begin, begin + length[row, order]


class NextBest(collections.abc.Sequence):
    """Spans as (text, first character, score), the best first. Each text is cut out of the passage when it is asked for."""

    def __init__(self, context, scores, begins, ends):
        self.context, self.scores, self.begins, self.ends = context, scores, begins, ends

    def __len__(self):
        return len(self.scores)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        return self.context[self.begins[i] : self.ends[i]], int(self.begins[i]), float(self.scores[i])


def decode(questions, windows, start_scores, end_scores, n_best=20, max_answer=30, max_context=True):
    """The answer to every question, from the scores of its windows.

    Args:
        questions: as given to `featurise`.
        windows: what it gave.
        start_scores, end_scores: a list of (T,) numpy arrays each, one a window; T may be longer than the window.
        n_best, max_answer: see `best_spans`.
        max_context: an answer may begin at a piece only in the window that shows it with the most context.

    Returns:
        a list of `Answer`, one a question. Where nothing can be said, the text is empty and the score -inf.

    Raises:
        ValueError: there are not as many scores as windows.
    """
    if not len(windows) == len(start_scores) == len(end_scores):
        raise ValueError(f"{len(start_scores)} start and {len(end_scores)} end scores for {len(windows)} windows")
    null = [float("inf")] * len(questions)
    found = [[] for _ in questions]  # for each window: scores, first characters, ends
    for begin in range(0, len(windows), 64):  # 64 windows at once: their numbers stay in the processor's cache
        some = range(begin, min(begin + 64, len(windows)))
        _spans_of_some(
            [windows[w] for w in some], [start_scores[w] for w in some], [end_scores[w] for w in some],
            found, null, n_best, max_answer, max_context,
        )  # fmt: skip
    answers = []
    for question, spans, nothing in zip(questions, found, null):
        if not spans:
            answers.append(Answer("", 0, float("-inf"), nothing, []))
            continue
        scores, begins, ends = spans[0] if len(spans) == 1 else _merged(spans, n_best)
        begin = int(begins[0])
        others = NextBest(question.context, scores[1:], begins[1:], ends[1:])
        answers.append(Answer(question.context[begin : ends[0]], begin, float(scores[0]), nothing, others))
    return answers


def _spans_of_some(windows, start_scores, end_scores, found, null, n_best, max_answer, max_context):
    """Put the best spans of each window into `found` at its question, and the smallest null score into `null`."""
    pieces = [len(window.offsets) for window in windows]
    size = max(pieces)
    parts = [slice(window.first, window.first + count) for window, count in zip(windows, pieces)]
    for window, s, e in zip(windows, start_scores, end_scores):
        nothing = float(s[0] + e[0])
        if nothing < null[window.question]:
            null[window.question] = nothing
    if not size:
        return
    there = np.arange(size) < np.array(pieces)[:, None]  # (W, size): no padding
    start, end = np.full((2, *there.shape), -np.inf, dtype=np.result_type(start_scores[0], end_scores[0]))
    first = np.concatenate([s[part] for s, part in zip(start_scores, parts)])  # (pieces of all windows,)
    if max_context:
        first = np.where(np.concatenate([window.best for window in windows]), first, -np.inf)
    start[there] = first
    end[there] = np.concatenate([e[part] for e, part in zip(end_scores, parts)])
    bounds = np.concatenate([window.offsets for window in windows])
    scores, starts, ends = best_spans_of_many(start, end, n_best, max_answer)  # (W, n) each
    counts = (scores > -np.inf).sum(axis=1).tolist()
    base = np.cumsum([0, *pieces[:-1]])[:, None]  # where the offsets of each window begin among those of all
    begins = bounds[np.minimum(starts + base, len(bounds) - 1), 0]  # (W, n): characters; past the count they mean nothing
    lasts = bounds[np.minimum(ends + base, len(bounds) - 1), 1]
    for w, (window, count) in enumerate(zip(windows, counts)):
        if count:
            found[window.question].append((scores[w, :count], begins[w, :count], lasts[w, :count]))


def _merged(spans, n_best):
    """The n_best best of several windows' spans. One that two windows show counts once, with its better score."""
    scores, begins, ends = (np.concatenate(parts) for parts in zip(*spans))
    order = np.lexsort((ends, begins, -scores))
    _, first = np.unique(np.stack([begins, ends])[:, order], axis=1, return_index=True)
    order = order[np.sort(first)[:n_best]]
    return scores[order], begins[order], ends[order]


def predictions(questions, answers, threshold=0.0):
    """{question id: text} in the official form: "" where null − score is above the threshold.

    Report S0 prints τ with the other sign: its τ is minus this threshold.
    """
    return {q.id: "" if a.odds > threshold else a.text for q, a in zip(questions, answers, strict=True)}


def null_odds(questions, answers):
    """{question id: null − score}, the official script's "na-prob" file."""
    return {q.id: a.odds for q, a in zip(questions, answers, strict=True)}


# ---- scores: the official rules ----------------------------------------------------------------------------------

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text):
    """Lower case, no ASCII punctuation, no a/an/the, single spaces: what two answers are compared by."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(said, gold):
    """1 if the normalised texts are equal, else 0."""
    return int(normalise_answer(said) == normalise_answer(gold))


def f1_score(said, gold):
    """The harmonic mean of precision and recall of the normalised words. If either has none: 1 if both, else 0."""
    said, gold = normalise_answer(said).split(), normalise_answer(gold).split()
    if not said or not gold:
        return float(said == gold)
    common = sum((collections.Counter(said) & collections.Counter(gold)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(said), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def gold_texts(question):
    """The answers that count: those with something left after normalisation; [""] for a question without any."""
    return [text for text, _ in question.answers if normalise_answer(text)] or [""]


def score_questions(questions, said):
    """Exact match and F1 of each question, the best over its gold answers.

    Args:
        questions: a list of `Question`.
        said: {id: text}, "" for no answer.

    Returns:
        two arrays (N,), in the order of the questions.

    Raises:
        ValueError: a prediction is missing, or is for an unknown id; the message names some.
    """
    ids = [q.id for q in questions]
    missing, unknown = [i for i in ids if i not in said], sorted(set(said) - set(ids))
    for what, names in (("no prediction for", missing), ("predictions for unknown questions:", unknown)):
        if names:
            raise ValueError(f"{what} {', '.join(map(str, names[:3]))}{', …' if len(names) > 3 else ''} "
                             f"({len(names)} of {len(ids)})")
    exact = [max(exact_match(said[q.id], gold) for gold in gold_texts(q)) for q in questions]
    f1 = [max(f1_score(said[q.id], gold) for gold in gold_texts(q)) for q in questions]
    return np.array(exact, dtype=float), np.array(f1, dtype=float)


def answerable(question):
    """Whether the question has a gold answer."""
    return bool(question.answers)


def squad_scores(questions, said):
    """Means in per cent, in the official script's names: exact, f1, total, and the same for HasAns_ and NoAns_."""
    exact, f1 = score_questions(questions, said)
    has = np.array([answerable(q) for q in questions])
    scores = {}
    for prefix, chosen in (("", np.ones_like(has)), ("HasAns_", has), ("NoAns_", ~has)):
        if chosen.any():
            scores |= {f"{prefix}exact": 100 * exact[chosen].mean(), f"{prefix}f1": 100 * f1[chosen].mean(),
                       f"{prefix}total": int(chosen.sum())}
    return {name: value if isinstance(value, int) else float(value) for name, value in scores.items()}


def threshold_curve(questions, answers, by="f1"):
    """The score for every threshold that makes a difference.

    Args:
        questions, answers: see `decode`.
        by: "f1" or "exact".

    Returns:
        thresholds, ascending, and the mean score in per cent at each: one for each different odds, and before them -inf
        (answer nothing). Predicted is "" iff odds > threshold.
    """
    odds = np.array([a.odds for a in answers])
    values = score_questions(questions, {q.id: a.text for q, a in zip(questions, answers)})[by == "f1"]
    empty = np.array([gold_texts(q) == [""] for q in questions], dtype=float)  # what saying nothing scores
    order = np.argsort(odds, kind="stable")
    gains = np.concatenate([[0.0], np.cumsum((values - empty)[order])])
    thresholds = np.concatenate([[-np.inf], odds[order]])
    last = np.append(thresholds[1:] > thresholds[:-1], True)  # of equal odds, all or none are answered
    return thresholds[last], 100 * (empty.sum() + gains[last]) / len(odds)


def best_threshold(questions, answers, by="f1"):
    """The threshold with the best mean score, and that score in per cent. Choose it on dev, never on test."""
    thresholds, scores = threshold_curve(questions, answers, by)
    best = int(np.argmax(scores))
    return float(thresholds[best]), float(scores[best])


def place_of(text, begin):
    """Line and column, from 1, of a character: where an answer stands in a file."""
    starts = [0] + [i + 1 for i, letter in enumerate(text) if letter == "\n"]
    line = bisect.bisect_right(starts, begin)
    return line, begin - starts[line - 1] + 1
