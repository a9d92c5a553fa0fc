"""Files and the system's page cache: which pages are in memory, and making the system forget them."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

MAPS = Path("/proc/self/maps")


def evict(paths: Iterable[Path]) -> float | None:
    """Ask the system to forget the cached pages of files, so that reading them reaches storage.

    Pages that another process maps stay, and so do all where the file system itself is memory.

    Returns:
        The share of the bytes that stayed in memory, 0 to 1; None where the system cannot be asked, or does
        not tell.

    Raises:
        OSError: a file cannot be opened.
    """
    if not hasattr(os, "posix_fadvise"):
        return None
    stayed = total = 0
    for path in paths:
        forget(path)
        resident = resident_pages(path)
        if resident is None:
            return None
        stayed += resident * mmap.PAGESIZE
        total += path.stat().st_size
    return min(stayed / total, 1.0) if total else 0.0


def forget(path: Path) -> None:
    """Ask the system to forget the cached pages of a file that no process maps, where it can be asked.

    Raises:
        OSError: the file cannot be opened.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    with path.open("rb") as file:
        with contextlib.suppress(OSError):  # a file system that is read-only has nothing to write
            os.fsync(file.fileno())  # pages that are not on storage yet cannot leave
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident_pages(path: Path) -> int | None:
    """How many pages of a file are in memory; None where the system does not tell.

    Linux says that all of them are, for files that this process may not write.
    """
    mincore = getattr(ctypes.CDLL(None), "mincore", None) if os.name == "posix" else None
    if mincore is None:
        return None
    size = path.stat().st_size
    if not size:
        return 0
    pages = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)  # [pages], the lowest bit says "in memory"
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        data = np.frombuffer(view, np.uint8)
        addresses = (
            ctypes.c_void_p(data.ctypes.data),
            ctypes.c_size_t(size),
            ctypes.c_void_p(pages.ctypes.data),
        )
        failed = mincore(*addresses)
        del data  # the mapping cannot be closed while it is looked at
    return None if failed else int((pages & 1).sum())


def mapped_files() -> set[Path]:
    """The files that this process has mapped, shared libraries left out; empty where there is no /proc."""
    try:
        lines = MAPS.read_text("utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return set()
    fields = (line.split(maxsplit=5) for line in lines)
    paths = {Path(field[5]) for field in fields if len(field) == 6 and field[5].startswith("/")}
    return {path for path in paths if ".so" not in path.name and path.is_file()}
