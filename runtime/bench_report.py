"""A benchmark's report as tables, as JSON, and as one HTML file with plots."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from edge_gemma.errors import PromptError
from edge_gemma.memory import format_bytes
from edge_gemma.runtime.bench import Figure, Report
from edge_gemma.runtime.bench_plots import Column, Plot, column_chart

TEMPLATE = Path(__file__).with_name("bench_report.html.jinja")
GB = 1e9  # of bandwidths; sizes are told in binary units
MIB = 1 << 20
PHASES = {
    "load": "loading",
    "text": "a question",
    "image": "an image",
    "audio": "a clip",
}


@dataclass(frozen=True, kw_only=True)
class Table:
    title: str
    rows: tuple[tuple[str, ...], ...]
    header: tuple[str, ...] | None = None


def tables(report: Report) -> list[Table]:
    """What was measured, for people; tables of what was left out are left out."""
    found = [
        Table(
            title="prefill",
            header=("tokens of the prompt", "tokens/s", "min", "max"),
            rows=tuple((str(n), *_rate(figure)) for n, figure in report.prefill.items()),
        ),
        Table(
            title=f"decoding of {report.tokens} tokens, global KV in {report.global_kv}",
            header=("to a context of", "tokens/s", "min", "max", "of what bandwidth allows"),
            rows=tuple(
                (str(end), *_rate(d.tokens_per_second), f"{d.share.median:.0%}")
                for end, d in report.decode.items()
            ),
        ),
        Table(
            title="time to first token",
            header=("prompt", "tokens", "seconds", "min", "max", "of it encoding"),
            rows=tuple(
                (PHASES[kind], str(f.prompt_tokens), *_seconds(f.seconds), f"{f.encode_seconds.median:.2f}")
                for kind, f in report.first_token.items()
            ),
        ),
        Table(
            title="loading",
            header=("the files are", "seconds", "min", "max"),
            rows=tuple(
                ({"cold": "on storage", "warm": "in memory"}[name], *_seconds(figure))
                for name, figure in report.load.items()
            ),
        ),
        Table(
            title="peak resident memory, each in a process of its own",
            header=("with", "peak", "min", "max", "more than loading"),
            rows=tuple(
                (PHASES[phase], *(_mebibytes(v) for v in (*_three(figure), _added(report, phase))))
                for phase, figure in report.memory.items()
            ),
        ),
        Table(title="what bounds decoding", rows=tuple(_bounds(report))),
    ]
    return [table for table in found if table.rows]


def to_json(report: Report, command: str, environment: Mapping[str, Any]) -> str:
    """Everything, as one line."""
    results = dataclasses.asdict(report) | {"bound_tokens_per_second": report.bound}
    return json.dumps({"command": command, "environment": environment, "results": results}, default=str)


def to_html(report: Report, command: str, environment: Mapping[str, Any]) -> str:
    """One file that needs no other: the tables, and plots as inline SVG."""
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return template.from_string(TEMPLATE.read_text("utf-8")).render(
        command=command,
        environment=environment,
        tables=tables(report),
        plots=plots(report),
        notes=report.notes,
    )


def plots(report: Report) -> list[Plot]:
    """Of what was measured."""
    found = []
    if report.decode:
        columns = [_column(str(end), d.tokens_per_second) for end, d in report.decode.items()]
        found.append(column_chart("decoding, tokens/s by context", columns, "{:g}".format))
    if report.prefill:
        columns = [_column(str(n), figure) for n, figure in report.prefill.items()]
        found.append(column_chart("prefill, tokens/s by length of the prompt", columns, "{:g}".format))
    columns = []
    for phase, figure in report.memory.items():
        added = _added(report, phase)
        parts = ((figure.median - added) / MIB, added / MIB)
        columns.append(Column(label=phase, parts=parts, text=_mebibytes(figure.median)))
    legend = ("loading", "more than that")
    found.append(column_chart("peak resident memory", columns, "{:g} MiB".format, legend=legend))
    if report.bandwidth:
        measured = report.bandwidth.median / GB
        columns = []
        for end, d in report.decode.items():
            read = d.tokens_per_second.median * report.weights_per_token / GB
            columns.append(Column(label=str(end), parts=(read,), text=f"{d.share.median:.0%}"))
        limit = (measured, f"read bandwidth {measured:.1f} GB/s")
        found.append(column_chart("weights read, GB/s by context", columns, "{:g}".format, limit=limit))
    return found


def check_target(path: Path) -> None:
    """Refuse a file that could not be written in the end, before work begins.

    Raises:
        PromptError: its folder is missing or not writable, or it is something else than a file.
    """
    try:
        if path.exists() and not path.is_file():
            raise PromptError(f"--html {path} is not a file: name one to write")
        _partial(path).touch()
        _partial(path).unlink()
    except OSError as error:
        raise PromptError(
            f"--html {path} cannot be written ({error.strerror}): name a file in a folder that exists"
        ) from None


def write_html(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    partial = _partial(path)
    try:
        partial.write_text(text, "utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial-{os.getpid()}")


def _three(figure: Figure) -> tuple[float, float, float]:
    return figure.median, figure.min, figure.max


def _rate(figure: Figure) -> tuple[str, ...]:
    return tuple(f"{value:.1f}" for value in _three(figure))


def _seconds(figure: Figure) -> tuple[str, ...]:
    return tuple(f"{value:.2f}" for value in _three(figure))


def _mebibytes(count: float) -> str:
    return f"{count / MIB:.0f} MiB"


def _added(report: Report, phase: str) -> int:
    return int(max(report.memory[phase].median - report.memory["load"].median, 0))


def _bounds(report: Report) -> Iterator[tuple[str, str]]:
    yield "weights that a token reads", format_bytes(report.weights_per_token)
    if report.bandwidth and report.bound:
        low, high = report.bandwidth.min / GB, report.bandwidth.max / GB
        yield "read bandwidth", f"{report.bandwidth.median / GB:.1f} GB/s ({low:.1f} to {high:.1f})"
        array = format_bytes(report.bandwidth_array)
        yield "measured by", report.bandwidth_method
        yield "threads, arrays", f"{report.threads}, {array} in all"
        yield "tokens a second that it allows", f"{report.bound:.1f}"


def _column(label: str, figure: Figure) -> Column:
    text = f"{figure.median:.1f}"
    return Column(label=label, parts=(figure.median,), text=text, range=(figure.min, figure.max))
