"""Recorded results: every number that the book shows comes from one of these files.

    <root>/<recipe>/<size>-<model>-<data>-<precision>-<seed>.json      one run
    <root>/INDEX.json                                                  the SHA-256 of each of them

The runner writes both.  A record whose bytes are no longer those of the index was edited by hand: an error.  A record
whose settings differ from today's recipe is *stale*: it is shown, with the difference.

No path of the machine is written down: directories appear by their own name, with the hash of what was in them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import shlex
import statistics
import subprocess
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from minbert import __version__
from minbert.run import lock
from minbert.run.recipes import (
    CHOSEN_APART, RECIPES, Config, RecipeError, differences, model_name, public, resolve, run_name, source_name,
)

INDEX = "INDEX.json"
MEND = "Get them back from version control, or run them again with --again"
REMEDY = "Make room, and the same command with --resume records the finished run"
PATIENCE = 30                                        # seconds to wait for another process that writes a record
PACKAGES = ("torch", "tokenizers", "safetensors", "numpy")


class RecordError(ValueError):
    """Records that can't be trusted, read or written; the message names the files."""


# ---- where -------------------------------------------------------------------------------------------------------

def checkout() -> Path | None:
    """The book's source directory, if that is where we are, or where this package lies."""
    here = Path.cwd()
    for place in (here, *here.parents, Path(__file__).resolve().parents[2]):
        if (place / "book").is_dir() and (place / "minbert").is_dir():
            return place
    return None


def results_root(root=None) -> Path:
    """Where records are written: `root`, else $MINBERT_RESULTS, else book/results of a checkout, else ./results."""
    if root or os.environ.get("MINBERT_RESULTS"):
        return Path(root or os.environ["MINBERT_RESULTS"]).expanduser()
    place = checkout()
    return place / "book" / "results" if place else Path("results")


def reading_root(root=None) -> Path:
    """Where records are read: as `results_root`; if there are none, those that came with the installed package."""
    chosen = results_root(root)
    packed = Path(__file__).resolve().parents[1] / "results"
    if root is None and not (chosen / INDEX).is_file() and (packed / INDEX).is_file():
        return packed
    return chosen


def path_of(config: Config, root) -> Path:
    """Where the record of a run is, or would be."""
    return Path(root) / config.recipe / f"{run_name(config)}.json"


# ---- making a record ---------------------------------------------------------------------------------------------

def make(config: Config, task, arithmetic, done, timing: str, curve: dict) -> dict:
    """The record of a finished run.

    Args: the resolved configuration; the task (see tasks.py); the arithmetic (device.py); the run's `Progress`;
    "alone" or "shared"; the training curve.
    """
    from minbert.run import device, parallel

    trained, stored = parameters(task.model)
    seconds = sum(entry["train"]["seconds"] for entry in done.history)
    examples = sum(entry["train"]["examples"] for entry in done.history)
    processes = parallel.world()[1]
    command = command_of(config, arithmetic)
    if processes > 1:
        command = command.replace("minbert", f"torchrun --nproc-per-node {processes} -m minbert.run.cli", 1)
    return {
        "recipe": config.recipe,
        "size": config.size,
        "seed": config.seed,
        "command": command,
        "commit": commit(),
        "config": public(config),
        "weights": task.start.weights,
        "data": task.data,
        "notes": task.notes,
        "device": {**device.describe(arithmetic.device), **({"processes": processes} if processes > 1 else {})},
        "versions": versions(),
        "parameters": {"trained": trained, "stored": stored},
        "epochs": done.history,
        "best": done.history[done.best - 1],
        **({"untrained": {"dev": done.untrained}} if done.untrained else {}),
        **({"plan": task.drawn()} if hasattr(task, "drawn") else {}),
        **({"gradient_cosines": {"tasks": task.trained, "at": done.cosines}} if done.cosines else {}),
        "curve": curve,
        "time": {
            "timing": timing, "train_seconds": seconds, "examples_per_second": examples / seconds, "steps": done.step,
            "peak_memory_mb": device.peak_memory_mb(arithmetic.device),
        },
    }


def parameters(model) -> tuple[int, int]:
    """(trained, stored): how many numbers training may change, and how many there are."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained, sum(tensor.numel() for tensor in model.state_dict().values())    # embedding rows left out too


def command_of(config: Config, arithmetic) -> str:
    """The command that runs this again, with directories by their names only."""
    if config.recipe not in RECIPES:
        changed = [f"--{key.replace('_', '-')}" + ("" if value is True else f" {shlex.quote(str(value))}")
                   for key, value in public(config).items()
                   if value != public(Config()).get(key) and key not in ("recipe", "size", "weights")]
        return " ".join(["minbert train", f"--model {shlex.quote(source_name(config.weights))}", *changed])
    parts = [f"minbert run {config.recipe}", f"--size {config.size}"]
    plain = resolve(config.recipe, config.size)
    if config.weights != plain.weights:
        parts.append(f"--model {shlex.quote(source_name(config.weights))}")
    if config.data != plain.data:
        parts.append(f"--data {shlex.quote(source_name(config.data))}")
    if config.micro_batch:
        parts.append(f"--micro-batch {config.micro_batch}")
    parts += [f"--precision {config.precision}", f"--device {arithmetic.device.type}", f"--seeds {config.seed}"]
    return " ".join(parts)


def commit() -> dict:
    """The commit of the package's source, and whether the package differs from it; None outside a checkout."""
    place = Path(__file__).resolve().parents[2]
    if not (place / ".git").exists():
        return {"hash": None, "dirty": None}

    def git(*words):
        answer = subprocess.run(["git", "-C", str(place), *words], capture_output=True, text=True, timeout=30)
        return answer.stdout.strip() if answer.returncode == 0 else None

    try:
        changes = git("status", "--porcelain", "--", "minbert")
        return {"hash": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}
    except (OSError, subprocess.TimeoutExpired):       # no git on this machine
        return {"hash": None, "dirty": None}


def versions() -> dict:
    """Python's version and those of the packages that a result depends on."""
    found = {"python": platform.python_version(), "minbert": __version__}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


# ---- writing and reading -----------------------------------------------------------------------------------------

def to_bytes(record: dict) -> bytes:
    """A record as the text of its file."""
    return (json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write(record: dict, root=None) -> Path:
    """Write a record and its hash.  Raises RecordError for a smoke run, whose numbers mean nothing."""
    from minbert.run.checkpoint import write_whole

    if record["size"] == "smoke":
        raise RecordError("a smoke run is plumbing only: its numbers are not recorded")
    root = results_root(root)
    path = path_of(Config(**record["config"]), root)
    content = to_bytes(record)
    check_place(root)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock.hold(root / ".INDEX.lock", patience=PATIENCE))      # two runs may finish together
        except lock.Busy:
            raise RecordError(f"{root}: another process has been writing records there for {PATIENCE} s: end it, and the same "
                              "command with --resume records the finished run") from None
        index = read_index(root)
        before = path.read_bytes() if path.exists() else None
        path.parent.mkdir(exist_ok=True)
        write_whole(path, content, REMEDY)
        try:
            index[path.relative_to(root).as_posix()] = digest(path)
            write_whole(root / INDEX, (json.dumps(index, indent=1, sort_keys=True) + "\n").encode(), REMEDY)
        except BaseException:                        # no record without its hash: the earlier one comes back
            path.unlink() if before is None else path.write_bytes(before)
            raise
    return path


def check_place(root) -> None:
    """Make the directory of the records.  Raises RecordError if that can't be, or it holds a damaged index."""
    root = Path(root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not os.access(root, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise RecordError(f"{root}: can't be written ({error.strerror}), and records go there: choose another --root") from None
    read_index(root)


def digest(path: Path) -> str:
    """SHA-256 of a file, with line ends as "\\n", so that a checkout on Windows has the same."""
    return hashlib.sha256(Path(path).read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def read_index(root) -> dict:
    """{file: SHA-256}; empty if there is no index."""
    path = Path(root) / INDEX
    if not path.is_file():
        return {}
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise RecordError(f"{path}: not valid JSON: get it back from version control") from None
    if not isinstance(index, dict):
        raise RecordError(f"{path}: not an index of records: get it back from version control")
    return index


def faults(root=None) -> list[str]:
    """One line for every record that can't be trusted: changed, missing, or not written by the runner."""
    root = reading_root(root)
    index = read_index(root)
    found = []
    for name, expected in sorted(index.items()):
        path = root / name
        if not path.is_file():
            found.append(f"{name}: in {INDEX}, but the file is gone")
        elif digest(path) != expected:
            found.append(f"{name}: changed since it was written (SHA-256 is not that of {INDEX})")
    for path in sorted(root.glob("*/*.json")):
        name = path.relative_to(root).as_posix()
        if name not in index:
            found.append(f"{name}: not in {INDEX}: not written by the runner")
    return found


def load(recipe: str | None = None, root=None) -> list[dict]:
    """All records, or those of one recipe, in the order of their names.  No record is an empty list: a gap, no error.

    Raises RecordError when a file is not what the runner wrote.
    """
    root = reading_root(root)
    wrong = faults(root)
    if wrong:
        raise RecordError("records that can't be trusted: " + "; ".join(wrong) + f". {MEND}")
    names = [name for name in sorted(read_index(root)) if recipe is None or name.split("/")[0] == recipe]
    return [json.loads((root / name).read_text(encoding="utf-8")) for name in names]


def read(path) -> dict:
    """One record, or the file record.json of a run's directory.  Raises RecordError when it is no record."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        record["config"]["recipe"], record["best"]["dev"]    # what every record has
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path}: not a whole record ({type(error).__name__}: {error}); run it again with --again") from None
    return record


def existing(config: Config, root) -> dict | None:
    """The record of a run, or None if there is none.  Raises RecordError when it is not as the runner wrote it.

    A file that the index does not name is no record: its writer was killed before it was done.
    """
    path = path_of(config, root)
    written = read_index(root).get(path.relative_to(root).as_posix())
    if written is None or not path.exists():
        return None
    if written != digest(path):
        raise RecordError(f"{path}: changed since it was written (SHA-256 is not that of {INDEX}). {MEND}")
    return read(path)


def stale(record: dict) -> list[str]:
    """The settings in which a record differs from today's recipe, as "lr: 3e-05 → 1e-05"; empty if it is up to date.

    What is chosen apart from the recipe (model, data, precision, seed) is the record's own and is not compared.
    """
    then = record["config"]
    try:
        own = {key: then[key] for key in CHOSEN_APART if key in then and key != "size"}
        today = public(resolve(record["recipe"], record["size"], **own))
    except RecipeError as error:
        return [str(error)]
    return differences(then, today)


# ---- from records to table cells ---------------------------------------------------------------------------------

@dataclass
class Row:
    """The runs of one setting, one a seed."""

    recipe: str
    size: str
    model: str
    data: str
    precision: str
    records: list = field(default_factory=list)

    def values(self, *keys) -> list[float]:
        """One number a seed: `row.values("best", "dev", "accuracy")`.  Seeds without that number are left out."""
        found = []
        for record in self.records:
            value = record
            for key in keys:
                value = value.get(key) if isinstance(value, dict) else None
            if value is not None:
                found.append(value)
        return found

    @property
    def stale(self) -> list[str]:
        """Differences from today's recipe, of any of the runs."""
        return sorted({difference for record in self.records for difference in stale(record)})


def rows(recipes=None, root=None) -> list[Row]:
    """The recorded runs of some recipes (None: all), grouped by setting; a recipe never run gives no row."""
    found: dict[tuple, Row] = {}
    names = list(RECIPES) if recipes is None else list(recipes)
    every = load(root=root)
    for name in names:
        for record in (r for r in every if r["recipe"] == name):
            config = Config(**{k: v for k, v in record["config"].items() if k in Config.__dataclass_fields__})
            key = (name, config.size, model_name(config), config.data, config.precision)
            found.setdefault(key, Row(*key)).records.append(record)
    return list(found.values())


def mean_and_spread(values: list[float], digits: int = 3) -> str:
    """A cell: "not run" for nothing, the number for n = 1, the mean for n = 2, mean ± standard deviation from n = 3; n always.

    The standard deviation is that of a sample (divided by n − 1).
    """
    if not values:
        return "not run"
    mean = f"{statistics.fmean(values):.{digits}f}"
    if len(values) < 3:
        return f"{mean} (n={len(values)})"
    return f"{mean} ± {statistics.stdev(values):.{digits}f} (n={len(values)})"
