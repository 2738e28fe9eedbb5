"""Sentence pairs and questions: the files of Quora, STS and SQuAD in the course's format.

Like data.py, a row that can't be read stops the run with one line: ``file:line: what is wrong: what to do``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass, field

from minbert.run.data import DataError, did_you_mean, find_data, find_file, hub_rows, read_table
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
    hub: tuple[str, ...]           # on the hub: the part of GLUE, and its columns for the two sentences


PAIR_TASKS = {
    "quora": PairTask("quora", "quora-{split}.csv", "is_duplicate", 1, True, "0 (different) or 1 (the same question)",
                      "paraphrase", ("qqp", "question1", "question2")),
    "sts": PairTask("sts", "sts-{split}.csv", "similarity", 5, False, "numbers from 0 (unrelated) to 5 (the same meaning)",
                    "similarity", ("stsb", "sentence1", "sentence2")),
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


GLUE = "nyu-mll/glue"
SQUAD = "rajpurkar/squad_v2"


def load_pairs(task, split, source="builtin", limit=0, hub_files=None):
    """Read one split of a pair task.

    Args:
        task: "quora" or "sts".
        split: "train", "dev" or "test".
        source: see `minbert.run.data.find_data`. On the hub it is GLUE's: QQP and STS-B.
        limit: keep only so many pairs, chosen by the hash of their sentences, so that every run keeps the same; 0: all.
        hub_files: with source "hub", JSON files with the hub's columns in place of the hub, as `datasets` names them: for
            the tests.

    Returns:
        a PairDataset.  Repeated pairs are kept and counted in its notes.

    Raises:
        DataError: the data is missing, or any row of it is malformed.
    """
    if task not in PAIR_TASKS:
        raise DataError(task, "no such pair task", f"{did_you_mean(task, PAIR_TASKS)}there are {', '.join(PAIR_TASKS)}")
    spec, source = PAIR_TASKS[task], find_data(source)
    if source.name == "hub":
        part, *columns = spec.hub
        path, digest, notes, name, label = f"{GLUE} {part}", None, [], "idx", "label"
        found = hub_rows("json" if hub_files else GLUE, split, (*columns, label), None if hub_files else part, hub_files)
    else:
        path, columns, name, label = find_file(source, spec.file, split), ["sentence1", "sentence2"], "id", spec.label_column
        table = read_table(path, (*columns, label), optional=(name,))
        digest, notes = table.sha256, list(table.notes)
        found = [(f"{path}:{line}", row) for line, row in table.rows]
    rows = []
    for where, row in found:
        sides = [(row[column] or "").strip() for column in columns]
        for column, text in zip(columns, sides):
            if not text:
                raise DataError(where, f"{column} is empty", "write both sentences, or remove the row")
        rows.append((*sides, pair_label(row[label], spec, where), str(row.get(name, len(rows)))))
    if digest is None:                               # there is no single file on the hub: the hash is that of the rows
        digest = hashlib.sha256("".join(f"{c}\t{a}\t{b}\n" for a, b, c, _ in rows).encode()).hexdigest()
    repeated = sum(count - 1 for count in Counter(row[:2] for row in rows).values())
    if repeated:
        notes.append(f"{repeated:,} of {len(rows):,} pairs are there more than once; every row was kept")
    if 0 < limit < len(rows):
        ranked = sorted(range(len(rows)), key=lambda i: hashlib.sha256("\t".join(rows[i][:2]).encode()).digest())
        notes.append(f"{limit:,} of {len(rows):,} pairs are used")
        rows = [rows[i] for i in sorted(ranked[:limit])]
    first, second, labels, ids = (list(column) for column in zip(*rows))
    return PairDataset(task, split, first, second, labels, ids, source.name, str(path), digest, notes)


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


def load_squad(split, source="builtin", hub_files=None):
    """Read `squad-{split}-v2.0.json`.

    Args:
        split: "train", "dev" or "test".
        source: see `minbert.run.data.find_data`.
        hub_files: as in `load_pairs`.

    Raises:
        DataError: missing file, malformed JSON (with the line), a question without text, an id used twice, an answer that
            is not at its place in the passage (with the question's id).
    """
    source = find_data(source)
    if source.name == "hub":
        rows = hub_rows("json" if hub_files else SQUAD, split, ("id", "question", "context", "answers"),
                        data_files=hub_files)
        seen, questions, digest = set(), [], hashlib.sha256()
        for _, row in rows:
            places = zip(row["answers"]["text"], row["answers"]["answer_start"])
            asked = {"id": row["id"], "question": row["question"] or "",
                     "answers": [{"text": text, "answer_start": begin} for text, begin in places]}
            questions.append(_question(asked, row["context"], SQUAD, seen))
            digest.update(json.dumps([asked, row["context"]], sort_keys=True).encode())
        return Questions(questions, SQUAD, digest.hexdigest())
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
    except (AttributeError, KeyError, TypeError) as error:
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
        # (A negative place would be counted from the passage's end.)
        if not text or begin < 0 or context[begin : begin + len(text)] != text:
            raise DataError(where, f"the answer {text!r} is not at character {begin}, where "
                            f"{context[begin:begin + max(1, len(text))]!r} stands", "mend answer_start")
    return Question(name, asked["question"].strip(), context, answers)
