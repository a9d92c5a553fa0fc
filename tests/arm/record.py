"""Makes the folder of test artifacts that machines without the exporter take, and records this one's answers.

    python tests/arm/record.py FOLDER

Needs the exporter and espeak-ng. The folder is complete or absent: it is built beside its place.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "arm")]

import answers  # noqa: E402
import kernels  # noqa: E402
import made  # noqa: E402

from demo import data  # noqa: E402
from demo.items import Item  # noqa: E402
from edge_gemma.export.timm_support import repair_torchvision  # noqa: E402

repair_torchvision()  # before a model of transformers is imported

# 40 questions: text, transcribe, translate, describe
DEMO = {"sums": 5, "commands": 5, "transcription": 10, "translation": 10, "pictures": 10}
WITH_MEDIA = ("fp32", "int4")  # the encoders of int8 and int4-hq are those of int4
TINY = ["Why is the sky blue?", "red fox, blue fox, red fox, blue fox"]


def interleaved(items: list[list[Item]]) -> list[Item]:
    """One of each task, then the next of each: any first few hold all tasks."""
    return [item for turn in itertools.zip_longest(*items) for item in turn if item is not None]


def record(folder: Path, artifact: str, questions: list[Item]) -> None:
    with answers.open_model(folder / artifact) as model:
        found = [answers.answer(model, question) for question in questions]
    answers.write_answers(folder, artifact, found)


def make(folder: Path) -> None:
    demo = interleaved([data.held_out(task, count) for task, count in DEMO.items()])
    tiny = [Item("text", ({"role": "user", "content": text},), "", text) for text in TINY]
    answers.write_questions(folder, "demo", demo)
    answers.write_questions(folder, "tiny", tiny)
    kernels.write(folder)
    for name, maker in made.MAKERS.items():
        maker(folder / name)
    for recipe in answers.RECIPES:
        media = recipe in WITH_MEDIA
        asked = [item for item in demo if media or item.task in data.TASKS]
        made.export_demo(recipe, folder / f"demo-{recipe}", media=media)
        record(folder, f"demo-{recipe}", asked)
        record(folder, f"tiny-{recipe}", tiny)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/arm/record.py FOLDER")
    target = Path(sys.argv[1]).absolute()
    building = target.with_name(f"{target.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    make(building)
    shutil.rmtree(target, ignore_errors=True)
    building.rename(target)


if __name__ == "__main__":
    main()
