"""Accuracy of the demo checkpoint on its held-out tasks: transformers beside every built-in recipe.

    python -m benchmarks.demo_accuracy [--items 500]

Greedy answers to questions that training never saw, scored by demo.data.is_right. For each recipe the
difference to fp32 is paired: right under fp32 and wrong here, and the other way round.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

import edge_gemma
from benchmarks.report import print_report
from demo.data import TASKS, Item, held_out, is_right
from edge_gemma.export.checkpoint import Checkpoint, open_checkpoint
from edge_gemma.export.pipeline import export
from edge_gemma.export.recipes import Recipe, load_recipes
from edge_gemma.export.verify import greedy_reference, load_reference

CHECKPOINT = Path(__file__).parent.parent / "demo" / "checkpoint"
CONTEXT = 256
MAX_NEW_TOKENS = 96


def answer_all(artifact: Path, items: list[Item]) -> list[bool]:
    """Whether the artifact's greedy answer is right, item by item."""
    with edge_gemma.load(artifact, context=CONTEXT) as model:
        return [
            is_right(
                item,
                model.generate(list(item.messages), max_new_tokens=MAX_NEW_TOKENS, temperature=0).text,
            )
            for item in items
        ]


def answer_all_with_transformers(checkpoint: Checkpoint, artifact: Path, items: list[Item]) -> list[bool]:
    """The same questions to transformers' model in float32, prompts encoded as the runtime does."""
    model = load_reference(checkpoint)
    with edge_gemma.load(artifact, context=CONTEXT) as runtime:
        prompts = [runtime.encode(list(item.messages)) for item in items]
        stop = set(runtime.manifest.tokens.stop)
        tokenizer = runtime.tokenizer
    right = []
    for item, ids in zip(items, prompts, strict=True):
        answer, _ = greedy_reference(model, ids, MAX_NEW_TOKENS, stop=stop)
        right.append(is_right(item, tokenizer.decode([token for token in answer if token not in stop])))
    return right


def export_demo(recipe: Recipe, folder: Path) -> Path:
    """Export the demo checkpoint under `recipe` to a new folder inside `folder`."""
    target = folder / recipe.name
    export(open_checkpoint(str(CHECKPOINT)), recipe, target)
    return target


@click.command()
@click.option("--items", default=500, show_default=True, help="Held-out questions per task.")
def main(items: int) -> None:
    """Accuracy of the demo checkpoint by task and recipe."""
    questions = {task: held_out(task, items) for task in TASKS}
    right: dict[str, dict[str, list[bool]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, recipe in load_recipes().items():
            artifact = export_demo(recipe, Path(folder))
            right[name] = {task: answer_all(artifact, qs) for task, qs in questions.items()}
        checkpoint = open_checkpoint(str(CHECKPOINT))
        right["transformers"] = {
            task: answer_all_with_transformers(checkpoint, artifact, qs) for task, qs in questions.items()
        }
    rows, data = [], []
    for name, by_task in right.items():
        for task, results in by_task.items():
            exact = right["fp32"][task]
            lost = sum(e and not r for e, r in zip(exact, results, strict=True))
            gained = sum(r and not e for e, r in zip(exact, results, strict=True))
            accuracy = sum(results) / len(results)
            rows.append((name, task, str(len(results)), f"{accuracy:.1%}", str(lost), str(gained)))
            data.append(
                {"model": name, "task": task, "items": len(results), "accuracy": accuracy, "lost": lost}
                | {"gained": gained}
            )
    header = ("model", "task", "items", "right", "lost to fp32", "gained")
    print_report("benchmarks.demo_accuracy", header, rows, data)


if __name__ == "__main__":
    main()
