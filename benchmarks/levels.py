"""The levels of an elastic artifact: memory, switching and decoding at each.

    python -m benchmarks.levels DIR [--tokens 32] [--rounds 3]

1. A process for each level opens the artifact there, answers, and reports VmHWM, loading included.
2. One process opens the widest, answers at each level in turn, `--rounds` times, and measures the switch, the
   resident memory after the answer, and decoding. Of a level's answer the first tokens read again what the
   switch let go, so the speed is that of the later half of its tokens.

Weights may be random: memory and speed do not depend on values.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import click

from benchmarks.command import Benchmark
from benchmarks.report import print_report
from edge_gemma import artifact as artifacts
from edge_gemma.console import show_progress
from edge_gemma.errors import PromptError
from edge_gemma.memory import peak_resident_bytes, resident_bytes
from edge_gemma.planning import Needs, plan
from edge_gemma.runtime import fresh_process
from edge_gemma.runtime.bench_tasks import Step
from edge_gemma.runtime.engine import Model
from edge_gemma.runtime.loading import load

MIB = 1 << 20
PROMPT = "Why is the sky blue, and why is it red in the evening? " * 8


def opened_at(step: Step, artifact: Path, level: str, tokens: int, context: int) -> int:
    """VmHWM of this process, in bytes, once it has loaded an artifact and answered at a level."""
    with load(artifact, context=context, level=level) as model:
        model.generate(PROMPT, temperature=0, max_new_tokens=tokens)
    step()
    return peak_resident_bytes()


def in_turns(
    step: Step, artifact: Path, tokens: int, rounds: int, context: int
) -> dict[str, dict[str, float]]:
    """By level: seconds of the switch, resident bytes after an answer, tokens a second; medians."""
    with load(artifact, context=context) as model:
        names = [level.name for level in model.manifest.levels]
        found: dict[str, list[tuple[float, int, float]]] = {name: [] for name in names}
        for _ in range(rounds):
            for name in [*names, names[0]]:  # from the widest down to the narrowest, too
                began = perf_counter()
                model.set_level(name)
                switched = perf_counter() - began
                found[name].append((switched, *_answer(model, tokens)))
            step()
    return {
        name: dict(zip(("switch", "resident", "speed"), map(median, zip(*values, strict=True)), strict=True))
        for name, values in found.items()
    }


def _answer(model: Model, tokens: int) -> tuple[int, float]:
    """Resident bytes after an answer, and tokens a second of the later half of its tokens."""
    found = []  # a piece may be of several tokens, and the last one is of none
    for piece in model.stream(PROMPT, temperature=0, max_new_tokens=tokens):
        found.append((piece.statistics.generated_tokens, perf_counter()))
    (before, began), (after, ended) = found[(len(found) - 1) // 2], found[-1]
    return resident_bytes(), (after - before) / (ended - began)


@click.command(cls=Benchmark)
@click.argument("folder", type=click.Path(exists=True, path_type=Path))
@click.option("--tokens", type=click.IntRange(8), default=32, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--context", type=click.IntRange(256), default=4096, show_default=True)
def main(folder: Path, tokens: int, rounds: int, context: int) -> None:
    """Memory, switching and decoding of the levels of an elastic artifact."""
    manifest = artifacts.read(folder).manifest
    if not manifest.levels:
        raise PromptError(f"{folder} is not elastic: export it with --elastic")
    options: dict[str, Any] = {"artifact": folder, "tokens": tokens, "context": context}
    with show_progress() as progress:
        progress.stage("levels", len(manifest.levels) + rounds)
        run: dict[str, Any] = {
            "step": lambda: progress.advance(1),
            "warn": lambda text: click.echo(text, err=True),
        }
        peaks = [
            fresh_process.call(opened_at, **run, **options, level=level.name) for level in manifest.levels
        ]
        turns = fresh_process.call(in_turns, **run, **options, rounds=rounds)
    rows: list[tuple[str, ...]] = []
    data = []
    for index, (level, peak) in enumerate(zip(manifest.levels, peaks, strict=True)):
        estimate = plan(Needs.of(manifest, index), context=context).phases["text"]
        measured = turns[level.name]
        rows.append(
            (
                level.name,
                f"{level.effective_parameters / 1e9:.2f}",
                f"{peak / MIB:.0f} MiB",
                f"{sum(estimate.values()) / MIB:.0f} MiB",
                f"{measured['resident'] / MIB:.0f} MiB",
                f"{measured['switch']:.2f} s",
                f"{measured['speed']:.2f}",
            )
        )
        data.append({"level": level.name, "peak": peak} | measured)
    header = (
        "level",
        "effective, 10⁹",
        "opened at it: peak",
        "estimate",
        "switched to: resident",
        "switch",
        "tokens/s",
    )
    print_report("benchmarks.levels", header, rows, data)


if __name__ == "__main__":
    from benchmarks.levels import main as command  # a fresh process finds its functions by the module's name

    command()
