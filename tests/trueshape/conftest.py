"""What the tests of the real size share: room on disk, given back before the next file needs its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for gigabytes, whatever becomes of the tests."""
    folder = tmp_path_factory.mktemp("trueshape")
    yield folder
    shutil.rmtree(folder)
