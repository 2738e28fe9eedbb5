"""Batches: every example once, in an order that only the seed and the epoch decide, with little padding."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minbert.run.batching import batches, collate, filled_batches, padding_share, restore, tokenise
from minbert.run.data import load_task
from minbert.tokens import train_wordpiece

LENGTHS = [5, 9, 3, 7, 4, 8, 6, 2, 10, 5, 3, 12]


def film_lengths(count=2000):
    """Lengths like those of film reviews: a mean near 25 tokens and a long tail."""
    return [int(x) for x in np.clip(np.random.default_rng(0).gamma(4.0, 6.3, count), 4, 80)]


# The orders below are part of every recorded result: if one changes, old records can't be made again.
@pytest.mark.parametrize("seed, epoch, expected", [
    (0, 0, [[10, 0, 6], [3, 1, 8], [9, 5, 11], [7, 2, 4]]),
    (0, 1, [[6, 5, 8], [3, 1, 11], [2, 4, 9], [7, 10, 0]]),
    (1, 0, [[5, 8, 11], [6, 3, 1], [7, 4, 0], [2, 10, 9]]),
])  # fmt: skip
def test_golden_order(seed, epoch, expected):
    assert batches(LENGTHS, 3, seed, epoch, bucket=2) == expected


def test_golden_order_of_random_batches_and_of_evaluation():
    assert batches(LENGTHS, 3, bucket=1) == [[0, 6, 3], [10, 1, 8], [4, 5, 11], [7, 2, 9]]
    assert batches(LENGTHS, 5, shuffle=False) == [[11, 8, 1, 5, 3], [6, 0, 9, 4, 2], [10, 7]]


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 399, 400, 401, 1000])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("bucket", [1, 5, 50])
def test_every_example_exactly_once(count, shuffle, bucket):
    dealt = batches(film_lengths(count), 8, seed=3, epoch=2, shuffle=shuffle, bucket=bucket)
    assert sorted(index for batch in dealt for index in batch) == list(range(count))
    assert all(type(index) is int for batch in dealt for index in batch)
    # One batch at most is smaller, and only as much as the numbers demand.
    sizes = sorted(len(batch) for batch in dealt)
    assert sizes[1:] == [8] * (len(sizes) - 1) and sizes[0] == (count % 8 or 8)
    assert len(dealt) == -(-count // 8)


def test_epochs_and_seeds_differ():
    lengths = film_lengths(400)
    orders = [batches(lengths, 8, seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({str(order) for order in orders}) == 9
    # It is not only the order of the batches that changes: other sentences meet.
    meets = [{tuple(sorted(batch)) for batch in order} for order in orders[:2]]
    assert len(meets[0] & meets[1]) < len(meets[0]) / 10


def test_the_order_is_independent_of_every_other_generator():
    lengths = film_lengths(100)
    expected = batches(lengths, 8, 5, 1)
    for seed in (0, 99):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        assert batches(lengths, 8, 5, 1) == expected
        # … and it draws nothing from them.
        assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_the_order_is_the_same_in_another_process():
    code = "from minbert.run.batching import batches; print(batches([7, 3, 9, 3, 5, 1, 8, 8, 2] * 9, 4, 11, 6, bucket=3))"
    env = {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(batches([7, 3, 9, 3, 5, 1, 8, 8, 2] * 9, 4, 11, 6, bucket=3))


def test_resuming_in_the_middle_of_an_epoch():
    """Deal again, skip what is done: the rest is what an unbroken run would have seen, this epoch and the next."""
    lengths = film_lengths(403)
    whole = batches(lengths, 8, 1, 0) + batches(lengths, 8, 1, 1)
    an_epoch = len(batches(lengths, 8, 1, 0))
    for step in (0, 1, an_epoch - 1, an_epoch, an_epoch + 1, 2 * an_epoch):
        epoch, done = divmod(step, an_epoch)
        rest = []
        while epoch < 2:
            rest += batches(lengths, 8, 1, epoch)[done:]
            epoch, done = epoch + 1, 0
        assert rest == whole[step:]


def test_batches_are_shuffled_and_not_only_sorted():
    """Without the second shuffle every window would go from its shortest sentences to its longest."""
    lengths = film_lengths(2000)
    means = [sum(lengths[i] for i in batch) / len(batch) for batch in batches(lengths, 8)]
    rises = sum(later > earlier for earlier, later in zip(means, means[1:]))
    assert 0.4 < rises / (len(means) - 1) < 0.6
    # The examples come from all over the file, too.
    firsts = [batch[0] for batch in batches([10] * 2000, 8)]
    assert abs(np.corrcoef(firsts, range(len(firsts)))[0, 1]) < 0.2


def test_buckets_spare_padding():
    lengths = film_lengths()
    share = {(size, bucket): padding_share(batches(lengths, size, bucket=bucket), lengths) for size in (8, 32)
             for bucket in (1, 50)}
    assert 0.3 < share[8, 1] < share[32, 1] < 0.7  # batches at random: a third and more
    assert share[8, 50] < 0.05 and share[32, 50] < 0.08
    assert padding_share(batches(lengths, 8, shuffle=False), lengths) < 0.01


def test_padding_share_by_hand():
    assert padding_share([[0, 1], [2]], [2, 4, 5]) == pytest.approx(1 - (2 + 4 + 5) / (4 + 4 + 5))
    assert padding_share([[0, 1]], [3, 3]) == 0


def test_evaluation_is_sorted_and_restored():
    lengths = film_lengths(101)
    dealt = batches(lengths, 8, seed=1, shuffle=False)
    assert dealt == batches(lengths, 8, seed=2, epoch=5, shuffle=False)
    in_order = [lengths[i] for batch in dealt for i in batch]
    assert in_order == sorted(lengths, reverse=True)
    answers = [f"answer to {i}" for batch in dealt for i in batch]
    assert restore(answers, dealt) == [f"answer to {i}" for i in range(101)]
    with pytest.raises(ValueError, match="100 values for 101 examples"):
        restore(answers[:-1], dealt)


@pytest.mark.parametrize("arguments, message", [
    (([3, 4], 0), "must be at least 1, not 0 and 50"),
    (([3, 4], 8, 0, 0, True, 0), "must be at least 1, not 8 and 0"),
    (([], 8), "there are no examples"),
])  # fmt: skip
def test_what_can_not_be_dealt(arguments, message):
    with pytest.raises(ValueError, match=message):
        batches(*arguments)


def test_collate():
    ids = [[2, 11, 3], [2, 3], [2, 12, 13, 14, 3]]
    batch = collate([2, 1], ids, labels=[0, 1, 4])
    assert batch["input_ids"].tolist() == [[2, 12, 13, 14, 3], [2, 3, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert batch["labels"].tolist() == [4, 1]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert list(collate([0], ids)) == ["input_ids", "attention_mask"]
    assert collate([1, 0], ids, pad_id=9)["input_ids"].tolist() == [[2, 3, 9], [2, 11, 3]]


def test_tokenise_once_and_count_what_was_cut():
    train = load_task("sst", "train", "builtin")
    tokenizer = train_wordpiece(train.texts, vocab_size=500)
    whole = tokenise(train, tokenizer)
    assert len(whole.ids) == len(train) and whole.truncated == 0 and whole.note == ""
    assert tokenizer.decode(whole.ids[0]).replace(" ", "") == "".join(train.texts[0].lower().split())

    limit = sorted(whole.lengths)[-3] - 1  # shorter than the three longest, at least
    cut = tokenise(train, tokenizer, max_length=limit)
    longer = sum(length > limit for length in whole.lengths)
    assert cut.truncated == longer >= 3
    assert cut.note == f"{longer} of {len(train):,} sentences were longer than {limit} tokens and were cut"
    assert max(cut.lengths) == limit
    assert all(row[0] == 2 and row[-1] == 3 for row in cut.ids)  # [CLS] and [SEP] survive


def test_a_very_long_sentence_is_cut_and_told():
    train = load_task("sst", "train", "builtin")
    tokenizer = train_wordpiece(train.texts, vocab_size=300)
    train.texts[5] = "film " * 10_000
    result = tokenise(train, tokenizer, max_length=512)
    assert result.lengths[5] == 512 and result.truncated == 1
    assert result.note == f"1 of {len(train):,} sentences was longer than 512 tokens and was cut"


def test_a_batch_of_real_sentences():
    """The whole way from the file to the tensors."""
    dev = load_task("sst", "dev", "builtin")
    tokenised = tokenise(dev, train_wordpiece(dev.texts, vocab_size=500))
    labels = torch.zeros(len(dev), dtype=torch.long)
    for indices in batches(tokenised.lengths, 8, seed=4):
        batch = collate(indices, tokenised.ids, dev.labels)
        assert batch["attention_mask"].sum(dim=1).tolist() == [tokenised.lengths[i] for i in indices]
        labels[indices] = batch["labels"]
    assert labels.tolist() == dev.labels


# ---- batches for evaluation --------------------------------------------------------------------------------------

def test_short_sentences_fill_a_batch_up_by_hand():
    lengths = [3, 10, 5, 4, 10, 2, 2, 2, 2]
    # Two of the longest, 10 and 10; then 12 positions are two of 5 and 4, four of 3, 2, 2 and 2, and what is left.
    assert filled_batches(lengths, batch_size=2, positions=12) == [[1, 4], [2, 3], [0, 5, 6, 7], [8]]
    assert filled_batches(lengths, batch_size=2, positions=0) == batches(lengths, 2, shuffle=False)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=120), st.integers(1, 16), st.integers(0, 300))
def test_filled_batches_hold_everything_once_and_stay_within_their_room(lengths, batch_size, positions):
    dealt = filled_batches(lengths, batch_size, positions)
    assert sorted(index for batch in dealt for index in batch) == list(range(len(lengths)))
    assert restore([lengths[i] for batch in dealt for i in batch], dealt) == lengths
    for batch in dealt:
        size = len(batch) * max(lengths[i] for i in batch)
        assert len(batch) <= batch_size or size <= positions
