"""The size of what is read, and of what a token reads. How fast that goes is no matter of tests."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import psutil
import pytest

from edge_gemma.runtime import bandwidth
from edge_gemma.runtime.bandwidth import array_bytes, last_level_cache, read_bandwidth

MIB = 1 << 20


@pytest.mark.parametrize("threads", [1, 3])
def test_bandwidth_is_bytes_by_time(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of which a pass takes 2, 4, … s: the first is left out, the median is that of the rest."""
    spent = [step for n in range(1, bandwidth.PASSES + 2) for step in (2 * n, 1)]
    ticks = itertools.accumulate([0, *spent])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    expected = np.median([2 * n for n in range(2, bandwidth.PASSES + 2)])
    assert read_bandwidth(threads, 3 * MIB) == pytest.approx(3 * MIB / expected)


def caches(folder: Path, *entries: tuple[int, int, int, str, str]) -> Path:
    for cpu, index, level, shared, size in entries:
        place = folder / f"cpu{cpu}" / "cache" / f"index{index}"
        place.mkdir(parents=True)
        for name, value in (("level", level), ("shared_cpu_list", shared), ("size", size)):
            (place / name).write_text(f"{value}\n")
    return folder


def test_the_last_level_counts_each_cache_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [(cpu, 0, 1, str(cpu), "32K") for cpu in range(4)]
    entries += [(cpu, 1, 2, "0-1" if cpu < 2 else "2-3", "1024K") for cpu in range(4)]
    monkeypatch.setattr(bandwidth, "CPUS", caches(tmp_path, *entries))
    assert last_level_cache() == 2 * MIB
    (tmp_path / "cpu0" / "cache" / "index1" / "size").write_text("16M\n")
    (tmp_path / "cpu1" / "cache" / "index1" / "size").write_text("16M\n")
    (tmp_path / "cpu3" / "cache" / "index1" / "size").write_text("what?\n")
    assert last_level_cache() == 17 * MIB
    monkeypatch.setattr(bandwidth, "CPUS", tmp_path / "nowhere")
    assert last_level_cache() is None


@pytest.mark.parametrize(
    ("cache", "available", "expected"),
    [
        (1 * MIB, 4096, 64),
        (32 * MIB, 4096, 128),
        (None, 4096, 128),
        (900 * MIB, 65536, 2048),
        (32 * MIB, 200, 50),
    ],
)
def test_arrays_are_beyond_the_caches(
    cache: int | None, available: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Memory:
        def __init__(self) -> None:
            self.available = available * MIB

    monkeypatch.setattr(bandwidth, "last_level_cache", lambda: cache)
    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    monkeypatch.setattr(bandwidth, "usable_memory", lambda: 1 << 60)
    assert array_bytes() == expected * MIB
    monkeypatch.setattr(bandwidth, "usable_memory", lambda: 100 * MIB)  # of a control group
    assert array_bytes() == 25 * MIB
