"""Clips of speech from espeak-ng: who speaks, how fast and high, and the noise and silence around.

Waveforms are mono at 16 kHz. Everything is drawn from the seed. Four voice variants are held out in both
languages: no accent of theirs is ever trained on.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import NDArray

from demo.speech import ENGLISH, SPANISH, Sentence, draw_sentence, spoken

RATE = 16_000
LONGEST = 6.6  # seconds of speech; a longer sentence is spoken again, faster
SPEEDS = (120, 220)  # words a minute
PITCHES = (20, 80)  # espeak-ng's scale of 0 to 99
SILENT = 0.003  # of full scale: what is trimmed at the ends

ACCENTS = {
    ENGLISH: ("en-us", "en-us", "en-gb", "en-gb", "en-gb-x-rp", "en-us-nyc", "en-gb-scotland", "en-029"),
    SPANISH: ("es", "es-419"),
}
HELD_OUT_VARIANTS = ("m3", "f4", "belinda", "edward")
TRAIN_VARIANTS = (
    *("m1", "m2", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f5"),
    *(
        "Alex",
        "Alicia",
        "Andrea",
        "Andy",
        "Annie",
        "Denis",
        "Diogo",
        "Gene",
        "Henrique",
        "Hugo",
        "Jacky",
        "Lee",
    ),
    *(
        "Marco",
        "Mario",
        "Michael",
        "Mike",
        "Nguyen",
        "adam",
        "anika",
        "antonio",
        "aunty",
        "benjamin",
        "boris",
    ),
    *(
        "caleb",
        "david",
        "ed",
        "gustave",
        "iven",
        "iven3",
        "john",
        "linda",
        "marcelo",
        "max",
        "michel",
        "miguel",
    ),
    *("norbert", "pablo", "paul", "pedro", "quincy", "rob", "robert", "sandro", "shelby", "steph", "steph3"),
    *("travis", "victor", "zac", "klatt", "klatt2", "klatt3", "grandma", "grandpa", "Tweaky", "Storm"),
)


@dataclass(frozen=True)
class Voice:
    """One way to speak: espeak-ng's voice, words a minute, pitch (0-99)."""

    name: str
    speed: int
    pitch: int


@dataclass(frozen=True)
class Utterance:
    """A sentence, the language it is spoken in, and the voice."""

    sentence: Sentence
    language: str
    voice: Voice

    @property
    def text(self) -> str:
        """What is said, as it is to be written."""
        return self.sentence.in_language(self.language)


def draw_voice(rng: random.Random, language: str, variants: tuple[str, ...]) -> Voice:
    """An accent of the language with one of the variants, at a random speed and pitch."""
    name = f"{rng.choice(ACCENTS[language])}+{rng.choice(variants)}"
    return Voice(name, rng.randint(*SPEEDS), rng.randint(*PITCHES))


def draw_utterance(rng: random.Random, *, want_held_out: bool) -> Utterance:
    """A sentence and a voice, both on the wanted side of the split."""
    language = rng.choice((ENGLISH, SPANISH))
    sentence = draw_sentence(rng, want_held_out=want_held_out)
    variants = HELD_OUT_VARIANTS if want_held_out else TRAIN_VARIANTS
    return Utterance(sentence, language, draw_voice(rng, language, variants))


def require_espeak() -> str:
    """The path of espeak-ng; SystemExit with one line where it is missing."""
    path = shutil.which("espeak-ng")
    if path is None:
        raise SystemExit("espeak-ng is missing and speaks the demo's clips: apt-get install espeak-ng")
    return path


def speak(utterance: Utterance) -> tuple[NDArray[np.int16], tuple[str, ...]]:
    """The waveform, int16 [samples] without silence at its ends, and espeak-ng's phonemes."""
    voice, program = utterance.voice, require_espeak()
    text = spoken(utterance.text, utterance.language)
    for speed in (voice.speed, 170, 220):
        arguments = ["-v", voice.name, "-s", str(speed), "-p", str(voice.pitch), "-x", "--sep=_"]
        done = subprocess.run(
            [program, *arguments, "--phonout=/dev/stderr", "--stdout", text], capture_output=True, check=True
        )
        wave = np.frombuffer(done.stdout[44:], dtype="<i2")
        rate = int.from_bytes(done.stdout[24:28], "little")
        wave = trim(soxr.resample(wave.astype(np.float32) / 32768, rate, RATE, quality="HQ"))
        if len(wave) <= LONGEST * RATE:
            break
    peak = np.abs(wave).max()
    samples = np.round(wave * (0.9 / peak) * 32767).astype(np.int16)
    return samples, phonemes(done.stderr.decode())


def trim(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [samples] without what is silent before the first and after the last sound."""
    loud = np.flatnonzero(np.abs(wave) > SILENT)
    return wave[loud[0] : loud[-1] + 1]


def phonemes(mnemonics: str) -> tuple[str, ...]:
    """ "t_w_'E_n_t2_i" → t, w, E, n, t, i: without stress and length; variants of a sound are one."""
    bare = (symbol.strip().lstrip("',%=|;!-").rstrip("#2:;-!") for symbol in re.split("[_ ]", mnemonics))
    return tuple("r" if symbol == "**" else symbol for symbol in bare if symbol)
