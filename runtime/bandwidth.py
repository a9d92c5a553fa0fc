"""How fast this machine reads memory: what bounds decoding."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil

from edge_gemma.machine import usable_memory

PASSES = 15
METHOD = f"OR over int64 by numpy, an array for each thread, median of {PASSES} passes"
SMALLEST, LARGEST = 64 << 20, 2 << 30  # bytes of the arrays together
CACHES = 4  # times the last-level cache: what is left in it from the pass before is of no use
UNKNOWN_CACHE = 32 << 20  # assumed where the system does not tell
CPUS = Path("/sys/devices/system/cpu")


def read_bandwidth(threads: int, size: int) -> float:
    """Bytes a second that `threads` threads read together from arrays of `size` bytes in all.

    The sum of float32 would be bound by additions on many processors; OR over integers is not.
    """
    with ThreadPoolExecutor(threads) as pool:
        # Written, by the thread that may read them: pages never written all map to one page of zeros.
        arrays = list(pool.map(lambda _: np.ones(size // 8 // threads, np.int64), range(threads)))
        seconds = []
        for _ in range(PASSES + 1):  # the first one meets the decoder's threads, which spin for a moment
            began = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, arrays))
            seconds.append(time.perf_counter() - began)
    return sum(array.nbytes for array in arrays) / statistics.median(seconds[1:])


def array_bytes() -> int:
    """The size to measure with: well beyond the caches, and at most a quarter of the memory available."""
    wanted = max(SMALLEST, CACHES * (last_level_cache() or UNKNOWN_CACHE))
    return min(wanted, LARGEST, min(int(psutil.virtual_memory().available), usable_memory()) // 4)


def last_level_cache() -> int | None:
    """Bytes of all caches of the highest level together; None where the system does not tell."""
    found: dict[tuple[int, str], int] = {}  # level and processors that share it → bytes
    for folder in CPUS.glob("cpu[0-9]*/cache/index*"):
        try:
            level, shared, size = (
                (folder / name).read_text("ascii").strip() for name in ("level", "shared_cpu_list", "size")
            )
            found[int(level), shared] = int(size.rstrip("KM")) << (20 if size.endswith("M") else 10)
        except (OSError, ValueError):
            continue
    top = max((level for level, _ in found), default=0)
    return sum(size for (level, _), size in found.items() if level == top) or None
