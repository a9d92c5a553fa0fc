"""The levels of an elastic artifact against exports of each of them alone.

    python -m benchmarks.elastic_parity [SOURCE] [--elastic E2B,E3.39B-layer,E4B] [--recipe int4 …]

Logits of a random prompt in chunks of 16, then greedy tokens. The narrowest level is to give those of its own
export to the bit, the wider ones within 1e-5 of the largest in fp32. SOURCE is `E4B`, random weights of its
true width and depth with a vocabulary of 8256, so that fp32 takes 15 GB of disk and of memory; or any
checkpoint. Artifacts are made one after the other in --scratch; each is deleted when it has answered.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.command import Benchmark
from benchmarks.report import print_report
from edge_gemma.console import show_progress
from edge_gemma.export.checkpoint import Checkpoint, open_checkpoint
from edge_gemma.export.elastic import open_levels
from edge_gemma.export.matformer import SlicedCheckpoint
from edge_gemma.export.parity import compare
from edge_gemma.export.pipeline import export
from edge_gemma.export.synthetic import CONFIGS, SyntheticCheckpoint
from edge_gemma.recipes import Recipe, find_recipe
from edge_gemma.runtime import fresh_process
from edge_gemma.runtime.bench_tasks import Step
from edge_gemma.runtime.loading import load

SMALL_VOCABULARY = {"vocab_size": 8256, "vocab_size_per_layer_input": 8000}
CHUNK = 16

Answer = tuple[NDArray[np.float32], list[int]]  # logits [positions, V], greedy tokens behind them


def answer(step: Step, folder: Path, level: str | None, prompt: list[int], tokens: int) -> Answer:
    """What an artifact makes of a prompt, in a process of its own."""
    with load(folder, context=256, cache=False, level=level) as model:
        generator = model._open()
        decoder, cache = generator.decoder, generator.cache
        store = generator._store
        rows = [
            decoder.forward(*store.rows(ids), cache, num_logits=len(ids))
            for ids in (prompt[first : first + CHUNK] for first in range(0, len(prompt), CHUNK))
        ]
        said: list[int] = []
        last = rows[-1][-1]  # [V]
        while len(said) < tokens:
            said.append(int(last.argmax()))
            last = decoder.forward(*store.rows(said[-1:]), cache)[-1]
    step()
    return np.concatenate(rows), said


def exported(source: Checkpoint, recipe: Recipe, folder: Path, **levels: Any) -> Path:
    target = folder / "artifact"
    export(source, recipe, target, audio=False, vision=False, overwrite=True, **levels)
    return target


@click.command(cls=Benchmark)
@click.argument("source", default="E4B")
@click.option("--elastic", default="E2B,E3.39B-layer,E4B", show_default=True)
@click.option("--recipe", "recipes", multiple=True, default=("fp32", "int4"), show_default=True)
@click.option("--positions", default=40, show_default=True)
@click.option("--tokens", default=24, show_default=True, help="Greedy tokens behind the prompt.")
@click.option("--scratch", type=click.Path(file_okay=False, path_type=Path), help="[a temporary folder]")
def main(
    source: str, elastic: str, recipes: tuple[str, ...], positions: int, tokens: int, scratch: Path | None
) -> None:
    """Levels of an elastic artifact against exports of each alone."""
    if source == "E4B":
        text = CONFIGS["E4B"]["text_config"] | SMALL_VOCABULARY
        checkpoint: Checkpoint = SyntheticCheckpoint("E4B, small vocabulary", text, seed=0)
    else:
        checkpoint = open_checkpoint(source)
    widest, levels = open_levels(checkpoint, elastic.split(","))
    prompt = np.random.default_rng(0).integers(0, checkpoint.config.text.vocab_size, positions).tolist()
    rows, results = [], []
    folder = Path(tempfile.mkdtemp(prefix="elastic-parity-", dir=scratch))
    try:
        with show_progress() as progress:
            progress.stage("levels", len(recipes) * len(levels) * 2)
            run: dict[str, Any] = {
                "step": lambda: progress.advance(1),
                "warn": lambda message: click.echo(message, err=True),
                "prompt": prompt,
                "tokens": tokens,
            }
            for name in recipes:
                recipe = find_recipe(name)
                target = exported(widest, recipe, folder, levels=levels)
                ours = [
                    fresh_process.call(answer, **run, folder=target, level=level.name) for level in levels
                ]
                for level, (logits, said) in zip(levels, ours, strict=True):
                    target = exported(SlicedCheckpoint(widest, level), recipe, folder)
                    expected, alone = fresh_process.call(answer, **run, folder=target, level=None)
                    found = compare(logits, expected)
                    equal = bool((logits == expected).all())
                    same = next((i for i in range(tokens) if said[i] != alone[i]), tokens)
                    rows.append(
                        (
                            name,
                            level.name,
                            "yes" if equal else "no",
                            f"{found.max_relative_error:.1e}",
                            "-" if equal else f"{found.snr_db:.0f} dB",
                            f"{found.argmax_agreement:.0%}",
                            f"{same} of {tokens}",
                        )
                    )
                    results.append(
                        {"recipe": name, "level": level.name, "equal": equal, "greedy": same, "of": tokens}
                        | found.to_dict()
                    )
    finally:
        shutil.rmtree(folder)
    header = (
        "recipe",
        "level",
        "to the bit",
        "largest relative error",
        "signal to error",
        "best token agrees",
        "greedy tokens equal",
    )
    print_report("benchmarks.elastic_parity", header, rows, results)


if __name__ == "__main__":
    from benchmarks.elastic_parity import main as command  # a fresh process finds its functions by the name

    command()
