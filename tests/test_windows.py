"""The windows of a whole file: what `featurise` says, in flat arrays; kept in a file that is never trusted blindly."""

import dataclasses
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minbert.run import windows as stored
from minbert.run.data_pairs import load_squad
from minbert.run.windows import Windows, WindowSettings, load_windows, make_windows
from minbert.squad import Question, featurise
from minbert.tokens import train_wordpiece

SMALL = WindowSettings(window_length=48, question_length=12, window_step=15)
BUILTIN = load_squad("train", "builtin")
TOKENIZER = train_wordpiece([q.context for q in BUILTIN.questions[::5]], vocab_size=600)


def same(windows, expected):
    assert len(windows) == len(expected)
    for ours, theirs in zip(windows, expected):
        for field in dataclasses.fields(theirs):
            a, b = getattr(ours, field.name), getattr(theirs, field.name)
            assert np.array_equal(a, b) and type(a) is type(b), field.name


def cut(questions, s=SMALL, tokenizer=TOKENIZER):
    return list(featurise(tokenizer, questions, s.window_length, s.question_length, s.window_step))


def test_the_arrays_hold_exactly_what_featurise_says():
    windows = make_windows(TOKENIZER, BUILTIN.questions, SMALL)
    assert len(windows) > 2 * len(BUILTIN.questions)                     # several windows a passage
    same(windows, cut(BUILTIN.questions))
    assert windows.lengths.tolist() == [len(w.ids) for w in windows]


def test_passages_in_any_order_keep_their_own_characters():
    a, b = (q.context for q in (BUILTIN.questions[0], BUILTIN.questions[-1]))
    questions = [Question(str(i), "Who and when and where?"[: 3 + i], text) for i, text in enumerate([a, b, a, a, "", b, "x"])]
    same(make_windows(TOKENIZER, questions, SMALL), cut(questions))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text("ab cé🙂\u0301ש", max_size=60), st.text("ab c", min_size=1, max_size=9)), max_size=5),
       st.integers(1, 4), st.integers(1, 12), st.data())
def test_whatever_the_texts_and_lengths_the_arrays_say_the_same(texts, question_length, room, data):
    step = data.draw(st.integers(1, room))
    s = WindowSettings(question_length + 3 + room, question_length, step)
    questions = [Question(str(i), asked, context) for i, (context, asked) in enumerate(texts)]
    same(make_windows(TOKENIZER, questions, s), cut(questions, s))


def test_places_outside_are_refused_and_the_last_is_found():
    windows = make_windows(TOKENIZER, BUILTIN.questions[:3], SMALL)
    assert windows[-1].ids == windows[len(windows) - 1].ids
    for place in (len(windows), -len(windows) - 1):
        with pytest.raises(IndexError):
            windows[place]
    assert len(make_windows(TOKENIZER, [])) == 0


def test_the_questions_on_a_passage_share_the_places_of_its_pieces():
    one = make_windows(TOKENIZER, BUILTIN.questions[:1], SMALL)
    many = make_windows(TOKENIZER, [BUILTIN.questions[0]] * 50, SMALL)
    assert len(many.arrays["bounds"]) == len(one.arrays["bounds"])
    assert many.nbytes < 50 * (one.nbytes - one.arrays["bounds"].nbytes) + one.arrays["bounds"].nbytes


# ---- the file ----------------------------------------------------------------------------------------------------

@pytest.fixture()
def keep(tmp_path):
    """`load_windows` of the first questions into a directory of its own."""
    def load(directory=tmp_path, s=SMALL, sha256="d", **choices):
        return load_windows(TOKENIZER, BUILTIN.questions[:20], sha256, s, directory, **{"keep_from": 1, **choices})
    return load


def test_the_next_run_reads_what_was_kept_and_cuts_nothing(keep, tmp_path, monkeypatch):
    first, notes = keep()
    [path] = tmp_path.iterdir()                                          # no half file is left beside it
    assert notes == [] and path.suffix == ".safetensors"
    monkeypatch.setattr(stored, "make_windows", lambda *_: pytest.fail("cut again"))
    again, notes = keep()
    same(again, list(first))
    assert notes == [f"windows of an earlier run are used ({path.name})"]


@pytest.mark.parametrize("damage, message", [
    (lambda b: b[: len(b) // 2], "truncated or damaged"),
    (lambda b: b"", "truncated or damaged"),
    (lambda b: b"\x80\x04K\x01.", "truncated or damaged"),              # a pickle is not opened
    (lambda b: b[:-3] + bytes([b[-3] ^ 1]) + b[-2:], "its bytes changed"),
    (lambda b: b.replace(stored.FORMAT.encode(), stored.FORMAT.upper().encode()), "something else"),
])
def test_a_damaged_file_is_made_anew_with_a_note(keep, tmp_path, damage, message):
    first, _ = keep()
    [path] = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    again, notes = keep()
    same(again, list(first))
    assert len(notes) == 1 and message in notes[0] and "made anew" in notes[0]
    assert keep()[1] == [f"windows of an earlier run are used ({path.name})"]


def test_other_data_settings_or_tokenizer_have_a_file_of_their_own(keep, tmp_path):
    keep()
    keep(sha256="e")
    keep(s=WindowSettings(48, 12, 14))
    assert len(list(tmp_path.iterdir())) == 3
    other = train_wordpiece(["a b c"], vocab_size=30)
    assert stored.windows_key("d", other, SMALL) != stored.windows_key("d", TOKENIZER, SMALL)


def test_other_code_has_a_file_of_its_own(monkeypatch):
    before = stored.windows_key("d", TOKENIZER, SMALL)
    monkeypatch.setattr(stored, "MAKERS", stored.MAKERS + "# changed")
    assert stored.windows_key("d", TOKENIZER, SMALL) != before and "def featurise(" in stored.MAKERS


def test_few_questions_are_not_kept(keep, tmp_path):
    _, notes = keep(keep_from=21)
    assert notes == [] and not list(tmp_path.iterdir())


def test_where_nothing_can_be_kept_the_run_goes_on_with_a_note(keep, tmp_path):
    (tmp_path / "file").write_text("x")
    windows, [note] = keep(tmp_path / "file")
    same(windows, cut(BUILTIN.questions[:20]))
    assert "can't be kept" in note and "MINBERT_CACHE" in note


def test_the_place_is_the_users_cache_or_the_one_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("MINBERT_CACHE", raising=False)
    assert stored.cache_directory() == tmp_path / "minbert"
    monkeypatch.setenv("MINBERT_CACHE", str(tmp_path / "x"))
    assert stored.cache_directory() == tmp_path / "x"


def test_a_configuration_without_these_settings_gets_berts():
    assert WindowSettings.of(object()) == WindowSettings(384, 64, 128, 30)
    assert WindowSettings.of(SMALL) == SMALL


def test_windows_are_not_copied_when_they_are_read():
    windows = make_windows(TOKENIZER, BUILTIN.questions[:5], SMALL)
    assert isinstance(windows, Windows) and np.shares_memory(windows.ids(1), windows.arrays["ids"])
    assert np.shares_memory(windows[1].offsets, windows.arrays["bounds"])


def test_only_the_last_used_files_are_kept(keep, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "KEEP_FILES", 2)
    (tmp_path / "mine.safetensors").touch()                      # not a file of windows: never removed
    names = []
    for number, sha256 in enumerate("abc"):
        keep(sha256=sha256)
        new, = set(stored.kept_files(tmp_path)) - set(names)
        os.utime(new, (number, number))                          # the clock of a disk may be too coarse
        names.append(new)
        if number == 1:
            keep(sha256="a")                                     # used again: now it is the newest
    assert stored.kept_files(tmp_path) == [names[0], names[2]] and (tmp_path / "mine.safetensors").exists()
