"""What ARM cores make of the demo, beside this machine: logits, tokens and right answers, by core and recipe.

    python -m benchmarks.arm_accuracy [--items 20] [--media 5] [--core a72 …] [--recipe int4 …]

The cores are emulated (tests/arm/tree.py), one after the other. Each answers the same held-out questions as
this machine did: led along its tokens, so that logits are comparable, and by itself where it would have said
another token.
Errors are paired: the ARM core's minus this machine's, on the same questions.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "arm")]

import answers  # noqa: E402
import made  # noqa: E402
import record  # noqa: E402
import tree  # noqa: E402

from benchmarks.command import Benchmark  # noqa: E402
from benchmarks.demo_accuracy import Scores, score  # noqa: E402
from benchmarks.report import print_report  # noqa: E402
from demo import data  # noqa: E402
from demo.items import Item  # noqa: E402
from edge_gemma import artifact as artifacts  # noqa: E402
from edge_gemma.export.parity import combine, compare  # noqa: E402
from edge_gemma.runtime.tokenizer import Tokenizer  # noqa: E402

TREE = ROOT / "artifacts" / "arm"
SET = "accuracy"


def answer_on(core: str, folder: Path, artifact: str) -> list[answers.Answer]:
    """What an emulated core says to the recorded questions."""
    python = TREE / "root" / "usr" / "bin" / f"python-{core}"
    with tempfile.TemporaryDirectory() as out:
        command = [str(python), str(ROOT / "tests" / "arm" / "answer.py"), str(folder), artifact, SET, out]
        subprocess.run(command, check=True)
        return list(answers.read_answers(Path(out), artifact))


def errors_by_task(questions: list[Item], texts: list[str]) -> dict[str, Scores]:
    tasks = dict.fromkeys(question.task for question in questions)
    pairs = list(zip(questions, texts, strict=True))
    return {
        task: score([q for q, _ in pairs if q.task == task], [text for q, text in pairs if q.task == task])
        for task in tasks
    }


def texts_of(folder: Path, found: list[answers.Answer]) -> list[str]:
    opened = artifacts.read(folder)
    tokenizer = Tokenizer(opened.path(opened.manifest.tokenizer.file), opened.manifest.tokenizer)
    stop = set(opened.manifest.tokens.stop)
    return [tokenizer.decode([token for token in one.tokens if token not in stop]) for one in found]


def shares(scores: dict[str, Scores]) -> NDArray[np.float64]:
    return np.array([found.rate for found in scores.values()])


@click.command(cls=Benchmark)
@click.option("--items", default=20, show_default=True, help="Questions of each text task.")
@click.option("--media", default=5, show_default=True, help="Questions of each task with clips or pictures.")
@click.option("--core", "cores", multiple=True, type=click.Choice(list(tree.CORES)), help="[all of them]")
@click.option("--recipe", "recipes", multiple=True, type=click.Choice(answers.RECIPES), help="[all of them]")
def main(items: int, media: int, cores: tuple[str, ...], recipes: tuple[str, ...]) -> None:
    """Accuracy of the demo on emulated ARM cores."""
    tree.build(TREE)
    questions = [
        question
        for task in (*data.TASKS, *data.MEDIA_TASKS)
        for question in data.held_out(task, media if task in data.MEDIA_TASKS else items)
    ]
    rows, results = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        answers.write_questions(folder, SET, questions)
        for recipe in recipes or answers.RECIPES:
            artifact = f"demo-{recipe}"
            made.export_demo(recipe, folder / artifact)
            record.record(folder, artifact, questions)
            here = list(answers.read_answers(folder, artifact))
            expected = errors_by_task(questions, texts_of(folder / artifact, here))
            for core in cores or tuple(tree.CORES):
                found = answer_on(core, folder, artifact)
                parity = combine([compare(f.logits, h.logits) for f, h in zip(found, here, strict=True)])
                differ, ties = answers.other_choices(found, here)
                same = sum(f.tokens == h.tokens for f, h in zip(found, here, strict=True))
                errors = errors_by_task(questions, texts_of(folder / artifact, found))
                wrong = {task: int(errors[task].errors.sum()) for task in errors}
                wrong_here = {task: int(expected[task].errors.sum()) for task in errors}
                excess = float((shares(errors) - shares(expected)).mean())
                rows.append(
                    (
                        recipe,
                        core,
                        f"{parity.max_relative_error:.1e}",
                        f"{parity.snr_db:.1f}",
                        f"{differ} of {parity.positions}",
                        str(ties),
                        f"{same} of {len(questions)}",
                        f"{sum(wrong.values())} / {sum(wrong_here.values())}",
                    )
                )
                results.append(
                    {"recipe": recipe, "core": core, "questions": len(questions), "same_answers": same}
                    | {"positions": parity.positions, "other_choices": differ, "near_ties": ties}
                    | {"max_relative_error": parity.max_relative_error, "snr_db": parity.snr_db}
                    | {"wrong": wrong, "wrong_here": wrong_here, "excess": excess}
                )
                click.echo("  ".join(rows[-1]), err=True)
    header = (
        "recipe",
        "core",
        "largest error",
        "SNR dB",
        "other tokens",
        "ties",
        "same answers",
        "wrong there / here",
    )
    print_report("benchmarks.arm_accuracy", header, rows, results)


if __name__ == "__main__":
    main()
