"""Peak memory of text at several contexts beside the estimate, of which the budget is planned.

    python -m benchmarks.long_context DIR [DIR …] [--context 1024 --context 8192 --context 32768]

Each in a process of its own: it loads, fills the KV cache but for the last 129 tokens with rows that are
written and not computed, computes a chunk of 128 and decodes to the context's end. The peak is VmHWM, loading
included; the estimate is that of the phases "load" and "text" (edge_gemma/planning.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.command import Benchmark
from benchmarks.report import print_report
from edge_gemma import artifact as artifacts
from edge_gemma.console import show_progress
from edge_gemma.memory import DEFAULT_CHUNK, peak_resident_bytes
from edge_gemma.planning import Needs, settle
from edge_gemma.runtime import fresh_process
from edge_gemma.runtime.bench_tasks import Step, generate
from edge_gemma.runtime.loading import load

MIB = 1 << 20
COMPUTED = DEFAULT_CHUNK + 1  # tokens at the end: a chunk, and one decoded


def peak(step: Step, artifact: Path, model: dict[str, Any]) -> int:
    """VmHWM of this process, in bytes, at the end of a context that is full."""
    with load(artifact, **model) as loaded:
        vocabulary = artifacts.read(artifact).manifest.embeddings.records
        ids = np.random.default_rng(0).integers(0, vocabulary, loaded.context - 1).tolist()
        generator = loaded._open()
        generator.occupy(ids[: len(ids) - COMPUTED + 1])
        generate(generator, ids, 2)
        step()
        return peak_resident_bytes()


@click.command(cls=Benchmark)
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--context", "contexts", multiple=True, default=(1024, 8192, 32_768), show_default=True)
@click.option("--global-kv", type=click.Choice(["float16", "int8"]), help="[the recipe's own]")
@click.option("--no-cache", is_flag=True, help="Without the cache of packed weights.")
def main(folders: tuple[Path, ...], contexts: tuple[int, ...], global_kv: str | None, no_cache: bool) -> None:
    """Peak memory of text by context, measured and estimated."""
    rows: list[tuple[str, ...]] = []
    data = []
    with show_progress() as progress:
        progress.stage("contexts", len(folders) * len(contexts))
        for folder in folders:
            manifest = artifacts.read(folder).manifest
            for context in contexts:
                settings: dict[str, Any] = {"context": context, "global_kv": global_kv}
                found = fresh_process.call(
                    peak,
                    step=lambda: progress.advance(1),
                    warn=lambda text: click.echo(text, err=True),
                    artifact=folder,
                    model=settings | {"cache": not no_cache},
                )
                planned = settle(Needs.of(manifest), **settings, prepared=not no_cache)
                expected = max(sum(planned.phases[name].values()) for name in ("load", "text"))
                rows.append(
                    (
                        manifest.source.name,
                        manifest.recipe,
                        planned.global_kv,
                        f"{context}",
                        f"{found / MIB:.0f} MiB",
                        f"{expected / MIB:.0f} MiB",
                        f"{expected / found - 1:+.1%}",
                    )
                )
                data.append({"artifact": str(folder), "peak": found, "estimate": expected} | settings)
    header = ("model", "recipe", "global KV", "context", "peak", "estimate", "estimate is off by")
    print_report("benchmarks.long_context", header, rows, data)


if __name__ == "__main__":
    from benchmarks.long_context import main as command  # a fresh process finds `peak` by its module's name

    command()
