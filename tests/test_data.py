"""The data: each kind of malformed row is reported with its file and line, and nothing is lost in silence."""

import hashlib
import json
import shutil
import subprocess
import sys

import pytest

from minbert.run import data
from minbert.run.data import DataError, data_summary, find_data, load_hub, load_task, load_texts, passages, read_table

HEADER = "\tid\tsentence\tsentiment"
GOOD = ["0\ta1\t A fine film .\t3", "1\ta2\tA dull one .\t1.0", '2\ta3\t"He said ""no"" ."\t0']


@pytest.fixture
def write(tmp_path):
    """Return a function that writes the lines of a file and returns its path."""

    def write_file(*lines, name="ids-sst-dev.csv", end="\n"):
        path = tmp_path / name
        path.write_bytes(end.join([*lines, ""]).encode())
        return path

    return write_file


def error(path, task="sst", split="dev"):
    """Load the file's directory and return the message of the error it must raise."""
    with pytest.raises(DataError) as caught:
        load_task(task, split, path.parent)
    message = str(caught.value)
    assert "\n" not in message
    assert "Traceback" not in message
    return message


# -- a file that is right --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_courses_format(write, end):
    path = write(HEADER, *GOOD, end=end)
    dataset = load_task("sst", "dev", path.parent)
    assert dataset.texts == ["A fine film .", "A dull one .", 'He said "no" .']
    assert dataset.labels == [3, 1, 0] and all(type(label) is int for label in dataset.labels)
    assert dataset.ids == ["a1", "a2", "a3"]
    assert (dataset.source, dataset.path, dataset.classes, len(dataset)) == ("directory", str(path), 5, 3)
    assert dataset.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert dataset.label_names[0] == "very negative" and dataset.label_names[4] == "very positive"
    assert dataset.notes == ["1 of 3 sentences had spaces around them, which were stripped"]


def test_columns_are_read_by_name(write):
    path = write("sentiment\tsentence", "4\tGood .", "0\tBad .")
    dataset = load_task("sst", "dev", path.parent)
    assert (dataset.texts, dataset.labels, dataset.ids) == (["Good .", "Bad ."], [4, 0], ["0", "1"])


def test_a_byte_order_mark_and_blank_lines_do_no_harm(write):
    path = write("\ufeffid\tsentence\tsentiment", "", "a\tGood .\t4", "", "b\tBad .\t0", "")
    dataset = load_task("sst", "dev", path.parent)
    assert dataset.ids == ["a", "b"]
    assert dataset.notes == ["3 blank lines were left out"]


def test_a_quoted_sentence_may_span_lines_and_later_rows_keep_their_line_number(write):
    path = write(HEADER, '0\ta\t"One .\nTwo ."\t4', "1\tb\tThree .\t0")
    assert load_task("sst", "dev", path.parent).texts == ["One .\nTwo .", "Three ."]
    path = write(HEADER, '0\ta\t"One .\nTwo ."\t4', "1\tb\tThree .\t9")
    assert error(path).startswith(f"{path}:4: ")


def test_a_very_long_sentence_is_read_whole(write):
    path = write(HEADER, f"0\ta\t{'word ' * 10_000}\t4")
    assert len(load_task("sst", "dev", path.parent).texts[0].split()) == 10_000


def test_a_repeated_id_is_kept_and_told(write):
    path = write(HEADER, "0\tsame\tGood .\t4", "1\tother\tFair .\t2", "2\tsame\tBad .\t0")
    dataset = load_task("sst", "dev", path.parent)
    assert len(dataset) == 3
    assert dataset.notes == ["1 ids are used twice (same on lines 2 and 4); every row was kept"]


# -- files that are wrong --------------------------------------------------------------------------------------------

WRONG = {
    # what is wrong: (lines, line that is named, what the message says, what it advises)
    "missing column": (["\tid\ttext\tsentiment", *GOOD], 1, "the column sentence is missing; the columns are (no name), id, "
                       "text, sentiment", "the header must name each column"),
    "column twice": (["sentence\tsentence\tsentiment", "a\tb\t1"], 1, "the column sentence is there twice", "once"),
    "commas": ([",id,sentence,sentiment", "0,a,Good .,4"], 1, "the column sentence is missing", "separated by tabs?"),
    "no header": (GOOD, 1, "the column sentence is missing", "the header must name each column"),
    "too few fields": ([HEADER, *GOOD, "3\ta4\tA film ."], 5, "too few fields: 3, and the header has 4", "add the missing"),
    "too many fields": ([HEADER, "0\ta1\tA\tfilm .\t1"], 2, "too many fields: 5, and the header has 4", "double quotes"),
    "label out of range": ([HEADER, *GOOD, "3\ta4\tA film .\t5"], 5, "the label '5' is out of range", "from 0 (very negative) "
                           "to 4 (very positive)"),
    "label below zero": ([HEADER, "0\ta\tA film .\t-1"], 2, "the label '-1' is out of range", "from 0"),
    "label a word": ([HEADER, "0\ta\tA film .\tpositive"], 2, "the label 'positive' is not a number", "whole numbers"),
    "label missing": ([HEADER, "0\ta\tA film .\t"], 2, "the label '' is not a number", "whole numbers"),
    "label a fraction": ([HEADER, "0\ta\tA film .\t2.5"], 2, "the label '2.5' is not a whole number", "whole numbers"),
    "label nan": ([HEADER, "0\ta\tA film .\tnan"], 2, "the label 'nan' is not a whole number", "whole numbers"),
    "label infinite": ([HEADER, "0\ta\tA film .\tinf"], 2, "the label 'inf' is not a whole number", "whole numbers"),
    "empty sentence": ([HEADER, *GOOD, "3\ta4\t\t2"], 5, "the sentence is empty", "write a sentence, or remove the row"),
    "only spaces": ([HEADER, "0\ta\t   \t2"], 2, "the sentence is empty", "write a sentence, or remove the row"),
    "quote not closed": ([HEADER, '0\ta\t"A film .\t2', "1\tb\tAnother .\t3"], 2, "the quotes of this row don't match",
                         "double the quotes"),
    "quote inside": ([HEADER, "0\ta\tA film .\t2", '1\tb\t"Wow" is all .\t4'], 3, "the quotes of this row don't match",
                     "double the quotes"),
    "quote closed rows later": ([HEADER, '0\ta\t"A film .\t2', "1\tb\tAnother .\t3", '2\tc\tA third"\t1'], 2,
                                "one field holds 3 lines with tabs in them", "close it, or double it"),
    "only a header": ([HEADER], 1, "there is no row after the header", "add one row"),
}


@pytest.mark.parametrize("name", WRONG)
def test_malformed(write, name):
    lines, line, wrong, remedy = WRONG[name]
    path = write(*lines)
    message = error(path)
    assert message.startswith(f"{path}:{line}: {wrong}")
    assert remedy in message.removeprefix(f"{path}:{line}: ").split(": ", 1)[1]


def test_the_good_rows_of_the_table_above_are_good(write):
    """Or every case of WRONG could fail for a reason of its own."""
    assert len(load_task("sst", "dev", write(HEADER, *GOOD).parent)) == 3


def test_an_empty_file(write):
    path = write(HEADER)
    path.write_bytes(b"")
    assert error(path).startswith(f"{path}:1: the file is empty: a header")
    path.write_bytes(b"\n\n")
    assert error(path).startswith(f"{path}:1: the file is empty: a header")


def test_bytes_that_are_not_utf8(write):
    path = write(HEADER, *GOOD)
    path.write_bytes(path.read_bytes() + "3\ta4\tUn café .\t2\n".encode("latin-1"))
    assert error(path) == f"{path}:5: the byte 0xe9 is not UTF-8: save the file with the encoding UTF-8"


def test_the_same_label_is_right_for_one_task_and_wrong_for_another(write):
    path = write(HEADER, "0\ta\tA film .\t2", name="ids-cfimdb-dev.csv")
    assert "the label '2' is out of range: labels are whole numbers from 0 (negative) to 1 (positive)" in error(path, "cfimdb")


# -- missing things --------------------------------------------------------------------------------------------------


def test_missing_file_of_a_task_names_what_there_is(write):
    path = write(HEADER, *GOOD)
    with pytest.raises(DataError, match="ids-sst-train.csv: no such file: of this task there is ids-sst-dev.csv$"):
        load_task("sst", "train", path.parent)
    with pytest.raises(DataError, match="ids-sst-dve.csv: no such file: of this task there is ids-sst-dev.csv$"):
        load_task("sst", "dve", path.parent)


def test_missing_file_with_a_name_that_is_nearly_right(write):
    path = write(HEADER, *GOOD, name="ids-sst_dev.csv")
    with pytest.raises(DataError, match=r"ids-sst-dev.csv: no such file: did you mean ids-sst_dev.csv\? "):
        load_task("sst", "dev", path.parent)


def test_missing_directory(tmp_path):
    (tmp_path / "films").mkdir()
    with pytest.raises(DataError, match=r"no such directory: did you mean films\? give builtin, hub, or a directory with "
                                        r"ids-sst-train.csv, ids-sst-dev.csv, "):
        find_data(tmp_path / "flims")
    with pytest.raises(DataError, match=r"^bulitin: no such directory: did you mean builtin\? "):
        find_data("bulitin")


def test_a_file_in_place_of_a_directory(write):
    with pytest.raises(DataError, match="this is a file, and a directory is needed: "):
        find_data(write(HEADER, *GOOD))


def test_unknown_task():
    with pytest.raises(DataError, match=r"^ssst: no such task: did you mean sst\? the tasks are sst, cfimdb$"):
        load_task("ssst", "dev", "builtin")


def test_a_file_that_can_not_be_read(tmp_path):
    with pytest.raises(DataError, match="the file can't be read"):
        read_table(tmp_path, ("sentence",))  # a directory: the system refuses, whoever runs the test


# -- built in --------------------------------------------------------------------------------------------------------


def test_built_in():
    train, dev = load_task("sst", "train", "builtin"), load_task("sst", "dev", "builtin")
    assert len(train) > len(dev) >= 100
    assert set(train.labels) == set(dev.labels) == {0, 1, 2, 3, 4}
    assert not set(train.texts) & set(dev.texts)
    assert train.source == "builtin" and not train.notes
    with pytest.raises(DataError, match="^ids-cfimdb-train.csv: the built-in data has no such file: name a directory that holds it by --data$"):
        load_task("cfimdb", "train", "builtin")


# -- the hub, by local files with its columns ------------------------------------------------------------------------

HUB_ROWS = [("A fine film .", 3, "positive"), (" A dull one . ", 1, "negative"), ("It is a film .", 2, "neutral")]


def hub_file(tmp_path, rows, name="dev.jsonl", columns=("text", "label", "label_text")):
    path = tmp_path / name
    if name.endswith(".csv"):
        import csv

        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
    else:
        path.write_text("".join(json.dumps(dict(zip(columns, row))) + "\n" for row in rows))
    return {"validation": str(path)}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    return tmp_path


@pytest.mark.parametrize("kind", ["json", "csv", "parquet"])
def test_hub_rows(hub, kind):
    if kind == "parquet":
        import datasets

        files = hub_file(hub, HUB_ROWS)
        rows = datasets.load_dataset("json", data_files=files, split="validation")
        rows.to_parquet(hub / "dev.parquet")
        files = {"validation": str(hub / "dev.parquet")}
    else:
        files = hub_file(hub, HUB_ROWS, name=f"dev.{kind}")
    dataset = load_hub("sst", "dev", path=kind, data_files=files)
    assert dataset.texts == ["A fine film .", "A dull one .", "It is a film ."]
    assert dataset.labels == [3, 1, 2] and all(type(label) is int for label in dataset.labels)
    assert (dataset.source, dataset.split, dataset.classes) == ("hub", "dev", 5)
    rows = "3\tA fine film .\n1\tA dull one .\n2\tIt is a film .\n"
    assert dataset.sha256 == hashlib.sha256(rows.encode()).hexdigest()


@pytest.mark.parametrize("rows, columns, wrong", [
    ([("Good .", 7, "positive")], ("text", "label", "label_text"), r"row 1: the label 7 is out of range"),
    ([("Good .", 3, "positive"), ("", 3, "positive")], ("text", "label", "label_text"), r"row 2: the text is empty"),
    ([("Good .", 3, "positive"), (None, 3, "positive")], ("text", "label", "label_text"), r"row 2: the text is empty"),
    ([("Good .", 4, "positive")], ("text", "label", "label_text"), "label 4 means 'positive' there and 'very positive' here"),
    ([("Good .", 4)], ("sentence", "label"), "no column text, only sentence, label"),
])  # fmt: skip
def test_malformed_hub_rows(hub, rows, columns, wrong):
    with pytest.raises(DataError, match=wrong):
        load_hub("sst", "dev", path="json", data_files=hub_file(hub, rows, columns=columns))


def test_hub_not_reachable_says_how_to_go_on(hub, monkeypatch):
    import datasets

    def refuse(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'SetFit/sst5' on the Hub\n(a second line)")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError) as caught:
        load_task("sst", "dev", "hub")
    assert str(caught.value) == (
        "hub: SetFit/sst5 could not be loaded (ConnectionError: Couldn't reach 'SetFit/sst5' on the Hub): "
        "go on without it by --data builtin, or by --data and a directory in the course's format"
    )


def test_hub_really_offline(hub):
    """The library's own refusal, in a process of its own because it reads its settings when it is imported."""
    code = "from minbert.run.data import load_task; load_task('sst', 'dev', 'hub')"
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(hub), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "DataError: hub: SetFit/sst5 could not be loaded (ConnectionError: " in last
    assert last.endswith("go on without it by --data builtin, or by --data and a directory in the course's format")


def test_hub_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="^hub: the datasets library is not installed: pip install datasets, or go on"):
        load_task("sst", "dev", "hub")


def test_hub_does_not_have_everything():
    with pytest.raises(DataError, match="^hub: the task cfimdb is not on the hub: "):
        load_task("cfimdb", "dev", "hub")
    with pytest.raises(DataError, match=r"^hub: no split dve: did you mean dev\? "):
        load_task("sst", "dve", "hub")


# -- text for pre-training -------------------------------------------------------------------------------------------


@pytest.fixture
def course(write):
    """A directory with a file of each kind."""
    write(HEADER, *GOOD, name="ids-sst-train.csv")
    write(HEADER, "0\ta\tA dull one .\t1", name="ids-sst-dev.csv")
    write(HEADER, "0\tb\t" + "It was long . " * 30 + "\t0", name="ids-cfimdb-train.csv")
    write("\tid\tsentence1\tsentence2\tis_duplicate", "7\tq1\tWhy ?\tWhy not ?\t0.0", "9\tq2\tWhy ?\tA dull one .\t1.0",
          name="quora-train.csv")
    write("\tid\tsentence1\tsentence2\tsimilarity", "3\ts1\tA dog runs .\tA dog ran .\t4.6", name="sts-train.csv")
    squad = {"data": [{"paragraphs": [{"context": "A river runs here .", "qas": []}, {"context": "A hill .", "qas": []}]}]}
    return write(json.dumps(squad), name="squad-train-v2.0.json").parent


def test_texts_of_every_file_in_order_and_once(course):
    texts = load_texts(course, "train")
    part = " ".join(["It was long ."] * 15)
    assert texts.texts == ["A fine film .", "A dull one .", 'He said "no" .', part, "Why ?", "Why not ?", "A dog runs .",
                           "A dog ran .", "A river runs here .", "A hill ."]
    assert [(entry["file"], entry["texts"], entry["new"]) for entry in texts.files] == [
        ("ids-sst-train.csv", 3, 3), ("ids-cfimdb-train.csv", 2, 1), ("quora-train.csv", 4, 2), ("sts-train.csv", 2, 2),
        ("squad-train-v2.0.json", 2, 2)]
    for entry in texts.files:
        assert entry["sha256"] == hashlib.sha256((course / entry["file"]).read_bytes()).hexdigest()
    assert load_texts(course, "dev").texts == ["A dull one ."]  # nothing of one split in the other
    assert load_texts(course, "train").texts == texts.texts


def test_texts_of_malformed_files(course, write):
    path = write("\tid\tsentence1\tsentence2\tsimilarity", "3\ts1\tA dog runs .\t \t4.6", name="sts-train.csv")
    with pytest.raises(DataError, match=f"^{path}:2: the sentence2 is empty"):
        load_texts(course)
    path.unlink()
    path = write('{"data": [', "oh", name="squad-train-v2.0.json")
    with pytest.raises(DataError, match=f"^{path}:2: this is not JSON"):
        load_texts(course)
    path.write_text('{"data": [{"title": "no paragraphs"}]}')
    with pytest.raises(DataError, match=f"^{path}: this is JSON, but not SQuAD's"):
        load_texts(course)
    path.write_text('{"data": []}')
    with pytest.raises(DataError, match=f"^{path}: there is no paragraph"):
        load_texts(course)


def test_texts_of_nothing(tmp_path):
    with pytest.raises(DataError, match="no text for the split train: one of these files is needed: ids-sst-train.csv, "):
        load_texts(tmp_path)
    with pytest.raises(DataError, match="^hub: text for pre-training is read from files"):
        load_texts("hub")


def test_texts_built_in():
    texts = load_texts("builtin", "train")
    assert texts.texts[: len(texts.files)] and texts.files[0]["file"] == "ids-sst-train.csv"
    assert len(set(texts.texts)) == len(texts.texts) == sum(entry["new"] for entry in texts.files)


def test_passages():
    assert passages("One two . Three four .", words=6) == ["One two . Three four ."]
    assert passages("One two . Three four ! Five ?", words=5) == ["One two .", "Three four ! Five ?"]
    assert passages("a b c d e f . g .", words=3) == ["a b c d e f .", "g ."]  # a sentence is never cut
    assert passages("Mr.  X  ran", words=60) == ["Mr.  X  ran"]
    text = "One two three . Four five . Six . Seven eight nine ten . Eleven ."
    for limit in range(1, 15):
        assert " ".join(passages(text, limit)) == text  # no word is lost or moved


# -- the summary -----------------------------------------------------------------------------------------------------


def test_summary(course):
    summary = {entry["file"]: entry for entry in data_summary(course)}
    assert list(summary) == ["ids-sst-train.csv", "ids-sst-dev.csv", "ids-cfimdb-train.csv", "quora-train.csv",
                             "sts-train.csv", "squad-train-v2.0.json"]
    sst = summary["ids-sst-train.csv"]
    assert (sst["task"], sst["split"], sst["rows"], sst["texts"]) == ("sst", "train", 3, 3)
    assert sst["counts"] == {"very negative": 1, "negative": 1, "neutral": 0, "positive": 1, "very positive": 0}
    assert sst["majority"] == pytest.approx(1 / 3)
    assert sst["words"] == {"mean": 4.0, "p50": 4, "p95": 4}
    quora = summary["quora-train.csv"]
    assert (quora["task"], quora["rows"], quora["texts"], quora["counts"], quora["majority"]) == (None, 2, 4, None, None)
    assert quora["words"] == {"mean": pytest.approx((2 + 3 + 2 + 4) / 4), "p50": 2, "p95": 4}
    table = data.summary_table(data_summary(course)).splitlines()
    assert table[0].split() == ["file", "rows", "majority", "words:", "mean", "p50", "p95", "sha256"]
    assert table[1].split() == ["ids-sst-train.csv", "3", "0.333", "4.0", "4", "4", sst["sha256"][:12]]
    assert table[2].strip() == "very negative 1, negative 1, neutral 0, positive 1, very positive 0"
    assert table[3].strip() == "1 of 3 sentences had spaces around them, which were stripped"


def test_summary_of_nothing(tmp_path):
    with pytest.raises(DataError, match="there is no file in the course's format here: one of these is needed: "):
        data_summary(tmp_path)
    with pytest.raises(DataError, match="^hub: only files can be summarised"):
        data_summary("hub")


def test_data_needs_no_torch():
    """`minbert data` answers at once, and where torch is not installed."""
    code = ("import sys; from minbert.run import data; data.summary_table(data.data_summary('builtin')); "
            "print([m for m in ('torch', 'tokenizers', 'datasets', 'numpy') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_error_is_one_line_whatever_is_in_it():
    assert str(DataError("a\nb", "wrong\n\twith\ttabs", "do  that\n")) == "a b: wrong with tabs: do that"


def test_a_home_directory_is_understood(monkeypatch, write, tmp_path):
    path = write(HEADER, *GOOD)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "films").mkdir()
    shutil.move(path, tmp_path / "films" / path.name)
    assert len(load_task("sst", "dev", "~/films")) == 3
