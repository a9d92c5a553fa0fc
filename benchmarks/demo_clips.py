"""Writes the demo's held-out clips with transcripts, and its held-out questions: something for `make real`.

    python -m benchmarks.demo_clips FOLDER [--items 100]

FOLDER gets 000.wav, 000.txt and so on, and prompts.txt, half of it sums and half commands.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from benchmarks.command import Benchmark
from demo.data import TASKS, held_out
from demo.samples import write_wave


@click.command(cls=Benchmark)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--items", default=100, show_default=True, help="Clips, and questions for each task.")
def main(folder: Path, items: int) -> None:
    """Write clips, transcripts and prompts to FOLDER."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, item in enumerate(held_out("transcription", items)):
        (wave,) = (part["audio"] for part in item.messages[0]["content"] if part["type"] == "audio")
        write_wave(folder / f"{number:03}.wav", (wave * 32767).astype(np.int16))
        (folder / f"{number:03}.txt").write_text(item.reference + "\n", "utf-8")
    prompts = [item.messages[-1]["content"] for task in TASKS for item in held_out(task, items)]
    (folder / "prompts.txt").write_text("\n".join(prompts) + "\n", "utf-8")


if __name__ == "__main__":
    main()
