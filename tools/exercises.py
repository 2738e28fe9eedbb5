"""Generate the exercise and solution notebooks: ``python -m tools.exercises [ch02 ...] [--check] [--execute]``.

One authored file a chapter, exercises/authored/chNN.toml, and the package's own source give
exercises/chNN.ipynb (stubs), solutions/chNN.ipynb (the same, filled and executed) and the list
minbert/checks/exercises.json. Neither notebook is ever edited by hand; ``--check`` fails on any difference.
Solutions whose code changed are executed after generating; ``--execute`` executes all of them.

The authored file::

    chapter = 2
    title = "Attention"
    intro = "Markdown, shown at the top of the page."
    imports = "import math\\n\\nimport torch"       # code of the first cell

    [[exercise]]
    id = "attention"            # the check's name too: minbert.checks.attention
    title = "Attention in four lines"
    kind = "build"              # build | vary | debug | investigate
    difficulty = 2              # 1 to 5
    minutes = 15
    prose = "Markdown: what to do, and why."
    hints = ["a nudge", "the idea", "nearly the code"]
    source = "minbert.attention:attention"      # build; or a list of several
    methods = ["forward"]       # build, a class: only these methods are emptied (default: all)
    parts = ["scores"]          # build: only these `# BEGIN scores` ... `# END scores` regions are (default: all marked)
    stub = "code"               # debug: the wrong version. vary: made from the solution; investigate: `answer = None`
    solution = "code"           # vary, debug, investigate; marks may be used in it as in the package
    answer = "attention"        # what the check is given; default: the last name that the code defines
    explanation = "Markdown"    # shown on the solution page only (a debug exercise names its bug here)
    expect = "full message"     # debug: what the check says of the stub, exactly

The exercise's number (2.1, 2.2, ...) is its place in the file.
"""

import argparse
import ast
import importlib
import inspect
import json
import re
import sys
import textwrap
from pathlib import Path

from tools import env

KINDS = {
    "build": "Build",
    "vary": "Vary",
    "debug": "Debug",
    "investigate": "Investigate",
}
KEYS = {"id", "title", "kind", "difficulty", "minutes", "prose", "hints", "source", "methods", "parts", "stub",
        "solution", "answer", "explanation", "expect"}
NEEDED = {"id", "title", "kind", "difficulty", "minutes", "prose", "hints"}
BEGIN = re.compile(r"^\s*# BEGIN ([\w-]+)\s*$")
END = re.compile(r"^\s*# END ([\w-]+)\s*$")


class AuthorError(ValueError):
    """A fault in an authored file; the message names the file and the exercise."""


# From a source to a stub -----------------------------------------------------------------------------------------

def strip_marks(code):
    """Return ``code`` without its BEGIN and END lines."""
    return "\n".join(line for line in code.split("\n") if not (BEGIN.match(line) or END.match(line)))


def placeholder(indent, ident):
    """Return the lines that stand where the reader is to write."""
    return [f"{indent}# Your code here.", f'{indent}raise NotImplementedError("not written yet: {ident}")']


def indent_of(line):
    return line[: len(line) - len(line.lstrip())]


def marked_regions(lines):
    """Return {name: (first line, last line)} of the BEGIN ... END regions, mark lines included."""
    regions, open_name, start = {}, None, 0
    for number, line in enumerate(lines):
        begin, end = BEGIN.match(line), END.match(line)
        if begin:
            if open_name:
                raise ValueError(f"# BEGIN {begin[1]} inside {open_name}")
            if begin[1] in regions:
                raise ValueError(f"two regions are named {begin[1]}")
            open_name, start = begin[1], number
        elif end:
            if end[1] != open_name:
                raise ValueError(f"# END {end[1]} without its # BEGIN")
            regions[open_name], open_name = (start, number), None
    if open_name:
        raise ValueError(f"# BEGIN {open_name} has no # END")
    return regions


def bodies(code, methods=None):
    """Return [(first line, last line), ...]: the body of a function, or of the methods of a class, after the docstring."""
    lines = code.split("\n")
    functions = []
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef):
            functions.append(node)
        elif isinstance(node, ast.ClassDef):
            functions += [child for child in node.body
                          if isinstance(child, ast.FunctionDef) and (methods is None or child.name in methods)]
    missing = set(methods or ()) - {function.name for function in functions}
    if missing:
        raise ValueError(f"no method {', '.join(sorted(missing))}")
    spans = []
    for function in functions:
        body = function.body
        documented = ast.get_docstring(function) is not None
        if documented and len(body) == 1:
            raise ValueError(f"{function.name} has nothing but a docstring")
        if body[0].lineno == function.lineno:
            raise ValueError(f"{function.name} is written on one line")
        if documented:
            first = body[0].end_lineno
        else:
            first = body[0].lineno - 1
            # A comment above the first statement belongs to the body too, and would tell too much.
            while lines[first - 1].lstrip().startswith("#"):
                first -= 1
        spans.append((first, function.end_lineno - 1, body[1 if documented else 0].col_offset))
    return spans


def hollow(code, ident, parts=None, methods=None):
    """Return ``code`` with what the reader is to write taken away; signatures and docstrings stay.

    The marked regions (those named in ``parts``, or all) are cut if there are any and ``methods`` is not given;
    otherwise whole bodies are, of the function or of the ``methods`` of the class (all of them by default).
    """
    lines = code.split("\n")
    regions = marked_regions(lines)
    unknown = set(parts or ()) - set(regions)
    if unknown:
        raise ValueError(f"no region {', '.join(sorted(unknown))}; there are: {', '.join(regions) or 'none'}")
    if regions and methods is None:
        cuts = [(first, last, len(indent_of(lines[first]))) for name, (first, last) in regions.items()
                if not parts or name in parts]
    else:
        cuts = bodies(code, methods)
    if not cuts:
        raise ValueError("there is nothing to take away")
    for first, last, indent in sorted(cuts, reverse=True):
        lines[first:last + 1] = placeholder(" " * indent, ident)
    return strip_marks("\n".join(lines))


def source_of(spec):
    """Return the source of "module:name", unindented, its marks still in it."""
    module, _, name = spec.partition(":")
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return textwrap.dedent(inspect.getsource(found)).rstrip()


def last_name(code):
    """Return the last name that ``code`` defines at its top level: what the check is given by default."""
    names = []
    for node in ast.parse(code).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names.append(node.targets[0].id)
    if not names:
        raise ValueError("the code defines no name for the check")
    return names[-1]


def codes(exercise):
    """Return (stub, solution, what the check is given) of one exercise, all as code."""
    kind, ident = exercise["kind"], exercise["id"]
    if kind == "build":
        specs = exercise["source"]
        specs = [specs] if isinstance(specs, str) else specs
        sources = [source_of(spec) for spec in specs]
        parts, methods = exercise.get("parts"), exercise.get("methods")
        stub = "\n\n\n".join(hollow(source, ident, parts, methods) for source in sources)
        solution = "\n\n\n".join(strip_marks(source) for source in sources)
        given = ", ".join(spec.rpartition(":")[2] for spec in specs)
    else:
        solution = strip_marks(exercise["solution"]).strip("\n")
        if kind == "vary":
            stub = exercise.get("stub") or hollow(exercise["solution"].strip("\n"), ident, exercise.get("parts"),
                                                  exercise.get("methods"))
        elif kind == "debug":
            stub = exercise["stub"]
        else:
            stub = exercise.get("stub") or "answer = None  # your number"
        given = "answer" if kind == "investigate" else last_name(solution)
    return stub.strip("\n"), solution, exercise.get("answer", given)


# The authored file -----------------------------------------------------------------------------------------------

def read(path):
    """Read and validate one authored file. Returns its dictionary, with a ``number`` in every exercise."""
    import tomllib

    with open(path, "rb") as file:
        try:
            chapter = tomllib.load(file)
        except tomllib.TOMLDecodeError as error:
            raise AuthorError(f"{path.name}: {error}") from None
    for key in ("chapter", "title", "intro", "imports", "exercise"):
        if key not in chapter:
            raise AuthorError(f"{path.name}: `{key}` is missing")
    if path.stem != f"ch{chapter['chapter']:02d}":
        raise AuthorError(f"{path.name}: says it is chapter {chapter['chapter']}")
    for place, exercise in enumerate(chapter["exercise"], 1):
        exercise["number"] = f"{chapter['chapter']}.{place}"
        problem = fault(exercise)
        if problem:
            raise AuthorError(f"{path.name}, exercise {exercise['number']} ({exercise.get('id', 'no id')}): {problem}")
    return chapter


def fault(exercise):
    """Return what is wrong with one exercise's fields, or None."""
    missing = NEEDED - exercise.keys()
    unknown = exercise.keys() - KEYS - {"number"}
    if missing or unknown:
        return f"missing: {sorted(missing)}, unknown: {sorted(unknown)}"
    kind = exercise["kind"]
    if kind not in KINDS:
        return f"kind is one of {', '.join(KINDS)}, not {kind!r}"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", exercise["id"]):
        return "the id is the name of its check: lower case, digits, underscores"
    if len(exercise["hints"]) != 3:
        return "three graded hints are needed"
    if exercise["difficulty"] not in range(1, 6):
        return "difficulty is 1 to 5"
    for key, kinds in {"source": ["build"], "solution": ["vary", "debug", "investigate"], "expect": ["debug"]}.items():
        if (key in exercise) != (kind in kinds):
            return f"`{key}` belongs to {', '.join(kinds)}, and only there"
    if kind == "debug" and "stub" not in exercise:
        return "a debug exercise needs its wrong version in `stub`"
    return None


# The notebooks ---------------------------------------------------------------------------------------------------

def cell(kind, ident, text):
    """Return one cell with a stable id, so that a second run gives the same file."""
    import nbformat

    make = nbformat.v4.new_markdown_cell if kind == "markdown" else nbformat.v4.new_code_cell
    made = make(text.strip("\n"))
    made["id"] = ident
    return made


def heading(exercise):
    """Return the title line and the line of facts under it."""
    dots = "●" * exercise["difficulty"] + "○" * (5 - exercise["difficulty"])
    return (f"## Exercise {exercise['number']} · {exercise['title']}\n\n"
            f"*{KINDS[exercise['kind']]}* · difficulty {exercise['difficulty']} of 5 {dots} · "
            f"about {exercise['minutes']} minutes\n\n")


def hints(exercise):
    """Return the hints, folded; the blank lines make both Jupyter and Sphinx read what is inside as Markdown."""
    return "\n\n".join(
        f'<details class="hint"><summary>Hint {number}</summary>\n\n{hint.strip()}\n\n</details>'
        for number, hint in enumerate(exercise["hints"], 1)
    )


def notebook(chapter, solved):
    """Return the stub notebook of a chapter, or with ``solved`` the solutions."""
    import nbformat

    from tools.execute import normalise

    number = chapter["chapter"]
    name = f"ch{number:02d}.ipynb"
    if solved:
        top = (f"# Solutions {number} · {chapter['title']}\n\n"
               f"The [exercises of chapter {number}](../exercises/{name}), filled in. "
               "A solution is one way of several: the checks accept any that computes the same.\n\n"
               f"To work on your own, download {{download}}`the exercises <../exercises/{name}>`.")
    else:
        top = (f"# Exercises {number} · {chapter['title']}\n\n{chapter['intro'].strip()}\n\n"
               "In each exercise, replace the line that raises `NotImplementedError` (or mend what is there), run the "
               "cell, then run the check below it. The check says what is not right yet; it never shows the solution. "
               f"They belong to [chapter {number}](../book/{name}).\n\n"
               f"Download {{download}}`this page as a notebook <{name}>`.")
    imports = chapter["imports"].strip() + "\n\nfrom minbert import checks"
    cells = [cell("markdown", "top", top), cell("code", "imports", imports)]
    for exercise in chapter["exercise"]:
        stub, solution, given = codes(exercise)
        ident = exercise["id"]
        text = heading(exercise) + exercise["prose"].strip()
        if solved:
            text += "\n\n" + exercise["explanation"].strip() if "explanation" in exercise else ""
        else:
            text += "\n\n" + hints(exercise)
        cells += [
            cell("markdown", f"{ident}-text", text),
            cell("code", f"{ident}-code", solution if solved else stub),
            cell("code", f"{ident}-check", f"checks.{ident}({given})"),
        ]
    return normalise(nbformat.v4.new_notebook(cells=cells))


def inputs(notebook):
    """Return all of a notebook but its outputs, to compare two."""
    return [(cell.id, cell.cell_type, cell.source, dict(cell.metadata)) for cell in notebook.cells], notebook.metadata


def with_outputs(new, old):
    """Copy the stored outputs into a newly made notebook when no code cell changed. Returns True if it did."""
    code = [[cell for cell in nb.cells if cell.cell_type == "code"] for nb in (new, old)]
    if [cell.source for cell in code[0]] != [cell.source for cell in code[1]]:
        return False
    for fresh, stored in zip(*code):
        fresh.outputs, fresh.execution_count = stored.outputs, stored.execution_count
    return all(cell.execution_count for cell in code[0])


def catalogue(chapters):
    """Return the text of exercises.json: what `minbert exercises` and the checks know of every exercise."""
    rows = [
        {"id": exercise["id"], "number": exercise["number"], "chapter": chapter["chapter"],
         **{key: exercise[key] for key in ("title", "kind", "difficulty", "minutes")}}
        for chapter in chapters for exercise in chapter["exercise"]
    ]
    idents = [row["id"] for row in rows]
    twice = {ident for ident in idents if idents.count(ident) > 1}
    if twice:
        raise AuthorError(f"two exercises have the same id: {', '.join(sorted(twice))}")
    body = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows)
    return f"[\n{body}\n]\n" if rows else "[]\n"


def generate(root=env.ROOT, only=(), check=False):
    """Write (or, with ``check``, compare) all notebooks under ``root``.

    Returns (differences, solutions that must be executed): the paths that differ from their source, as text, and
    the solution notebooks whose code changed or that were never executed.
    """
    import nbformat

    authored = sorted((root / "exercises" / "authored").glob("ch*.toml"))
    known = [path.stem for path in authored]
    for name in only:
        if name not in known:
            raise AuthorError(f"no authored file {name}.toml; there are: {', '.join(known)}")
    chapters = [read(path) for path in authored]
    differences, to_execute = [], []
    list_path = root / "minbert" / "checks" / "exercises.json"
    list_text = catalogue(chapters)
    if not list_path.exists() or list_path.read_text(encoding="utf-8") != list_text:
        differences.append(str(list_path.relative_to(root)))
        if not check:
            list_path.parent.mkdir(parents=True, exist_ok=True)
            list_path.write_text(list_text, encoding="utf-8")
    for chapter, path in zip(chapters, authored):
        if only and path.stem not in only:
            continue
        for folder in ("exercises", "solutions"):
            target = root / folder / f"{path.stem}.ipynb"
            try:
                new = notebook(chapter, solved=folder == "solutions")
            except (ValueError, AttributeError, ModuleNotFoundError, SyntaxError) as error:
                raise AuthorError(f"{path.name}: {error}") from error
            old = nbformat.read(target, as_version=4) if target.exists() else None
            executed = False
            if folder == "solutions" and old is not None:
                executed = with_outputs(new, old)
            stale = old is None or inputs(old) != inputs(new)
            if folder == "exercises" and old is not None:
                stale |= any(c.cell_type == "code" and (c.outputs or c.execution_count) for c in old.cells)
            if stale:
                differences.append(str(target.relative_to(root)))
                if not check:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    nbformat.write(new, target)
            if folder == "solutions" and not executed:
                to_execute.append(target)
    return differences, to_execute


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m tools.exercises", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help="chapters such as ch02; all when empty")
    parser.add_argument("--check", action="store_true", help="write nothing; fail on any difference")
    parser.add_argument("--execute", action="store_true", help="execute the solutions even if their code is unchanged")
    options = parser.parse_args(arguments)
    env.enter("all")
    from tools.execute import execute

    try:
        differences, to_execute = generate(only=options.only, check=options.check)
    except AuthorError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in differences:
        print(f"{path} {'differs from its source: run `make exercises`' if options.check else 'written'}")
    if options.check:
        for path in to_execute:
            print(f"{path.relative_to(env.ROOT)} is not executed: run `make exercises`")
        return 1 if differences or to_execute else 0
    if options.execute:
        to_execute = [path for path in sorted((env.ROOT / "solutions").glob("ch*.ipynb"))
                      if not options.only or path.stem in options.only]
    problems = [problem for problem in [execute(path) for path in to_execute] if problem]
    for problem in problems:
        print(f"\n{problem}", file=sys.stderr)
    if not differences and not to_execute:
        print("Nothing changed.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
