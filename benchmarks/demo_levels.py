"""Accuracy of the demo checkpoint at each level of an elastic artifact, and of two levels in one answer.

    python -m benchmarks.demo_levels [--items 400] [--plot docs/levels.svg]

The levels are those of demo/levels/. "half reads, whole answers" prefills all of a prompt but its last token
at one level and goes on at the other, over the KV cache that the first one wrote: the hardest mixture that a
switch in a conversation can make, as nothing of what is asked was read by the level that answers.

Errors and intervals are those of benchmarks.demo_accuracy; differences are to the whole model.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click

import edge_gemma
from benchmarks.command import Benchmark
from benchmarks.demo_accuracy import (
    CHECKPOINT,
    CONTEXT,
    MAX_NEW_TOKENS,
    ROWS,
    Scores,
    answer_all,
    excess,
    score,
)
from benchmarks.report import print_report
from demo import data
from demo.items import Item
from edge_gemma.console import show_progress
from edge_gemma.export.checkpoint import open_checkpoint
from edge_gemma.export.elastic import open_levels
from edge_gemma.export.pipeline import export
from edge_gemma.recipes import find_recipe

LEVELS = ("half", "mixed", "whole")
RECIPES = ("fp32", "int4")
# name of the row → the level that reads the prompt, the one that answers
WAYS = {level: (level, level) for level in LEVELS} | {
    f"{reads} reads, {answers} answers": (reads, answers)
    for reads, answers in (("half", "whole"), ("whole", "half"))
}


def answers_of(artifact: Path, reads: str, answers: str, items: list[Item]) -> list[str]:
    """Greedy answers on one core, each prompt read at one level and answered at another."""
    options: dict[str, Any] = {"context": CONTEXT, "threads": 1, "keep_encoders": True, "cache": False}
    texts = []
    with edge_gemma.load(artifact, **options) as model:
        generator = model._open()
        for item in items:
            if reads != answers:
                model.generate(list(item.messages), max_new_tokens=1, temperature=0, level=reads)
                generator._settled -= 1  # its last token is read again, at the other level
            answer = model.generate(
                list(item.messages), max_new_tokens=MAX_NEW_TOKENS, temperature=0, level=answers
            )
            fresh = answer.statistics.prompt_tokens - answer.statistics.reused_tokens
            assert reads == answers or fresh == 1, f"{fresh} tokens of the prompt were read anew"
            generator.occupy([])
            texts.append(answer.text)
    return texts


@click.command(cls=Benchmark)
@click.option("--items", default=400, show_default=True, help="Held-out questions for each row.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the table into this .svg.")
def main(items: int, plot: Path | None) -> None:
    """Accuracy of the demo checkpoint by level."""
    questions = {row: data.held_out(task, items, noise_db=noise) for row, (task, noise) in ROWS.items()}
    scores: dict[str, dict[tuple[str, str], Scores]] = {row: {} for row in ROWS}
    files = [str(CHECKPOINT.parent / "levels" / f"{level}.yaml") for level in LEVELS]
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        show_progress() as progress,
        ProcessPoolExecutor(len(os.sched_getaffinity(0)), spawn) as pool,
    ):
        for recipe in RECIPES:
            artifact = Path(folder) / recipe
            checkpoint, levels = open_levels(open_checkpoint(str(CHECKPOINT)), files)
            export(checkpoint, find_recipe(recipe), artifact, levels=levels)
            for way, (reads, answers) in WAYS.items():
                progress.stage(f"{recipe}, {way}", items * len(ROWS))
                ask = partial(answers_of, artifact, reads, answers)
                for row, asked in questions.items():
                    scores[row][recipe, way] = score(asked, answer_all(pool, ask, asked, progress))
    rows, results = [], []
    for row, found in scores.items():
        for (recipe, way), one in found.items():
            more, low, high = excess(one, found[recipe, LEVELS[-1]])
            interval = "" if way == LEVELS[-1] else f"{more:+.2%} [{low:+.2%}, {high:+.2%}]"
            rows.append((row, recipe, way, f"{one.rate:.2%}", interval))
            results.append(
                {"task": row, "recipe": recipe, "level": way, "items": items, "error_rate": one.rate}
                | {"excess": more, "interval": [low, high]}
            )
    if plot:
        draw({row: {key: one.rate for key, one in found.items()} for row, found in scores.items()}, plot)
    header = ("task", "recipe", "level", "wrong", "more than whole [95 %]")
    print_report("benchmarks.demo_levels", header, rows, results)


def draw(rates: dict[str, dict[tuple[str, str], float]], path: Path) -> None:
    """A group of columns for each task, one column for each recipe and level."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text
    matplotlib.rcParams["svg.hashsalt"] = "levels"  # the same picture gives the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(RECIPES), 1, figsize=(9, 6), sharex=True, layout="constrained")
    for plane, recipe in zip(axes, RECIPES, strict=True):
        for number, way in enumerate(WAYS):
            left = [place + (number - (len(WAYS) - 1) / 2) * 0.16 for place in range(len(rates))]
            heights = [100 * found[recipe, way] for found in rates.values()]
            plane.bar(left, heights, width=0.15, label=way)
        plane.set_ylabel(f"wrong in {recipe}, %")
        plane.grid(axis="y", alpha=0.3)
    axes[-1].set_xticks(range(len(rates)), [row.replace(", ", "\n") for row in rates])
    axes[0].legend(ncols=2)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
