"""The speech tasks in chat form, and their held-out clips."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from demo.items import Item, Message
from demo.noise import place, with_noise
from demo.speech import ENGLISH, SPANISH
from demo.voices import RATE, Utterance, draw_utterance, speak
from edge_gemma.runtime.tasks import read_translation, transcription_prompt, translation_prompt

NAMED_SHARE = 0.5  # of the prompts name the language that is spoken


def speech_message(wave: NDArray[np.float32] | None, prompt: str) -> Message:
    """What the user sends: a clip, float32 [samples] at 16 kHz, and what to do with it."""
    parts = [{"type": "audio", "audio": wave}, {"type": "text", "text": prompt}]
    return {"role": "user", "content": parts}


def other(language: str) -> str:
    """The language to translate into."""
    return SPANISH if language == ENGLISH else ENGLISH


def transcription(utterance_text: str, language: str, rng: random.Random) -> tuple[str, str]:
    """A prompt, with or without the language, and its answer."""
    return transcription_prompt(language if rng.random() < NAMED_SHARE else None), utterance_text


def translation(text: str, translated: str, language: str, rng: random.Random) -> tuple[str, str]:
    """A prompt, with or without the source language, and its answer."""
    target = other(language)
    prompt = translation_prompt(target, language if rng.random() < NAMED_SHARE else None)
    return prompt, f"{text}\n{target}: {translated}"


def _clip(key: str, utterance: Utterance, noise_db: float | None) -> NDArray[np.float32]:
    """The utterance with 0.15 to 0.4 s of silence on each side at a random loudness; the same for a key."""
    rng = np.random.default_rng(list(key.encode()))
    samples, _ = speak(utterance)
    before, after = (int(rng.uniform(0.15, 0.4) * RATE) for _ in range(2))
    wave = place(samples, rng, samples=before + len(samples) + after, start=before)
    if noise_db is not None:
        wave = with_noise(wave, rng, snr_db=noise_db, colour=rng.uniform(0, 1))
    return wave


def held_out_clips(task: str, n: int, *, seed: int = 0, noise_db: float | None = None) -> list[Item]:
    """`n` clips of held-out sentences by held-out voices, to transcribe or to translate."""
    rng = random.Random(f"{task} {seed}")
    utterances = [draw_utterance(rng, want_held_out=True) for _ in range(n)]
    keys = [f"{task} {seed} {i}" for i in range(n)]
    with ThreadPoolExecutor() as pool:
        waves = list(pool.map(_clip, keys, utterances, [noise_db] * n))
    return [_item(task, u, wave, rng) for u, wave in zip(utterances, waves, strict=True)]


def _item(task: str, utterance: Utterance, wave: NDArray[np.float32], rng: random.Random) -> Item:
    text, language, target = utterance.text, utterance.language, other(utterance.language)
    if task == "transcription":
        prompt, answer = transcription(text, language, rng)
        target = ""
    else:
        prompt, answer = translation(text, utterance.sentence.in_language(target), language, rng)
    key = utterance.sentence.english
    return Item(task, (speech_message(wave, prompt),), answer, key, reference=text, target=target)


def is_right_translation(item: Item, answer: str) -> bool:
    """Whether what follows the marker is the one right translation."""
    return read_translation(answer, item.target)[1] == read_translation(item.answer, item.target)[1]
