"""What else could be done with the encoders, on the demo checkpoint: `python -m benchmarks.demo_variants`.

    python -m benchmarks.demo_variants [--items 1000]

Beside the int4 artifact as it ships: a clip that takes only the places of its own soft tokens, without the
fill behind them; and encoders whose products are DynamicQuantizeMatMul (int8, one scale for all activations).
Errors and intervals are those of benchmarks.demo_accuracy.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from unittest import mock

import click

from benchmarks.command import Benchmark
from benchmarks.demo_accuracy import CHECKPOINT, ROWS, Scores, answer_all, answers_of, excess, score
from benchmarks.encoder_forms import dynamic_matmul
from benchmarks.report import print_report
from demo import data
from demo.items import Item
from edge_gemma.console import show_progress
from edge_gemma.export.checkpoint import open_checkpoint
from edge_gemma.export.pipeline import export
from edge_gemma.export.weights import WeightedGraph
from edge_gemma.recipes import find_recipe
from edge_gemma.runtime.prompt import Messages, Prompt, PromptBuilder

MEDIA_ROWS = [row for row, (task, _) in ROWS.items() if task in data.MEDIA_TASKS]
SHIPPED, SHORT, DYNAMIC = "as shipped", "without fill", "DynamicQuantizeMatMul"


def without_fill(artifact: Path, items: list[Item]) -> list[str]:
    """`answers_of`, where what follows a clip follows its own soft tokens."""
    build = PromptBuilder.build

    def build_short(self: PromptBuilder, messages: Messages) -> Prompt:
        prompt = build(self, messages)
        for item in prompt.media:  # one at most
            if item.kind == "audio":
                del prompt.ids[item.end : item.start + _places(self)]
        return prompt

    with mock.patch.object(PromptBuilder, "build", build_short):
        return answers_of(artifact, items)


def _places(builder: PromptBuilder) -> int:
    spec = builder._specs["audio"]
    assert spec is not None
    return spec.soft_tokens


@click.command(cls=Benchmark)
@click.option("--items", default=1000, show_default=True, help="Held-out questions for each row.")
def main(items: int) -> None:
    """Accuracy of the demo checkpoint with other forms of its encoders."""
    rows, results = [], []
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        show_progress() as progress,
        ProcessPoolExecutor(len(os.sched_getaffinity(0)), spawn) as pool,
    ):
        artifacts = {name: Path(folder) / name.replace(" ", "-") for name in (SHIPPED, DYNAMIC)}
        for name, target in artifacts.items():
            form = mock.patch.object(WeightedGraph, "matmul", dynamic_matmul(8))
            with form if name == DYNAMIC else contextlib.nullcontext():
                export(open_checkpoint(str(CHECKPOINT)), find_recipe("int4"), target)
        ways = {
            SHIPPED: partial(answers_of, artifacts[SHIPPED]),
            SHORT: partial(without_fill, artifacts[SHIPPED]),
            DYNAMIC: partial(answers_of, artifacts[DYNAMIC]),
        }
        for row in MEDIA_ROWS:
            task, noise = ROWS[row]
            questions = data.held_out(task, items, noise_db=noise)
            found: dict[str, Scores] = {}
            for name, answer in ways.items():
                progress.stage(f"{row}, {name}", items)
                found[name] = score(questions, answer_all(pool, answer, questions, progress))
                more, low, high = excess(found[name], found[SHIPPED])
                interval = "" if name == SHIPPED else f"{more:+.2%} [{low:+.2%}, {high:+.2%}]"
                rows.append((row, name, f"{found[name].rate:.2%}", interval))
                results.append(
                    {"task": row, "variant": name, "items": items, "error_rate": found[name].rate}
                    | {"excess": more, "interval": [low, high]}
                )
    header = ("task", "variant", "wrong", "more than as shipped [95 %]")
    print_report("benchmarks.demo_variants", header, rows, results)


if __name__ == "__main__":
    main()
