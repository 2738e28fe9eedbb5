"""Run the tests: ``python -m tools.test [--fast | --pages] [-- pytest's own arguments]``.

    python -m tools.test           the book build, then unit, parity and exercise tests and every notebook
    python -m tools.test --fast    no notebook, no build, nothing marked slow
    python -m tools.test --pages   every built page in a browser with the network blocked
"""

import argparse
import os
import shutil
import subprocess
import sys

from tools import book, env

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_browser():
    """Return the path of a Chromium, or None. ``MINBERT_BROWSER`` names one elsewhere."""
    named = os.environ.get("MINBERT_BROWSER")
    if named:
        return named if os.access(named, os.X_OK) else None
    return next((shutil.which(name) for name in BROWSERS if shutil.which(name)), None)


def pytest(*arguments):
    """Run pytest on two processes (two cores are what a small laptop and a free CI machine have)."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--durations=10", *arguments]
    return subprocess.run(command, cwd=env.ROOT).returncode


def full(extra):
    # The build comes first: it takes seconds, and pytest's own closing line is then the last.
    code = book.build()
    if code:
        return code
    from tools.execute import notebooks

    stored = [str(path.relative_to(env.ROOT)) for path in notebooks()]
    # loadfile: the cells of a notebook share one kernel, so they must run in one process and in order.
    return pytest("--dist", "loadfile", "--nbval", "--nbval-cell-timeout=600",
                  f"--nbval-sanitize-with={env.ROOT / 'tests' / 'nbval.cfg'}", "tests", *stored, *extra)


def fast(extra):
    return pytest("--dist", "loadfile", "-m", "not slow", "tests", *extra)


def pages(extra):
    if find_browser() is None:
        print("error: make test-pages needs Chromium, and there is none here: install it (on Debian and Ubuntu "
              "`apt install chromium`) or name it in MINBERT_BROWSER.")
        return 1
    code = book.build()
    # pyproject.toml leaves tests/pages out of a plain run; here nothing is left out.
    return code or pytest("-o", "addopts=--strict-markers", "tests/pages", *extra)


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m tools.test", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--fast", action="store_true", help="less than 90 seconds")
    which.add_argument("--pages", action="store_true", help="the built pages in a browser")
    parser.add_argument("extra", nargs="*", help="after --: passed on to pytest")
    options = parser.parse_args(arguments)
    env.enter("all")
    return (fast if options.fast else pages if options.pages else full)(options.extra)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
