"""`edge-gemma eval`."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from edge_gemma.cli import INTERRUPTED
from edge_gemma.console import print_table, show_progress
from edge_gemma.errors import ContextLimitError, MediaError
from edge_gemma.runtime import evaluation
from edge_gemma.runtime.loading import load
from edge_gemma.runtime.options import generation_options, model_options
from edge_gemma.runtime.scoring import METRICS, Score


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option(
    "--metric",
    type=click.Choice(list(METRICS)),
    help="For lines that name none. [wer for transcriptions, chrf for translations, else exact]",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Ask the first N questions only.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write answers to FILE as they come; those it has already are not asked again.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the scores as JSON.")
@generation_options(temperature=0.0)
@model_options
def eval_command(
    artifact: Path,
    dataset: Path,
    metric: str | None,
    limit: int | None,
    out: Path | None,
    as_json: bool,
    model: dict[str, Any],
    **generation: Any,
) -> int:
    """Ask ARTIFACT the questions of DATASET, a JSON object a line, and score its answers.

    Ctrl-C ends early, with the scores of what was answered. A question that the model cannot take is
    reported and left out of the scores.
    """
    began = perf_counter()
    questions = evaluation.read_questions(dataset, metric, limit)
    answers = evaluation.read_answers(out, questions) if out else {}
    left = [question for question in questions if question.id not in answers]
    status = 0
    if left:
        with (
            load(artifact, **model) as loaded,
            out.open("a", encoding="utf-8") if out else nullcontext() as file,
            show_progress() as progress,
        ):
            progress.stage("questions", len(questions))
            progress.advance(len(answers))
            try:
                for question in left:
                    try:
                        answers[question.id] = question.put_to(loaded, **generation)
                    except (ContextLimitError, MediaError) as error:  # of this one alone
                        click.echo(f"error: {error}", err=True)
                        status = error.exit_code
                    else:
                        if file:
                            file.write(evaluation.answer_line(question, answers[question.id]))
                            file.flush()
                    progress.advance()
            except KeyboardInterrupt:
                status = INTERRUPTED
    scores = evaluation.score(questions, answers)
    if as_json:
        report = {
            "artifact": str(artifact),
            "dataset": str(dataset),
            "complete": len(answers) == len(questions),
            "questions": len(questions),
            "answered": len(answers),
            "seconds": round(perf_counter() - began, 1),
            "scores": {name: asdict(found) for name, found in scores.items()},
        }
        click.echo(json.dumps(report))
    else:
        _print_scores(scores, f"{len(answers)} of {len(questions)} questions answered")
    return status


def _print_scores(scores: dict[str, Score], title: str) -> None:
    rows = [
        (name, _figure(name, s.value), f"[{_figure(name, s.low)}, {_figure(name, s.high)}]", f"{s.items}")
        for name, s in scores.items()
    ]
    if rows:
        print_table(title, rows, ("metric", "score", "95 %", "questions"))
    else:
        click.echo(title)


def _figure(metric: str, value: float) -> str:
    """Rates in percent; BLEU and chrF are told on their own scale."""
    return f"{value:.1f}" if metric in ("chrf", "bleu") else f"{value:.2%}"
