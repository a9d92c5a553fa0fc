"""Long recordings on the demo checkpoint: are sentences found and right, and does memory stay flat?

    python -m benchmarks.long_audio [--minutes 20] [--recipe int4]

Held-out sentences by held-out voices, one after the other with pauses of 0.7 to 1.6 s and faint noise, as one
wav file of one minute and one of `--minutes`; each is transcribed in a process of its own.
"""

from __future__ import annotations

import multiprocessing
import random
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click
import jiwer
import numpy as np
import soundfile

import edge_gemma
from benchmarks.command import Benchmark
from benchmarks.demo_accuracy import CHECKPOINT
from benchmarks.report import print_report
from demo.voices import RATE, draw_utterance, speak
from edge_gemma.export.checkpoint import open_checkpoint
from edge_gemma.export.pipeline import export
from edge_gemma.memory import format_bytes, peak_resident_bytes
from edge_gemma.recipes import find_recipe


def record(path: Path, minutes: int) -> list[str]:
    """Write a recording of whole sentences, at least so long; what is said, sentence by sentence."""
    choose, noise = random.Random("long audio"), np.random.default_rng(0)
    said, length = [], 0
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        while length < minutes * 60 * RATE:
            utterance = draw_utterance(choose, want_held_out=True)
            voice = speak(utterance)[0].astype(np.float32) / 32768  # [samples]
            wave = np.pad(0.6 * voice, (0, int(noise.uniform(0.7, 1.6) * RATE)))
            file.write(wave + 5e-4 * noise.standard_normal(len(wave)))
            said.append(utterance.text)
            length += len(wave)
    return said


def transcribe(artifact: Path, recording: Path) -> tuple[list[str], float, int]:
    """Segments' texts, seconds, and this process's peak memory in bytes."""
    with edge_gemma.load(artifact, cache=False) as model:
        began = time.perf_counter()
        segments = model.transcribe(recording).segments
        return [s.text for s in segments], time.perf_counter() - began, peak_resident_bytes()


@click.command(cls=Benchmark)
@click.option("--minutes", default=20, show_default=True)
@click.option("--recipe", default="int4", show_default=True)
def main(minutes: int, recipe: str) -> None:
    """Long recordings on the demo checkpoint."""
    rows, results = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(open_checkpoint(str(CHECKPOINT)), find_recipe(recipe), folder / "demo")
        for length in (1, minutes):
            said = record(folder / "recording.wav", length)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                job = pool.submit(transcribe, folder / "demo", folder / "recording.wav")
            heard, seconds, peak = job.result()
            found = {
                "minutes": length,
                "sentences": len(said),
                "segments": len(heard),
                "word_error_rate": jiwer.wer(" ".join(said), " ".join(heard)),
                "seconds": seconds,
                "peak_memory_bytes": peak,
            }
            results.append(found)
            rate = f"{found['word_error_rate']:.2%}"
            cells = (len(said), len(heard), rate, f"{seconds:.0f} s", format_bytes(peak))
            rows.append((f"{length} min", *map(str, cells)))
    header = ("recording", "sentences", "segments", "words wrong", "time", "peak memory")
    print_report("benchmarks.long_audio", header, rows, results)


if __name__ == "__main__":
    main()
