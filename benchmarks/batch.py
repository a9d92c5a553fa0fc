"""Decoding together: tokens a second of 1, 2, 4 and 8 conversations.

    python -m benchmarks.batch DIR [--context 512] [--tokens 16] [--rounds 5]

Weights may be random: what a step takes does not depend on values. The sizes take turns; a figure is the
median of the rounds.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from time import perf_counter

import click
import numpy as np

import edge_gemma
from benchmarks.command import Benchmark
from benchmarks.report import print_report
from edge_gemma.console import show_progress
from edge_gemma.memory import format_bytes
from edge_gemma.runtime.batch import Batch, bytes_of_one

SIZES = (1, 2, 4, 8)


@click.command(cls=Benchmark)
@click.argument("artifact", type=click.Path(exists=True, path_type=Path))
@click.option("--context", default=512, show_default=True, help="Tokens that each conversation holds before.")
@click.option("--tokens", default=16, show_default=True, help="Tokens a conversation says in a round.")
@click.option("--rounds", default=5, show_default=True)
def main(artifact: Path, context: int, tokens: int, rounds: int) -> None:
    """Speed of decoding together."""
    seconds: dict[int, list[float]] = {size: [] for size in SIZES}
    with edge_gemma.load(artifact, context=context + tokens) as model:
        generator = model._open()
        decoder, store, manifest = generator.decoder, model._store, model.manifest
        generator.occupy([1] * context)
        batches = {
            size: Batch(decoder, store, size=size, context=context + tokens * (rounds + 1)) for size in SIZES
        }
        rng = np.random.default_rng(0)
        for batch in batches.values():
            for _ in range(batch.size):
                batch.add(context, generator.cache.rows(context))
        with show_progress() as progress:
            progress.stage("decoding", (rounds + 1) * len(SIZES))
            for turn in range(rounds + 1):  # the first one warms up
                for size, batch in batches.items():
                    began = perf_counter()
                    for _ in range(tokens):
                        batch.step(rng.integers(0, manifest.vocab_size, size).tolist())
                    if turn:
                        seconds[size].append((perf_counter() - began) / tokens)
                    progress.advance()
        one = bytes_of_one(manifest.memory, decoder.spec, context)
    alone = median(1 / s for s in seconds[1])
    results = []
    for size, taken in seconds.items():
        ratios = [size * first / s for first, s in zip(seconds[1], taken, strict=True)]
        results.append(
            {"conversations": size, "tokens_per_second": size * median(1 / s for s in taken)}
            | {"times_one": median(ratios), "rounds": ratios}
        )
    rows = [
        (str(r["conversations"]), f"{r['tokens_per_second']:.1f}", f"{r['times_one']:.2f}") for r in results
    ]
    print_report("benchmarks.batch", ("together", "tokens/s", "times one"), rows, results)
    click.echo(f"one alone {alone:.1f} tokens/s; KV buffers of each more: {format_bytes(one)}", err=True)


if __name__ == "__main__":
    main()
