"""How many held-out questions a checkpoint answers rightly: `python -m demo.evaluate FOLDER --items 200`.

Greedy answers by transformers in float32 from the stored weights: every task, for the full and the half
feed-forward width, exact and with every matrix rounded to 4 bits. Transcriptions are also scored in wrong
words per word said. The table goes to stdout.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

import jiwer
import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from demo import data
from demo.conversations import expand
from demo.items import Item
from demo.model import FULL_WIDTH, HALF_WIDTH, Gemma3nForConditionalGeneration, use_width
from demo.rounding import int4_weights
from demo.sight import pixels
from demo.sound import log_mel

CHECKPOINT = Path(__file__).with_name("checkpoint")
BATCH = 25
NEW_TOKENS = 64
# task and signal-to-noise ratio
ROWS = (
    ("sums", None),
    ("commands", None),
    ("transcription", None),
    ("transcription", 10.0),
    ("translation", None),
    ("translation", 10.0),
    ("pictures", None),
)


def media_of(item: Item, kind: str) -> list[np.ndarray]:
    """The arrays of one kind ("audio" or "image") in an item's messages, in order."""
    parts = [p for m in item.messages if not isinstance(m["content"], str) for p in m["content"]]
    return [part[kind] for part in parts if part["type"] == kind]


def features(waves: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Each clip extracted alone, then padded: float32 [B, T, 128] and its mask, bool [B, T]."""
    mels = [log_mel(torch.from_numpy(wave)[None])[0] for wave in waves]
    frames = torch.tensor([len(mel) for mel in mels])
    padded = torch.nn.utils.rnn.pad_sequence(mels, batch_first=True)
    return padded, torch.arange(padded.shape[1]) < frames[:, None]


@torch.no_grad()
def answer(
    model: Gemma3nForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, items: list[Item]
) -> list[str]:
    """The greedy answers to `items`, decoded in one left-padded batch."""
    texts = [
        expand(tokenizer.apply_chat_template(list(item.messages), tokenize=False, add_generation_prompt=True))
        for item in items
    ]
    encoded = tokenizer(
        texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
    )
    inputs = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
    if waves := [wave for item in items for wave in media_of(item, "audio")]:
        inputs["input_features"], inputs["input_features_mask"] = features(waves)
    if drawn := [picture for item in items for picture in media_of(item, "image")]:
        inputs["pixel_values"] = pixels(drawn)
    output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    new = output[:, inputs["input_ids"].shape[1] :]  # [B, new tokens]
    return tokenizer.batch_decode(new, skip_special_tokens=True)


def answer_all(
    model: Gemma3nForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, items: list[Item]
) -> list[str]:
    """The answers in the items' order, computed in batches of about equally long clips."""
    order = sorted(range(len(items)), key=lambda i: sum(len(wave) for wave in media_of(items[i], "audio")))
    answers = [""] * len(items)
    for at in range(0, len(order), BATCH):
        chosen = order[at : at + BATCH]
        texts = answer(model, tokenizer, [items[i] for i in chosen])
        for i, text in zip(chosen, texts, strict=True):
            answers[i] = text
    return answers


def word_error_rate(items: list[Item], answers: list[str]) -> float:
    """Wrong words per word said, over all items together."""
    return jiwer.wer([item.reference for item in items], [text.strip() for text in answers])


def evaluate(folder: Path, count: int, *, widths: tuple[int, ...] = (FULL_WIDTH, HALF_WIDTH)) -> str:
    """A table by task, noise, width and rounding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = Gemma3nForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    lines = ["| task | noise | width | weights | right | word error rate |", "|---|---|---|---|---|---|"]
    for task, noise_db in ROWS:
        items = data.held_out(task, count, noise_db=noise_db)
        for width in widths:
            use_width(model, width)
            for rounded in (False, True):
                with int4_weights(model) if rounded else contextlib.nullcontext():
                    answers = answer_all(model, tokenizer, items)
                right = sum(data.is_right(item, text) for item, text in zip(items, answers, strict=True))
                wer = f"{word_error_rate(items, answers):.1%}" if task == "transcription" else ""
                noise = f"{noise_db:.0f} dB" if noise_db is not None else ""
                weights = "int4" if rounded else "bfloat16"
                line = f"| {task} | {noise} | {width} | {weights} | {right / count:.1%} of {count} | {wer} |"
                print(line, flush=True)
                lines.append(line)
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=CHECKPOINT)
    parser.add_argument("--items", type=int, default=1000, help="held-out questions a task")
    parser.add_argument("--full-only", action="store_true", help="leave the half width out")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; more only on an idle machine")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    evaluate(
        arguments.folder,
        arguments.items,
        widths=(FULL_WIDTH,) if arguments.full_only else (FULL_WIDTH, HALF_WIDTH),
    )


if __name__ == "__main__":
    main()
