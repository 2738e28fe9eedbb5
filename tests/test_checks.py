"""Every exercise's check: refuses each wrong version with its own message, and passes every right one.

`tests/wrong/chNN.py` holds, by exercise id:
    WRONG    {id: {name of the mistake: a wrong version}}        at least 5 each, each diagnosed by its own message
    RIGHT    {id: {how it is written: a right version}}          at least 2 each, written differently from the package
    UNLISTED {id: a wrong version that no diagnosis knows}
"""

import ast
import importlib
import json
import pathlib
import re

import numpy
import pytest
import torch

from minbert import checks
from minbert.checks import engine

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(path.stem for path in (pathlib.Path(__file__).parent / "wrong").glob("ch*.py"))
MODULES = {name: importlib.import_module(f"tests.wrong.{name}") for name in FILES}
EXERCISES = [exercise for exercise in engine.exercises()]
BUILDABLE = [exercise for exercise in EXERCISES if exercise["kind"] != "investigate"]


def versions(kind):
    return [
        pytest.param(exercise, name, version, id=f"{exercise}-{name}")
        for module in MODULES.values()
        for exercise, named in getattr(module, kind).items()
        for name, version in named.items()
    ]


def message(exercise, answer):
    """What the check says, or None when it passes."""
    try:
        getattr(checks, exercise)(answer)
    except checks.CheckFailed as failed:
        return str(failed)
    return None


def test_there_are_at_least_three_exercises_a_chapter_and_the_kinds_are_mixed():
    for chapter in {exercise["chapter"] for exercise in EXERCISES}:
        kinds = [exercise["kind"] for exercise in EXERCISES if exercise["chapter"] == chapter]
        assert len(kinds) >= 3
        assert "vary" in kinds and "debug" in kinds, f"chapter {chapter} has {kinds}"


@pytest.mark.parametrize("chapter", sorted({exercise["chapter"] for exercise in EXERCISES}))
def test_every_check_points_at_a_section_that_its_chapter_has(chapter):
    cells = json.loads((ROOT / f"book/ch{chapter:02d}.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    source = (ROOT / f"minbert/checks/ch{chapter:02d}.py").read_text(encoding="utf-8")
    named = [keyword.value.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)
             for keyword in node.keywords if keyword.arg == "see"]  # fmt: skip
    assert len(named) == sum(exercise["chapter"] == chapter for exercise in EXERCISES)
    missing = [see for see in named if see not in [f'Chapter {chapter}, "{heading}"' for heading in headings]]
    assert not missing


@pytest.mark.parametrize("exercise", BUILDABLE, ids=lambda e: e["id"])
def test_every_exercise_lists_wrong_and_right_versions(exercise):
    module = MODULES[f"ch{exercise['chapter']:02d}"]
    assert len(module.WRONG[exercise["id"]]) >= 5
    assert len(module.RIGHT[exercise["id"]]) >= 2
    assert exercise["id"] in module.UNLISTED


@pytest.mark.parametrize("exercise, name, version", versions("WRONG"))
def test_a_wrong_version_fails_and_its_mistake_is_named(exercise, name, version):
    said = message(exercise, version)
    assert said is not None, "it passed"
    assert "Likely mistake:" in said, said
    assert "See: Chapter" in said


@pytest.mark.parametrize("exercise", BUILDABLE, ids=lambda e: e["id"])
def test_no_two_wrong_versions_share_a_message(exercise):
    wrong = MODULES[f"ch{exercise['chapter']:02d}"].WRONG[exercise["id"]]
    said = {}
    for name, version in wrong.items():
        likely = re.search(r"Likely mistake: (.*)", message(exercise["id"], version)).group(1)
        assert likely not in said, f"{name!r} and {said.get(likely)!r} are both told: {likely}"
        said[likely] = name


@pytest.mark.parametrize("exercise, name, version", versions("WRONG"))
def test_a_wrong_version_is_refused_without_the_diagnosis_too(exercise, name, version, monkeypatch):
    monkeypatch.setattr(engine, "DIAGNOSE", False)
    said = message(exercise, version)
    assert said is not None and "Likely mistake" not in said


@pytest.mark.parametrize("exercise, name, version", versions("RIGHT"))
def test_a_right_version_written_differently_passes(exercise, name, version, capsys):
    assert message(exercise, version) is None
    assert "passed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "exercise, version",
    [pytest.param(e, v, id=e) for module in MODULES.values() for e, v in module.UNLISTED.items()],
)
def test_a_wrong_version_outside_the_list_fails_without_a_false_name(exercise, version):
    said = message(exercise, version)
    assert said is not None and "Likely mistake" not in said, said


def test_the_answer_to_an_investigation_may_be_a_tensor():
    assert message("vanishing_gradient", torch.tensor(2.6)) is None
    assert "The sign" in message("vanishing_gradient", torch.tensor(-2.6))


def test_numbers_are_compared_in_double_precision():
    assert engine.same(numpy.float64(6.9), 6.9, 1e-9) and engine.same(torch.tensor(6.9, dtype=torch.float64), 6.9, 1e-9)
    assert engine.same([(6.9, 1)], [(numpy.float64(6.9), numpy.int64(1))], 1e-9)
    assert not engine.same(1.0, 1.0 + 3e-8, 1e-9) and not engine.same([1.0, 2.0], torch.tensor([1.0, 2.0 + 1e-6]), 1e-9)


@pytest.mark.parametrize("exercise, right, mistakes", [
    ("head_switched_off", 6.0, "ch02 NOT_THE_LARGEST"),
    ("length_limit", 0.96, "ch11 NOT_THE_BEST"),
])  # fmt: skip
def test_a_wrong_number_of_an_investigation_is_named(exercise, right, mistakes):
    chapter, name = mistakes.split()
    known = getattr(importlib.import_module(f"minbert.checks.{chapter}"), name)
    assert message(exercise, right) is None
    for value, _, text in known:
        assert f"Likely mistake: {text}" in message(exercise, value)
    assert "Likely mistake" not in message(exercise, right + 0.6)
    assert "should be a number" in message(exercise, float("nan"))


@pytest.mark.parametrize("exercise", BUILDABLE, ids=lambda e: e["id"])
def test_a_result_of_an_odd_kind_ends_in_a_message(exercise):
    """And never in an error of the check's own, whose traceback would tell the reader nothing."""
    odd = [[], "text", 3, float("nan"), (1, 2), (1, 2, 3), (None, None, False), [[1], 2], (1, 0, 3), {}, torch.zeros(1), object()]
    for value in odd:
        assert message(exercise["id"], lambda *args, value=value, **kwargs: value) is not None, repr(value)


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e["id"])
def test_what_is_not_written_is_told_so(exercise):
    if exercise["kind"] == "investigate":
        assert message(exercise["id"], None) == engine.not_answered(exercise["id"])
        return

    def stub(*args, **kwargs):
        raise NotImplementedError(f"not written yet: {exercise['id']}")

    assert message(exercise["id"], stub) == engine.not_written(exercise["id"])
