"""Where the sentences and their labels come from.

A task is read from one of three sources:

``"builtin"``
    the small corpus that is shipped with the book; it needs no network.
a directory
    files in the course's format: ``ids-sst-train.csv``, ``ids-sst-dev.csv`` and so on.
``"hub"``
    the Hugging Face hub, through the ``datasets`` library.

The course's format is tab-separated text with a header. Its first column has an empty name (a row number), and a sentence
may begin with a space. So columns are found by name, never by position, and sentences are stripped. A field that contains a
double quote is itself quoted, and the quotes inside it are doubled, as in any CSV file.

A row that can't be read stops the run. To skip it would be kinder for a minute and worse for a week: the model would be
trained on other data than its record says. The error is one line: ``file:line: what is wrong: what to do``.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import hashlib
import importlib.resources
import io
import json
import math
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from minbert import hub

SPLITS = ("train", "dev", "test")


class DataError(ValueError):
    """The data can't be used. The message is one line: where, what is wrong, what to do."""

    def __init__(self, where, wrong, remedy):
        message = f"{where}: {wrong}: {remedy}"
        super().__init__(" ".join(message.split()))  # always one line, whatever a library put into it


# -- tasks ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """What a task's files look like, and what its labels mean."""

    name: str
    file: str  # the file's name, with {split} in it
    text_column: str
    label_column: str
    label_names: tuple[str, ...]  # label k is printed as label_names[k]
    hub: str | None = None  # the data set's name on the hub, if it is there

    @property
    def classes(self):
        return len(self.label_names)


TASKS = {
    "sst": Task(
        name="sst",
        file="ids-sst-{split}.csv",
        text_column="sentence",
        label_column="sentiment",
        label_names=("very negative", "negative", "neutral", "positive", "very positive"),
        hub="SetFit/sst5",
    ),
    "cfimdb": Task(
        name="cfimdb",
        file="ids-cfimdb-{split}.csv",
        text_column="sentence",
        label_column="sentiment",
        label_names=("negative", "positive"),
    ),
}

# Every file of the course's format that holds text, in the order in which it is read for pre-training.
TEXT_FILES = {
    "ids-sst-{split}.csv": ("sentence",),
    "ids-cfimdb-{split}.csv": ("sentence",),
    "quora-{split}.csv": ("sentence1", "sentence2"),
    "sts-{split}.csv": ("sentence1", "sentence2"),
    "squad-{split}-v2.0.json": ("context",),
}


@dataclass
class Dataset:
    """The examples of one split of one task, in the order of the file."""

    task: str
    split: str
    texts: list[str]
    labels: list[int]
    ids: list[str]
    source: str  # "builtin", "directory" or "hub"
    path: str  # the file that was read, or the data set's name on the hub
    sha256: str  # of the file's bytes; for the hub, of its rows
    classes: int
    label_names: tuple[str, ...]
    notes: list[str] = field(default_factory=list)  # what was done to the text on the way, for the log

    def __len__(self):
        return len(self.texts)


def find_task(name):
    """Return the Task called `name`.

    Raises:
        DataError: if there is none; it suggests the nearest name.
    """
    if name in TASKS:
        return TASKS[name]
    raise DataError(name, "no such task", f"{did_you_mean(name, TASKS)}the tasks are {', '.join(TASKS)}")


# -- sources ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A place that data comes from: its kind ("builtin", "directory" or "hub") and, unless it is the hub, its directory."""

    name: str
    directory: Path | None


def find_data(source):
    """Turn what the reader wrote after ``--data`` into a Source.

    Args:
        source: "builtin", "hub", the path of a directory, or a Source.

    Raises:
        DataError: if it is a path and no directory is there.
    """
    if isinstance(source, Source):
        return source
    if source == "hub":
        return Source("hub", None)
    if source == "builtin":
        directory = Path(str(importlib.resources.files("minbert"))) / "corpora"
        if not directory.is_dir():
            raise DataError("builtin", "the built-in data is not in the installed package", "install minbert again")
        return Source("builtin", directory)

    directory = Path(source).expanduser()
    if directory.is_dir():
        return Source("directory", directory)
    needed = ", ".join(task.file.format(split=split) for task in TASKS.values() for split in ("train", "dev"))
    if directory.exists():
        raise DataError(source, "this is a file, and a directory is needed", f"name the directory that holds {needed}")
    neighbours = _names(directory.parent, directories=True)
    hint = did_you_mean(str(source), ("builtin", "hub")) or did_you_mean(directory.name, neighbours)
    raise DataError(source, "no such directory", f"{hint}give builtin, hub, or a directory with {needed}")


def load_task(task, split, source="builtin"):
    """Read one split of a task.

    Args:
        task: "sst" or "cfimdb".
        split: "train", "dev" or "test".
        source: see `find_data`.

    Returns:
        A Dataset.

    Raises:
        DataError: if the data is missing, or any row of it is malformed.
    """
    spec = find_task(task)
    source = find_data(source)
    if source.name == "hub":
        return load_hub(spec.name, split)

    path = find_file(source, spec.file, split)
    table = read_table(path, (spec.text_column, spec.label_column), optional=("id",))
    texts, labels, ids, notes = [], [], [], list(table.notes)
    first_line = {}  # id -> the line on which it was first seen
    repeated = []
    stripped = 0
    for line, row in table.rows:
        where = f"{path}:{line}"
        text = row[spec.text_column].strip()
        stripped += text != row[spec.text_column]
        texts.append(_check_text(text, spec.text_column, where))
        labels.append(_check_label(row[spec.label_column], spec, where))
        name = row.get("id", str(len(ids)))
        if name in first_line:
            repeated.append(f"{name} on lines {first_line[name]} and {line}")
        first_line.setdefault(name, line)
        ids.append(name)
    if stripped:
        notes.append(f"{stripped:,} of {len(texts):,} sentences had spaces around them, which were stripped")
    if repeated:
        # Ids only name examples in lists of mistakes; training never looks at them. So a repeated one is worth a
        # word, as it may come from a file that was pasted together twice, but it is no reason to stop.
        notes.append(f"{len(repeated):,} ids are used twice ({repeated[0]}); every row was kept")
    return Dataset(spec.name, split, texts, labels, ids, source.name, str(path), table.sha256, spec.classes,
                   spec.label_names, notes)


WITHOUT_HUB = "go on without it by --data builtin, or by --data and a directory in the course's format"


def hub_rows(name, split, columns, part=None, data_files=None):
    """The rows of one split of a data set on the Hugging Face hub: a list of (where, row), where "name (split):row 7".

    Args:
        name: the data set's name on the hub; or, with `data_files`, the kind of local files, such as "json".
        split: "train", "dev" (called "validation" there) or "test".
        columns: those that must be there.
        part: the name of a part of the data set, such as "qqp" of GLUE.
        data_files: local files with the hub's columns, for the tests.

    Raises:
        DataError: if `datasets` is missing, the hub can't be reached, the data set is empty, or a column is missing.
    """
    if split not in SPLITS:
        raise DataError("hub", f"no split {split}", f"{did_you_mean(split, SPLITS)}the splits are {', '.join(SPLITS)}")
    try:
        import datasets
    except ImportError:
        raise DataError("hub", "the datasets library is not installed",
                        f"pip install datasets, or {WITHOUT_HUB}") from None

    hub_split = "validation" if split == "dev" else split
    try:
        with contextlib.nullcontext() if data_files or hub.reachable() else hub.cache_only():
            rows = datasets.load_dataset(name, part, data_files=data_files, split=hub_split)
    except Exception as error:  # the library raises many kinds, from its own to those of the network
        reason = str(error).split("\n")[0]
        raise DataError("hub", f"{name} could not be loaded ({type(error).__name__}: {reason})", WITHOUT_HUB) from error

    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise DataError(name, f"no column {' or '.join(missing)}, only {', '.join(rows.column_names)}", WITHOUT_HUB)
    if len(rows) == 0:
        raise DataError(f"{name} ({hub_split})", "the data set is empty", WITHOUT_HUB)
    return [(f"{name} ({hub_split}):row {number}", row) for number, row in enumerate(rows, start=1)]


def load_hub(task, split, path=None, data_files=None):
    """Read one split of a task from the Hugging Face hub.

    Args:
        task: the task's name.
        split: "train", "dev" (called "validation" there) or "test".
        path, data_files: handed to ``datasets.load_dataset`` in place of the task's name on the hub. The tests use them to
            read local files with the hub's columns: ``text``, ``label`` and ``label_text``.

    Returns:
        A Dataset. Its sha256 is that of the rows (one ``label<TAB>text<NEWLINE>`` each), as there is no single file.

    Raises:
        DataError: if `datasets` is missing, the hub can't be reached, or a row is malformed.
    """
    spec = find_task(task)
    if path is None and spec.hub is None:
        raise DataError("hub", f"the task {task} is not on the hub", f"use --data and a directory with "
                        f"{spec.file.format(split=split)}")
    name = spec.hub if path is None else path
    texts, labels = [], []
    digest = hashlib.sha256()
    stripped = 0
    for where, row in hub_rows(name, split, ("text", "label"), data_files=data_files):
        text = (row["text"] or "").strip()
        stripped += text != row["text"]
        texts.append(_check_text(text, "text", where))
        labels.append(_check_label(row["label"], spec, where))
        # The hub's classes could be in another order than ours. The rows say what they mean: compare.
        said = row.get("label_text")
        if said is not None and said != spec.label_names[labels[-1]]:
            raise DataError(where, f"label {labels[-1]} means {said!r} there and {spec.label_names[labels[-1]]!r} here",
                            WITHOUT_HUB)
        digest.update(f"{labels[-1]}\t{text}\n".encode())
    notes = [f"{stripped:,} of {len(texts):,} sentences had spaces around them, which were stripped"] if stripped else []
    return Dataset(spec.name, split, texts, labels, [str(i) for i in range(len(texts))], "hub", name, digest.hexdigest(),
                   spec.classes, spec.label_names, notes)


# -- the course's format ----------------------------------------------------------------------------------------------


@dataclass
class Table:
    """The wanted columns of a tab-separated file."""

    rows: list[tuple[int, dict[str, str]]]  # (line on which the row starts, column name -> field)
    sha256: str
    notes: list[str]


def read_table(path, columns, optional=()):
    """Read the named columns of a tab-separated file with a header.

    Args:
        path: the file.
        columns: names of the columns that must be there.
        optional: names of columns that are read if they are there.

    Returns:
        A Table. Fields are as in the file, not stripped. Blank lines are left out and counted in the notes.

    Raises:
        DataError: with file and line, if the file is missing, empty or not UTF-8, or if a column or a field is missing.
    """
    content, digest = _read_bytes(path)
    reader = csv.reader(io.StringIO(_decode(content, path), newline=""), delimiter="\t", strict=True)
    header = None
    rows, blank = [], 0
    while True:
        line = reader.line_num + 1  # a quoted field may span lines: a row is known by the line on which it starts
        try:
            fields = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if "limit" in str(error):
                raise DataError(f"{path}:{line}", f"a field is longer than {csv.field_size_limit():,} characters",
                                "if a double quote is opened there and not closed, close it, or double it; "
                                "otherwise shorten the field") from None
            raise DataError(f"{path}:{line}", f"the quotes of this row don't match ({error})", "put a field that contains "
                            "a double quote between double quotes, and double the quotes inside it") from None
        if not fields:
            blank += 1
        elif header is None:
            header = fields
            _check_header(header, columns, f"{path}:{line}")
        else:
            _check_fields(fields, header, f"{path}:{line}")
            row = dict(zip(header, fields))
            rows.append((line, {name: row[name] for name in (*columns, *optional) if name in row}))
    if header is None:
        raise DataError(f"{path}:1", "the file is empty", f"a header with the columns {', '.join(columns)} and one row an "
                        "example are needed")
    if not rows:
        raise DataError(f"{path}:{reader.line_num}", "there is no row after the header", "add one row an example, or name "
                        "another directory")
    return Table(rows, digest, [f"{blank:,} blank lines were left out"] if blank else [])


def _read_bytes(path):
    """Return a file's bytes and their SHA-256."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DataError(path, f"the file can't be read ({error.strerror})", "check its name, its permissions "
                        "and the disk") from None
    return content, hashlib.sha256(content).hexdigest()


def _decode(content, path):
    """Decode UTF-8, with or without a byte-order mark."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}", f"the byte 0x{content[error.start]:02x} is not UTF-8", "save the file with the "
                        "encoding UTF-8") from None


def _check_header(header, columns, where):
    wrong = [name for name in columns if header.count(name) != 1]
    if not wrong:
        return
    found = ", ".join(name or "(no name)" for name in header)
    problem = "is there twice" if wrong[0] in header else "is missing"
    remedy = "the header must name each column once, with tabs in between"
    if len(header) == 1:
        remedy = "the header has a single column: is the file really separated by tabs?"
    raise DataError(where, f"the column {wrong[0]} {problem}; the columns are {found}", remedy)


def _check_fields(fields, header, where):
    if len(fields) < len(header):
        raise DataError(where, f"too few fields: {len(fields)}, and the header has {len(header)}",
                        "add the missing field, or the tab before it")
    if len(fields) > len(header):
        raise DataError(where, f"too many fields: {len(fields)}, and the header has {len(header)}",
                        "put a sentence that contains a tab between double quotes")
    for value in fields:
        # A quote that was never closed can end, by chance, at a quote many rows further on. Then one field holds whole
        # rows, tabs and line ends included, and those examples would be lost without a word.
        if "\t" in value and "\n" in value:
            raise DataError(where, f"one field holds {value.count(chr(10)) + 1} lines with tabs in them", "a double quote is "
                            "opened on this line and not closed: close it, or double it")


def _check_text(text, column, where):
    if not text:
        raise DataError(where, f"the {column} is empty", "write a sentence, or remove the row")
    return text


def _check_label(value, task, where):
    """Return the label as an int. "3" and "3.0" are both 3: some files of the course write whole numbers as floats."""
    meaning = f"labels are whole numbers from 0 ({task.label_names[0]}) to {task.classes - 1} ({task.label_names[-1]})"
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DataError(where, f"the label {value!r} is not a number", meaning) from None
    if not number.is_integer():  # also true of nan and of the infinities
        raise DataError(where, f"the label {value!r} is not a whole number", meaning)
    if not 0 <= number < task.classes:
        raise DataError(where, f"the label {value!r} is out of range", meaning)
    return int(number)


def find_file(source, pattern, split):
    """Return the path of a split's file in a source's directory.

    pattern: its name with "{split}" in it.  Raises DataError, which says what there is instead.
    """
    path = source.directory / pattern.format(split=split)
    if path.is_file():
        return path
    if path.exists():
        raise DataError(path, "this is a directory, and a file is needed", "put the file in its place")
    family = re.compile(re.escape(pattern).replace(r"\{split\}", r"(.+)") + "$")
    present = _names(source.directory)
    others = [name for name in present if family.match(name)]
    if others:
        raise DataError(path, "no such file", f"of this task there is {', '.join(others)}")
    if source.name == "builtin":
        raise DataError(path.name, "the built-in data has no such file", "name a directory that holds it by --data")
    hint = did_you_mean(path.name, present)
    raise DataError(path, "no such file", f"{hint}put it there, name another directory, or use --data builtin")


def _names(directory, directories=False):
    """Return the sorted names of a directory's files, or of its directories; none if it can't be listed."""
    try:
        return sorted(entry.name for entry in os.scandir(directory) if entry.is_dir() == directories)
    except OSError:
        return []


def did_you_mean(name, candidates):
    """Return "did you mean …? " for the candidate most like `name`, or an empty string."""
    close = difflib.get_close_matches(str(name), list(candidates), n=1)
    return f"did you mean {close[0]}? " if close else ""


# -- text for pre-training --------------------------------------------------------------------------------------------


@dataclass
class Texts:
    """Plain text with no labels, and where it came from."""

    texts: list[str]
    files: list[dict]  # file (name), texts (in the file), new (not seen in an earlier file or row), sha256


def load_texts(source="builtin", split="train", words=60):
    """Read every sentence of a split, whatever its task, for masked-language-model pre-training.

    The files are those of the course's format that the directory holds: SST, CFIMDB, both sides of Quora and of STS, and
    SQuAD's contexts. A long text is split into passages at the ends of sentences, because a small model reads short inputs
    and what lies beyond its limit would never be seen. A text that occurs again is left out.

    Args:
        source: "builtin" or a directory.
        split: "train" or "dev".
        words: the most words in a passage, unless a single sentence has more.

    Returns:
        Texts, in the order of the files and of their rows.

    Raises:
        DataError: if a file is malformed, or the source holds none of them.
    """
    source = find_data(source)
    if source.name == "hub":
        raise DataError("hub", "text for pre-training is read from files", "use --data builtin, or --data and a directory")
    seen = {}  # a dict keeps the order of insertion, a set does not
    files = []
    for pattern, columns in TEXT_FILES.items():
        path = source.directory / pattern.format(split=split)
        if not path.is_file():
            continue
        found, digest = _read_texts(path, columns)
        pieces = [piece for text in found for piece in passages(text, words)]
        before = len(seen)
        seen.update(dict.fromkeys(pieces))
        files.append({"file": path.name, "texts": len(pieces), "new": len(seen) - before, "sha256": digest})
    if not files:
        wanted = ", ".join(pattern.format(split=split) for pattern in TEXT_FILES)
        raise DataError(source.directory, f"no text for the split {split}", f"one of these files is needed: {wanted}")
    return Texts(list(seen), files)


def passages(text, words=60):
    """Split a text at the ends of its sentences into passages of at most `words` words.

    A sentence that is longer than that is a passage of its own. A text that is short enough is returned as it is.
    """
    if len(text.split()) <= words:
        return [text]
    result, passage, length = [], [], 0
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        count = len(sentence.split())
        if passage and length + count > words:
            result.append(" ".join(passage))
            passage, length = [], 0
        passage.append(sentence)
        length += count
    result.append(" ".join(passage))
    return result


def _read_texts(path, columns):
    """Return the texts of one file and the SHA-256 of its bytes."""
    if path.suffix == ".json":
        return _read_squad_contexts(path)
    table = read_table(path, columns)
    texts = [_check_text(row[name].strip(), name, f"{path}:{line}") for line, row in table.rows for name in columns]
    return texts, table.sha256


def _read_squad_contexts(path):
    """Return the paragraphs of a SQuAD file; its form is articles that hold paragraphs that hold a context."""
    content, digest = _read_bytes(path)
    try:
        articles = json.loads(_decode(content, path))["data"]
        texts = [paragraph["context"].strip() for article in articles for paragraph in article["paragraphs"]]
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}", f"this is not JSON ({error.msg})", "get the file again") from None
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(path, f"this is JSON, but not SQuAD's ({type(error).__name__}: {error})",
                        "data → paragraphs → context is expected") from None
    if not texts:
        raise DataError(path, "there is no paragraph in this file", "get the file again")
    return [_check_text(text, "context", path) for text in texts], digest


# -- what there is ----------------------------------------------------------------------------------------------------


def data_summary(source="builtin"):
    """Describe every file of the course's format that a source holds. Needs neither torch nor a tokenizer.

    Returns:
        One dict a file: file, task (None if no labels are read), split, rows, texts, counts (examples of each class, None if
        no labels are read), majority (the share of the most frequent class: the score of a model that always answers it),
        words (mean, p50 and p95 words a text, split at spaces), sha256, notes.

    Raises:
        DataError: if a file is malformed, or the source holds none.
    """
    source = find_data(source)
    if source.name == "hub":
        raise DataError("hub", "only files can be summarised without a download", "name builtin or a directory")
    tasks = {task.file: task for task in TASKS.values()}
    summary = []
    for pattern, columns in TEXT_FILES.items():
        for split in SPLITS:
            path = source.directory / pattern.format(split=split)
            if not path.is_file():
                continue
            entry = {"file": path.name, "task": None, "split": split, "counts": None, "majority": None, "notes": []}
            if pattern in tasks:
                dataset = load_task(tasks[pattern].name, split, source)
                texts, digest = dataset.texts, dataset.sha256
                seen = Counter(dataset.labels)
                counts = {name: seen[k] for k, name in enumerate(dataset.label_names)}
                entry.update(task=dataset.task, counts=counts, majority=max(counts.values()) / len(dataset),
                             notes=dataset.notes)
            else:
                texts, digest = _read_texts(path, columns)
            entry.update(rows=len(texts) // len(columns), texts=len(texts), words=_word_counts(texts), sha256=digest)
            summary.append(entry)
    if not summary:
        raise DataError(source.directory, "there is no file in the course's format here",
                        "one of these is needed: " + ", ".join(p.format(split="train") for p in TEXT_FILES))
    return summary


def _word_counts(texts):
    """Return the mean, median and 95th percentile of the words a text has (nearest rank)."""
    counts = sorted(len(text.split()) for text in texts)


    def rank(share):
        return counts[max(math.ceil(share * len(counts)) - 1, 0)]

    return {"mean": sum(counts) / len(counts), "p50": rank(0.5), "p95": rank(0.95)}


def summary_table(summary):
    """Lay the result of `data_summary` out as text, one line a file, with the classes below the files that have them."""
    lines = [f"{'file':<26} {'rows':>7} {'majority':>8} {'words: mean':>11} {'p50':>4} {'p95':>4}  sha256"]
    for entry in summary:
        majority = "–" if entry["majority"] is None else f"{entry['majority']:.3f}"
        words = entry["words"]
        lines.append(f"{entry['file']:<26} {entry['rows']:>7,} {majority:>8} {words['mean']:>11.1f} {words['p50']:>4} "
                     f"{words['p95']:>4}  {entry['sha256'][:12]}")
        if entry["counts"]:
            lines.append("    " + ", ".join(f"{name} {count:,}" for name, count in entry["counts"].items()))
        lines.extend(f"    {note}" for note in entry["notes"])
    return "\n".join(lines)
