"""Pairs and questions from files: every malformed row is named, nothing is skipped, the cut is always the same."""

import json

import pytest

from minbert.run.data import DataError
from minbert.run.data_pairs import load_pairs, load_squad, read_squad

HEAD = {"quora": "\tid\tsentence1\tsentence2\tis_duplicate", "sts": "\tid\tsentence1\tsentence2\tsimilarity"}


def write(tmp_path, task, *rows, split="train"):
    lines = [HEAD[task], *(f"{i}\tn{i}\t{row}" for i, row in enumerate(rows))]
    (tmp_path / f"{task}-{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def test_pairs_are_read_as_they_stand(tmp_path):
    data = load_pairs("sts", "train", write(tmp_path, "sts", " A man runs.\tA person is running.\t3.8", "It rains.\tHe sleeps.\t0"))
    assert (data.first, data.second) == (["A man runs.", "It rains."], ["A person is running.", "He sleeps."])
    assert data.labels == [3.8, 0.0] and data.ids == ["n0", "n1"] and data.notes == []
    assert load_pairs("quora", "train", write(tmp_path, "quora", "a\tb\t1.0", "c\td\t0.0")).labels == [1.0, 0.0]


@pytest.mark.parametrize("task, row, message", [
    ("sts", "a\tb\t5.2", r"sts-train.csv:3: the label '5.2' is out of range: labels are numbers from 0"),
    ("sts", "a\tb\tnan", "out of range"),
    ("sts", "a\tb\tlike", "the label 'like' is not a number"),
    ("quora", "a\tb\t0.5", "the label '0.5' is out of range: labels are 0"),
    ("quora", "a\t \t1", "sentence2 is empty"),
    ("quora", "\tb\t1", "sentence1 is empty"),
    ("quora", "a\t1", "too few fields"),
])
def test_a_malformed_pair_is_named_with_its_line(tmp_path, task, row, message):
    with pytest.raises(DataError, match=message):
        load_pairs(task, "train", write(tmp_path, task, "fine\tfine too\t1", row))


def test_repeated_pairs_are_counted_and_kept(tmp_path):
    data = load_pairs("quora", "train", write(tmp_path, "quora", "a\tb\t1", "a\tb\t1", "c\td\t0"))
    assert len(data) == 3 and data.notes == ["1 of 3 pairs are there more than once; every row was kept"]


def test_a_cut_keeps_the_same_pairs_whatever_their_order(tmp_path):
    rows = [f"question {i}\tanother {i}\t{i % 2}" for i in range(50)]
    one = load_pairs("quora", "train", write(tmp_path, "quora", *rows), limit=10)
    other = load_pairs("quora", "train", write(tmp_path, "quora", *rows[::-1]), limit=10)
    assert len(one) == 10 and set(one.first) == set(other.first) and "10 of 50 pairs are used" in one.notes
    assert one.first != one.first[::-1] and len(load_pairs("quora", "train", tmp_path, limit=99)) == 50


@pytest.mark.parametrize("call, message", [
    (lambda p: load_pairs("quorra", "train", p), "did you mean quora"),
    (lambda p: load_pairs("quora", "dev", p), "no such file"),
    (lambda p: load_squad("dev", p), "no such file"),
])
def test_what_is_not_there_is_said(tmp_path, call, message):
    with pytest.raises(DataError, match=message):
        call(write(tmp_path, "quora", "a\tb\t1"))


# ---- SQuAD -------------------------------------------------------------------------------------------------------

def squad(tmp_path, *questions, context="The mill is old. 🙂 It ground rye."):
    tree = {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(questions)}]}]}
    path = tmp_path / "squad-dev-v2.0.json"
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


def ask(name="q1", text="What did it grind?", answers=(("rye", 29),), **more):
    return {"id": name, "question": text, "answers": [{"text": t, "answer_start": b} for t, b in answers],
            "is_impossible": not answers, **more}


def test_questions_are_read_with_their_answers(tmp_path):
    squad(tmp_path, ask(), ask("q2", "Who?", ()))
    first, second = load_squad("dev", tmp_path).questions
    assert first.answers == (("rye", 29),) and first.context[29:32] == "rye" and second.answers == ()


@pytest.mark.parametrize("question, message", [
    (ask(answers=(("rye", 28),)), "question q1: the answer 'rye' is not at character 28, where ' ry' stands"),
    (ask(answers=(("", 3),)), "is not at character 3"),
    (ask(answers=(("rye", -4),)), "is not at character -4"),                                 # it is, counted from the end
    (ask(text=1803), "this is not SQuAD's format"),
    (ask(text="  "), "question q1: it has no text"),
    (ask(is_impossible=True), "is_impossible says one thing"),
    ({"id": "q1", "question": "Who?"}, "this is not SQuAD's format"),
])
def test_a_malformed_question_is_named_by_its_id(tmp_path, question, message):
    with pytest.raises(DataError, match=message):
        read_squad(squad(tmp_path, question))


def test_an_id_used_twice_is_refused(tmp_path):
    with pytest.raises(DataError, match="question q1: this id is used twice"):
        read_squad(squad(tmp_path, ask(), ask()))


@pytest.mark.parametrize("content, message", [
    (b'{"data": [\n {"x": 1,\n }]}', r":3: malformed JSON"),
    (b'{"data": []}', "there is no question in it"),
    (b'[1, 2]', "this is not SQuAD's format"),
    (b'{"data": "\xff"}', r":1: the byte 0xff is not UTF-8"),
])
def test_a_file_that_is_no_squad_says_where(tmp_path, content, message):
    path = tmp_path / "squad-dev-v2.0.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_squad(path)


# ---- the hub, from local files with its columns ------------------------------------------------------------------

def hub_files(tmp_path, rows):
    pytest.importorskip("datasets")
    path = tmp_path / "rows.json"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return {"train": str(path)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("task, columns, labels", [
    ("quora", ("question1", "question2"), [1, 0, 1]), ("sts", ("sentence1", "sentence2"), [3.8, 0.0, 5.0])])
def test_pairs_come_from_glue_with_its_columns(tmp_path, task, columns, labels):
    rows = [{columns[0]: f"first {i}", columns[1]: f" second {i} ", "label": label, "idx": 7 + i}
            for i, label in enumerate(labels)]
    data = load_pairs(task, "train", "hub", hub_files=hub_files(tmp_path, rows))
    assert data.first == ["first 0", "first 1", "first 2"] and data.second == ["second 0", "second 1", "second 2"]
    assert data.labels == labels and data.ids == ["7", "8", "9"] and len(data.sha256) == 64 and data.source == "hub"


def test_a_hidden_label_of_glues_test_split_is_refused_with_its_row(tmp_path):
    rows = [{"question1": "a", "question2": "b", "label": 1, "idx": 0}, {"question1": "a", "question2": "c", "label": -1, "idx": 1}]
    with pytest.raises(DataError, match="row 2: the label -1 is out of range"):
        load_pairs("quora", "train", "hub", hub_files=hub_files(tmp_path, rows))


def test_squad_comes_from_the_hub_with_its_columns(tmp_path):
    context = "The mill is old. It ground rye."
    row = {"id": "q1", "title": "Mill", "question": "What did it grind?", "context": context}
    good = {**row, "answers": {"text": ["rye"], "answer_start": [27]}}
    none = {**row, "id": "q2", "answers": {"text": [], "answer_start": []}}
    data = load_squad("train", "hub", hub_files=hub_files(tmp_path, [good, none]))
    assert [(q.id, q.answers, q.context) for q in data.questions] == [("q1", (("rye", 27),), context), ("q2", (), context)]
    bad = {**row, "answers": {"text": ["rye"], "answer_start": [3]}}
    with pytest.raises(DataError, match="question q1: the answer 'rye' is not at character 3"):
        load_squad("train", "hub", hub_files=hub_files(tmp_path, [bad]))
