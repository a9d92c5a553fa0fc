"""Mapped pages leave memory and come back unchanged."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

import numpy as np
import pytest

from edge_gemma.memory import resident_bytes
from edge_gemma.runtime import residency
from edge_gemma.runtime.page_cache import evict, resident_pages
from edge_gemma.runtime.residency import drop_pages, dropping_pages, fetch_pages, mappings_in_use

SIZE = 8 << 20


def resident(path: Path) -> int:
    """Bytes of a mapped file that are in this process's memory."""
    lines = residency.SMAPS.read_text().splitlines()
    starts = [i for i, line in enumerate(lines) if line.endswith(str(path))]
    found = [next(line for line in lines[i:] if line.startswith("Rss:")) for i in starts]
    return sum(int(line.split()[1]) for line in found) * 1024


@pytest.fixture
def mapped(tmp_path: Path) -> Path:
    path = tmp_path / "weights with a space.data"
    path.write_bytes(np.random.default_rng(0).bytes(SIZE))
    return path


@pytest.mark.skipif(not residency.SMAPS.exists(), reason="needs /proc")
def test_pages_leave_and_come_back(mapped: Path) -> None:
    with mapped.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        before = bytes(view)
        assert resident(mapped) == SIZE
        assert drop_pages({mapped}) == SIZE
        assert resident(mapped) == 0
        assert bytes(view) == before


@pytest.mark.skipif(not residency.SMAPS.exists(), reason="needs /proc")
def test_a_private_mapping_that_was_only_read_leaves(mapped: Path) -> None:
    """As onnxruntime maps weights."""
    with mapped.open("r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as view:
        before = bytes(view)
        assert drop_pages({mapped}) == SIZE
        assert resident(mapped) == 0 and bytes(view) == before


@pytest.mark.skipif(not residency.SMAPS.exists(), reason="needs /proc")
def test_what_was_written_to_a_private_mapping_stays(mapped: Path) -> None:
    with mapped.open("r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as view:
        view[:4] = b"mine"
        assert drop_pages({mapped}) == 0
        assert view[:4] == b"mine"


def test_a_file_that_is_not_mapped(tmp_path: Path) -> None:
    assert mappings_in_use({tmp_path / "nothing"}) == []
    assert drop_pages({tmp_path / "nothing"}) == 0


def test_other_systems(mapped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "SMAPS", Path("/nowhere/smaps"))
    with mapped.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        assert drop_pages({mapped}) == 0


@pytest.mark.skipif(not residency.SMAPS.exists(), reason="needs /proc")
@pytest.mark.timeout(60)
def test_what_is_mapped_comes_back_and_nothing_else(mapped: Path) -> None:
    """A mapping that was in use as a whole, one that was not not at all."""
    places = {"length": SIZE // 4, "offset": SIZE // 2}, {"length": SIZE // 8}
    with mapped.open("rb") as file:
        views = [mmap.mmap(file.fileno(), access=mmap.ACCESS_READ, **place) for place in places]
        assert views[0][0] >= 0  # touched
        (used,) = mappings_in_use({mapped})
        assert used.last - used.first == SIZE // 4
        drop_pages({mapped})
        if evict([mapped]) != 0:
            pytest.skip("files of this file system do not leave memory")
        fetch_pages([used])
        while (found := resident_pages(mapped)) != SIZE // 4 // mmap.PAGESIZE:  # it is read meanwhile
            assert found is not None and found < SIZE // 4 // mmap.PAGESIZE
            time.sleep(0.01)
        time.sleep(0.1)
        assert resident_pages(mapped) == found
        for view in views:
            view.close()


@pytest.mark.skipif(not residency.SMAPS.exists(), reason="needs /proc")
def test_pages_leave_while_they_are_read(tmp_path: Path) -> None:
    """What is read from them stays right, and memory of others untouched."""
    path = tmp_path / "weights"
    block = np.arange(1 << 18, dtype=np.uint32)  # 1 MiB
    with path.open("wb") as file:
        for _ in range(96):
            file.write(block.tobytes())
        os.fsync(file.fileno())  # pages that are not on storage yet cannot leave
    mapped = np.memmap(path, np.uint32, mode="c")
    own = block.copy()
    before, most = resident_bytes(), 0
    with dropping_pages({path}, step=8 << 20):
        for first in range(0, len(mapped), len(block)):
            np.testing.assert_array_equal(mapped[first : first + len(block)], block)
            most = max(most, resident_bytes())
            time.sleep(0.01)
    assert most - before < 64 << 20
    np.testing.assert_array_equal(own, block)
