"""The generator of exercises: what it takes away, what it keeps, and that the committed notebooks are its output."""

import ast
import json
import shutil
from pathlib import Path

import nbformat
import pytest

from tools import env
from tools import exercises as generator

FIXTURES = Path(__file__).parent / "fixtures"
TOY = FIXTURES / "authored" / "ch99.toml"


@pytest.fixture
def project(tmp_path):
    """An empty project with one authored chapter, generated."""
    target = tmp_path / "exercises" / "authored"
    target.mkdir(parents=True)
    shutil.copy(TOY, target)
    generator.generate(tmp_path)
    return tmp_path


def cells(project, folder):
    notebook = nbformat.read(project / folder / "ch99.ipynb", as_version=4)
    nbformat.validate(notebook)
    return {cell.id: cell.source for cell in notebook.cells}


def test_the_committed_notebooks_are_what_the_generator_writes():
    differences, to_execute = generator.generate(check=True)
    assert not differences, f"run `make exercises`: {differences} differ from their source"
    assert not to_execute, f"run `make exercises`: {[path.name for path in to_execute]} are not executed"


def test_every_exercise_has_a_check_of_its_name():
    from minbert import checks

    for row in json.loads((env.ROOT / "minbert/checks/exercises.json").read_text(encoding="utf-8")):
        assert callable(getattr(checks, row["id"], None)), f"minbert.checks has no {row['id']}"


def test_a_function_loses_its_body_and_keeps_signature_and_docstring(project):
    stub = cells(project, "exercises")["toy_double-code"]
    assert stub.startswith("def double(x, times=1):\n    \"\"\"Return x, doubled `times` times.\n")
    assert "ValueError: times is negative." in stub, "the docstring is cut"
    assert stub.endswith('    # Your code here.\n    raise NotImplementedError("not written yet: toy_double")')
    assert "2 **" not in stub and "give the answer away" not in stub


def test_the_solution_is_the_package_source_without_marks(project):
    solution = cells(project, "solutions")
    assert "return x * 2 ** times" in solution["toy_double-code"]
    assert "return product + self.shift" in solution["toy_product-code"]
    for text in solution.values():
        assert "# BEGIN" not in text and "# END" not in text
        assert "NotImplementedError" not in text


def test_only_the_named_part_is_taken_away(project):
    stub = cells(project, "exercises")["toy_product-code"]
    assert "self.slope * x" not in stub
    assert "return product + self.shift" in stub and "self.shift = shift" in stub
    assert '        raise NotImplementedError("not written yet: toy_product")' in stub
    assert "BEGIN" not in stub


def test_without_names_all_marked_parts_go():
    code = generator.source_of("tests.fixtures.toy:Line")
    assert generator.hollow(code, "x").count("not written yet: x") == 3


def test_methods_name_the_bodies_that_go():
    code = generator.source_of("tests.fixtures.toy:Plain")
    stub = generator.hollow(code, "x", methods=["second"])
    assert "return 1" in stub and "return 2" not in stub and "No docstring here" not in stub
    assert "size = 3" in stub
    both = generator.hollow(code, "x")
    assert "return 1" not in both and '"""Return 1."""' in both


@pytest.mark.parametrize("arguments, message", [
    ({"parts": ["nothing"]}, "no region nothing"),
    ({"methods": ["third"]}, "no method third"),
])
def test_a_wrong_name_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        generator.hollow(generator.source_of("tests.fixtures.toy:Plain"), "x", **arguments)


@pytest.mark.parametrize("code, message", [
    ("def f(x): return x", "one line"),
    ('def f(x):\n    """Only words."""', "nothing but a docstring"),
    ("def f(x):\n    # BEGIN a\n    return x", "no # END"),
    ("def f(x):\n    # END a\n    return x", "without its # BEGIN"),
])
def test_what_cannot_be_cut_is_refused(code, message):
    with pytest.raises(ValueError, match=message):
        generator.hollow(code, "x")


def test_every_stub_and_solution_is_valid_code(project):
    for folder in ("exercises", "solutions"):
        for ident, text in cells(project, folder).items():
            if ident.endswith(("-code", "-check", "imports")):
                ast.parse(text)


def test_the_other_kinds(project):
    stubs, solutions = cells(project, "exercises"), cells(project, "solutions")
    assert 'not written yet: toy_vary' in stubs["toy_vary-code"] and "3 * x" not in stubs["toy_vary-code"]
    assert "x // 2" in stubs["toy_debug-code"] and "x / 2" in solutions["toy_debug-code"]
    assert stubs["toy_ask-code"].startswith("answer = None")
    assert stubs["toy_ask-check"] == "checks.toy_ask(answer)"
    assert stubs["toy_double-check"] == "checks.toy_double(double)"
    assert "a half too much" in solutions["toy_debug-text"] and "a half too much" not in stubs["toy_debug-text"]


def test_the_text_has_number_kind_difficulty_minutes_and_three_hints(project):
    text = cells(project, "exercises")["toy_debug-text"]
    assert text.startswith("## Exercise 99.4 · Something is wrong")
    assert "*Debug* · difficulty 3 of 5 ●●●○○ · about 5 minutes" in text
    assert text.count("<summary>Hint") == 3
    assert "Hint" not in cells(project, "solutions")["toy_debug-text"]


def test_a_second_run_changes_nothing_and_the_list_is_complete(project):
    before = {path: path.read_bytes() for path in project.rglob("*.ipynb")}
    assert generator.generate(project, check=True)[0] == []
    generator.generate(project)
    assert before == {path: path.read_bytes() for path in project.rglob("*.ipynb")}
    rows = json.loads((project / "minbert/checks/exercises.json").read_text(encoding="utf-8"))
    assert [row["number"] for row in rows] == ["99.1", "99.2", "99.3", "99.4", "99.5"]


def executed(path):
    """Give every code cell a count and the first an output, as if it had been run."""
    notebook = nbformat.read(path, as_version=4)
    for number, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), 1):
        cell.execution_count = number
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", name="stdout", text="kept\n")]
    nbformat.write(notebook, path)


def test_outputs_of_solutions_stay_while_the_code_does(project):
    path = project / "solutions" / "ch99.ipynb"
    executed(path)
    authored = project / "exercises" / "authored" / "ch99.toml"
    authored.write_text(authored.read_text().replace("Find it.", "Find it, and name it."))
    differences, to_execute = generator.generate(project)
    assert str(path.relative_to(project)) in differences and to_execute == []
    assert nbformat.read(path, as_version=4).cells[1].outputs[0].text == "kept\n"
    authored.write_text(authored.read_text().replace("return x / 2", "return 0.5 * x"))
    assert generator.generate(project)[1] == [path]
    assert nbformat.read(path, as_version=4).cells[1].outputs == []


@pytest.mark.parametrize("folder", ["exercises", "solutions"])
def test_an_edit_by_hand_is_found(project, folder):
    path = project / folder / "ch99.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[-1].source += "  # edited"
    nbformat.write(notebook, path)
    assert generator.generate(project, check=True)[0] == [f"{folder}/ch99.ipynb"]


def test_a_chapter_that_is_not_there_is_no_success(project):
    with pytest.raises(generator.AuthorError, match="no authored file ch98.toml; there are: ch99"):
        generator.generate(project, only=["ch98"])


@pytest.mark.parametrize("old, new, message", [
    ('kind = "vary"', 'kind = "guess"', "kind is one of"),
    ('hints = ["Think of $2^n$.", ', "hints = [", "three graded hints"),
    ("difficulty = 1", "difficulty = 6", "difficulty is 1 to 5"),
    ("minutes = 5\n", "", "missing: \\['minutes'\\]"),
    ('parts = ["product"]', 'parts = ["quotient"]', "no region quotient"),
    ('expect = "Exercise 99.4 (toy_debug): half is not right."', "", "`expect` belongs to debug"),
    ('id = "toy_vary"', 'id = "toy_double"', "same id"),
    ("chapter = 99", "chapter = 98", "says it is chapter 98"),
])
def test_faults_of_the_authored_file_are_named(project, old, new, message):
    authored = project / "exercises" / "authored" / "ch99.toml"
    text = authored.read_text()
    assert old in text
    authored.write_text(text.replace(old, new, 1))
    with pytest.raises(generator.AuthorError, match=message):
        generator.generate(project)
