"""Rules of the house that no unit test sees: one definition of everything, no traces of a machine, small imports."""

import ast
import re
import subprocess
import sys
import tomllib

import nbformat
import pytest

import minbert
from tools import env

# Verbs that are always called with their module's name, as in records.load: several modules may have one.
QUALIFIED = {"load", "main", "make"}
# The checks are left out: each is named after what it checks.
MODULES = [path for path in sorted((env.ROOT / "minbert").rglob("*.py"))
           if "checks" not in path.relative_to(env.ROOT).parts]
CHAPTERS = sorted((env.ROOT / "book").glob("*.ipynb"))


def tracked():
    """Return the files of the project: those in git, or in a copy without git all but what is built or installed."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=env.ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        paths = [env.ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        paths = [path for path in env.ROOT.rglob("*")
                 if not re.search(r"/(\.venv|_build|build|\.git|__pycache__|[^/]*\.egg-info)/", path.as_posix())]
    return [path for path in paths if path.is_file()]


# One definition ---------------------------------------------------------------------------------------------------

def public(code):
    """Return the names of the public functions and classes that a module defines at its top level."""
    return [node.name for node in ast.parse(code).body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")]


def defined(code):
    """Return every name that the code of a cell defines as a function or class, nested ones and lambdas too."""
    # Lines for IPython alone are not Python.
    tree = ast.parse("\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in code.split("\n")))
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            names.append(node.name)
            # A method called `forward` is no second definition of anything.
            for child in node.body:
                if isinstance(child, ast.FunctionDef):
                    child.name = ""
        elif isinstance(node, ast.FunctionDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return [name for name in names if name]


def symbols():
    """Return {public name: [modules that define it]} of the package, the checks excepted."""
    found = {}
    for path in MODULES:
        for name in public(path.read_text(encoding="utf-8")):
            found.setdefault(name, []).append(path.relative_to(env.ROOT).as_posix())
    return found


def test_no_public_name_is_defined_twice_in_the_package():
    twice = {name: where for name, where in symbols().items() if len(where) > 1 and name not in QUALIFIED}
    assert not twice


def test_a_name_that_several_modules_have_is_never_imported_alone():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                bare = {alias.name for alias in node.names} & QUALIFIED
                assert not bare, f"{path.relative_to(env.ROOT)}, line {node.lineno}: say which module's {bare}"


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_no_chapter_defines_what_the_package_defines(path):
    known = symbols()
    again = [f"cell {cell.id}: {name} is {known[name][0]}'s; give a first version another name"
             for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"
             for name in defined(cell.source) if name in known]
    assert not again, "\n".join(again)


@pytest.mark.parametrize("code", [
    "def attention(q): pass", "class attention: pass", "if 1:\n    def attention(q): pass", "attention = lambda q: q",
])
def test_a_second_definition_is_found(code):
    assert "attention" in defined(code)


def test_what_is_not_a_definition_is_left_alone():
    assert defined("%matplotlib inline\nx = attention(q)\nclass Own:\n    def attention(self): pass") == ["Own"]


# No traces of a machine -------------------------------------------------------------------------------------------

# Written in two halves, so that this file does not find itself.
PLACES = re.compile(r"(?<![\w.+])/(?:work" + r"|tmp|root|farm|opt/\w+)/|\bshared/" + r"data\b")
HOSTS = re.compile(r"pypi\." + r"org|pythonhosted\." + r"org|download\.pytorch\." + r"org|anaconda\." + r"org"
                   r"|npmjs\." + r"(?:org|com)|/simple/" + r"\b")


def traces(text):
    return [match[0] for pattern in (PLACES, HOSTS) for match in pattern.finditer(text)]


def test_no_file_names_a_place_of_one_machine_or_a_registry():
    found = []
    for path in tracked():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        # A bitmap in a notebook is one long line of base64, in which anything may occur.
        found += [f"{path.relative_to(env.ROOT)}:{number}: {trace}" for number, line in enumerate(lines, 1)
                  if '"image/png"' not in line for trace in traces(line)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("text", ["see /wor" + "k/x", "in /tm" + "p/x.ipynb", "https://pypi." + "org/x"])
def test_a_trace_is_found(text):
    assert traces(text)


def test_addresses_that_readers_need_are_left_alone():
    assert not traces("https://pytorch.org/get-started/locally/ https://huggingface.co/x tests/test_x.py homework/x")


def test_no_tracked_file_is_large_and_no_real_data_set_is_among_them():
    for path in tracked():
        size = path.stat().st_size
        assert size < 4_000_000, f"{path.relative_to(env.ROOT)}: {size} bytes"
        assert not re.search(r"(quora|sts|squad|cfimdb).*\.(csv|json)$", path.name) or "corpora" in path.parts \
            or "results" in path.parts or "tests" in path.parts, path


# The package ------------------------------------------------------------------------------------------------------

def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((env.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == minbert.__version__
    assert f"\nversion: {minbert.__version__}\n" in (env.ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {minbert.__version__}" in (env.ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_importing_the_core_loads_no_heavy_library():
    core = [path.stem for path in MODULES if path.parent.name == "minbert" and path.stem != "__init__"]
    code = ("import sys, importlib\n"
            f"for name in {core!r}: importlib.import_module('minbert.' + name)\n"
            "print([m for m in ('transformers', 'datasets', 'matplotlib', 'IPython', 'pandas') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=env.ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_earlier_files_know_nothing_of_run_and_checks():
    for path in MODULES:
        if path.parent.name != "minbert":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else \
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            wrong = [name for name in names if name.startswith(("minbert.run", "minbert.checks", "tools", "tests"))]
            assert not wrong, f"{path.name} imports {wrong}"


@pytest.mark.parametrize("inside", ["published.json", "checks/exercises.json", "corpora/ids-sst-train.csv",
                                    "corpora/ids-sst-dev.csv", "corpora/quora-train.csv", "corpora/quora-dev.csv",
                                    "corpora/sts-train.csv", "corpora/sts-dev.csv", "corpora/README-pairs.md",
                                    "corpora/squad-train-v2.0.json", "corpora/squad-dev-v2.0.json",
                                    "corpora/README-squad.md", "run/__init__.py"])
@pytest.mark.slow
def test_the_wheel_holds_what_a_reader_needs(wheel_site, inside):
    assert (wheel_site / "minbert" / inside).is_file()


@pytest.mark.slow
def test_the_wheel_installs_only_the_package(wheel_site):
    assert {path.name for path in wheel_site.iterdir() if not path.name.endswith(".dist-info")} <= {"minbert", "bin"}


def test_the_table_of_contents_names_files_that_are_there():
    import yaml

    content = yaml.safe_load((env.ROOT / "_toc.yml").read_text(encoding="utf-8"))
    listed = [content["root"]] + [entry["file"] for part in content["parts"] for chapter in part["chapters"]
                                  for entry in [chapter, *chapter.get("sections", [])]]
    for name in listed:
        assert list(env.ROOT.glob(f"{name}.*")), f"_toc.yml names {name}, which is not there"
    for path in [*(env.ROOT / "book").glob("*.ipynb"), *(env.ROOT / "book").glob("*.md")]:
        assert f"book/{path.stem}" in listed, f"{path.name} is not in _toc.yml"
