"""The texts that the tokenizer learns its words from: a seeded sample of everything that training reads."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from demo.hearing import transcription, translation
from demo.pictures import draw_scene, questions
from demo.speech import ENGLISH, SPANISH, draw_sentence
from demo.text import train_examples

CONVERSATIONS = 1500
SENTENCES = 1500
SCENES = 300


def training_texts() -> Iterator[str]:
    """Messages of text, speech and picture conversations, prompts and answers alike."""
    for messages in itertools.islice(train_examples(0), CONVERSATIONS):
        for message in messages:
            yield message["content"]
            yield "user" if message["role"] == "user" else "model"
    rng = random.Random(0)
    for _ in range(SENTENCES):
        sentence = draw_sentence(rng, want_held_out=False)
        for here, there in ((ENGLISH, SPANISH), (SPANISH, ENGLISH)):
            text, translated = sentence.in_language(here), sentence.in_language(there)
            yield from transcription(text, here, rng)
            yield from translation(text, translated, here, rng)
    for _ in range(SCENES):
        for question, answer in questions(draw_scene(rng, want_held_out=False), rng):
            yield question
            yield answer
