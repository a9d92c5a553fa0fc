"""What is in the page cache, and what leaves it."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from edge_gemma.runtime import page_cache
from edge_gemma.runtime.page_cache import evict, mapped_files, resident_pages

PAGES = 64
linux = pytest.mark.skipif(not page_cache.MAPS.exists(), reason="needs Linux")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """One page more than PAGES, not all of the last; written a moment ago."""
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(PAGES * mmap.PAGESIZE + 1))
    return path


@linux
def test_pages_leave(file: Path) -> None:
    assert resident_pages(file) == PAGES + 1
    stayed = evict([file])
    if stayed == 1:
        pytest.skip("this file system is memory")
    assert stayed == 0 and resident_pages(file) == 0
    file.read_bytes()
    assert resident_pages(file) == PAGES + 1


@linux
def test_pages_in_use_stay(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(bytes(3 * file.stat().st_size))
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as view:
        assert len(bytes(view))  # touched
        assert evict([file]) == 1
        assert evict([file, other]) in (pytest.approx(0.25, abs=0.01), 1)


@linux
def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert resident_pages(tmp_path / "empty") == 0 and evict([tmp_path / "empty"]) == 0


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        evict([tmp_path / "missing"])


def test_a_system_that_cannot_be_asked(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_cache, "resident_pages", lambda path: None)
    assert evict([file]) is None
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    assert evict([file]) is None


@linux
def test_what_is_mapped(file: Path) -> None:
    before = mapped_files()
    assert file not in before and not [path for path in before if ".so" in path.name]
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ):
        assert mapped_files() - before == {file}


def test_a_system_without_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_cache, "MAPS", Path("/nowhere"))
    assert mapped_files() == set()
