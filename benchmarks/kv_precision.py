"""Global KV in float16 beside int8: the speed of prefill and of decoding behind contexts of several lengths.

    python -m benchmarks.kv_precision DIR [--context 1024 --context 4096 …] [--rounds 5] [--tokens 8]
                                          [--budget 2GiB]

Both caches are open in one process and take turns. A round fills the KV cache with rows that are written and
not computed, computes 128 tokens behind them and decodes to the context's end. A figure is the
median of its rounds; ratios are taken within a round.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import click
import numpy as np

from benchmarks.command import Benchmark
from benchmarks.report import print_report
from edge_gemma.console import show_progress
from edge_gemma.memory import DEFAULT_CHUNK
from edge_gemma.runtime.bench_tasks import generate
from edge_gemma.runtime.generation import Generator
from edge_gemma.runtime.loading import load

CACHES = ("float16", "int8")


def speeds(generator: Generator, ids: list[int], tokens: int) -> tuple[float, float]:
    """Tokens a second of the chunk at the end of `ids` and of so many tokens decoded behind it."""
    generator.occupy(ids[:-DEFAULT_CHUNK])
    found = generate(generator, ids, tokens + 1)
    return found.prefill_tokens_per_second, found.decode_tokens_per_second


@click.command(cls=Benchmark)
@click.argument("artifact", type=click.Path(exists=True, path_type=Path))
@click.option("--context", "contexts", multiple=True, default=(512, 4096, 8192, 32_768), show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--tokens", default=8, show_default=True, help="To decode at each context's end.")
@click.option("--budget", metavar="SIZE", help="Each with the chunks that fit this memory. [128 tokens]")
def main(artifact: Path, contexts: tuple[int, ...], rounds: int, tokens: int, budget: str | None) -> None:
    """Speed with global KV in float16 and in int8."""
    random = np.random.default_rng(0)
    rows, data = [], []
    with ExitStack() as stack:
        models = [
            stack.enter_context(load(artifact, context=max(contexts), global_kv=kv, memory_budget=budget))
            for kv in CACHES
        ]
        heads = [f"{kv}, chunks of {model.plan.chunk}" for kv, model in zip(CACHES, models, strict=True)]
        records = models[0].manifest.embeddings.records
        progress = stack.enter_context(show_progress())
        progress.stage("rounds", len(contexts) * (rounds + 1))
        for context in contexts:
            found = defaultdict(list)
            for round in range(rounds + 1):  # the first one warms up
                ids = random.integers(0, records, context - tokens).tolist()
                for kv, model in list(zip(CACHES, models, strict=True))[:: 1 if round % 2 else -1]:
                    prefill, decoding = speeds(model._open(), ids, tokens)
                    found["prefill", kv].append(prefill)
                    found["decoding", kv].append(decoding)
                progress.advance(1)
            for name in ("prefill", "decoding"):
                each = {kv: found[name, kv][1:] for kv in CACHES}
                ratio = [b / a for a, b in zip(each["float16"], each["int8"], strict=True)]
                rows.append(
                    (
                        f"{name} to {context}",
                        *(f"{median(each[kv]):.1f}" for kv in CACHES),
                        f"{median(ratio):.2f} ({min(ratio):.2f} – {max(ratio):.2f})",
                    )
                )
                data.append({"measured": name, "context": context, "tokens_per_second": each})
    print_report("benchmarks.kv_precision", ("tokens/s", *heads, "int8 to float16"), rows, data)


if __name__ == "__main__":
    main()
