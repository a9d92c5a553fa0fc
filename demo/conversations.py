"""Batches of conversations for the decoder: token ids, which of them are answers, and the media."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from demo import hearing, pictures
from demo.clips import Clip
from demo.items import Message
from demo.model import AUDIO_TOKENS, IMAGE_TOKENS
from demo.sight import pixels
from demo.sound import augment, log_mel
from demo.text import train_examples
from demo.tokenizer import END_OF_TURN_ID, START_OF_TURN_ID

QUESTIONS = 4  # asked about each picture, of five


@dataclass(frozen=True)
class Batch:
    """Conversations padded on the right.

    ids and labels are int64 [B, S] (padding 0, and -100 where nothing is learned); images float32
    [pictures, 3, 128, 128]; mel float32 [clips, T, 128], all clips equally long.
    """

    ids: Tensor
    labels: Tensor
    images: Tensor | None = None
    mel: Tensor | None = None


def expand(text: str) -> str:
    """A rendered chat with every soft token expanded as Gemma3nProcessor does."""
    image = f"\n\n<start_of_image>{'<image_soft_token>' * IMAGE_TOKENS}<end_of_image>\n\n"
    audio = f"\n\n<start_of_audio>{'<audio_soft_token>' * AUDIO_TOKENS}<end_of_audio>\n\n"
    return text.replace("<image_soft_token>", image).replace("<audio_soft_token>", audio)


def encode(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Sequence[Message]]
) -> tuple[Tensor, Tensor]:
    """ids and labels, both int64 [B, S]."""
    texts = [expand(tokenizer.apply_chat_template(list(c), tokenize=False)) for c in conversations]
    encoded = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="right")
    labels = [answer_labels(ids) for ids in encoded["input_ids"]]
    return torch.tensor(encoded["input_ids"]), torch.tensor(labels)


def answer_labels(ids: list[int]) -> list[int]:
    """The token after each position where it is part of an answer (its end of turn included), else -100."""
    labels = [-100] * len(ids)
    turn, inside = 0, False
    for i in range(2, len(ids) - 1):
        if ids[i - 2] == START_OF_TURN_ID:  # <start_of_turn>, role, "\n": the turns alternate, the user first
            turn += 1
            inside = turn % 2 == 0
        elif ids[i] == END_OF_TURN_ID:
            inside = False
        if inside:
            labels[i] = ids[i + 1]
    return labels


def answered(question: Message, answer: str) -> list[Message]:
    """A round: the question and its answer."""
    return [question, {"role": "assistant", "content": answer}]


def text_batch(tokenizer: PreTrainedTokenizerBase, seed: int, count: int) -> Batch:
    """Sums and commands."""
    return Batch(*encode(tokenizer, list(itertools.islice(train_examples(seed), count))))


def speech_batch(tokenizer: PreTrainedTokenizerBase, clips: list[Clip], seed: int) -> Batch:
    """One conversation a clip: to transcribe or translate it; now and then the clip comes after the text."""
    rng = random.Random(f"speech {seed}")
    conversations = []
    for clip in clips:
        said = clip.sentence.in_language(clip.language)
        if rng.random() < 0.5:
            prompt, answer = hearing.transcription(said, clip.language, rng)
        else:
            translated = clip.sentence.in_language(hearing.other(clip.language))
            prompt, answer = hearing.translation(said, translated, clip.language, rng)
        message = hearing.speech_message(None, prompt)
        if rng.random() < 0.05:
            message["content"].reverse()
        conversations.append(answered(message, answer))
    mel = log_mel(augment([clip.samples for clip in clips], seed))
    return Batch(*encode(tokenizer, conversations), mel=mel)


def picture_batch(tokenizer: PreTrainedTokenizerBase, seed: int, count: int) -> Batch:
    """One conversation a picture: several questions about it in any order, the picture with the first."""
    rng = random.Random(f"picture {seed}")
    conversations, drawn = [], []
    for _ in range(count):
        scene = pictures.draw_scene(rng, want_held_out=False)
        drawn.append(pictures.draw_picture(scene, rng))
        asked = pictures.questions(scene, rng)
        if rng.random() < 0.5:  # the description first, half of the time
            rest = rng.sample(asked[1:], QUESTIONS - 1)
            asked = [asked[0], *rest]
        else:
            asked = rng.sample(asked, QUESTIONS)
        (first, answer), *rest = asked
        rounds = answered(pictures.picture_message(None, first), answer)
        for question, reply in rest:
            rounds += answered({"role": "user", "content": question}, reply)
        conversations.append(rounds)
    return Batch(*encode(tokenizer, conversations), images=pixels(drawn))


def mixed_batch(tokenizer: PreTrainedTokenizerBase, clips: list[Clip], seed: int) -> Batch:
    """A picture and a clip in each conversation, in either order and in one message or two."""
    rng = random.Random(f"mixed {seed}")
    conversations, drawn = [], []
    for clip in clips:
        scene = pictures.draw_scene(rng, want_held_out=False)
        drawn.append(pictures.draw_picture(scene, rng))
        question, reply = rng.choice(pictures.questions(scene, rng))
        said = clip.sentence.in_language(clip.language)
        prompt, answer = hearing.transcription(said, clip.language, rng)
        see = answered(pictures.picture_message(None, question), reply)
        hear = answered(hearing.speech_message(None, prompt), answer)
        kind = rng.randrange(4)
        if kind == 0:
            conversations.append(see + hear)
        elif kind == 1:
            conversations.append(hear + see)
        else:
            media = [{"type": "image"}, {"type": "audio"}]
            rng.shuffle(media)
            text, wanted = (question, reply) if kind == 2 else (prompt, answer)
            message = {"role": "user", "content": [*media, {"type": "text", "text": text}]}
            conversations.append(answered(message, wanted))
    mel = log_mel(augment([clip.samples for clip in clips], seed))
    return Batch(*encode(tokenizer, conversations), images=pixels(drawn), mel=mel)
