"""The built-in question pairs and scored sentence pairs: is the data fit to teach with?

A pair can be judged by accident in more ways than a sentence can. The answer may lie in the number of words that
both sides share, in a word that stands on one side only, in which side is longer, or in both sides beginning alike.
Each test below closes one of these doors. All of them are plain Python and NumPy, and none needs a model.
"""

import csv
import hashlib
import re

import numpy as np
import pytest

from minbert.run.data_pairs import load_pairs
from tests.test_corpora import CORPORA, near_duplicates, words

CARD = (CORPORA / "README-pairs.md").read_text(encoding="utf-8")
LABEL = {"quora": "is_duplicate", "sts": "similarity"}
FIFTHS = [f"{k / 5:.1f}" for k in range(26)]

# Question pairs: half of them are duplicates, so a rule that knows nothing is right half of the time.
CHANCE = 0.60  # the best rule that reads one word, or only counts words
OVERLAP = 0.65  # the best threshold on the share of common words, chosen on the split itself
BAG_OF_WORDS = 0.65  # naive Bayes on words, common words and unshared words
# Scored pairs: the correlation of the score with a feature that should say nothing about it.
LENGTH = 0.15
ONE_WORD = 0.30  # the largest of the words that stand in at least a twentieth of the pairs
OVERLAP_PEARSON = (0.3, 0.6)  # common words say something about similarity, in real data too, but not enough

# What one split is about must not occur in the other. These words name the topics.
THEMES = {
    ("quora", "train"): """rice onions curry knife moss cactus compost slugs cabbages puppy rabbit hamster greyhound
        laptop router keyboard printer cookies guitar violin trumpet subtitles tripod magnets astronauts prime mercury
        salary debt essay thesis hiccups carpet thunder bicycle""".split(),
    ("quora", "dev"): """swim goggles bees honey tent library eyesight knitting goldfish skis compass maps owls
        mushrooms passport clocks kiln parcel chess theatre volcano hairdresser""".split(),
    ("sts", "train"): """potatoes piano choir violin tractor goalkeeper blackboard sheepdog referee bricks dentist nurse
        union surgeon carpenter suitcase hut canoe roses wedding twins squirrel parrot burglar president satellite shark
        lighthouse tunnel""".split(),
    ("sts", "dev"): """pilot runway museum gallery tailor barber circus clown acrobat elephant camel monkey bees hive
        balloon skier theatre firemen karate judo giraffe knights penguin""".split(),
}  # fmt: skip


def read(task, split):
    """The rows of one file, as the csv module reads them: a list of dicts."""
    with open(CORPORA / f"{task}-{split}.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


FILES = [(task, split) for task in LABEL for split in ("train", "dev")]
ROWS = {file: read(*file) for file in FILES}
files = pytest.mark.parametrize("task, split", FILES)
tasks = pytest.mark.parametrize("task", LABEL)


def both(task):
    return ROWS[task, "train"] + ROWS[task, "dev"]


def sides(rows):
    """The words of both sentences of every row: a list of pairs of lists."""
    return [(words(row["sentence1"]), words(row["sentence2"])) for row in rows]


def labels(task, split):
    return np.array([float(row[LABEL[task]]) for row in ROWS[task, split]])


def overlap(rows):
    """The share of words that both sides have in common (intersection over union), shape (pairs,)."""
    return np.array([len(set(a) & set(b)) / len(set(a) | set(b)) for a, b in sides(rows)])


# --- the files --------------------------------------------------------------------------


@files
def test_format(task, split):
    path = CORPORA / f"{task}-{split}.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == f"\tid\tsentence1\tsentence2\t{LABEL[task]}"
    # One record a line and nothing quoted: a reader that only splits at tabs agrees with csv.
    assert '"' not in "".join(lines)
    assert [line.split("\t") for line in lines[1:]] == [list(row.values()) for row in ROWS[task, split]]
    assert b"\r" not in path.read_bytes()


@files
def test_every_field_is_valid(task, split):
    allowed = {"quora": ["0.0", "1.0"], "sts": FIFTHS}[task]
    for number, row in enumerate(ROWS[task, split]):
        assert row[""] == str(number)
        assert row[LABEL[task]] in allowed, row
        assert row["sentence1"] != row["sentence2"], row
        for sentence in (row["sentence1"], row["sentence2"]):
            assert sentence == sentence.strip() and "  " not in sentence, row  # nor is a side empty: see its words
            assert re.fullmatch(r"[A-Z][A-Za-z0-9 ,.;:'?\-]+[.?]", sentence), row
            assert 3 <= len(words(sentence)) <= 22, row
            assert task == "sts" or "?" in sentence, row


@tasks
def test_ids_are_the_hash_of_the_pair_and_unique(task):
    for row in both(task):
        pair = f"{row['sentence1']}\t{row['sentence2']}"
        assert row["id"] == hashlib.sha256(pair.encode("utf-8")).hexdigest()[:25]
    assert len({row["id"] for row in both(task)}) == len(both(task))


@files
def test_size_and_balance(task, split):
    y = labels(task, split)
    assert len(y) >= {"train": 310, "dev": 104}[split]
    values, counts = np.unique(y, return_counts=True)
    assert len(values) == {"quora": 2, "sts": 26}[task]
    assert counts.min() == counts.max()  # every label as often as any other


@files
def test_the_package_reads_what_the_csv_module_reads(task, split):
    data = load_pairs(task, split, "builtin")
    rows = ROWS[task, split]
    assert data.first == [row["sentence1"] for row in rows] and data.second == [row["sentence2"] for row in rows]
    assert data.labels == labels(task, split).tolist() and data.ids == [row["id"] for row in rows]
    assert data.notes == []  # nothing was stripped, nothing is there twice


# --- repetition -------------------------------------------------------------------------


def repeated_ngrams(pairs, n=4, allowed=3):
    """The n-grams of words that stand in more than `allowed` of the pairs; a pair counts once."""
    items = {}
    for index, pair in enumerate(pairs):
        for tokens in pair:
            for start in range(len(tokens) - n + 1):
                items.setdefault(tuple(tokens[start : start + n]), set()).add(index)
    return {" ".join(gram): len(found) for gram, found in items.items() if len(found) > allowed}


@tasks
def test_no_phrase_is_a_template(task):
    planted = [(words(f"what is the use of {a}"), words(f"the use of {b}")) for a, b in ("ab", "cd", "ef", "gh")]
    assert set(repeated_ngrams(planted).values()) == {4} and not repeated_ngrams(planted[:3])  # the test can fail
    assert repeated_ngrams(sides(both(task))) == {}


@tasks
def test_no_near_duplicates_within_or_across_splits(task):
    rows = both(task)
    owner = {}
    for number, row in enumerate(rows):
        for sentence in (row["sentence1"], row["sentence2"]):
            assert owner.setdefault(sentence, number) == number, sentence  # no sentence stands in two pairs
    # Two sides of one pair may be alike, that is what the data is about. Sentences of different pairs may not.
    assert [pair for pair in near_duplicates(list(owner)) if owner[pair[0]] != owner[pair[1]]] == []
    assert near_duplicates([f"{row['sentence1']} {row['sentence2']}" for row in rows]) == []


@tasks
def test_splits_share_no_topic(task):
    seen = {split: {word for pair in sides(ROWS[task, split]) for side in pair for word in side}
            for split in ("train", "dev")}  # fmt: skip
    for split, other in (("train", "dev"), ("dev", "train")):
        assert not set(THEMES[task, split]) - seen[split]
        assert not set(THEMES[task, split]) & seen[other]


def test_words_vary():
    for task in LABEL:
        assert len({word for pair in sides(both(task)) for side in pair for word in side}) > 1400


# --- question pairs: rules that must not work -------------------------------------------


def word_features(rows, vocabulary):
    """Three boolean tables, (words, pairs): the word is on either side, on both sides, on one side only."""
    index = {word: i for i, word in enumerate(vocabulary)}
    on = np.zeros((2, len(vocabulary), len(rows)), dtype=bool)
    for number, pair in enumerate(sides(rows)):
        for side in (0, 1):
            on[side, [index[word] for word in pair[side] if word in index], number] = True
    return np.concatenate([on[0] | on[1], on[0] & on[1], on[0] ^ on[1]])


def vocabulary_of(rows):
    return sorted({word for pair in sides(rows) for side in pair for word in side})


def best_rule(on_train, on_dev):
    """The largest accuracy, on train or dev, of "feature on: its majority label; off: the other's", fitted on train.

    on_train and on_dev are boolean, shape (rules, pairs).
    """
    y_train, y_dev = labels("quora", "train"), labels("quora", "dev")
    best = 0
    for train, dev in zip(on_train, on_dev):
        if train.all() or not train.any():
            continue
        yes, no = y_train[train].mean() > 0.5, y_train[~train].mean() > 0.5
        best = max(best, np.mean(np.where(train, yes, no) == y_train), np.mean(np.where(dev, yes, no) == y_dev))
    return best


def test_the_best_single_word_predicts_at_chance():
    vocabulary = vocabulary_of(ROWS["quora", "train"])
    features = [word_features(ROWS["quora", split], vocabulary) for split in ("train", "dev")]
    assert len(features[0]) > 3000
    # The rules work where there is something to find: a word that stands in every duplicate is found.
    assert best_rule(*[labels("quora", split)[None] == 1 for split in ("train", "dev")]) == 1
    assert best_rule(*features) <= CHANCE


def test_lengths_and_openings_predict_at_chance():
    features = []
    for split in ("train", "dev"):
        pairs = sides(ROWS["quora", split])
        first, second = np.array([(len(a), len(b)) for a, b in pairs]).T
        sizes = [first, second, first + second, abs(first - second)]
        sizes += [np.maximum(first, second), np.minimum(first, second)]
        rules = [size >= t for size in sizes for t in range(1, 40)] + [first > second, first == second]
        rules += [np.array([a[:n] == b[:n] for a, b in pairs]) for n in (1, 2)]
        rules += [np.array([a[-1] == b[-1] for a, b in pairs])]
        features.append(np.array(rules))
    assert best_rule(*features) <= CHANCE


def best_overlap(split):
    """Accuracy of the best threshold on the overlap, in the better of both directions, chosen on the split itself."""
    y, share = labels("quora", split), overlap(ROWS["quora", split])
    accuracies = np.array([np.mean((share >= t) == y) for t in np.unique(share)])
    return max(accuracies.max(), 1 - accuracies.min())


def test_common_words_do_not_tell_duplicates():
    for split in ("train", "dev"):
        assert best_overlap(split) <= OVERLAP
        assert f"{best_overlap(split):.3f}".lstrip("0") in CARD
        y, share = labels("quora", split), overlap(ROWS["quora", split])
        # Hard ones of both kinds: alike and different in meaning, different and alike in meaning.
        assert np.mean(share[y == 0] >= 0.3) > 0.2 and np.mean(share[y == 1] <= 0.15) > 0.2


def naive_bayes(features_train, y_train, features_dev, smoothing):
    """Predictions on dev of a Bernoulli naive Bayes. Features are boolean, shape (features, pairs)."""
    score = np.zeros(features_dev.shape[1])
    for label, sign in ((1, 1), (0, -1)):
        chosen = features_train[:, y_train == label]
        rate = ((chosen.sum(1) + smoothing) / (chosen.shape[1] + 2 * smoothing))[:, None]
        score += sign * np.where(features_dev, np.log(rate), np.log(1 - rate)).sum(0)
    return score > 0


def test_a_bag_of_words_is_not_enough():
    vocabulary = vocabulary_of(ROWS["quora", "train"])
    train, dev = (word_features(ROWS["quora", split], vocabulary) for split in ("train", "dev"))
    y_train, y_dev = labels("quora", "train"), labels("quora", "dev")
    assert np.mean(naive_bayes(train, y_train, train, 0.1) == y_train) > 0.9  # the classifier does learn
    for smoothing in (0.1, 0.5, 1.0, 2.0):
        assert np.mean(naive_bayes(train, y_train, dev, smoothing) == y_dev) <= BAG_OF_WORDS


# --- scored pairs: rules that must not work ---------------------------------------------


def pearson(x, y):
    return np.corrcoef(x, y)[0, 1]


@pytest.mark.parametrize("split", ["train", "dev"])
def test_lengths_do_not_tell_the_score(split):
    first, second = np.array([(len(a), len(b)) for a, b in sides(ROWS["sts", split])]).T
    y = labels("sts", split)
    for size in (first, second, first + second, abs(first - second), first - second):
        assert abs(pearson(size, y)) <= LENGTH


@pytest.mark.parametrize("split", ["train", "dev"])
def test_no_single_word_tells_the_score(split):
    rows = ROWS["sts", split]
    features = word_features(rows, vocabulary_of(rows))
    features = features[(features.mean(1) >= 0.05) & (features.mean(1) <= 0.95)]
    assert len(features) > 30
    assert max(abs(pearson(feature, labels("sts", split))) for feature in features) <= ONE_WORD


@pytest.mark.parametrize("split", ["train", "dev"])
def test_common_words_tell_the_score_only_in_part(split):
    r = pearson(overlap(ROWS["sts", split]), labels("sts", split))
    assert OVERLAP_PEARSON[0] <= r <= OVERLAP_PEARSON[1]
    assert f"{r:.3f}".lstrip("0") in CARD


def test_the_card_counts_what_is_there():
    for task, split in FILES:
        pairs = sides(ROWS[task, split])
        lengths = [len(side) for pair in pairs for side in pair]
        row = f"| `{task}-{split}.csv` | {len(pairs)} | {min(lengths)}, {np.mean(lengths):.1f}, {max(lengths)} |"
        assert row in CARD, row
    for task in LABEL:
        tokens = [word for pair in sides(both(task)) for side in pair for word in side]
        assert f"{len(set(tokens)):,} different words in {len(tokens):,}" in CARD
