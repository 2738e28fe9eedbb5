"""The first and last pages say what the code does: names, chapters, terms and citations agree with their sources."""

import json
import re
from pathlib import Path

import pytest

from minbert import bert, pretrained, published

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"


def table_rows(page):
    """The cells of every table row of a page, without the backticks."""
    lines = (BOOK / page).read_text(encoding="utf-8").splitlines()
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def chapter_text(path):
    """The Markdown of a page; of a notebook, its Markdown cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def pages():
    return sorted([*BOOK.glob("*.md"), *BOOK.glob("*.ipynb")])


def glossary_terms():
    text = (BOOK / "glossary.md").read_text(encoding="utf-8")
    body = text.split("```{glossary}\n")[1].split("\n```")[0]
    return [line for line in body.splitlines() if line and not line.startswith(" ")]


def test_the_table_of_parameter_names_is_the_one_in_the_code():
    rows = [row for row in table_rows("notation.md") if row[0] in pretrained.NAMES]
    assert {row[0]: row[1] for row in rows} == pretrained.NAMES
    assert len(rows) == len(pretrained.NAMES)


def test_the_shapes_in_that_table_are_the_model_s():
    config = bert.BertConfig(vocab_size=11, hidden_size=6, layers=1, heads=2, intermediate_size=10)
    sizes = {"V": 11, "D": 6, "F": 10}
    shapes = {name: tuple(p.shape) for name, p in bert.BertModel(config).named_parameters()}
    rows = [row for row in table_rows("notation.md") if row[0] in pretrained.NAMES]
    for ours, _, shape in rows:
        letters = [item.strip() for item in shape.strip("()").split(",") if item.strip()]
        expected = tuple(sizes[item] if item in sizes else int(item) for item in letters)
        assert shapes[ours.replace("{i}", "0") + ".weight"] == expected, ours


def test_every_field_of_the_configuration_is_in_the_notation():
    # In the table of sizes our name is the third cell and Hugging Face's the fourth; below, the first and second.
    pairs = {tuple(row[2:4]) for row in table_rows("notation.md") if len(row) == 4}
    pairs |= {tuple(row[:2]) for row in table_rows("notation.md")}
    assert not [pair for pair in bert.CONFIG_NAMES.items() if pair not in pairs]


def test_the_first_page_lists_twelve_chapters_and_marks_the_ones_that_exist():
    rows = [row for row in table_rows("intro.md") if re.match(r"\d+ · ", row[0])]
    assert [int(row[0].split(" · ")[0]) for row in rows] == list(range(1, 13))
    toc = set(re.findall(r"file: book/(ch\d\d)", (ROOT / "_toc.yml").read_text(encoding="utf-8")))
    for number, row in enumerate(rows, start=1):
        name = f"ch{number:02}"
        assert (f"<{name}>" in row[0]) == (name in toc), name
        assert row[2].startswith("ready" if name in toc else "in preparation"), name


def test_glossary_terms_are_sorted_and_unique():
    plain = [re.sub(r"[^a-z0-9 ]", "", term.lower()) for term in glossary_terms()]
    assert plain == sorted(plain) and len(set(plain)) == len(plain)


def terms_in(text):
    """The terms of the glossary that a text points to, in lower case."""
    return [re.sub(r"\s+", " ", t.split("<")[-1].rstrip(">")).lower() for t in re.findall(r"\{term\}`([^`]+)`", text)]


def test_every_term_of_the_glossary_is_used_in_a_chapter():
    # A section that is lost in an edit takes its terms with it.
    used = {term for page in BOOK.glob("ch*.ipynb") for term in terms_in(chapter_text(page))}
    assert not [term for term in glossary_terms() if term.lower() not in used]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_terms_and_citations_exist(page):
    text = chapter_text(page)
    terms = {term.lower() for term in glossary_terms()}
    assert not [term for term in terms_in(text) if term not in terms]
    keys = set(re.findall(r"^@\w+\{([^,]+),", (BOOK / "references.bib").read_text(encoding="utf-8"), re.M))
    cited = [key.strip() for group in re.findall(r"\{(?:foot)?cite(?::\w+)?\}`([^`]+)`", text) for key in group.split(",")]
    assert not [key for key in cited if key not in keys]


def test_every_report_is_in_the_bibliography_under_its_title():
    bib = (BOOK / "references.bib").read_text(encoding="utf-8")
    for name, report in published.load()["reports"].items():
        entry = bib.split("{" + report["citation"] + ",")[1].split("\n}")[0].replace("{", "").replace("}", "")
        assert report["title"] in entry, name
        assert all(author in entry for author in report["authors"]), name
        assert f"Called {name} in this book" in entry, name
