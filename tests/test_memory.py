"""Byte sizes are read and written right; the memory estimate is the sum of what the manifest says."""

from __future__ import annotations

import contextlib
import platform
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_gemma import memory
from edge_gemma.artifact import MemorySpec
from edge_gemma.errors import PromptError
from edge_gemma.memory import UNITS, estimate, format_bytes, parse_bytes, peak_resident_bytes, resident_bytes

SPEC = MemorySpec(
    weights=1_000_000_000,
    scales=50_000_000,
    largest_matrix=100_000_000,
    logits=2_000_000,
    scratch_per_token=300_000,
    scores_per_pair=32,
    keys_per_token=1024,
    kv_per_token=2048,
    kv_per_window_row=8192,
    sliding_window=512,
    tokenizer=10_000_000,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("2GiB", 2**31),
        ("2GB", 2 * 10**9),
        ("1.5 mib", 3 << 19),
        (" 900MB ", 900 * 10**6),
        ("12", 12),
        ("12B", 12),
        ("3KiB", 3072),
        ("3kb", 3000),
        ("0", 0),
    ],
)
def test_parse(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@given(st.integers(0, 10**9), st.sampled_from(sorted(UNITS)))
def test_parse_is_exact_for_whole_numbers(number: int, unit: str) -> None:
    assert parse_bytes(f"{number}{unit.lower()}") == number * UNITS[unit]


@pytest.mark.parametrize(
    "text",
    ["", " ", "GiB", "two GiB", "2 TiBs", "-1GB", "1e9", "1,5GB", "1..5GB", ".5GB", "nan", "9" * 400, "٣GB"],
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(PromptError, match=r"is not a size: expected .* such as 2GiB") as caught:
        parse_bytes(text)
    assert caught.value.exit_code == 2


@given(st.text(max_size=12))
def test_any_text_gives_a_size_or_a_prompt_error(text: str) -> None:
    with contextlib.suppress(PromptError):
        assert parse_bytes(text) >= 0


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1 << 20, "1 MiB"),
        (1 << 30, "1.00 GiB"),
        (2**31, "2.00 GiB"),
    ],
)
def test_format(count: int, text: str) -> None:
    assert format_bytes(count) == text


@given(st.integers(0, 1 << 45))
def test_format_reads_back_to_within_its_digits(count: int) -> None:
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=0.34, abs=0)
    number = float(re.match(r"[\d.]+", format_bytes(count))[0])  # type: ignore[index]
    assert number <= 1024 or format_bytes(count).endswith("GiB")


def test_resident_memory_and_its_peak() -> None:
    """In a process of its own: it touches 64 MiB and frees them again."""
    script = (
        "import numpy as np; from edge_gemma.memory import *\n"
        "before = resident_bytes(); block = np.ones(8 << 20); held = resident_bytes(); del block\n"
        "release_free_memory(); print(before, held, resident_bytes(), peak_resident_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, held, after, peak = map(int, done.stdout.split())
    slack = 4 << 20  # the kernel batches its counters
    assert held - before > (64 << 20) - slack
    assert peak >= held - slack
    assert after < held - (32 << 20)
    assert peak_resident_bytes() >= resident_bytes() - slack


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc")
def test_what_a_thread_freed_is_given_back() -> None:
    """In a process of its own: a thread frees a block of 40 MiB that its allocator was told to keep."""
    script = (
        "from concurrent.futures import ThreadPoolExecutor; import numpy as np\n"
        "from edge_gemma.memory import *\n"
        "pool = ThreadPoolExecutor(1)\n"
        "with keeping_freed_memory():\n"
        "    pool.submit(lambda: np.full(5 << 20, 1.0).size).result()\n"
        "full = resident_bytes(); pool.submit(release_free_memory).result(); print(full, resident_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    full, left = map(int, done.stdout.split())
    assert left < full - (30 << 20)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of glibc")
def test_freed_memory_is_kept_for_a_while_and_given_back() -> None:
    """In a process of its own: of eight blocks of 40 MiB, one after the other, pages are made once."""
    script = (
        "import contextlib, resource, sys; import numpy as np; from edge_gemma.memory import *\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "before, began = resident_bytes(), faults()\n"
        "with keeping_freed_memory() if sys.argv[1] == 'keep' else contextlib.nullcontext():\n"
        "    for _ in range(8): np.full(5 << 20, 1.0)\n"
        "print(faults() - began, resident_bytes() - before)"
    )
    made, left = {}, {}
    for mode in ("keep", "ask anew"):
        command = [sys.executable, "-c", script, mode]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        made[mode], left[mode] = map(int, done.stdout.split())
    assert made["keep"] < made["ask anew"] / 4
    assert left["keep"] < 16 << 20


@pytest.mark.parametrize(("context", "chunk", "rows"), [(4096, 128, 639), (100, 128, 228), (512, 1, 512)])
def test_estimate_adds_up(context: int, chunk: int, rows: int) -> None:
    assert estimate(SPEC, context, chunk) == {
        "runtime": memory.RUNTIME_BYTES,
        "tokenizer": SPEC.tokenizer,
        "weights": SPEC.weights,
        "loading": SPEC.scales + SPEC.largest_matrix,
        "kv": context * 2048 + rows * 8192,
        "scratch": memory.WORKING_BYTES
        + 2_000_000
        + chunk * 300_000
        + chunk * context * 32
        + 4 * context * 1024,
    }
