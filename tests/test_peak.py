"""Peaks of stretches of a process's life, through the fixture that budgets blocks of a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edge_gemma import peak
from edge_gemma.pytest_plugin import Growth

MIB = 1 << 20


def test_growth_inside_a_block(memory_budget: Callable[[str | int], Growth]) -> None:
    """What was larger before the block does not hide what grows in it."""
    large = bytearray(200 * MIB)
    del large
    with memory_budget("90MiB") as measured:
        block = bytearray(50 * MIB)
        del block
    assert 49 * MIB < measured.growth < 70 * MIB
    with pytest.raises(pytest.fail.Exception, match=r"grew by \d+ MiB and the budget is 90 MiB"):  # noqa: SIM117
        with memory_budget(90 * MIB):
            block = bytearray(120 * MIB)
            del block


def test_blocks_inside_blocks(memory_budget: Callable[[str | int], Growth]) -> None:
    with memory_budget("200MiB") as outer:
        block = bytearray(100 * MIB)
        del block
        with memory_budget("60MiB") as inner:
            block = bytearray(30 * MIB)
            del block
    assert outer.growth > 99 * MIB
    assert inner.growth < 60 * MIB


def test_an_exception_in_a_block_comes_first(memory_budget: Callable[[str | int], Growth]) -> None:
    with pytest.raises(ZeroDivisionError), memory_budget("1MiB"):
        block = bytearray(50 * MIB)
        print(len(block) / 0)


def test_where_the_record_cannot_be_set_back(
    memory_budget: Callable[[str | int], Growth], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A block below an older peak cannot be judged, and says so; one above it is."""
    monkeypatch.setattr(peak, "CLEAR", tmp_path / "missing" / "clear_refs")
    large = bytearray(200 * MIB)
    del large
    with pytest.warns(pytest.PytestWarning, match="would not be seen"), memory_budget("90MiB"):
        pass
    with pytest.raises(pytest.fail.Exception), memory_budget("90MiB"):
        large = bytearray(600 * MIB)
        del large
    with memory_budget("1GiB"):  # more than the process ever had: needs no record
        pass
