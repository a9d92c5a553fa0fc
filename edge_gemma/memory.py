"""Byte sizes, this process's memory, and what a decoder takes of it."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edge_gemma.errors import PromptError
from edge_gemma.machine import usable_memory

if TYPE_CHECKING:
    from edge_gemma.artifact import MemorySpec

UNITS = {
    "": 1,
    "B": 1,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
}
ESTIMATE_CONTEXTS = (1024, 4096, 8192, 16_384, 32_768)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
KV_BYTES = {"float32": 4, "float16": 2, "int8": 1}  # a value of the KV cache
COPIES = 4  # of keys at once: one for each core of a board
DEFAULT_CHUNK = 128  # tokens of a prompt computed at once

# Measured on x86-64 with onnxruntime 1.32 (docs/memory.md): interpreter, numpy and onnxruntime before any
# model.
RUNTIME_BYTES = 67 << 20
WORKING_BYTES = 34 << 20  # threads' buffers, caches of embedding records and words, slack of the allocator


def parse_bytes(text: str) -> int:
    """`2GiB` is 2·2³⁰ bytes, `2GB` is 2·10⁹, a bare number is bytes.

    Raises:
        PromptError: not a size.
    """
    match = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]+)?)\s*([a-z]*)\s*", text, re.IGNORECASE)
    if not match or match[2].upper() not in UNITS:
        raise PromptError(f"{text!r} is not a size: expected a number and a unit, such as 2GiB or 1500MB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def format_bytes(count: int) -> str:
    """Binary units: 2_147_483_648 → '2.00 GiB'."""
    if count >= 1 << 30:
        return f"{count / (1 << 30):.2f} GiB"
    if count >= 1 << 20:
        return f"{count / (1 << 20):.0f} MiB"
    return f"{count / 1024:.0f} KiB" if count >= 1024 else f"{count} B"


def resident_bytes() -> int:
    """Resident memory of this process now, file pages included (VmRSS)."""
    import psutil  # not with the module: it takes longer than everything else here

    return int(psutil.Process().memory_info().rss)


def reachable_bytes() -> int:
    """What this process takes now and what the system, or its control group, could still give it."""
    import psutil

    return min(resident_bytes() + int(psutil.virtual_memory().available), usable_memory())


def peak_resident_bytes() -> int:
    """Highest resident memory of this process so far (VmHWM); the current one where it is not recorded."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    import psutil

    info = psutil.Process().memory_info()
    return int(getattr(info, "peak_wset", info.rss))


def release_free_memory() -> None:
    """Give memory that is free inside the allocator back to the system, where the C library can (glibc).

    It has places of their own for some threads, and what is free at the end of one leaves only when a block
    there is freed: so call this from a thread that freed much.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library and hasattr(library, "malloc_trim"):
        library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        library.free(library.malloc(1 << 20))
        library.malloc_trim(0)


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Let the allocator keep what is freed inside for what is asked for next, and give it back at the end.

    By itself, glibc has the system zero every page of each block of 32 MiB or more: a fifth of the time that
    loading takes. Afterwards blocks of 4 MiB or more go back at once; by itself it would come to keep some.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    mallopt(M_MMAP_THRESHOLD, 1 << 30)
    mallopt(M_TRIM_THRESHOLD, 1 << 30)
    try:
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, 4 << 20)
        mallopt(M_TRIM_THRESHOLD, 8 << 20)
        release_free_memory()


def estimate(spec: MemorySpec, context: int, chunk: int = DEFAULT_CHUNK) -> dict[str, int]:
    """What the decoder takes at `context` tokens with prefill chunks of `chunk`, by part, in bytes.

    `loading` is what loading needs on top for a moment, before `kv` and `scratch` (activations of a chunk,
    attention scores, logits, buffers) are touched: edge_gemma.planning adds up.
    """
    window_rows = min(spec.sliding_window - 1, context) + chunk
    return {
        "runtime": RUNTIME_BYTES,
        "tokenizer": spec.tokenizer,
        "weights": spec.weights,
        "loading": spec.scales + spec.largest_matrix,
        "kv": context * spec.kv_per_token + window_rows * spec.kv_per_window_row,
        "scratch": (
            WORKING_BYTES
            + spec.logits
            + chunk * spec.scratch_per_token
            + chunk * context * spec.scores_per_pair
            + COPIES * context * spec.keys_per_token
        ),
    }
