"""Scores. Those for classification take numpy arrays (or lists) of integer labels of shape (N,).

All but `averages` raise ValueError where there is nothing to score, and where the two sides are not lists of one length.
"""

import numpy as np


def _pair(predictions, labels):
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.ndim != 1 or labels.ndim != 1:
        raise ValueError(f"a score needs two lists (N,), not the shapes {predictions.shape} and {labels.shape}")
    if len(predictions) != len(labels):
        raise ValueError(f"{len(predictions)} predictions for {len(labels)} labels")
    if labels.size == 0:
        raise ValueError("no examples: a score of nothing is not defined")
    return predictions, labels


def _classes(values, classes):
    whole = values.dtype.kind in "biu"
    odd = [value for value in values.tolist() if not whole or not 0 <= value < classes]  # -1 would index the last class
    if odd:
        raise ValueError(f"{odd[0]!r} is no class: they are whole numbers from 0 to {classes - 1}")
    return values.astype(np.int64)


def accuracy(predictions, labels):
    """The share of predictions that are right, between 0 and 1."""
    predictions, labels = _pair(predictions, labels)
    return float((predictions == labels).mean())


def confusion_matrix(predictions, labels, classes):
    """(K, K) counts: row = true class, column = predicted class.

    Raises:
        ValueError: a label or a prediction that is none of the classes 0 to K - 1.
    """
    predictions, labels = (_classes(side, classes) for side in _pair(predictions, labels))
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (labels, predictions), 1)
    return matrix


def macro_f1(predictions, labels, classes):
    """The F1 of each class, averaged: a rare class counts as much as a frequent one.

    F1 = 2TP / (2TP + FP + FN). A class that occurs neither in the labels nor in the predictions is left
    out of the mean; a class that occurs in only one of them has an F1 of 0.
    """
    matrix = confusion_matrix(predictions, labels, classes)
    right = np.diag(matrix)  # (K,)
    total = matrix.sum(axis=0) + matrix.sum(axis=1)  # (K,): 2TP + FP + FN
    present = total > 0
    return float((2 * right[present] / total[present]).mean())


def majority_share(labels):
    """The accuracy of always saying the most frequent class: what any model has to beat."""
    _, labels = _pair(labels, labels)
    return float(np.unique(labels, return_counts=True)[1].max() / labels.size)


def binary_f1(predictions, labels):
    """The F1 of class 1 (the paraphrases): 2TP / (2TP + FP + FN); 0 if nothing is one and nothing is said to be one."""
    matrix = confusion_matrix(predictions, labels, 2)
    total = matrix[1].sum() + matrix[:, 1].sum()  # 2TP + FP + FN
    return float(2 * matrix[1, 1] / total) if total else 0.0


def pearson(x, y):
    """Pearson's correlation r of two lists of numbers (N,), between -1 and 1.

    r = Σ (x - x̄)(y - ȳ) / √(Σ (x - x̄)² · Σ (y - ȳ)²), in float64. NaN if a side is constant: then there is no r.

    Raises:
        ValueError: different lengths, nothing at all, or something that is no number.
    """
    x, y = (np.asarray(side, dtype=np.float64) for side in _pair(x, y))
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("a correlation of something that is no number is not defined")
    if (x == x[0]).all() or (y == y[0]).all():
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    # Each side is scaled first, so that squares of very small or large numbers don't vanish or overflow.
    x, y = x / np.abs(x).max(), y / np.abs(y).max()
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))


def averages(sst, quora, sts):
    """The two averages of accuracy, accuracy and Pearson's r that the reports use.

    Returns:
        (sst + quora + sts) / 3, as in report S0's own tables; and (sst + quora + (sts + 1) / 2) / 3, as on the course's
        leaderboard and in S1 and S4.
    """
    return (sst + quora + sts) / 3, (sst + quora + (sts + 1) / 2) / 3
