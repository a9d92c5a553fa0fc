"""Who is in memory: mapped files that are not needed for a while give their pages back."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from edge_gemma.memory import resident_bytes

SMAPS = Path("/proc/self/smaps")
MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S{4} \S+ \S+ \d+ +(/.*)")
SIZES = re.compile(r"^(Rss|Anonymous): +(\d+) kB", re.MULTILINE)
DONTNEED, PAGEOUT = 4, 21  # MADV_DONTNEED and MADV_PAGEOUT of Linux
DROP_STEP = 256 << 20
WATCH_SECONDS = 0.02


@contextmanager
def dropping_pages(paths: set[Path], step: int = DROP_STEP) -> Iterator[None]:
    """Empty the mapped pages of these files from a thread, each time that `step` more bytes became resident.

    Loading reads every page of a prepared file once: so they are not in memory all at once. It unmaps and
    allocates meanwhile, and what was a file's page a moment ago may be somebody's memory now. So pages are
    reclaimed as the system does it when memory is short, which loses nothing whatever they are; they leave
    the page cache, too.
    """
    done = Event()

    def watch() -> None:
        floor = resident_bytes()
        while not done.wait(WATCH_SECONDS):
            if resident_bytes() > floor + step:
                drop_pages(paths, PAGEOUT)
                floor = resident_bytes()

    thread = Thread(target=watch, name="edge-gemma-residency", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def drop_pages(paths: set[Path], advice: int = DONTNEED) -> int:
    """Empty the mapped pages of files; they are read again when they are touched. Nothing is lost by it.

    onnxruntime maps weights privately and writable. A mapping in which a page was written holds what its file
    does not, so it stays. Does nothing where there is no /proc/self/smaps.

    Returns:
        The bytes that left memory.
    """
    if sys.platform != "linux" or not SMAPS.exists():
        return 0
    libc = ctypes.CDLL(None)
    wanted = {str(path.resolve()) for path in paths}
    total = 0
    for first, last, name, resident, written in _mappings():
        if name not in wanted or written or not resident:
            continue
        if libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), advice) == 0:
            total += resident
    return total


def _mappings() -> Iterator[tuple[int, int, str, int, int]]:
    """First and last address, path, resident bytes and bytes no longer those of the file, of each mapping."""
    for entry in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", SMAPS.read_text("utf-8", errors="surrogateescape")):
        if found := MAPPING.match(entry):
            sizes = dict(SIZES.findall(entry))
            first, last, name = int(found[1], 16), int(found[2], 16), found[3]
            yield first, last, name, int(sizes["Rss"]) * 1024, int(sizes["Anonymous"]) * 1024
