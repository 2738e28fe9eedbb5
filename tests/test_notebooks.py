"""What is stored in the notebooks. That the outputs are still true is nbval's part; see tools/test.py."""

import re

import nbformat
import pytest

from tests.prose import typed_decimals
from tools import env

BOOK = sorted((env.ROOT / "book").glob("ch*.ipynb"))
OTHERS = sorted(set((env.ROOT / "book").glob("*.ipynb")) - set(BOOK))     # pages made from measurements
SOLUTIONS = sorted((env.ROOT / "solutions").glob("ch*.ipynb"))
STUBS = sorted((env.ROOT / "exercises").glob("ch*.ipynb"))
PAGES = sorted((env.ROOT / "book").glob("*.md"))


def name(path):
    return f"{path.parent.name}-{path.stem}"


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def images(cell):
    return [output for output in cell.get("outputs", [])
            if any(mime.startswith("image/") for mime in output.get("data", {}))]


# The rules, as functions of one notebook: each returns what is wrong, so that they can be tried on wrong notebooks too.

def not_executed(notebook):
    """nbval passes a notebook that was never run: the counts must be 1, 2, 3, ... as from one clean kernel."""
    counts = [cell.execution_count for cell in code_cells(notebook)]
    return [] if counts == list(range(1, len(counts) + 1)) else [f"execution counts are {counts}"]


def stored_errors(notebook):
    return [f"{cell.id}: {output.ename}: {output.evalue}" for cell in code_cells(notebook)
            for output in cell.outputs if output.output_type == "error"]


def figure_faults(notebook):
    """Every figure has an alternative text of its own, which says what the figure shows."""
    faults, seen = [], {}
    for cell in code_cells(notebook):
        found = images(cell)
        if not found:
            continue
        if len(found) > 1:
            faults.append(f"{cell.id}: {len(found)} figures in one cell would share one alternative text")
        alt = str(cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")).strip()
        if len(alt) < 15:
            faults.append(f"{cell.id}: no alternative text that says what is to be seen: {alt!r}")
        if re.search(r"\.(svg|png|jpe?g)\b|[\\/]\w+[\\/]", alt):
            faults.append(f"{cell.id}: the alternative text is a file's name: {alt!r}")
        if alt in seen:
            faults.append(f"{cell.id}: the same alternative text as {seen[alt]}")
        seen[alt] = cell.id
        for output in found:
            if "<dc:date>" in output.data.get("image/svg+xml", ""):
                faults.append(f"{cell.id}: the figure stores its date; call show.style() first")
    if seen and not any("show.style(" in cell.source for cell in code_cells(notebook)):
        faults.append("draws figures without show.style(): they would not be legible on a dark page")
    return faults


def surroundings(notebook):
    """Metadata that differs from machine to machine must not be stored."""
    expected = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
                "language_info": {"name": "python"}}
    faults = [] if notebook.metadata == expected else [f"metadata is {dict(notebook.metadata)}"]
    faults += [f"{cell.id}: execution times are stored" for cell in notebook.cells if "execution" in cell.metadata]
    faults += [f"{cell.id}: tag {tag} hides a failure" for cell in notebook.cells
               for tag in cell.metadata.get("tags", []) if tag in ("raises-exception", "nbval-skip", "skip-execution")]
    return faults


RULES = [not_executed, stored_errors, figure_faults, surroundings]


def test_there_are_chapters_each_with_exercises_and_solutions():
    assert BOOK, "there is no chapter"
    assert [p.stem for p in BOOK] == [p.stem for p in STUBS] == [p.stem for p in SOLUTIONS]


@pytest.mark.parametrize("path", BOOK + OTHERS + SOLUTIONS, ids=name)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_stored_notebooks_keep_the_rules(path, rule):
    faults = rule(read(path))
    assert not faults, "\n".join(faults) + f"\n(make notebooks CH={path.stem} executes and saves)"


@pytest.mark.parametrize("path", STUBS, ids=name)
def test_stubs_are_stored_without_outputs(path):
    for cell in code_cells(read(path)):
        assert not cell.outputs and cell.execution_count is None, cell.id


@pytest.mark.parametrize("path", BOOK + OTHERS + STUBS + SOLUTIONS + PAGES, ids=name)
def test_no_measured_number_is_typed_into_prose(path):
    if path.suffix == ".md":
        texts = {"": path.read_text(encoding="utf-8")}
    else:
        texts = {f"cell {cell.id}, ": cell.source for cell in read(path).cells if cell.cell_type == "markdown"}
    typed = [f"{where}line {line}: {number} in {text!r}"
             for where, markdown in texts.items() for line, number, text in typed_decimals(markdown)]
    assert not typed, ("write these with show.number and {glue:text}, as mathematics if they are a definition's, or "
                       "between <!-- definition --> marks:\n" + "\n".join(typed))


@pytest.mark.parametrize("text", [
    "The dev accuracy is 0.52.",
    "It reaches .517 after ten epochs.",
    "A gain of −0.5 points, or 62.5 %.",
    "| full | .517 | .887 |",
    "```{note}\nIt took 3.5 s.\n```",
    "<!-- definition -->0.1<!-- /definition --> but measured 0.2",
    "Costs $5 and 0.3 more",
    "See [the table](table.md): 0.75",
    "`code` then 0.4 then `code`",
])
def test_a_typed_number_is_found(text):
    assert len(typed_decimals(text)) >= 1


@pytest.mark.parametrize("text", [
    "A rate of $0.1$ and $$x = 0.5$$ and\n$$\ny = .3\n$$",
    "`lr=0.1` and {glue:text}`accuracy:.3f` and ``a `0.1` b``",
    "```python\nx = 0.1\n```",
    "~~~\n0.25\n~~~",
    "```{math}\n0.5\n```",
    "[paper](https://arxiv.org/abs/1706.03762), arXiv:1810.04805, https://example.org/1.2",
    "Python 3.11 or 3.12, PyTorch 2.13.0, SQuAD 2.0, CC BY 4.0, version 1.5",
    "Do [1.1 to 1.5](../exercises/ch01.ipynb).",
    "Exercise 2.1, exercises 2.1 and 2.3, section 3.2.1, table 2.4",
    "Dropout is <!-- definition -->0.1<!-- /definition -->.",
    "<details class=\"x1.5\"><summary>Hint 1</summary>",
    "1. First\n2. Second, with 3 heads. 5 layers.",
    "\\begin{align}\n0.5\n\\end{align}",
])
def test_what_may_stand_in_prose_is_left_alone(text):
    assert typed_decimals(text) == []


def toy(source="show.style()", **cell):
    made = nbformat.v4.new_code_cell(source, execution_count=1)
    made.update(cell)
    notebook = nbformat.v4.new_notebook(cells=[made])
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
                         "language_info": {"name": "python"}}
    return nbformat.from_dict(notebook)


def figure(alt, svg="<svg/>", **more):
    output = nbformat.v4.new_output("display_data", data={"image/svg+xml": svg})
    return toy(outputs=[output], metadata={"mystnb": {"image": {"alt": alt}}}, **more)


@pytest.mark.parametrize("rule, notebook", [
    (not_executed, toy(execution_count=None)),
    (not_executed, toy(execution_count=2)),
    (stored_errors, toy(outputs=[nbformat.v4.new_output("error", ename="E", evalue="v", traceback=[])])),
    (figure_faults, figure("")),
    (figure_faults, figure("../_images/a3b9dd.svg, a figure")),
    (figure_faults, figure("A bar chart of five classes", svg="<svg><dc:date>2026</dc:date></svg>")),
    (figure_faults, figure("A bar chart of five classes", source="plt.show()")),
    (surroundings, toy(metadata={"tags": ["raises-exception"]})),
    (surroundings, toy(metadata={"execution": {"start": "now"}})),
], ids=lambda value: getattr(value, "__name__", "wrong"))
def test_each_rule_finds_a_fault(rule, notebook):
    assert rule(notebook)


def test_the_rules_accept_a_good_notebook():
    for rule in RULES:
        assert rule(figure("A bar chart of five classes, the middle one highest")) == []


def test_two_figures_with_the_same_text_are_found():
    one, two = figure("A bar chart of five classes"), figure("A bar chart of five classes")
    two.cells[0].execution_count = 2
    one.cells.append(two.cells[0])
    assert any("same alternative text" in fault for fault in figure_faults(one))


def test_drawings_are_compared_without_the_digits_that_differ_between_processors():
    from tools.execute import sanitised

    one = '<g clip-path="url(#p94d8fca12a)"><use x="119.102935" y="76.5" xlink:href="#m68d8ea1688"/>'
    other = one.replace("119.102935", "119.102924").replace("p94d8fca12a", "p87e70a6cd6")
    assert sanitised(one) == sanitised(other)
    assert sanitised(one) != sanitised(one.replace("119.102935", "120.102935"))      # what one would see
    assert sanitised("accuracy 0.487, loss 1.42") == "accuracy 0.487, loss 1.42"     # printed numbers stay whole
