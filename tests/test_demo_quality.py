"""The demo checkpoint through the whole chain: right answers, and how much each recipe may lose."""

from __future__ import annotations

from pathlib import Path

import jiwer
import pytest

import edge_gemma
from demo.data import TASKS, held_out, is_right
from edge_gemma.export.checkpoint import open_checkpoint
from edge_gemma.export.pipeline import export
from edge_gemma.export.verify import verify
from edge_gemma.recipes import load_recipes

ITEMS = 100  # of each task
MOST_MISSED = {"sums": 6, "commands": 1}
MEDIA_ITEMS = 60
PROMPTS = tuple(item.messages[0]["content"] for task in TASKS for item in held_out(task, 8))
# task and noise → most wrong words (transcription) or answers
MOST_WRONG = {
    ("transcription", None): 0.03,
    ("transcription", 10.0): 0.06,
    ("translation", None): 0.08,
    ("pictures", None): 0.02,
}
# recipe → least argmax agreement, most KL divergence (nats), least signal to noise (dB), against transformers
BOUNDS = {
    "fp32": (1.0, 1e-8, 80.0),
    "int8": (0.98, 1e-3, 30.0),
    "int4": (0.94, 0.015, 13.0),
    "int4-hq": (0.95, 0.005, 22.0),
}


@pytest.fixture(scope="module", params=list(BOUNDS))
def recipe(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def artifact(recipe: str, tmp_path_factory: pytest.TempPathFactory, demo_checkpoint: Path) -> Path:
    target = tmp_path_factory.mktemp(recipe) / "demo"
    export(open_checkpoint(str(demo_checkpoint)), load_recipes()[recipe], target)
    return target


def test_every_recipe_is_bounded() -> None:
    assert set(BOUNDS) == set(load_recipes())


@pytest.mark.parametrize("task", TASKS)
def test_answers_held_out_questions(artifact: Path, task: str) -> None:
    items = held_out(task, ITEMS)
    with edge_gemma.load(artifact, context=256) as model:
        answers = [
            model.generate(list(item.messages), max_new_tokens=96, temperature=0).text for item in items
        ]
    right = sum(is_right(item, answer) for item, answer in zip(items, answers, strict=True))
    assert right >= ITEMS - MOST_MISSED[task]


@pytest.mark.parametrize(("task", "noise_db"), MOST_WRONG)
def test_hears_and_sees(artifact: Path, task: str, noise_db: float | None) -> None:
    """Clips by voices that training never heard; docs/demo.md has the rates of 1000 items each."""
    items = held_out(task, MEDIA_ITEMS, noise_db=noise_db)
    with edge_gemma.load(artifact, context=512, keep_encoders=True) as model:
        answers = [
            model.generate(list(item.messages), max_new_tokens=64, temperature=0).text for item in items
        ]
    if task == "transcription":
        wrong = jiwer.wer([item.reference for item in items], [answer.strip() for answer in answers])
    else:
        wrong = 1 - sum(map(is_right, items, answers)) / MEDIA_ITEMS
    assert wrong <= MOST_WRONG[task, noise_db]


def test_loss_is_bounded(artifact: Path, recipe: str, demo_checkpoint: Path) -> None:
    report = verify(artifact, open_checkpoint(str(demo_checkpoint)), prompts=PROMPTS, new_tokens=16)
    agreement, divergence, snr = BOUNDS[recipe]
    assert report.argmax_agreement >= agreement
    assert report.kl_divergence <= divergence
    assert report.snr_db >= snr
