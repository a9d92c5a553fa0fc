"""The training clips: spoken once by espeak-ng on all cores, then read from a cache."""

from __future__ import annotations

import json
import multiprocessing
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demo.speech import Sentence
from demo.voices import RATE, draw_utterance, require_espeak, speak

WAVES, WORDS = "clips.i16", "clips.json"


@dataclass(frozen=True)
class Clip:
    """A sentence as it was spoken: samples int16 at 16 kHz without silence around, and the phonemes."""

    sentence: Sentence
    language: str
    phonemes: tuple[str, ...]
    samples: NDArray[np.int16]


def _make(key: str) -> tuple[dict, NDArray[np.int16]]:
    """The training clip that the key's random numbers choose: what is known of it, and its samples."""
    utterance = draw_utterance(random.Random(key), want_held_out=False)
    samples, phonemes = speak(utterance)
    sentence = utterance.sentence
    about = {"english": sentence.english, "spanish": sentence.spanish, "language": utterance.language}
    return about | {"phonemes": phonemes, "samples": len(samples)}, samples


def write_clips(folder: Path, *, seed: int, count: int) -> None:
    """Speaks `count` training clips into `folder`; a cut run starts again."""
    require_espeak()
    folder.mkdir(parents=True, exist_ok=True)
    abouts = []
    keys = [f"{seed} clip {i}" for i in range(count)]
    with multiprocessing.get_context("spawn").Pool() as pool, open(folder / WAVES, "wb") as waves:
        for about, samples in pool.imap(_make, keys, chunksize=16):
            abouts.append(about)
            waves.write(samples.tobytes())
            if len(abouts) % 1000 == 0:
                print(f"{len(abouts)}/{count} clips", file=sys.stderr, flush=True)
    (folder / WORDS).write_text(json.dumps(abouts, ensure_ascii=False))


def training_clips(folder: Path, *, seed: int, count: int) -> list[Clip]:
    """All training clips of a seed, spoken now if the cache lacks them."""
    folder = folder / f"clips-{seed}-{count}"
    if not (folder / WORDS).exists():
        write_clips(folder, seed=seed, count=count)
    abouts = json.loads((folder / WORDS).read_text())
    waves = np.memmap(folder / WAVES, dtype=np.int16, mode="r")
    clips, at = [], 0
    for about in abouts:
        samples = waves[at : at + about["samples"]]
        at += about["samples"]
        sentence = Sentence(about["english"], about["spanish"])
        clips.append(Clip(sentence, about["language"], tuple(about["phonemes"]), samples))
    return clips


def seconds(clips: list[Clip]) -> float:
    """The length of all clips together."""
    return sum(len(clip.samples) for clip in clips) / RATE
