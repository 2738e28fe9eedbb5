"""A file that is there whole or not at all."""

import os
from pathlib import Path


def write_atomically(path, content):
    """Write bytes as a file in one step: whoever looks at any moment sees the old file or the new one, never half of one.

    It is written beside its place, flushed to the disk, and then moved there. An earlier file stays until then, also after
    a full disk or Ctrl-C, and no half-written file is left behind.

    Returns:
        the path.

    Raises:
        OSError: the disk is full, or the place can't be written.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.part")  # the same directory: a move within one disk is a single step
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # on the disk, not only in the system's memory
        os.replace(part, path)
        _sync_directory(path.parent)
    finally:
        part.unlink(missing_ok=True)
    return path


def _sync_directory(directory):
    if os.name != "posix":
        return  # elsewhere a directory can't be opened; the move is done all the same
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
