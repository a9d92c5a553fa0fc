"""Column charts as rectangles and labels, in the units of an SVG; the template only draws them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 480, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 16, 36  # margins
STEPS = (1, 2, 2.5, 5, 10)
TICKS = 4  # at most, above zero


@dataclass(frozen=True, kw_only=True)
class Column:
    """Stacked values of one place on the axis, from the ground up."""

    label: str
    parts: tuple[float, ...]
    text: str  # written above
    range: tuple[float, float] | None = None  # least and greatest of the sum, drawn as a whisker


@dataclass(frozen=True, kw_only=True)
class Rectangle:
    x: float
    y: float
    width: float
    height: float
    part: int  # which of the stacked values


@dataclass(frozen=True, kw_only=True)
class Whisker:
    x: float
    top: float
    bottom: float


@dataclass(frozen=True, kw_only=True)
class Label:
    x: float
    y: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Plot:
    title: str
    legend: tuple[str, ...]  # names of stacked parts
    rectangles: tuple[Rectangle, ...]
    whiskers: tuple[Whisker, ...]
    values: tuple[Label, ...]  # above the columns
    names: tuple[Label, ...]  # below them
    ticks: tuple[Label, ...]  # of the vertical axis
    limit: Label | None  # a line across, with its name
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT


def column_chart(
    title: str,
    columns: Sequence[Column],
    show: Callable[[float], str],
    *,
    legend: Sequence[str] = (),
    limit: tuple[float, str] | None = None,
) -> Plot:
    """A chart of columns from zero up; `show` writes the axis, `limit` is a value and its name."""
    tops = [max(sum(column.parts), column.range[1] if column.range else 0.0) for column in columns]
    ticks = axis(max([*tops, *([limit[0]] if limit else [])]))
    ground, reach = HEIGHT - BOTTOM, HEIGHT - BOTTOM - TOP

    def y(value: float) -> float:
        return round(ground - reach * value / (ticks[-1] or 1), 1)

    room = (WIDTH - LEFT - RIGHT) / max(len(columns), 1)
    wide = min(room * 0.6, 64)
    middles = [round(LEFT + room * (number + 0.5), 1) for number in range(len(columns))]
    rectangles, whiskers = [], []
    for middle, column in zip(middles, columns, strict=True):
        below = 0.0
        for part, value in enumerate(column.parts):
            top = y(below + value)
            shape = {"x": round(middle - wide / 2, 1), "y": top, "width": round(wide, 1)}
            rectangles.append(Rectangle(**shape, height=round(y(below) - top, 1), part=part))
            below += value
        if column.range:
            low, high = column.range
            whiskers.append(Whisker(x=middle, top=y(high), bottom=y(low)))
    return Plot(
        title=title,
        legend=tuple(legend),
        rectangles=tuple(rectangles),
        whiskers=tuple(whiskers),
        values=tuple(
            Label(x=x, y=y(top) - 5, text=c.text) for x, top, c in zip(middles, tops, columns, strict=True)
        ),
        names=tuple(Label(x=x, y=ground + 18, text=c.label) for x, c in zip(middles, columns, strict=True)),
        ticks=tuple(Label(x=LEFT - 6, y=y(value), text=show(value)) for value in ticks),
        limit=Label(x=LEFT, y=y(limit[0]), text=limit[1]) if limit else None,
    )


def axis(top: float) -> list[float]:
    """Round numbers from zero to `top` or a little above."""
    if top <= 0:
        return [0.0]
    least = top / TICKS
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * factor for factor in STEPS if power * factor >= least)
    return [round(step * number, 10) for number in range(math.ceil(top / step - 1e-9) + 1)]
