"""From sentences to batches.

A batch is a rectangle (B, T), and T is the length of its longest sentence. Everything to the right of a shorter one is
padding, which costs as much time as words do and teaches nothing. In batches of film reviews drawn at random, about half of
the positions are padding. So sentences of nearly equal length are put together: that is all a *length bucket* is.

Sentences are tokenised once, before training, and not again in each epoch.
"""

from dataclasses import dataclass

import numpy as np
import torch

from minbert.tokens import encode, pad


@dataclass
class Tokenised:
    """The sentences of a split as lists of ids, [CLS] and [SEP] included, in the order of the file."""

    ids: list[list[int]]
    truncated: int  # how many sentences were longer than max_length and lost their end
    max_length: int

    @property
    def lengths(self):
        return [len(ids) for ids in self.ids]

    @property
    def note(self):
        """What to tell the reader, or an empty string if nothing was cut."""
        if not self.truncated:
            return ""
        one = self.truncated == 1
        return (f"{self.truncated:,} of {len(self.ids):,} sentences {'was' if one else 'were'} longer than "
                f"{self.max_length} tokens and {'was' if one else 'were'} cut")


def tokenise(dataset, tokenizer, max_length=512):
    """Tokenise every sentence once.

    Args:
        dataset: anything with a list of strings called `texts`, such as a Dataset or Texts of `minbert.run.data`.
        tokenizer: see `minbert.tokens.load_tokenizer`.
        max_length: the most tokens a sentence may have, [CLS] and [SEP] included; the rest is cut, and counted.

    Returns:
        Tokenised.
    """
    encoded = encode(tokenizer, dataset.texts, max_length)
    return Tokenised(encoded.ids, encoded.truncated, max_length)


def batches(lengths, batch_size, seed=0, epoch=0, shuffle=True, bucket=50):
    """Deal the examples into batches of similar length.

    The examples are put in a random order and dealt into windows of `bucket` batches. Within a window they are sorted by
    length and cut into batches; then all batches are shuffled. The window is the compromise: sorting the whole set would
    waste less, but the same sentences would meet in every epoch; windows of one batch would be fully random, and waste most.

    The order depends on `lengths`, `batch_size`, `seed`, `epoch` and `bucket`, and on nothing else. It has a generator of its
    own, seeded from the pair (seed, epoch). With the global one, the order would change as soon as a model drew one more
    number for its dropout, or a second worker loaded data. This way a run can be resumed in the middle of an epoch: deal
    the epoch's batches again and skip those that are done. NumPy's generator gives the same order on every platform.

    Args:
        lengths: the number of tokens of each example.
        batch_size: examples in a batch; the last examples may make a smaller one.
        seed, epoch: non-negative integers.
        shuffle: False for evaluation: all examples sorted, the longest first, so that too little memory shows at once.
            `restore` puts the results back in the order of the file.
        bucket: batches in a window. 1 gives random batches, and costs the padding that goes with them.

    Returns:
        A list of batches, each a list of indices into `lengths`. Every index is there exactly once.

    Raises:
        ValueError: if `batch_size` or `bucket` is below 1, or there are no examples.
    """
    if batch_size < 1 or bucket < 1:
        raise ValueError(f"batch_size and bucket must be at least 1, not {batch_size} and {bucket}")
    if len(lengths) == 0:
        raise ValueError("there are no examples to make batches of")
    if not shuffle:
        order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
        return _cut(order, batch_size)

    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths)).tolist()
    result = []
    for window in _cut(order, batch_size * bucket):
        window.sort(key=lambda index: lengths[index])  # stable: equal lengths stay in random order
        result.extend(_cut(window, batch_size))
    return [result[i] for i in generator.permutation(len(result))]


def filled_batches(lengths, batch_size, positions=512):
    """Deal the examples into batches for evaluation: sorted, and of very short sentences more than `batch_size`.

    For each batch the model's weights are fetched from memory, however little there is to do with them. With fewer than
    some hundred positions a processor core waits for weights more than it computes. So short sentences are taken together
    until their batch has `positions` positions. `restore` puts the results back in the order of the file.

    Args:
        lengths: the number of tokens of each example, at least 1.
        batch_size: the least number of examples in a batch, but for the last one.
        positions: room for this many is used in any case.

    Returns:
        A list of batches, each a list of indices, the longest example first.

    Raises:
        ValueError: if `batch_size` is below 1, or there are no examples.
    """
    order = [index for batch in batches(lengths, batch_size, shuffle=False) for index in batch]
    result = []
    while order:
        count = max(batch_size, positions // lengths[order[0]])
        result.append(order[:count])
        order = order[count:]
    return result


def _cut(items, size):
    return [items[start : start + size] for start in range(0, len(items), size)]


def restore(values, batch_list):
    """Put per-example results back in the order of the file.

    Args:
        values: one value an example, in the order in which the batches were gone through.
        batch_list: those batches, as `batches` returned them.

    Returns:
        A list in which place i holds the value of example i.

    Raises:
        ValueError: if there are not as many values as examples.
    """
    order = [index for batch in batch_list for index in batch]
    if len(values) != len(order):
        raise ValueError(f"{len(values)} values for {len(order)} examples")
    result = [None] * len(order)
    for index, value in zip(order, values):
        result[index] = value
    return result


def collate(indices, ids, labels=None, pad_id=0):
    """Make the tensors of one batch.

    Args:
        indices: the examples of the batch.
        ids: the token ids of all examples, as in `Tokenised.ids`.
        labels: the labels of all examples, or None where there are none (prediction).
        pad_id: the id of [PAD].

    Returns:
        A dict: input_ids (B, T), attention_mask (B, T) and, if there are labels, labels (B,); all int64.
    """
    input_ids, attention_mask = pad([ids[i] for i in indices], pad_id)  # (B, T), (B, T)
    batch = {"input_ids": input_ids, "attention_mask": attention_mask}
    if labels is not None:
        batch["labels"] = torch.tensor([labels[i] for i in indices], dtype=torch.long)  # (B,)
    return batch


def padding_share(batch_list, lengths):
    """Return the share of all positions in these batches that is padding, from 0 to below 1."""
    positions = sum(len(batch) * max(lengths[i] for i in batch) for batch in batch_list)
    tokens = sum(lengths[i] for batch in batch_list for i in batch)
    return 1 - tokens / positions
