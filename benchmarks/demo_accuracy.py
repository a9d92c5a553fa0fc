"""Accuracy of the demo checkpoint on its held-out tasks: transformers beside every built-in recipe.

    python -m benchmarks.demo_accuracy [--items 1000] [--recipe int4 …]

Greedy answers to questions that training never saw; clips are by voices that it never heard. An error is a
wrong answer (demo.data.is_right) or, in transcriptions, a wrong word. The difference to fp32 is paired: its
95 % interval comes from resampling the items.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import jiwer
import numpy as np
import torch
from numpy.typing import NDArray

import edge_gemma
from benchmarks.command import Benchmark
from benchmarks.report import print_report
from demo import data
from demo.items import Item
from edge_gemma.console import show_progress
from edge_gemma.export.checkpoint import open_checkpoint
from edge_gemma.export.pipeline import export
from edge_gemma.export.timm_support import require_timm
from edge_gemma.progress import Progress
from edge_gemma.recipes import load_recipes

CHECKPOINT = Path(__file__).parent.parent / "demo" / "checkpoint"
CONTEXT = 1024
MAX_NEW_TOKENS = 96
PART = 125  # items that a process answers before it takes more
RESAMPLES = 2000
REFERENCE = "transformers"
# name of the row → task, signal-to-noise ratio of its clips in dB
ROWS: dict[str, tuple[str, float | None]] = {
    "sums": ("sums", None),
    "commands": ("commands", None),
    "transcription": ("transcription", None),
    "transcription, 10 dB": ("transcription", 10.0),
    "translation": ("translation", None),
    "translation, 10 dB": ("translation", 10.0),
    "pictures": ("pictures", None),
}


@dataclass(frozen=True)
class Scores:
    """Errors of each item, int64 [n], and what they are counted in: items, or words said."""

    errors: NDArray[np.int64]
    units: NDArray[np.int64]

    @property
    def rate(self) -> float:
        return float(self.errors.sum() / self.units.sum())


def score(items: list[Item], answers: list[str]) -> Scores:
    """Wrong words of transcriptions, wrong answers of everything else."""
    if items[0].task != "transcription":
        wrong = [not data.is_right(item, answer) for item, answer in zip(items, answers, strict=True)]
        return Scores(np.array(wrong, np.int64), np.ones(len(items), np.int64))
    pairs = [
        jiwer.process_words(item.reference, answer.strip())
        for item, answer in zip(items, answers, strict=True)
    ]
    wrong_words = [p.substitutions + p.deletions + p.insertions for p in pairs]
    return Scores(np.array(wrong_words), np.array([len(item.reference.split()) for item in items]))


def excess(scores: Scores, exact: Scores) -> tuple[float, float, float]:
    """How much higher an error rate is than that of `exact` on the same items, and its 95 % interval."""
    chosen = np.random.default_rng(0).integers(0, len(exact.errors), (RESAMPLES, len(exact.errors)))
    differences = (scores.errors - exact.errors)[chosen].sum(1) / exact.units[chosen].sum(1)
    low, high = np.percentile(differences, [2.5, 97.5])
    return scores.rate - exact.rate, float(low), float(high)


def answers_of(artifact: Path | None, items: list[Item]) -> list[str]:
    """Greedy answers on one core: the artifact's, or without one those of transformers in float32."""
    if artifact is None:
        return answers_of_transformers(items)
    with edge_gemma.load(artifact, context=CONTEXT, threads=1, keep_encoders=True, cache=False) as model:
        greedy = {"max_new_tokens": MAX_NEW_TOKENS, "temperature": 0}
        return [model.generate(list(item.messages), **greedy).text for item in items]


def answers_of_transformers(items: list[Item]) -> list[str]:
    """Its features are those of each clip alone."""
    require_timm()
    from transformers import AutoTokenizer, Gemma3nForConditionalGeneration

    from demo.evaluate import answer_all

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    model = Gemma3nForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    return answer_all(model, tokenizer, items)


def answer_all(
    pool: ProcessPoolExecutor,
    answer: Callable[[list[Item]], list[str]],
    items: list[Item],
    progress: Progress,
) -> list[str]:
    """What `answer` makes of the items, in parts, side by side."""
    parts = [items[first : first + PART] for first in range(0, len(items), PART)]
    answers = []
    for part in pool.map(answer, parts):
        answers += part
        progress.advance(len(part))
    return answers


@click.command(cls=Benchmark)
@click.option("--items", default=1000, show_default=True, help="Held-out questions for each row.")
@click.option("--recipe", "recipes", multiple=True, help="Recipes beside fp32. [all of them]")
@click.option("--reference/--no-reference", default=True, help="Run transformers too. [yes]")
def main(items: int, recipes: tuple[str, ...], reference: bool) -> None:
    """Accuracy of the demo checkpoint by task and recipe."""
    built_in = load_recipes()
    names = ["fp32", *(name for name in recipes or built_in if name != "fp32")]
    questions = {row: data.held_out(task, items, noise_db=noise) for row, (task, noise) in ROWS.items()}
    scores: dict[str, dict[str, Scores]] = {}
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        show_progress() as progress,
        ProcessPoolExecutor(len(os.sched_getaffinity(0)), spawn) as pool,
    ):
        exported = {name: Path(folder) / name for name in names}
        for name, artifact in exported.items():
            export(open_checkpoint(str(CHECKPOINT)), built_in[name], artifact)
        models: dict[str, Path | None] = exported | ({REFERENCE: None} if reference else {})
        for name, model in models.items():
            progress.stage(name, items * len(ROWS))
            scores[name] = {
                row: score(qs, answer_all(pool, partial(answers_of, model), qs, progress))
                for row, qs in questions.items()
            }
    rows, results = [], []
    for row in ROWS:
        for name, by_row in scores.items():
            found = by_row[row]
            more, low, high = excess(found, by_exact := scores["fp32"][row])
            interval = "" if found is by_exact else f"{more:+.2%} [{low:+.2%}, {high:+.2%}]"
            kind = "words" if found.units.sum() != len(found.units) else "answers"
            rows.append((row, name, f"{found.rate:.2%}", kind, interval))
            results.append(
                {"task": row, "model": name, "items": items, "error_rate": found.rate, "of": kind}
                | {"excess": more, "interval": [low, high]}
            )
    header = ("task", "model", "wrong", "of", "more than fp32 [95 %]")
    print_report("benchmarks.demo_accuracy", header, rows, results)


if __name__ == "__main__":
    main()
