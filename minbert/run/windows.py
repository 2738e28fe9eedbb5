"""The windows of a whole SQuAD file: made once, held in a few flat arrays, kept in a file for the next run.

130,000 questions are 24 million word pieces. As lists of Python numbers they would fill gigabytes; as arrays, a window's
pieces cost four bytes each, and the places of a passage's pieces are kept once for all its questions. A window is put
together when it is asked for.

The file holds arrays and nothing else (safetensors, never pickled), is there whole or not at all, and its name is made of
all that it depends on. A damaged one is made anew. The last few are kept; `minbert doctor` says where.
"""

from __future__ import annotations

import array
import contextlib
import hashlib
import inspect
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minbert import squad
from minbert.run.checkpoint import CheckpointError, write_whole
from minbert.run.recipes import source_name

KEEP_FILES = 8                                       # files in the cache; of more, those that were not used longest go
KEEP_FROM = 2000                                     # questions; the windows of fewer are made sooner than looked up
FORMAT = "minbert-windows-1"
# The code that makes windows is one of the things they depend on. Read now: later the file may be another than what runs.
MAKERS = "".join(inspect.getsource(part) for part in (squad.featurise, squad._windows, squad._pieces_of, squad._best_windows))


@dataclass(frozen=True)
class WindowSettings:
    """How questions and passages are cut, and how long an answer may be; see `minbert.squad.featurise` and `decode`."""

    window_length: int = 384                         # word pieces of a window, [CLS] and both [SEP] included
    question_length: int = 64                        # most word pieces of a question
    window_step: int = 128                           # by how many pieces one window follows another
    answer_length: int = 30                          # most word pieces of an answer

    @classmethod
    def of(cls, config):
        """Those of a configuration, where it has them; otherwise the defaults, which are BERT's."""
        return cls(**{name: getattr(config, name, default) for name, default in asdict(cls()).items()})


class Windows(Sequence):
    """The windows of a list of questions: `windows[i]` is a `minbert.squad.Window`.

    Args:
        arrays: named arrays. One number a window w: "question" (W,); "first", "start", "end" as in `Window`; "place": where
            its part begins in `bounds`; "best" (W, 2): which pieces of its part it shows best, from and up to;
            "at" (W + 1,): window w has `ids[at[w]:at[w + 1]]`. All word pieces: "ids"
            (N,). The pieces of all passages: "bounds" (P, 2).
    """

    def __init__(self, arrays):
        self.arrays = arrays
        self.lengths = np.diff(arrays["at"])                                                 # (W,)

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, w):
        if not -len(self) <= w < len(self):
            raise IndexError(w)
        a, w = self.arrays, w % len(self)
        first, place = int(a["first"][w]), int(a["place"][w])
        pieces = int(self.lengths[w]) - first - 1
        best, (begin, end) = np.zeros(pieces, dtype=bool), a["best"][w]
        best[begin:end] = True
        return squad.Window(int(a["question"][w]), self.ids(w).tolist(), first, a["bounds"][place:place + pieces], best,
                            int(a["start"][w]), int(a["end"][w]))

    def ids(self, w):
        """The word pieces of a window, (T,) int32."""
        return self.arrays["ids"][self.arrays["at"][w]:self.arrays["at"][w + 1]]

    @property
    def nbytes(self):
        """Memory that the arrays take."""
        return sum(a.nbytes for a in self.arrays.values())


class WindowIds(Sequence):
    """The word pieces of windows alone, as the training loop wants them: one (T,) array a window."""

    def __init__(self, windows):
        self.windows = windows

    def __len__(self):
        return len(self.windows)

    def __getitem__(self, w):
        return self.windows.ids(w)


def make_windows(tokenizer, questions, settings=WindowSettings(), progress=False) -> Windows:
    """Cut questions and passages into windows, see `minbert.squad.featurise`.

    Args:
        tokenizer: from `minbert.tokens`.
        questions: a list of `minbert.squad.Question`.
        settings: a WindowSettings.
        progress: show a bar (TQDM_DISABLE hides it).
    """
    ids, at, bounds = array.array("i"), array.array("q", [0]), array.array("i")
    columns = {name: array.array("i") for name in ("question", "first", "start", "end")}
    place, best = array.array("q"), array.array("i")
    with tqdm(total=len(questions), desc="windows", unit=" questions", leave=False, disable=None if progress else True,
              mininterval=0.1 if sys.stderr.isatty() else 30.0) as bar:
        passage, base, known, question, begin = None, 0, 0, -1, 0
        for window in squad.featurise(tokenizer, questions, settings.window_length, settings.question_length,
                                      settings.window_step, bar.update):
            if window.question != question:
                question, begin = window.question, 0
                context = questions[question].context
                if context is not passage and context != passage:      # a new passage: its pieces follow those before it
                    passage, base, known = context, len(bounds) // 2, 0
            else:
                begin += settings.window_step
            pieces = len(window.offsets)
            if begin + pieces > known:                                 # pieces that no window before has shown
                bounds.frombytes(np.ascontiguousarray(window.offsets[known - begin:], dtype=np.int32).tobytes())
                known = begin + pieces
            ids.extend(window.ids)
            at.append(len(ids))
            for name, column in columns.items():
                column.append(getattr(window, name))
            place.append(base + begin)
            shown = np.flatnonzero(window.best)                        # they follow one another
            best.extend((int(shown[0]), int(shown[-1]) + 1) if len(shown) else (0, 0))
    arrays = {name: _flat(column) for name, column in columns.items()}
    return Windows({**arrays, "place": _flat(place), "best": _flat(best).reshape(-1, 2), "at": _flat(at), "ids": _flat(ids),
                    "bounds": _flat(bounds).reshape(-1, 2)})


def _flat(values):
    """A numpy array on the memory of an array.array: nothing is copied."""
    return np.frombuffer(values, dtype=values.typecode) if len(values) else np.zeros(0, dtype=values.typecode)


# ---- the file ----------------------------------------------------------------------------------------------------

def cache_directory() -> Path:
    """Where windows are kept: MINBERT_CACHE if it is set, else the directory `minbert` in the user's cache."""
    if os.environ.get("MINBERT_CACHE"):
        return Path(os.environ["MINBERT_CACHE"])
    user = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(user) / "minbert"


def kept_files(directory=None) -> list[Path]:
    """The files of windows in a cache (None: `cache_directory()`), the one that was used last first."""
    used = {path: path.stat().st_mtime for path in Path(directory or cache_directory()).glob("windows-*.safetensors")}
    return sorted(used, key=used.get, reverse=True)


def windows_key(data_sha256, tokenizer, settings) -> str:
    """A hash of all that the windows depend on: data, tokenizer, settings, and the code that makes them."""
    parts = [FORMAT, data_sha256, hashlib.sha256(tokenizer.to_str().encode()).hexdigest(), asdict(settings), MAKERS]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load_windows(tokenizer, questions, data_sha256, settings=WindowSettings(), directory=None, progress=False,
                 keep_from=KEEP_FROM):
    """The windows of a file's questions: those that an earlier run kept, or made now and kept.

    Args:
        tokenizer, questions, settings, progress: see `make_windows`.
        data_sha256: of the file that the questions come from.
        directory: where to keep them; None for `cache_directory()`.
        keep_from: fewer questions than this are not kept.

    Returns:
        (Windows, notes): the notes are lines for the reader.
    """
    if len(questions) < keep_from:
        return make_windows(tokenizer, questions, settings, progress), []
    key = windows_key(data_sha256, tokenizer, settings)
    path = Path(directory or cache_directory()) / f"windows-{key[:16]}.safetensors"
    notes = []
    if path.exists():
        windows, problem = read_windows(path, key)
        if windows is not None:
            with contextlib.suppress(OSError):       # the cache may be read-only
                path.touch()
            return windows, [f"windows of an earlier run are used ({source_name(path)})"]
        notes.append(f"{source_name(path)}: {problem}; its windows are made anew")
    windows = make_windows(tokenizer, questions, settings, progress)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_windows(path, windows, key)
        for old in kept_files(path.parent)[KEEP_FILES:]:
            old.unlink(missing_ok=True)
    except (OSError, CheckpointError) as error:
        notes.append(f"the windows can't be kept for the next run ({error}); set MINBERT_CACHE to a place with room")
    return windows, notes


def write_windows(path, windows, key) -> None:
    """Write them to a file, whole or not at all.  Raises CheckpointError when it can't be written."""
    from safetensors.numpy import save

    header = {"format": FORMAT, "key": key, "digest": _digest(windows.arrays)}
    write_whole(path, save({name: np.ascontiguousarray(a) for name, a in windows.arrays.items()}, header), "Make room")


def read_windows(path, key):
    """(Windows, ""), or (None, what is wrong with the file)."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT or header.get("key") != key:
                return None, "it holds something else"
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        return None, f"truncated or damaged ({' '.join(str(error).split())})"
    if _digest(arrays) != header.get("digest"):
        return None, "damaged (its bytes changed since it was written)"
    return Windows(arrays), ""


def _digest(arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()
