"""What the command lines share: progress on standard error, tables on standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edge_gemma.progress import Progress, Silent

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

BAR_WIDTH = 56  # characters
# what bars are filled with, in this order, and its colour where the terminal has some
FILLS = (("█", "blue"), ("▓", "cyan"), ("▒", "magenta"), ("░", "yellow"), ("▚", "green"), ("▞", "red"))


@contextmanager
def show_progress() -> Iterator[Progress]:
    """A progress bar for each stage on standard error; nothing where that is not a terminal."""
    if not sys.stderr.isatty():
        yield Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    # What is printed meanwhile goes above the bars on a terminal, and untouched to a file or a pipe.
    shared = sys.stdout.isatty()
    with Bars(*columns, console=Console(stderr=True), redirect_stdout=shared) as bars:
        yield _Stages(bars)


class _Stages:
    """Adapts rich's bars to Progress."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._task: TaskID | None = None

    def stage(self, name: str, total: int) -> None:
        self._task = self._bars.add_task(name, total=total)

    def advance(self, amount: int = 1) -> None:
        if self._task is not None:
            self._bars.advance(self._task, amount)


def print_table(title: str, rows: Sequence[tuple[str, ...]], header: tuple[str, ...] | None = None) -> None:
    """Print aligned columns; all but the first are right-aligned where a header names them."""
    import click

    lines = [*([header] if header else []), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    click.echo(title)
    for line in lines:
        cells = [
            cell.rjust(width) if header and i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        click.echo("  " + "  ".join(cells).rstrip())


def print_bars(title: str, rows: Mapping[str, Mapping[str, int]], total: int) -> None:
    """Print for each row a bar of its parts, in bytes, and of what is left of a total; then the legend.

    A part that differs from row to row is told at its largest.
    """
    from rich.console import Console
    from rich.text import Text

    from edge_gemma.memory import format_bytes

    largest: dict[str, int] = {}
    for parts in rows.values():
        largest |= {part: max(size, largest.get(part, 0)) for part, size in parts.items()}
    fills = dict(zip(largest, FILLS, strict=False))
    console = Console(highlight=False)
    console.print(title, markup=False)
    for name, parts in rows.items():
        line = Text(f"  {name:<{max(map(len, rows))}}  ")
        begin = 0
        for part, size in parts.items():
            width = round((begin + size) / total * BAR_WIDTH) - round(begin / total * BAR_WIDTH)
            line.append(fills[part][0] * width, fills[part][1])
            begin += size
        line.append("·" * (BAR_WIDTH - round(begin / total * BAR_WIDTH)))
        console.print(line.append(f"  {format_bytes(begin)}"))
    for part, size in filter(lambda entry: entry[1], largest.items()):
        fill, style = fills[part]
        console.print(Text("  ").append(fill * 2, style).append(f"  {format_bytes(size):>8}  {part}"))
    left = total - max(sum(parts.values()) for parts in rows.values())
    console.print(f"  ··  {format_bytes(left):>8}  headroom")
