"""One process at a time.

The lock is the system's own, on an open file, and not the file itself: it goes when its holder ends, however that ends.
So a process that was killed holds nobody up.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path


class Busy(ValueError):
    """Another process holds the lock; the message says which."""


@contextlib.contextmanager
def hold(path, patience: float = 0.0):
    """Hold the lock of a file, which is made for it and removed at the end.

    Raises Busy if another holds it for more than `patience` seconds; OSError if the file can't be made.
    """
    path = Path(path)
    until = time.monotonic() + patience
    while True:
        with open(path, "a") as handle:
            if _lock(handle) and _is_at(path, handle):
                try:
                    yield
                finally:
                    with contextlib.suppress(OSError):       # Windows removes no open file
                        path.unlink()
                return
        if time.monotonic() >= until:
            raise Busy(f"{path}: held by another process")
        time.sleep(0.05)


def _lock(handle) -> bool:
    """Lock an open file.  False if another has."""
    try:
        try:
            import fcntl
        except ImportError:                          # Windows
            import msvcrt

            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_at(path: Path, handle) -> bool:
    """True if the open file is still at its place: the holder before may have removed it between our two steps."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
