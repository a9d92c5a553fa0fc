"""Who is in memory: mapped files that are not needed for a while give their pages back."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import NamedTuple

from edge_gemma.memory import resident_bytes

SMAPS = Path("/proc/self/smaps")
MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S{4} \S+ \S+ \d+ +(/.*)")
SIZES = re.compile(r"^(Rss|Anonymous): +(\d+) kB", re.MULTILINE)
WILLNEED, DONTNEED, PAGEOUT = 3, 4, 21  # MADV_… of Linux
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
    return empty(mappings_in_use(paths), advice)


def empty(mappings: Iterable[Mapping], advice: int = DONTNEED) -> int:
    """`drop_pages` of these mappings."""
    return sum(mapping.resident for mapping in mappings if _advise(mapping, advice))


def fetch_pages(mappings: Iterable[Mapping]) -> None:
    """Have the system read all of these mappings that is not in memory, and nothing else.

    What it reads ahead when pages are touched reaches far into matrices that nobody needs, and where memory
    is short those crowd out others.
    """
    for mapping in mappings:
        _advise(mapping, WILLNEED)


def mappings_in_use(paths: set[Path]) -> list[Mapping]:
    """The mappings of files that have pages in memory, and none that was written.

    Empty where the system does not tell.
    """
    if sys.platform != "linux" or not SMAPS.exists():
        return []
    wanted = {str(path.resolve()) for path in paths}
    return [found for found in _mappings() if found.path in wanted and found.resident and not found.written]


class Mapping(NamedTuple):
    """A part of a file in this process's memory."""

    first: int  # address
    last: int
    path: str
    resident: int  # bytes
    written: int  # bytes that are no longer those of the file


def _advise(mapping: Mapping, advice: int) -> bool:
    """Whether the system took the advice."""
    length = ctypes.c_size_t(mapping.last - mapping.first)
    return bool(ctypes.CDLL(None).madvise(ctypes.c_void_p(mapping.first), length, advice) == 0)


def _mappings() -> Iterator[Mapping]:
    """All mappings of files by this process."""
    for entry in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", SMAPS.read_text("utf-8", errors="surrogateescape")):
        if found := MAPPING.match(entry):
            sizes = dict(SIZES.findall(entry))
            first, last, name = int(found[1], 16), int(found[2], 16), found[3]
            yield Mapping(first, last, name, int(sizes["Rss"]) * 1024, int(sizes["Anonymous"]) * 1024)
