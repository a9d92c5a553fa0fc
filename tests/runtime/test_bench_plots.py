"""Columns are as high as their values, on an axis that holds all of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_gemma.runtime.bench_plots import BOTTOM, HEIGHT, TOP, Column, axis, column_chart

GROUND = HEIGHT - BOTTOM


@given(st.floats(1e-6, 1e12))
def test_the_axis_holds_the_top(top: float) -> None:
    ticks = axis(top)
    assert ticks[0] == 0 and ticks[-1] >= top * (1 - 1e-6)
    assert 2 <= len(ticks) <= 6
    assert ticks[-2] < top


@pytest.mark.parametrize(
    ("top", "ticks"), [(12.75, [0, 5, 10, 15]), (0, [0]), (0.83, [0, 0.25, 0.5, 0.75, 1])]
)
def test_the_axis_has_round_numbers(top: float, ticks: list[float]) -> None:
    assert axis(top) == ticks


def test_columns_are_stacked_to_scale() -> None:
    columns = [
        Column(label="a", parts=(10.0, 5.0), text="15"),
        Column(label="b", parts=(20.0,), text="20", range=(18.0, 24.0)),
    ]
    plot = column_chart("title", columns, "{:g}".format, legend=("one", "two"), limit=(40.0, "limit"))
    unit = (GROUND - TOP) / 40
    heights = [(bar.part, bar.height) for bar in plot.rectangles]
    assert heights == [
        (0, pytest.approx(10 * unit, abs=0.1)),
        (1, pytest.approx(5 * unit, abs=0.1)),
        (0, pytest.approx(20 * unit, abs=0.1)),
    ]
    first, second, third = plot.rectangles
    assert first.y + first.height == third.y + third.height == GROUND
    assert second.y + second.height == pytest.approx(first.y) and second.x == first.x < third.x
    (whisker,) = plot.whiskers
    assert (GROUND - whisker.top, GROUND - whisker.bottom) == (
        pytest.approx(24 * unit, abs=0.1),
        pytest.approx(18 * unit, abs=0.1),
    )
    assert plot.limit and plot.limit.y == TOP and plot.limit.text == "limit"
    assert [label.text for label in plot.names] == ["a", "b"]
    assert [label.text for label in plot.values] == ["15", "20"]
    assert [label.text for label in plot.ticks] == ["0", "10", "20", "30", "40"]


def test_nothing_is_a_chart_of_zero() -> None:
    plot = column_chart("title", [Column(label="a", parts=(0.0,), text="0")], str)
    assert plot.rectangles[0].height == 0
