"""The built-in passages and questions: is the data fit to teach with?

As in test_corpora.py, each test closes one door by which a small data set is won by accident: here a word, a length or an
overlap that says whether a question can be answered, answers that stand where they are expected, a text in both splits.
And an offset that is wrong by one teaches the wrong span, so every one is checked. None of the tests needs a model.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter

import numpy as np
import pytest

from tests.test_corpora import CORPORA, near_duplicates, repeated_ngrams, words

CHANCE = 0.70  # calling every question answerable is right for two thirds; a rule that reads the question gets no further
PASSAGES = {"train": 45, "dev": 15}
CARD = (CORPORA / "README-squad.md").read_text(encoding="utf-8")


def read(split):
    return json.loads((CORPORA / f"squad-{split}-v2.0.json").read_text(encoding="utf-8"))


FILES = {split: read(split) for split in PASSAGES}
SPLITS = pytest.mark.parametrize("split", list(FILES))


def passages(split):
    return [paragraph["context"] for article in FILES[split]["data"] for paragraph in article["paragraphs"]]


def items(split):
    """(passage, question) for every question of a split; the question as it stands in the file, a dict."""
    return [(paragraph["context"], qa) for article in FILES[split]["data"] for paragraph in article["paragraphs"]
            for qa in paragraph["qas"]]


def texts(split):
    return [qa["question"] for _, qa in items(split)]


def spans(qa):
    """What is marked in the passage: the answers, or, where there is none, what could be taken for one."""
    return qa["plausible_answers"] if qa["is_impossible"] else qa["answers"]


def impossible(split):
    return np.array([qa["is_impossible"] for _, qa in items(split)])


# --- the file ---------------------------------------------------------------------------


@SPLITS
def test_format(split):
    """SQuAD 2.0's own form: the keys, and their types."""
    content = (CORPORA / f"squad-{split}-v2.0.json").read_bytes()
    assert b"\r" not in content and content.endswith(b"}\n")
    file = FILES[split]
    assert set(file) == {"version", "data"} and file["version"] == "v2.0"
    for article in file["data"]:
        assert set(article) == {"title", "paragraphs"} and re.fullmatch(r"\w+", article["title"])
        for paragraph in article["paragraphs"]:
            assert set(paragraph) == {"qas", "context"}
    for _, qa in items(split):
        keys = {"question", "id", "answers", "is_impossible"}
        assert set(qa) == (keys | {"plausible_answers"} if qa["is_impossible"] else keys)
        assert type(qa["is_impossible"]) is bool
        for span in spans(qa):
            assert set(span) == {"text", "answer_start"} and type(span["answer_start"]) is int


@SPLITS
def test_size(split):
    assert len(passages(split)) == PASSAGES[split] and len(items(split)) == 5 * PASSAGES[split]
    assert impossible(split).mean() == pytest.approx(1 / 3)
    for article in FILES[split]["data"]:
        for paragraph in article["paragraphs"]:
            assert 3 <= len(paragraph["qas"]) <= 6 and 60 <= len(paragraph["context"].split()) <= 140
            assert {qa["is_impossible"] for qa in paragraph["qas"]} == {True, False}  # the passage says nothing of it


def test_ids_are_the_hash_of_passage_and_question_and_unique():
    both = items("train") + items("dev")
    for passage, qa in both:
        assert qa["id"] == hashlib.sha256(f"{passage}\n{qa['question']}".encode()).hexdigest()[:24]
    assert len({qa["id"] for _, qa in both}) == len(both)


@SPLITS
def test_text_is_clean(split):
    for text in passages(split) + texts(split):
        assert text == text.strip() and "  " not in text and "\n" not in text
        assert text == unicodedata.normalize("NFC", text)
    for question in texts(split):
        assert question.endswith("?") and 3 <= len(words(question)) <= 14


# --- answers ----------------------------------------------------------------------------


def at_its_offset(passage, span):
    """Whether the text stands at its offset, in whole words."""
    begin, end = span["answer_start"], span["answer_start"] + len(span["text"])
    inside = [i for i in (begin, end) if 0 < i < len(passage) and passage[i - 1].isalnum() and passage[i].isalnum()]
    return begin >= 0 and passage[begin:end] == span["text"] != "" and not inside


def test_the_offset_test_can_fail():
    for begin, text, right in [(2, "red", True), (1, "red", False), (7, "ding", True), (7, "din", False), (6, "", False)]:
        assert at_its_offset("a red  ding", {"text": text, "answer_start": begin}) == right


@SPLITS
def test_every_answer_stands_at_its_offset(split):
    for passage, qa in items(split):
        assert all(at_its_offset(passage, span) for span in spans(qa)), qa
        assert all(span["text"] == span["text"].strip() and 1 <= len(span["text"].split()) <= 10 for span in spans(qa)), qa


@SPLITS
def test_a_question_has_answers_or_something_plausible_never_both(split):
    most = {"train": 1, "dev": 3}[split]  # as in SQuAD: one answer to learn from, several to be scored against
    for _, qa in items(split):
        assert (qa["answers"] == []) == qa["is_impossible"]
        assert 1 <= len(spans(qa)) <= most
        assert len({(span["text"], span["answer_start"]) for span in spans(qa)}) == len(spans(qa))


def test_dev_has_several_answers_where_people_would_give_several():
    count = Counter(len(qa["answers"]) for _, qa in items("dev"))
    assert count[2] + count[3] >= 25 and min(count[1], count[2], count[3]) >= 5


@SPLITS
def test_answers_stand_everywhere(split):
    """No third of the passage holds more than half of the answers; likewise for what is only plausible."""
    for which in (True, False):
        found = [(span["answer_start"] + len(span["text"]) / 2) / len(passage)
                 for passage, qa in items(split) if qa["is_impossible"] == which for span in spans(qa)[:1]]
        share = np.histogram(found, bins=3, range=(0, 1))[0] / len(found)
        assert share.max() <= 0.5 and share.min() >= 0.2


@SPLITS
def test_answers_have_many_lengths(split):
    count = Counter(len(qa["answers"][0]["text"].split()) for _, qa in items(split) if not qa["is_impossible"])
    assert max(count.values()) <= 0.4 * count.total() and len(count) >= 8
    assert sum(count[n] for n in range(4, 11)) >= 0.25 * count.total()  # reasons and descriptions, not only names


def test_offsets_are_not_to_be_had_by_luck():
    """An answer found by search, or an offset counted in bytes or in UTF-16, is wrong somewhere."""
    first, octets, utf16 = 0, 0, 0
    for passage, qa in items("train") + items("dev"):
        for span in qa["answers"]:
            before = passage[: span["answer_start"]]
            first += passage.find(span["text"]) != span["answer_start"]
            octets += len(before.encode()) != len(before)
            utf16 += len(before.encode("utf-16-le")) != 2 * len(before)
    assert first >= 4 and octets >= 40 and utf16 >= 4
    scripts = {unicodedata.name(c).split()[0] for text in passages("train") + passages("dev") for c in text if c.isalpha()}
    assert scripts == {"LATIN", "GREEK", "CYRILLIC"}


# --- repetition -------------------------------------------------------------------------


def test_no_phrase_is_a_template():
    assert repeated_ngrams(texts("train") + texts("dev")) == {}
    assert repeated_ngrams(passages("train") + passages("dev")) == {}


def test_no_near_duplicates_within_or_across_splits():
    assert near_duplicates(texts("train") + texts("dev")) == []
    assert near_duplicates(passages("train") + passages("dev"), limit=0.3) == []  # long texts: a third is already much


def names(split):
    """Capitalised words that begin no sentence."""
    return {word for passage in passages(split) for word in re.findall(r"(?<=[^.!?:“] )[^\W\d_]\w+", passage)
            if word[0].isupper()}


def test_splits_share_no_subject():
    titles = [{article["title"] for article in FILES[split]["data"]} for split in FILES]
    assert len(titles[0]) == 21 and len(titles[1]) == 8 and not titles[0] & titles[1]
    assert {"Flint", "Marguerite", "Lündorf"} <= names("train") and {"Skarholm", "Ness", "Szabó"} <= names("dev")
    assert names("train") & names("dev") <= {"Mr", "Monday", "August"}


# --- rules that must not work -----------------------------------------------------------


def rule_accuracies(features_train, features_dev):
    """Accuracy (train, dev) of the rule "feature on: its majority; off: the other's", fitted on train.

    features_train and features_dev are boolean, shape (rules, questions). A second pair of columns has the balanced
    accuracy of "feature on: can't be answered", or of its opposite: .5 is chance, and the majority earns nothing.
    """
    y_train, y_dev = impossible("train"), impossible("dev")
    scores = []
    for on_train, on_dev in zip(features_train, features_dev):
        yes, no = (bool(len(y)) and y.mean() > 0.5 for y in (y_train[on_train], y_train[~on_train]))
        sign = np.sign(on_train[y_train].mean() - on_train[~y_train].mean())
        scores.append([np.mean(np.where(on_train, yes, no) == y_train), np.mean(np.where(on_dev, yes, no) == y_dev),
                       *(0.5 + 0.5 * sign * (on[y].mean() - on[~y].mean()) for on, y in
                         ((on_train, y_train), (on_dev, y_dev)))])
    return np.array(scores)


def test_a_rule_that_knows_is_found():
    """The four numbers are 1 for a feature that is the answer itself: the tests below can fail."""
    assert rule_accuracies(impossible("train")[None], impossible("dev")[None]).tolist() == [[1, 1, 1, 1]]


def test_the_best_single_word_predicts_at_chance():
    sets = [[set(words(question)) for question in texts(split)] for split in FILES]
    vocabulary = sorted(set().union(*sets[0]))
    scores = rule_accuracies(*(np.array([[w in s for s in split] for w in vocabulary]) for split in sets))
    assert len(scores) > 500
    assert scores[:, :2].max() <= CHANCE
    assert scores[:, 2].max() <= 0.60  # the best of all words, chosen and measured on train


def test_the_first_word_predicts_at_chance():
    first = {split: np.array([words(question)[0] for question in texts(split)]) for split in FILES}
    y = {split: impossible(split) for split in FILES}
    table = {word: y["train"][first["train"] == word].mean() > 0.5 for word in set(first["train"])}
    for split in FILES:
        assert np.mean([table.get(word, False) for word in first[split]] == y[split]) <= CHANCE
    for word in ("what", "how", "who", "when", "where", "why", "which"):  # each begins questions of both kinds
        assert all(((first["train"] == word) & (y["train"] == kind)).sum() >= 5 for kind in (True, False))


def overlap(split):
    """The share of a question's words that stand in its passage."""
    return np.array([np.mean([word in set(words(passage)) for word in words(qa["question"])])
                     for passage, qa in items(split)])


def length(split):
    return np.array([len(words(question)) for question in texts(split)])


def ranking(values, y):
    """How often an unanswerable question has the larger value than an answerable one (ties count half): .5 is chance."""
    return np.mean(np.sign(values[y][:, None] - values[~y][None]) / 2 + 0.5)


@pytest.mark.parametrize("value", [length, overlap])
def test_neither_the_length_nor_the_overlap_predicts(value):
    assert ranking(np.array([1, 2, 3]), np.array([False, False, True])) == 1
    values = {split: value(split) for split in FILES}
    thresholds = np.unique(values["train"])[:, None]
    scores = rule_accuracies(*(values[split][None] <= thresholds for split in FILES))
    assert scores[:, :2].max() <= CHANCE
    for split in FILES:
        assert abs(ranking(values[split], impossible(split)) - 0.5) <= 0.1


def naive_bayes(train, dev, smoothing):
    """Whether a naive Bayes on the questions' words takes each dev question for unanswerable."""
    index = {word: i for i, word in enumerate(sorted({word for question, _ in train for word in words(question)}))}
    counts = np.full((2, len(index)), smoothing)
    for question, kind in train:
        for word in set(words(question)):
            counts[int(kind), index[word]] += 1
    likelihood = np.log(counts / counts.sum(1, keepdims=True))
    prior = np.log(np.bincount([int(kind) for _, kind in train]) / len(train))
    known = [[index[word] for word in set(words(question)) if word in index] for question in dev]
    return np.array([(prior + likelihood[:, found].sum(1)).argmax() == 1 for found in known])


def test_the_question_alone_is_not_enough():
    train, dev = list(zip(texts("train"), impossible("train"))), texts("dev")
    assert np.mean(naive_bayes(train, texts("train"), 1.0) == impossible("train")) > 0.8  # the classifier does learn
    for smoothing in (0.1, 0.5, 1.0, 2.0):
        assert np.mean(naive_bayes(train, dev, smoothing) == impossible("dev")) <= CHANCE


# --- the data card ----------------------------------------------------------------------


def test_the_card_says_what_is_there():
    for split in FILES:
        counts = [len(passage.split()) for passage in passages(split)]
        row = [f"`squad-{split}-v2.0.json`", len(FILES[split]["data"]), len(counts), len(items(split)),
               impossible(split).sum(), f"{min(counts)}, {np.mean(counts):.1f}, {max(counts)}"]
        assert f"| {' | '.join(map(str, row))} |" in CARD


def test_the_card_states_what_answering_nothing_scores():
    """Exact match and F1 of an empty answer are both the share of questions that can't be answered."""
    share = np.mean(impossible("dev"))
    assert f"| answering nothing | {100 * share:.1f} | {100 * share:.1f} |" in CARD
