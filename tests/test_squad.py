"""SQuAD 2.0: windows with exact characters, decoding equal to trying every span, the official scores."""

import math
import random
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minbert import squad
from minbert.bert import BertConfig, BertModel
from minbert.checks.engine import randomise
from minbert.pretrained import hf_name
from minbert.run.data_pairs import load_squad
from minbert.squad import Answer, Question, featurise
from minbert.tokens import train_wordpiece

PASSAGE = "The Mill was built in 1803. It ground rye, and – later – wheat; two brothers, Émile and Ott, ran it. 🙂 In 1850 it burned."


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece([PASSAGE, "who what when where built burned the brothers"] * 3, vocab_size=150)


def asked(text="1803", question="when built", context=PASSAGE, answer=True):
    return Question("q1", question, context, ((text, context.index(text)),) if answer else ())


def text_of(window, question):
    """The characters of the window's answer."""
    first, last = window.start - window.first, window.end - window.first
    return question.context[window.offsets[first, 0]: window.offsets[last, 1]]


# ---- windows -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text", ["1803", "two brothers, Émile and Ott", "wheat", "The Mill", "1850 it burned.", "🙂", "Émile"])
def test_the_answers_pieces_are_its_characters(tokenizer, text):
    question = asked(text)
    [window] = featurise(tokenizer, [question], 384)
    assert text_of(window, question) == text


def test_a_window_by_hand(tokenizer):
    question = asked("rye", context="It ground rye.", question="what built")
    [window] = featurise(tokenizer, [question], 64, 8, 8)
    pieces = tokenizer.encode("It ground rye.", add_special_tokens=False)
    ask = tokenizer.encode("what built", add_special_tokens=False).ids
    assert window.ids == [tokenizer.token_to_id("[CLS]"), *ask, tokenizer.token_to_id("[SEP]"), *pieces.ids,
                          tokenizer.token_to_id("[SEP]")]
    assert window.first == len(ask) + 2
    assert window.types == [0] * (len(ask) + 2) + [1] * (len(pieces.ids) + 1)
    assert window.offsets.tolist() == [list(pair) for pair in pieces.offsets]


def test_windows_overlap_show_every_piece_and_one_shows_each_best(tokenizer):
    question = asked("burned")
    windows = list(featurise(tokenizer, [question], 24, 6, 5))
    assert len(windows) > 3
    size = len(windows[0].offsets)
    for before, after in zip(windows, windows[1:]):
        assert np.array_equal(before.offsets[5:], after.offsets[: size - 5]) or after is windows[-1]
    pieces = np.unique(np.concatenate([w.offsets for w in windows]), axis=0)
    whole = tokenizer.encode(PASSAGE, add_special_tokens=False).offsets
    assert sorted(map(tuple, pieces.tolist())) == sorted(set(whole))
    best = np.concatenate([w.offsets[w.best] for w in windows])
    assert sorted(map(tuple, best.tolist())) == sorted(whole)           # each piece exactly once


def test_max_context_by_hand():
    # 10 pieces, windows [0, 6), [4, 10): min(left, right) is 0 1 2 2 1 0 in both, and of equals the first stays
    assert squad._best_windows([0, 4], [6, 6], 10).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]


def test_outside_the_window_or_without_an_answer_the_place_is_cls(tokenizer):
    question = asked("burned")
    windows = list(featurise(tokenizer, [question], 24, 6, 5))
    assert (windows[0].start, windows[0].end) == (0, 0)
    assert text_of(windows[-1], question) == "burned"
    assert all((w.start, w.end) == (0, 0) for w in featurise(tokenizer, [asked(answer=False)], 24, 6, 5))


def test_a_long_question_is_cut_and_the_passage_gets_what_it_leaves(tokenizer):
    question = asked(question="who what when where " * 30)
    window = next(featurise(tokenizer, [question], 64, 10, 5))
    assert window.first == 12 and len(window.ids) <= 64


def test_the_answers_first_and_last_piece_include_what_it_only_touches(tokenizer):
    question = Question("q", "what", "built-in 1803x", (("803", 10),))
    [window] = featurise(tokenizer, [question], 64, 8, 8)
    assert "803" in text_of(window, question)


@pytest.mark.parametrize("text, begin, message", [
    ("1803", 23, "question q7: its answer '1803' is not at character 23 of the passage, where '803.' stands"),
    ("1803", 9999, "is not at character 9999"),
    ("", 3, "is not at character 3"),
    (" ", 3, "holds no word piece"),
])
def test_an_answer_that_is_not_at_its_place_is_named(tokenizer, text, begin, message):
    question = Question("q7", "when", PASSAGE, ((text, begin),))
    with pytest.raises(ValueError, match=message):
        list(featurise(tokenizer, [question]))


@pytest.mark.parametrize("lengths, message", [
    ((60, 58, 1), "leaves no room"), ((64, 10, 60), "step 60 is longer than the 51 pieces"), ((64, 10, 0), "at least 1"),
])
def test_lengths_that_can_not_work_are_refused(tokenizer, lengths, message):
    with pytest.raises(ValueError, match=message):
        list(featurise(tokenizer, [asked()], *lengths))


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=60), st.data())
def test_offsets_are_exact_in_any_script(text, data):
    """Any characters: right-to-left, emoji, combining marks. A piece's offsets never leave the passage and never go back."""
    tokenizer = test_offsets_are_exact_in_any_script.tokenizer
    for window in featurise(tokenizer, [Question("q", "who", text)], 32, 8, 4):
        bounds = window.offsets
        assert (bounds[:, 0] <= bounds[:, 1]).all() and (bounds >= 0).all() and (bounds <= len(text)).all()
        assert (np.diff(bounds[:, 0]) >= 0).all()


test_offsets_are_exact_in_any_script.tokenizer = train_wordpiece([PASSAGE, "abc שלום e\u0301"] * 2, vocab_size=120)


def test_an_empty_passage_and_no_question_give_no_error(tokenizer):
    [window] = featurise(tokenizer, [Question("q", "who", "")], 32, 8, 4)
    assert len(window.offsets) == 0 and window.ids[-1] == tokenizer.token_to_id("[SEP]")
    assert list(featurise(tokenizer, [])) == []


# ---- head and loss -----------------------------------------------------------------------------------------------

def test_scores_loss_and_gradients_equal_hugging_faces():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    shape = BertConfig(50, 24, 2, 4, 40, 16, hidden_dropout=0.0, attention_dropout=0.0)
    ours = randomise(squad.SpanExtractor(BertModel(shape)), 0).double().eval()
    theirs = transformers.BertForQuestionAnswering(transformers.BertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
        max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).double().eval()
    named = {"bert." + hf_name(n.removeprefix("encoder.")): p for n, p in ours.named_parameters() if n.startswith("encoder.")}
    named |= {"qa_outputs.weight": ours.head.weight, "qa_outputs.bias": ours.head.bias}
    assert not theirs.load_state_dict(named, strict=False).missing_keys
    ids = torch.randint(1, 50, (3, 9))
    mask, types = torch.ones_like(ids), (torch.arange(9) >= 4).long().expand(3, 9)
    starts, ends = torch.tensor([5, 0, 8]), torch.tensor([6, 0, 8])
    start, end = ours(ids, mask, types)
    loss = squad.span_loss(start, end, starts, ends)
    expected = theirs(input_ids=ids, attention_mask=mask, token_type_ids=types, start_positions=starts, end_positions=ends)
    assert torch.allclose(start, expected.start_logits, atol=1e-9, rtol=0)
    assert torch.allclose(end, expected.end_logits, atol=1e-9, rtol=0)
    assert torch.allclose(loss, expected.loss, atol=1e-9, rtol=0)
    loss.backward()
    expected.loss.backward()
    assert torch.allclose(ours.head.weight.grad, theirs.qa_outputs.weight.grad, atol=1e-9, rtol=0)
    word = theirs.bert.embeddings.word_embeddings.weight.grad[1:]      # row 0 is padding's
    assert torch.allclose(ours.encoder.embeddings.word.weight.grad[1:], word, atol=1e-9, rtol=0)


def test_the_loss_by_hand():
    start = torch.tensor([[0.0, 0.0, 0.0, 0.0]])
    end = torch.tensor([[0.0, 0.0]])
    loss = squad.span_loss(start, end, torch.tensor([1]), torch.tensor([0]))
    assert loss.item() == pytest.approx((math.log(4) + math.log(2)) / 2)


def test_padding_takes_no_part_in_the_softmax():
    torch.manual_seed(0)
    model = squad.SpanExtractor(BertModel(BertConfig(40, 16, 1, 2, 32, 32, hidden_dropout=0, attention_dropout=0))).eval()
    ids = torch.randint(5, 40, (2, 6))
    mask, types = torch.ones_like(ids), torch.zeros_like(ids)
    longer = [torch.nn.functional.pad(x, (0, 5)) for x in (ids, mask, types)]
    for short, long in zip(model(ids, mask, types), model(*longer)):
        assert torch.allclose(short.softmax(-1), long.softmax(-1)[:, :6], atol=1e-6)
        assert (long.softmax(-1)[:, 6:] == 0).all()


# ---- decoding ----------------------------------------------------------------------------------------------------

def every_span(start, end, can_start, can_end, n, most):
    """All spans, one by one."""
    found = [(start[i] + end[j], i, j) for i in range(len(start)) for j in range(i, min(len(start), i + most))
             if can_start[i] and can_end[j]]
    return sorted(found, key=lambda span: (-span[0], span[2] - span[1], span[1]))[:n]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 25), st.integers(1, 30), st.integers(1, 40), st.integers(0, 10**6), st.booleans())
def test_the_best_spans_are_those_that_trying_every_span_finds(size, most, n, seed, ties):
    rng = np.random.default_rng(seed)
    draw = (lambda: rng.integers(-2, 3, size).astype(float)) if ties else (lambda: rng.normal(size=size))
    start, end, can_start, can_end = draw(), draw(), rng.random(size) < 0.7, rng.random(size) < 0.7
    found = squad.best_spans(start, end, (can_start, can_end), n, most)
    expected = every_span(start, end, can_start, can_end, n, most)
    assert [span[0] for span in found] == pytest.approx([span[0] for span in expected])
    if not ties:
        assert [span[1:] for span in found] == [span[1:] for span in expected]
    assert all(can_start[i] and can_end[j] and i <= j < i + most for _, i, j in found)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 4), st.integers(1, 25), st.integers(1, 30), st.integers(1, 40), st.integers(0, 10**6), st.booleans())
def test_many_windows_at_once_are_searched_as_one_by_one(windows, size, most, n, seed, ties):
    rng = np.random.default_rng(seed)
    start, end = rng.integers(-2, 3, (2, windows, size)).astype(float) if ties else rng.normal(size=(2, windows, size))
    can = rng.random((2, windows, size)) < 0.7
    found = squad.best_spans_of_many(*np.where(can, (start, end), -np.inf), n, most)
    for w in range(windows):
        spans = [(s, int(i), int(j)) for s, i, j in zip(*(part[w] for part in found)) if s > -np.inf]
        expected = every_span(start[w], end[w], can[0, w], can[1, w], n, most)
        assert [span[0] for span in spans] == pytest.approx([span[0] for span in expected])
        assert ties or [span[1:] for span in spans] == [span[1:] for span in expected]
        assert len(set(spans)) == len(spans) and all(can[0, w, i] and can[1, w, j] and i <= j < i + most for _, i, j in spans)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.integers(1, 12))
def test_decoding_is_the_best_of_every_window_tried_one_by_one(seed, max_context, n):
    tokenizer = test_offsets_are_exact_in_any_script.tokenizer
    rng = np.random.default_rng(seed)
    questions = [Question(str(i), "who", PASSAGE[: rng.integers(len(PASSAGE))]) for i in range(6)]
    windows = list(featurise(tokenizer, questions, 24, 6, 5))
    scores = [[rng.normal(size=len(w.ids)) for w in windows] for _ in range(2)]
    answers = squad.decode(questions, windows, *scores, n_best=n, max_answer=7, max_context=max_context)
    for number, (question, answer) in enumerate(zip(questions, answers)):
        found = {}
        for window, start, end in zip(windows, *scores):
            if window.question == number and len(window.offsets):
                part = slice(window.first, window.first + len(window.offsets))
                all_of_it = np.ones(len(window.offsets), bool)
                for score, i, j in every_span(start[part], end[part], window.best if max_context else all_of_it, all_of_it, n, 7):
                    place = int(window.offsets[i, 0]), int(window.offsets[j, 1])
                    found[place] = max(score, found.get(place, -math.inf))
        best = sorted(((score, *place) for place, score in found.items()), reverse=True)[:n]
        said = [(answer.text, answer.begin, answer.score), *answer.others] if best else []
        assert [(text, begin) for text, begin, _ in said] == [(question.context[b:e], b) for _, b, e in best]
        assert [score for _, _, score in said] == pytest.approx([score for score, _, _ in best])
        assert answer.text or not best


def test_choosing_the_start_first_would_miss_the_best_span():
    start, end = np.array([3.0, 2.9, 0.0]), np.array([0.0, 4.0, 0.0])
    assert squad.best_spans(start, end, np.ones(3, bool), 1, 1) == [(6.9, 1, 1)]        # the best start alone is 0


def scored(tokenizer, questions, scores, **lengths):
    """Decode with scores given for characters: {character: score of a start, and of an end}."""
    windows = list(featurise(tokenizer, questions, **lengths))
    starts, ends = [], []
    for window in windows:
        start, end = np.full((2, len(window.ids)), -5.0)
        start[0] = end[0] = scores.get("null", 0.0)
        for p, (b, e) in enumerate(window.offsets):
            start[window.first + p] += scores.get(("start", int(b)), 0.0)
            end[window.first + p] += scores.get(("end", int(e)), 0.0)
        starts.append(start)
        ends.append(end)
    return windows, starts, ends


def test_the_answer_is_the_original_substring_across_windows(tokenizer):
    question = asked("Émile and Ott")
    begin = PASSAGE.index("Émile and Ott")
    scores = {("start", begin): 20.0, ("end", begin + len("Émile and Ott")): 20.0}
    [answer] = squad.decode([question], *scored(tokenizer, [question], scores, max_length=40, max_question=6, step=7))
    assert (answer.text, answer.begin) == ("Émile and Ott", begin)
    assert answer.score == 30.0 and answer.null == 0.0 and answer.odds == -30.0
    assert squad.predictions([question], [answer]) == {"q1": "Émile and Ott"}
    assert squad.predictions([question], [answer], threshold=-31) == {"q1": ""}


def test_the_null_score_is_the_smallest_over_the_windows(tokenizer):
    question = asked()
    windows = list(featurise(tokenizer, [question], 24, 6, 5))
    starts = [np.full(len(w.ids), -1.0) for w in windows]
    for number, start in enumerate(starts):
        start[0] = number + 2.0
    [answer] = squad.decode([question], windows, starts, [np.zeros(len(w.ids)) for w in windows])
    assert answer.null == 2.0


def test_no_piece_of_the_question_can_be_the_answer(tokenizer):
    question = asked(question="brothers burned", context="The Mill.", answer=False)
    windows = list(featurise(tokenizer, [question], 32, 8, 4))
    start = np.zeros(len(windows[0].ids))
    start[1:4] = 100.0
    [answer] = squad.decode([question], windows, [start], [start])
    assert answer.text in "The Mill." and answer.score <= 100.0
    assert not any(text.startswith("b") for text, _, _ in answer.others)


def test_an_empty_passage_gives_no_answer(tokenizer):
    question = Question("q", "who", "")
    windows = list(featurise(tokenizer, [question], 32, 8, 4))
    [answer] = squad.decode([question], windows, [np.zeros(9)], [np.zeros(9)])
    assert answer.text == "" and squad.predictions([question], [answer]) == {"q": ""}


# ---- scores ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("said, gold, exact, f1", [
    ("The Mill", "mill", 1, 1.0),
    ("the old mill", "mill", 0, 2 / 3),
    ("1803.", "1803", 1, 1.0),
    ("in 1803", "1803", 0, 2 / 3),
    ("", "", 1, 1.0),
    ("mill", "", 0, 0.0),
    ("", "mill", 0, 0.0),
    ("two  brothers", "Two brothers!", 1, 1.0),
    ("rye and rye", "rye", 0, 0.5),
    ("a an the", "", 1, 1.0),
    ("Anna", "nna", 0, 0.0),
    ("U.S.", "us", 1, 1.0),
])
def test_ten_cases_and_more_by_hand(said, gold, exact, f1):
    assert squad.exact_match(said, gold) == exact
    assert squad.f1_score(said, gold) == pytest.approx(f1)


QUESTIONS = [Question("a", "q", "c", (("rye", 0), ("old rye", 0))), Question("b", "q", "c"), Question("c", "q", "c", (("x", 0),))]


def test_the_best_of_several_answers_counts_and_the_parts_are_reported():
    scores = squad.squad_scores(QUESTIONS, {"a": "old rye", "b": "something", "c": "x y"})
    assert scores == pytest.approx({
        "exact": 100 / 3, "f1": 100 * (1 + 0 + 2 / 3) / 3, "total": 3, "HasAns_exact": 50.0,
        "HasAns_f1": 100 * (1 + 2 / 3) / 2, "HasAns_total": 2, "NoAns_exact": 0.0, "NoAns_f1": 0.0, "NoAns_total": 1})


# ---- the official rules, written a second time from their definition ---------------------------------------------

def plain_words(text):
    """Lower case; every ASCII punctuation mark taken out; the words a, an, the taken out; split at white space."""
    kept = "".join(c for c in text.lower() if c not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
    return re.sub(r"(?<!\w)(?:the|an|a)(?!\w)", " ", kept).split()


def official(question, said):
    """(exact match, F1) of one question: the best over its answers that leave a word; "" if there is none."""
    golds = [words for words in (plain_words(text) for text, _ in question.answers) if words] or [[]]
    best = [0, 0.0]
    for gold in golds:
        words, left = plain_words(said), list(gold)
        for word in words:
            if word in left:
                left.remove(word)
        hits = len(gold) - len(left)
        f1 = float(words == gold) if not words or not gold else 2 * hits / (len(words) + len(gold))
        best = [max(best[0], int(words == gold)), max(best[1], f1)]
    return tuple(best)


def noisy(question, draw):
    """Right, nearly right and wrong answers, in equal shares."""
    gold = draw.choice(question.answers)[0] if question.answers else ""
    words = question.context.split()
    at = draw.randrange(len(words))
    some = " ".join(words[at: at + draw.randrange(1, 7)])
    return draw.choice(["", gold, gold.upper(), f"the {gold}", f"{gold}.", some, f"{gold} {some}", gold[:-1], f"({gold}), an",
                        "  ".join(gold.split()[::-1]), f"\u00a0{gold}’s — é", "the", f"{gold} {gold}"])


def test_every_score_is_the_official_rules_on_the_built_in_questions():
    draw = random.Random(0)
    questions = load_squad("train").questions + load_squad("dev").questions
    for _ in range(10):
        said = {q.id: noisy(q, draw) for q in questions}
        exact, f1 = squad.score_questions(questions, said)
        expected = [official(q, said[q.id]) for q in questions]
        assert exact.tolist() == [e for e, _ in expected]
        assert f1 == pytest.approx([f for _, f in expected], abs=1e-12)
    assert 0.2 < exact.mean() < 0.8 and len(set(f1.tolist())) > 5


def test_missing_and_unknown_predictions_are_named():
    with pytest.raises(ValueError, match=r"no prediction for b, c \(2 of 3\)"):
        squad.squad_scores(QUESTIONS, {"a": "x"})
    with pytest.raises(ValueError, match=r"unknown questions: z \(1 of 3\)"):
        squad.squad_scores(QUESTIONS, {"a": "", "b": "", "c": "", "z": ""})


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.sampled_from([(), ("rye",), ("the",), ("the", "rye")]),
                          st.sampled_from(["rye", "old rye", "wheat", ""])), min_size=1, max_size=12))
def test_the_best_threshold_is_the_best_of_all_tried_one_by_one(rows):
    """Also where nothing is left of a gold answer after normalisation ("the"): then saying nothing is right."""
    questions = [Question(str(i), "q", "c", tuple((gold, 0) for gold in golds)) for i, (_, golds, _) in enumerate(rows)]
    answers = [Answer(text, 0, 0.0, float(null), []) for null, _, text in rows]
    threshold, best = squad.best_threshold(questions, answers)
    tried = {t: squad.squad_scores(questions, squad.predictions(questions, answers, t))["f1"]
             for t in [-math.inf, *{a.odds for a in answers}]}
    assert best == pytest.approx(max(tried.values()))
    assert tried[threshold] == pytest.approx(best)
    thresholds, scores = squad.threshold_curve(questions, answers)
    assert thresholds.tolist() == sorted(tried) and scores.tolist() == pytest.approx([tried[t] for t in sorted(tried)])


def test_null_odds_are_by_id():
    answers = [Answer("x", 0, 3.0, 1.0, []), Answer("x", 0, 0.0, 2.0, []), Answer("x", 0, 1.0, 1.0, [])]
    assert squad.null_odds(QUESTIONS, answers) == {"a": -2.0, "b": 2.0, "c": 0.0}


@pytest.mark.parametrize("begin, place", [(0, (1, 1)), (3, (1, 4)), (4, (2, 1)), (9, (3, 2))])
def test_a_characters_line_and_column(begin, place):
    assert squad.place_of("abc\ndef\nghi", begin) == place
