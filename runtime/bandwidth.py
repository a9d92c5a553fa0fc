"""How fast this machine reads memory, and how much of it a token needs: together, what bounds decoding."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil

from edge_gemma.artifact import Manifest

PASSES = 15
METHOD = f"OR over int64 by numpy, an array for each thread, median of {PASSES} passes"
SMALLEST, LARGEST = 64 << 20, 2 << 30  # bytes of the arrays together
CACHES = 4  # times the last-level cache: what is left in it from the pass before is of no use
UNKNOWN_CACHE = 32 << 20  # assumed where the system does not tell
CPUS = Path("/sys/devices/system/cpu")
SCALE_BYTES = 4  # float32
MEAN_ZERO_POINT_BYTES = 0.5  # of a 4-bit block; one of 8 bits has a whole one


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
    return min(wanted, LARGEST, int(psutil.virtual_memory().available) // 4)


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


def weights_per_token(manifest: Manifest) -> int:
    """Bytes of weights that decoding one token reads.

    That is everything in the graph as onnxruntime packs it (`memory.weights`), but for the scales in the
    file: they stay mapped, and the kernels read their packed copy. Beside its codes a block has three floats
    in memory (scale, packed scale, block sum) and a scale and a zero point in the file, so the difference of
    the two sizes counts the blocks: within 0.3 % for E2B and the built-in recipes. Embedding records are read
    from storage and the KV cache grows with the context: neither is part of it.
    """
    # the larger of the decoder's files is that of the weights, the other one the graph
    stored = max(f.bytes for name, f in manifest.files.items() if name.startswith(manifest.decoder.file))
    blocks = max(manifest.memory.weights - stored, 0) / (2 * SCALE_BYTES - MEAN_ZERO_POINT_BYTES)
    return int(manifest.memory.weights - blocks * SCALE_BYTES)
