"""Who is in memory: mapped files that are not needed for a while give their pages back."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

MAPS = Path("/proc/self/maps")
DONTNEED = 4  # MADV_DONTNEED of Linux


def give_way(path: Path) -> int:
    """Empty the pages of a file that is mapped read-only; they are read again when they are touched.

    Does nothing where there is no /proc/self/maps. Returns the bytes of the mappings.
    """
    if sys.platform != "linux" or not MAPS.exists():
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    wanted = str(path.resolve())
    total = 0
    for line in MAPS.read_text("utf-8", errors="surrogateescape").splitlines():
        span, rights, _, _, _, *name = line.split(maxsplit=5)
        if "w" in rights or name != [wanted]:  # a writable page may hold what the file does not
            continue
        first, last = (int(part, 16) for part in span.split("-"))
        if libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), DONTNEED) == 0:
            total += last - first
    return total
