"""Execute notebooks and save them with their outputs: ``python -m tools.execute [ch02 | path.ipynb ...] [--check]``.

Without a name: every page of the book and every solution. ``--check`` executes, compares and saves nothing.
The same notebook gives the same bytes each time: one thread, fixed seeds, no times, no machine's name. A notebook
is saved only when all its cells ran; the first cell that fails is shown and the file stays as it was.
"""

import argparse
import configparser
import copy
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from tools import env

# One thread, because with two the last digits differ between machines (and two busy kernels are slower, not faster).
# The tests' conftest.py takes these from here: a notebook is always run in the same surroundings. MINBERT_THREADS is for
# the trial that the outputs do not hang on the machine: MINBERT_THREADS=2 ATEN_CPU_CAPABILITY=avx2 ... --check
KERNEL_ENV = {
    "OMP_NUM_THREADS": os.environ.get("MINBERT_THREADS", "1"),
    "PYTHONHASHSEED": "0",
    "TQDM_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    # The reader's own settings must not leak into the outputs.
    "COLUMNS": "100",
}


def notebooks(names=()):
    """Return the paths of the notebooks meant: by name ("ch02", "speed"), by path, or all that are stored executed."""
    everything = [*sorted((env.ROOT / "book").glob("*.ipynb")), *sorted((env.ROOT / "solutions").glob("ch*.ipynb"))]
    if not names:
        return everything
    found = []
    for name in names:
        chosen = [path for path in everything if path.stem == name]
        if not chosen and Path(name).is_file():
            chosen = [Path(name).resolve()]
        if not chosen:
            raise SystemExit(f"error: no notebook {name!r}: give a path or one of "
                             + ", ".join(sorted({path.stem for path in everything})))
        found += chosen
    return found


def normalise(notebook):
    """Remove from a notebook what differs between two runs of the same code; in place. Returns it."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code" and cell.execution_count is None:
            cell.outputs = []
    return notebook


def run(notebook, cwd, allow_errors=False, timeout=600):
    """Execute a notebook (in place) with ``cwd`` as its working directory. Returns the seconds it took.

    Raises nbclient.exceptions.CellExecutionError, unless ``allow_errors``, when a cell fails.
    """
    from nbclient import NotebookClient

    started = time.perf_counter()
    client = NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", record_timing=False, coalesce_streams=True,
        allow_errors=allow_errors, resources={"metadata": {"path": str(cwd)}},
        extra_arguments=["--log-level=ERROR"],      # the kernel's own remarks on its transport help nobody here
    )
    client.execute(env={**os.environ, **KERNEL_ENV})
    normalise(notebook)
    return time.perf_counter() - started


def working_directory(path, empty):
    """A chapter runs beside its recorded results; a solution runs where there is nothing, as a reader's would."""
    return empty if path.parent.name == "solutions" else path.parent


def sanitised(text):
    """An output without what may differ between two machines: the rules of tests/nbval.cfg, which nbval applies too."""
    if not isinstance(text, str):
        return text
    rules = configparser.ConfigParser()
    rules.read(env.ROOT / "tests" / "nbval.cfg", encoding="utf-8")
    for rule in rules.sections():
        text = re.sub(rules[rule]["regex"], rules[rule]["replace"], text)
    return text


def comparable(notebook):
    """What must not differ between two runs: all but counts and bitmaps (trained curves are not equal to the bit)."""
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "code" and "nbval-ignore-output" not in cell.metadata.get("tags", []):
            outputs = []
            for output in cell.outputs:
                output = {key: value for key, value in output.items() if key not in ("execution_count", "metadata")}
                if "data" in output:
                    output["data"] = {k: sanitised(v) for k, v in output["data"].items()
                                      if k not in ("image/png", "image/jpeg")}
                outputs.append(output)
            cells.append(outputs)
    return cells


def execute(path, check=False):
    """Execute one notebook file. Returns None, or a message that says what is wrong."""
    import nbformat
    from nbclient.exceptions import CellExecutionError

    old = nbformat.read(path, as_version=4)
    new = copy.deepcopy(old)
    name = os.path.relpath(path, env.ROOT)
    print(f"{name} ... ", end="", flush=True)
    with tempfile.TemporaryDirectory() as empty:
        try:
            seconds = run(new, working_directory(path, empty))
        except CellExecutionError as error:
            print("failed")
            return f"{name}: {error}"
    cells = sum(cell.cell_type == "code" for cell in new.cells)
    print(f"{cells} cells, {seconds:.1f} s", flush=True)
    if not check:
        nbformat.write(new, path)
        return None
    for number, (before, after) in enumerate(zip(comparable(old), comparable(new)), 1):
        if before != after:
            return f"{name}: code cell {number} now gives another output:\n  stored: {before}\n  now:    {after}"
    return None


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m tools.execute", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="chapters such as ch02, or paths; all when empty")
    parser.add_argument("--check", action="store_true", help="compare with what is stored; save nothing")
    options = parser.parse_args(arguments)
    env.enter("all")
    problems = [execute(path, options.check) for path in notebooks(options.names)]
    problems = [problem for problem in problems if problem]
    for problem in problems:
        print(f"\n{problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
