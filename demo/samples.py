"""Writes `demo/samples/`: held-out clips and pictures to try the demo with, `python -m demo.samples`.

Two sentences by two voices that training never heard, each in English and in Spanish, and two drawn pictures;
samples.json says what is right.
"""

from __future__ import annotations

import itertools
import json
import random
import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from demo.items import is_held_out
from demo.pictures import SCENES, draw_picture
from demo.speech import ENGLISH, SPANISH, Sentence
from demo.voices import HELD_OUT_VARIANTS, RATE, Utterance, Voice, speak

FOLDER = Path(__file__).with_name("samples")
LARGEST = 128  # pixels, the width of a picture
LIGHT = Sentence("Turn on the lights in the kitchen", "Enciende las luces de la cocina")
TIMER = Sentence("Set a timer for 38 minutes", "Pon un temporizador de 38 minutos")
SPOKEN = {
    "english-1": Utterance(LIGHT, ENGLISH, Voice("en-us+m3", 165, 45)),
    "english-2": Utterance(TIMER, ENGLISH, Voice("en-gb+belinda", 160, 55)),
    "spanish-1": Utterance(TIMER, SPANISH, Voice("es+m3", 165, 45)),
    "spanish-2": Utterance(LIGHT, SPANISH, Voice("es-419+belinda", 160, 55)),
}
CAPTIONS = {"picture-1": "Four red stars at the bottom", "picture-2": "Two blue circles on the left"}


def write_wave(path: Path, samples: NDArray[np.int16]) -> None:
    """int16 [samples] as a mono wav at 16 kHz with 0.2 s of silence on each side."""
    silence = np.zeros(RATE // 5, np.int16)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(np.concatenate([silence, samples // 2, silence]).astype("<i2").tobytes())


def main() -> None:
    """Writes all files."""
    FOLDER.mkdir(exist_ok=True)
    right: dict[str, dict[str, str]] = {}
    for name, said in SPOKEN.items():
        assert is_held_out(said.sentence.english), said.sentence.english
        assert said.voice.name.split("+")[1] in HELD_OUT_VARIANTS
        write_wave(FOLDER / f"{name}.wav", speak(said)[0])
        right[f"{name}.wav"] = {
            "language": said.language,
            "English": said.sentence.english,
            "Spanish": said.sentence.spanish,
        }
    for name, caption in CAPTIONS.items():
        (scene,) = (scene for scene in SCENES if scene.caption == caption)
        assert is_held_out(caption), caption
        drawn = (draw_picture(scene, random.Random(f"{name} {i}")) for i in itertools.count())
        small = next(picture for picture in drawn if picture.shape[1] <= LARGEST)
        Image.fromarray(small).save(FOLDER / f"{name}.png", optimize=True)
        right[f"{name}.png"] = {"description": caption}
    text = json.dumps(right, indent=2, ensure_ascii=False)
    (FOLDER / "samples.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
