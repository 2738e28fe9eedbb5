"""Sentence pairs and questions: the files of Quora, STS and SQuAD in the course's format.

Like data.py, a row that can't be read stops the run with one line: ``file:line: what is wrong: what to do``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass, field

from minbert.run.data import DataError, did_you_mean, find_data, find_file, read_table
from minbert.squad import Question


@dataclass(frozen=True)
class PairTask:
    """What a pair task's files look like, and the range of its labels."""

    name: str
    file: str
    label_column: str
    highest: float
    whole: bool                    # only whole numbers are labels
    meaning: str
    kind: str                      # as in `minbert.pairs.OBJECTIVES`


PAIR_TASKS = {
    "quora": PairTask("quora", "quora-{split}.csv", "is_duplicate", 1, True, "0 (different) or 1 (the same question)",
                      "paraphrase"),
    "sts": PairTask("sts", "sts-{split}.csv", "similarity", 5, False, "numbers from 0 (unrelated) to 5 (the same meaning)",
                    "similarity"),
}


@dataclass
class PairDataset:
    """The pairs of one split, in the order of the file."""

    task: str
    split: str
    first: list[str]
    second: list[str]
    labels: list[float]
    ids: list[str]
    source: str
    path: str
    sha256: str                    # of the whole file, also when only a part of it is used
    notes: list[str] = field(default_factory=list)

    def __len__(self):
        return len(self.labels)


def load_pairs(task, split, source="builtin", limit=0):
    """Read one split of a pair task.

    Args:
        task: "quora" or "sts".
        split: "train", "dev" or "test".
        source: see `minbert.run.data.find_data`; the hub is not among them.
        limit: keep only so many pairs, chosen by the hash of their sentences, so that every run keeps the same; 0: all.

    Returns:
        a PairDataset.  Repeated pairs are kept and counted in its notes.

    Raises:
        DataError: the data is missing, or any row of it is malformed.
    """
    if task not in PAIR_TASKS:
        raise DataError(task, "no such pair task", f"{did_you_mean(task, PAIR_TASKS)}there are {', '.join(PAIR_TASKS)}")
    spec, source = PAIR_TASKS[task], find_data(source)
    if source.directory is None:
        raise DataError("hub", f"the task {task} is not read from the hub", "use --data builtin, or --data and a directory "
                        f"with {spec.file.format(split=split)}")
    path = find_file(source, spec.file, split)
    table = read_table(path, ("sentence1", "sentence2", spec.label_column), optional=("id",))
    rows = []
    for line, row in table.rows:
        where = f"{path}:{line}"
        sides = [row[column].strip() for column in ("sentence1", "sentence2")]
        for column, text in zip(("sentence1", "sentence2"), sides):
            if not text:
                raise DataError(where, f"{column} is empty", "write both sentences, or remove the row")
        rows.append((*sides, pair_label(row[spec.label_column], spec, where), row.get("id", str(len(rows)))))
    notes = list(table.notes)
    repeated = sum(count - 1 for count in Counter(row[:2] for row in rows).values())
    if repeated:
        notes.append(f"{repeated:,} of {len(rows):,} pairs are there more than once; every row was kept")
    if 0 < limit < len(rows):
        ranked = sorted(range(len(rows)), key=lambda i: hashlib.sha256("\t".join(rows[i][:2]).encode()).digest())
        notes.append(f"{limit:,} of {len(rows):,} pairs are used")
        rows = [rows[i] for i in sorted(ranked[:limit])]
    first, second, labels, ids = (list(column) for column in zip(*rows))
    return PairDataset(task, split, first, second, labels, ids, source.name, str(path), table.sha256, notes)


def pair_label(value, spec, where):
    """The label as a float.  Raises DataError when it is no number, or out of the task's range."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DataError(where, f"the label {value!r} is not a number", f"labels are {spec.meaning}") from None
    if math.isnan(number) or not 0 <= number <= spec.highest or (spec.whole and not number.is_integer()):
        raise DataError(where, f"the label {value!r} is out of range", f"labels are {spec.meaning}")
    return number


@dataclass
class Questions:
    """The questions of one SQuAD file, in the order of the file."""

    questions: list[Question]
    path: str
    sha256: str


def load_squad(split, source="builtin"):
    """Read `squad-{split}-v2.0.json`.

    Args:
        split: "train", "dev" or "test".
        source: see `minbert.run.data.find_data`; the hub is not among them.

    Raises:
        DataError: missing file, malformed JSON (with the line), a question without text, an id used twice, an answer that
            is not at its place in the passage (with the question's id).
    """
    source = find_data(source)
    if source.directory is None:
        raise DataError("hub", "SQuAD is not read from the hub", "use --data builtin, or --data and a directory with "
                        f"squad-{split}-v2.0.json")
    return read_squad(find_file(source, "squad-{split}-v2.0.json", split))


def read_squad(path):
    """The questions of a file in SQuAD 2.0's format, see `load_squad`."""
    try:
        with open(path, "rb") as file:
            content = file.read()
        tree = json.loads(content.decode("utf-8-sig"))
    except OSError as error:
        raise DataError(path, f"the file can't be read ({error.strerror})", "check its name and its permissions") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}", f"the byte 0x{content[error.start]:02x} is not UTF-8", "save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}", f"malformed JSON ({error.msg}, column {error.colno})",
                        "mend it there, or fetch the file again") from None
    questions, seen = [], set()
    try:
        for article in tree["data"]:
            for paragraph in article["paragraphs"]:
                context = paragraph["context"]
                for asked in paragraph["qas"]:
                    questions.append(_question(asked, context, path, seen))
    except (KeyError, TypeError) as error:
        raise DataError(path, f"this is not SQuAD's format ({type(error).__name__} {error}, after {len(questions)} "
                        "questions)", "data → paragraphs → context and qas (id, question, answers) is needed") from None
    if not questions:
        raise DataError(path, "there is no question in it", "name another directory, or add some")
    return Questions(questions, str(path), hashlib.sha256(content).hexdigest())


def _question(asked, context, path, seen):
    name = str(asked["id"])
    where = f"{path}: question {name}"
    if name in seen:
        raise DataError(where, "this id is used twice", "give each question an id of its own")
    seen.add(name)
    if not asked["question"].strip():
        raise DataError(where, "it has no text", "write it, or remove the question")
    answers = tuple((answer["text"], answer["answer_start"]) for answer in asked["answers"])
    if asked.get("is_impossible", not answers) == bool(answers):
        raise DataError(where, "is_impossible says one thing and its answers another", "mend one of the two")
    for text, begin in answers:
        if not text or context[begin : begin + len(text)] != text:
            raise DataError(where, f"the answer {text!r} is not at character {begin}, where "
                            f"{context[begin:begin + max(1, len(text))]!r} stands", "mend answer_start")
    return Question(name, asked["question"].strip(), context, answers)
