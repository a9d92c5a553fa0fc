"""edge-gemma beside llama.cpp: the same shape, on the same machine, in turns.

    python -m benchmarks.compare_llamacpp --artifact int4=artifacts/e2b --llama-python VENV/bin/python

benchmarks/compare_llamacpp.md says how to get there from nothing, and what is compared. In each round every
contestant runs once, in processes of its own, in alternating order; ratios are taken within a round. The GGUF
file, with random weights, is written where it is missing.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil

from benchmarks.command import Benchmark
from benchmarks.contestants import (
    ANONYMOUS,
    LOAD,
    PEAK,
    Contestant,
    EdgeGemma,
    LlamaCpp,
    Work,
    llamacpp_facts,
)
from benchmarks.gguf_random import FOLDER, ensure
from benchmarks.report import print_report
from edge_gemma import artifact as artifacts
from edge_gemma.artifact import Artifact
from edge_gemma.console import print_table
from edge_gemma.errors import ArtifactError
from edge_gemma.memory import format_bytes
from edge_gemma.models import MODELS, model_of
from edge_gemma.runtime.bandwidth import array_bytes, read_bandwidth
from edge_gemma.runtime.session import default_threads

BASELINE = "llama.cpp"
BANDWIDTH = "bandwidth"  # bytes a second that the machine read, just before a contestant's turn
OTHERS = "others"  # cores that anything else kept busy during a turn
GB, MIB = 1e9, 1 << 20
# how figures are told, by the first word of their name: title, unit, divisor, digits
UNITS: dict[str, tuple[str, str, float, int]] = {
    LOAD: ("loading", "s", 1, 2),
    "prefill": ("prefill of {} tokens", "tokens/s", 1, 1),
    "decode": ("decoding to a context of {}", "tokens/s", 1, 2),
    PEAK: ("peak resident memory", "MiB", MIB, 0),
    ANONYMOUS: ("of it no file's pages", "MiB", MIB, 0),
    BANDWIDTH: ("read bandwidth before it", "GB/s", GB, 1),
    OTHERS: ("cores that others kept busy", "", 1, 2),
}
FLASH = {"auto": (True, False), "on": (True,), "off": (False,)}
HEADER = ("figure", "contestant", "median", "min", "max", "× llama.cpp", "min", "max")
Values = dict[str, dict[str, list[float]]]  # figure → contestant → one value for each round


def run_rounds(contestants: Sequence[Contestant], work: Work, rounds: int) -> Values:
    """Every contestant once a round, every second round in reverse order."""
    values: Values = defaultdict(lambda: defaultdict(list))
    size = array_bytes()
    for number in range(rounds):
        for contestant in contestants[:: -1 if number % 2 else 1]:
            click.echo(f"round {number + 1} of {rounds}: {contestant.name} …", err=True)
            values[BANDWIDTH][contestant.name].append(read_bandwidth(work.threads, size))
            began, busy = time.perf_counter(), _busy()
            for figure, value in contestant.measure(work).items():
                values[figure][contestant.name].append(value)
            others = (_busy() - busy) / (time.perf_counter() - began)
            values[OTHERS][contestant.name].append(others)
    return values


def _busy() -> float:
    """CPU seconds of this machine so far, without those of this process's children that have ended."""
    machine, own = psutil.cpu_times(), os.times()
    idle = machine.idle + getattr(machine, "iowait", 0)
    return float(sum(machine) - idle - own.children_user - own.children_system)


def ratios(values: Values) -> Values:
    """Each value over llama.cpp's of the same round."""
    return {
        figure: {
            name: [value / base for value, base in zip(measured, found[BASELINE], strict=True)]
            for name, measured in found.items()
            if name != BASELINE
        }
        for figure, found in values.items()
        if figure != OTHERS
    }


def table(values: Values) -> list[tuple[str, ...]]:
    """A row for each figure and contestant, as HEADER says."""
    rows = []
    compared = ratios(values)
    for figure, found in values.items():
        kind, _, number = figure.partition(" ")
        title, unit, divisor, digits = UNITS[kind]
        for i, (name, measured) in enumerate(sorted(found.items(), key=lambda item: item[0] != BASELINE)):
            cells = [f"{value / divisor:.{digits}f}" for value in _three(measured)]
            ratio = [f"{value:.2f}" for value in _three(compared.get(figure, {}).get(name, []))]
            label = "" if i else ", ".join(filter(None, (title.format(number), unit)))
            rows.append((label, name, *cells, *(ratio or [""] * 3)))
    return rows


def _three(values: Sequence[float]) -> tuple[float, ...]:
    return (statistics.median(values), min(values), max(values)) if values else ()


def parse_artifacts(pairs: Sequence[str]) -> tuple[str, dict[str, Artifact]]:
    """The model, "E2B" or "E4B", and artifacts of it by name.

    Raises:
        click.UsageError: not NAME=DIR.
        ArtifactError: one is missing, or not of that model's shape.
    """
    found: dict[str, Artifact] = {}
    models: dict[str, str] = {}
    for pair in pairs:
        name, _, folder = pair.partition("=")
        if not name or not folder or name == BASELINE or name in found:
            raise click.UsageError(f"--artifact {pair}: expected NAME=DIR, and each name once")
        command = f"edge-gemma export synthetic:E2B -o {folder}"
        if not Path(folder).exists():
            raise ArtifactError(f"there is no artifact at {folder}: make one with `{command}`")
        found[name] = artifacts.read(folder)
        if (model := model_of(found[name].manifest)) is None:
            raise ArtifactError(f"{folder} has neither E2B's nor E4B's shape: make one with `{command}`")
        models[name] = model
    if len(set(models.values())) != 1:
        raise ArtifactError(
            f"expected artifacts of one model, found {models or 'none'}: name some of E2B, or of E4B"
        )
    return next(iter(models.values())), found


def print_contestants(
    found: Mapping[str, Artifact], gguf: Path, facts: Mapping[str, str], flash: bool
) -> None:
    """What the table names."""
    rows = [*facts.items()]
    attention = "with" if flash else "without"
    rows.append((BASELINE, f"{gguf.name}, {format_bytes(gguf.stat().st_size)}, {attention} flash attention"))
    for name, artifact in found.items():
        manifest = artifact.manifest
        left_out = {name for spec in manifest.encoders for name in (spec.file, spec.data)}
        size = sum(f.bytes for name, f in manifest.files.items() if name not in left_out)
        rows.append(
            (name, f"recipe {manifest.recipe} ({_bits(artifact)}), {format_bytes(size)} without encoders")
        )
    print_table("contestants", rows)


def _bits(artifact: Artifact) -> str:
    """Bits and block of the large matrices; a recipe's name alone may mean others in another version."""
    formats = artifact.manifest.recipe_details["matrices"]
    large = {kind: formats.get(kind) for kind in ("attention", "mlp", "head")}
    return ", ".join(
        f"{kind} {form['bits']}/{form['block']}" if form else f"{kind} float32"
        for kind, form in large.items()
    )


@click.command(cls=Benchmark)
@click.option("--artifact", "pairs", multiple=True, metavar="NAME=DIR", help="An artifact; may be repeated.")
@click.option(
    "--llama-python", default=sys.executable, help="A Python that has llama_cpp; this one by default."
)
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=FOLDER,
    show_default=True,
    help="Where the GGUF files are, or are written to.",
)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=default_threads(), show_default="the cores")
@click.option("--context", type=click.IntRange(1), default=4096, show_default=True, help="Tokens of room.")
@click.option("--prefill", type=click.IntRange(1), multiple=True, default=(128, 512), show_default=True)
@click.option(
    "--decode-at",
    type=click.IntRange(1),
    multiple=True,
    default=(161, 1024),
    show_default=True,
    help="Contexts that decoding leads to; 161: right behind a prompt of 128 tokens.",
)
@click.option("--tokens", type=click.IntRange(1), default=32, show_default=True, help="Decoded each time.")
@click.option("--chunk", type=click.IntRange(1), help="Of edge-gemma: tokens of a prompt computed at once.")
@click.option(
    "--flash",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Flash attention of llama.cpp; auto: as it is faster, by a trial.",
)
@click.option(
    "--check", is_flag=True, help="First compare the logits of both on a narrow model; alone it ends there."
)
def main(
    pairs: tuple[str, ...],
    llama_python: str,
    folder: Path,
    rounds: int,
    flash: str,
    check: bool,
    chunk: int | None,
    **lengths: Any,
) -> None:
    """Measure artifacts against llama.cpp."""
    work = Work(**lengths)
    facts = llamacpp_facts(llama_python)
    parity = check_models(llama_python, work.threads) if check else {}
    if pairs or not check:
        compare(pairs, llama_python, folder, work, rounds, FLASH[flash], chunk, facts, parity)


def check_models(python: str, threads: int) -> dict[str, float]:
    """Print and return how far the logits of the two are apart, in float32 on a narrow model."""
    from benchmarks.llamacpp_check import check

    report = check(python, threads)
    print_table(
        "llama.cpp against edge-gemma, both in float32, narrow model",
        [(name.replace("_", " "), f"{value:.3g}") for name, value in report.to_dict().items()],
    )
    return report.to_dict()


def compare(
    pairs: Sequence[str],
    python: str,
    folder: Path,
    work: Work,
    rounds: int,
    choices: Sequence[bool],
    chunk: int | None,
    facts: Mapping[str, str],
    parity: Mapping[str, float],
) -> None:
    """Prepare everybody, run the rounds, print."""
    if work.longest > work.context:
        raise click.UsageError(f"--context {work.context}: the longest prompt or context is {work.longest}")
    model, found = parse_artifacts(pairs)
    gguf = ensure(model, folder)
    ids = np.random.default_rng(0).integers(0, MODELS[model]["vocab_size_per_layer_input"], work.longest)
    click.echo(f"{BASELINE}: first turn, and a trial of flash attention …", err=True)
    llama, trial = LlamaCpp(BASELINE, python, gguf, tuple(ids.tolist())).faster(work, choices)
    ours = [EdgeGemma(name, artifact, chunk) for name, artifact in found.items()]
    for contestant in ours:
        click.echo(f"{contestant.name}: first load, which packs its weights …", err=True)
        contestant.prepare(work)
    values = run_rounds([llama, *ours], work, rounds)
    print_contestants(found, gguf, facts, llama.flash)
    data = {
        "model": model,
        "work": asdict(work),
        "chunk": chunk,
        "llama.cpp": facts,
        "flash": llama.flash,
        "flash_trial": trial,
        "check": parity,
        "values": values,
        "ratios": ratios(values),
    }
    print_report("benchmarks.compare_llamacpp", HEADER, table(values), data)


if __name__ == "__main__":
    main()
