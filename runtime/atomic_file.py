"""A file that appears whole or not at all, whatever interrupts the writing."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file, for this user alone, that takes the place of `path` if the block ends without an error.

    Raises:
        OSError: it cannot be written; what was there before still is.
    """
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    _remove_stale(path)
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    """Remove what a process left behind that was killed while it wrote here."""
    for other in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        pid = re.fullmatch(r"\d{1,9}", other.name.rpartition("-")[2])
        if pid and not psutil.pid_exists(int(pid[0])):
            other.unlink(missing_ok=True)
