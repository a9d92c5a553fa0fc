"""`edge-gemma bench`."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from edge_gemma.console import print_table, show_progress
from edge_gemma.runtime import bench
from edge_gemma.runtime.options import model_options


def counts(least: int) -> Callable[[click.Context, click.Parameter, str], tuple[int, ...]]:
    """A callback that reads whole numbers separated by commas: in order, each once."""

    def read(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
        words = [word.strip() for word in text.split(",")]
        if not all(word.isascii() and word.isdigit() and int(word) >= least for word in words):
            raise click.BadParameter(
                f"{text!r}: expected whole numbers from {least} on, separated by commas", context, parameter
            )
        return tuple(sorted({int(word) for word in words}))

    return read


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--runs", type=click.IntRange(1), default=bench.RUNS, show_default=True, help="Times all is measured."
)
@click.option(
    "--prefill",
    metavar="N,N,…",
    callback=counts(1),
    default=",".join(map(str, bench.PREFILL)),
    show_default=True,
    help="Lengths of prompts, in tokens.",
)
@click.option(
    "--decode-at",
    metavar="N,N,…",
    callback=counts(0),
    default=",".join(map(str, bench.DECODE_AT)),
    show_default=True,
    help="Contexts that the decoded tokens lead to.",
)
@click.option(
    "--tokens",
    type=click.IntRange(1),
    default=bench.TOKENS,
    show_default=True,
    help="Tokens decoded each time.",
)
@click.option("--skip-media", is_flag=True, help="Measure neither images nor clips.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with tables and plots, too.")
@click.option("--json", "as_json", is_flag=True, help="Print the line of JSON only.")
@model_options
@click.pass_context
def bench_command(
    context: click.Context,
    artifact: Path,
    runs: int,
    prefill: tuple[int, ...],
    decode_at: tuple[int, ...],
    tokens: int,
    skip_media: bool,
    html: Path | None,
    as_json: bool,
    model: dict[str, Any],
) -> int:
    """Measure ARTIFACT on this machine: speed, loading, time to first token, memory.

    Takes minutes, each part in a process of its own; the median of all runs is shown, with the least and the
    greatest. What the context has no room for is left out. Tables, and one line of JSON last.
    """
    from edge_gemma.runtime.bench_report import check_target, tables, to_html, to_json, write_html
    from edge_gemma.runtime.doctor import environment

    if html is not None:
        check_target(html)
    command, facts = _command(context), environment()
    with show_progress() as progress:
        report = bench.measure(
            artifact,
            runs=runs,
            prefill=prefill,
            decode_at=decode_at,
            tokens=tokens,
            media=not skip_media,
            model=model,
            progress=progress,
        )
    if not as_json:
        print_table("environment", [(name, str(value)) for name, value in facts.items()])
        click.echo(f"\n{command}")
        for table in tables(report):
            click.echo()
            print_table(table.title, table.rows, table.header)
        click.echo()
        for note in report.notes:
            click.echo(f"note: {note}")
    click.echo(to_json(report, command, facts))
    if html is not None:
        write_html(html, to_html(report, command, facts))
    return 0


def _command(context: click.Context) -> str:
    """What the user typed, options that were left at their defaults left out."""
    words = ["edge-gemma", "bench"]
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if context.get_parameter_source(parameter.name or "") is not ParameterSource.COMMANDLINE:
            continue
        if isinstance(parameter, click.Argument):
            words.append(str(value))
        elif isinstance(value, bool):
            words.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        else:
            words += [
                parameter.opts[0],
                ",".join(map(str, value)) if isinstance(value, tuple) else str(value),
            ]
    return shlex.join(words)
