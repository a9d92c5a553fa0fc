"""What `make test-arm` runs on which core, and how it reads pytest's last line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import run  # noqa: E402
import tree  # noqa: E402


@pytest.mark.parametrize("core", tree.CORES)
def test_every_core_is_compared_with_x86(core: str) -> None:
    tests = run.tests_of(core)
    assert "tests/arm/test_recorded.py" in tests
    assert ("tests/runtime" in tests) == (core == run.WHOLE)


def test_files_that_are_named_exist() -> None:
    ignored = [f"tests/runtime/{name}" for name in run.NOT_EMULATED]
    assert all((run.ROOT / path).exists() for path in [*run.EVERY_CORE, *ignored])


@pytest.mark.parametrize(
    ("output", "counts"),
    [
        ("....\n300 passed, 12 skipped in 61.20s (0:01:01)\n", "300 passed, 12 skipped"),
        ("F\n=== 1 failed, 2 passed in 3.00s ===\n", "1 failed, 2 passed"),
        ("qemu: uncaught target signal 11\n", "no result: it ended with 139"),
    ],
)
def test_the_last_line_of_pytest(output: str, counts: str) -> None:
    assert run.Outcome("a72", 139, 1.0, output).counts == counts
