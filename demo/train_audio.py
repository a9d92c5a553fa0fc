"""Stage one: the audio tower alone learns to hear phonemes, `python -m demo.train_audio`.

Each soft token stands for 160 ms. A head that is thrown away afterwards reads four phonemes or blanks from
every soft token, and connectionist temporal classification aligns them with what was said: so the soft
tokens, not only the frames between them, come to hold all that the decoder needs.
"""

from __future__ import annotations

import contextlib
import functools
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demo import loop
from demo.clips import Clip, training_clips
from demo.model import new_audio_tower
from demo.rounding import int4_weights
from demo.sound import augment, log_mel
from demo.voices import draw_utterance, speak

FOLDER = Path(__file__).with_name(".training")
CLIPS = 20_000
BATCH = 32
PARTS = 4  # phonemes that a soft token may hold
STAGE = loop.Stage(name="audio", seed=0, steps=2400, rate=2e-3, warmup=100, decay=0.6)
INT4_FROM, INT4_SHARE = 0.6, 0.5  # after this share of the steps, this share of them has rounded weights
SORTED = 40  # batches among which clips are sorted by length


class PhonemeReader(nn.Module):
    """The audio tower with the head: log-mel [B, T, 128] → log probabilities [B, 4·soft tokens, symbols]."""

    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.tower = new_audio_tower()
        self.head = nn.Linear(self.tower.config.hidden_size, PARTS * symbols)

    def forward(self, mel: Tensor) -> Tensor:
        soft = self.tower(mel, mel.new_zeros(mel.shape[:2], dtype=torch.bool)).last_hidden_state
        return read_phonemes(self.head, soft)


def read_phonemes(head: nn.Linear, soft: Tensor) -> Tensor:
    """soft [B, n, D] → log probabilities [B, 4n, symbols]; symbol 0 is the blank."""
    logits = head(soft)
    return logits.reshape(len(soft), -1, logits.shape[-1] // PARTS).log_softmax(dim=-1)


def symbols_of(clips: list[Clip]) -> dict[str, int]:
    """Every phoneme of the clips with its class, from 1."""
    return {symbol: i + 1 for i, symbol in enumerate(sorted({s for clip in clips for s in clip.phonemes}))}


def ctc(log_probabilities: Tensor, spoken: list[tuple[str, ...]], symbols: dict[str, int]) -> Tensor:
    """The loss for log probabilities [B, 4n, symbols] against the phonemes of each clip."""
    targets = [[symbols[s] for s in phonemes] for phonemes in spoken]
    lengths = torch.tensor([len(target) for target in targets])
    inputs = torch.full((len(spoken),), log_probabilities.shape[1])
    flat = torch.tensor([s for target in targets for s in target])
    loss = F.ctc_loss(
        log_probabilities.transpose(0, 1), flat, inputs, lengths, reduction="sum", zero_infinity=True
    )
    return loss / lengths.sum()


@functools.lru_cache(maxsize=4)
def epoch_batches(lengths: tuple[int, ...], batch: int, seed: int, epoch: int) -> list[list[int]]:
    """One pass over all clips, by index, in batches of about equally long ones, in a seeded order."""
    rng = random.Random(f"{seed} epoch {epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    batches = []
    for at in range(0, len(order), batch * SORTED):
        group = sorted(order[at : at + batch * SORTED], key=lengths.__getitem__)
        batches += [group[i : i + batch] for i in range(0, len(group), batch)]
    batches = [b for b in batches if len(b) == batch]
    rng.shuffle(batches)
    return batches


def batch_of(lengths: tuple[int, ...], batch: int, seed: int, index: int) -> list[int]:
    """The clips of the batch with this number, counted over all epochs."""
    count = len(epoch_batches(lengths, batch, seed, 0))
    return epoch_batches(lengths, batch, seed, index // count)[index % count]


@torch.no_grad()
def phoneme_error_rate(reader: PhonemeReader, symbols: dict[str, int], count: int) -> float:
    """Wrong phonemes per phoneme said, for held-out voices and sentences without noise."""
    names = {index: symbol for symbol, index in symbols.items()}
    wrong = total = 0
    reader.eval()
    for i in range(count):
        wave, said = speak(draw_utterance(random.Random(f"heard {i}"), want_held_out=True))
        best = reader(log_mel(augment([wave], seed=i)))[0].argmax(dim=-1).tolist()
        heard = [names[s] for s, before in zip(best, [0, *best], strict=False) if s not in (0, before)]
        wrong += edits(heard, list(said))
        total += len(said)
    reader.train()
    return wrong / total


def edits(a: list[str], b: list[str]) -> int:
    """The Levenshtein distance."""
    row = np.arange(len(b) + 1)
    for i, x in enumerate(a, 1):
        last, row = row, np.empty_like(row)
        row[0] = i
        for j, y in enumerate(b, 1):
            row[j] = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (x != y))
    return int(row[-1])


def train_audio(clips: list[Clip], stage: loop.Stage = STAGE, *, folder: Path = FOLDER) -> PhonemeReader:
    """The tower and its head after the stage, gone on with where it was cut."""
    symbols = symbols_of(clips)
    torch.manual_seed(stage.seed)
    reader = PhonemeReader(len(symbols) + 1)
    lengths = tuple(len(clip.samples) for clip in clips)

    def losses(step: int) -> Iterator[tuple[str, Tensor]]:
        chosen = [clips[i] for i in batch_of(lengths, min(BATCH, len(clips)), stage.seed, step)]
        mel = log_mel(augment([clip.samples for clip in chosen], stage.seed * 1_000_003 + step))
        rounded = step >= INT4_FROM * stage.steps and random.Random(f"int4 {step}").random() < INT4_SHARE
        with int4_weights(reader.tower) if rounded else contextlib.nullcontext():
            yield "ctc", ctc(reader(mel), [clip.phonemes for clip in chosen], symbols)

    def after(step: int) -> None:
        if (step + 1) % 300 == 0 or step + 1 == stage.steps:
            rate = phoneme_error_rate(reader, symbols, 50)
            print(f"held-out phoneme error rate {rate:.3f}", file=sys.stderr, flush=True)

    loop.run(reader, stage, losses, folder=folder, after=after)
    return reader


def main() -> None:
    """The command line."""
    loop.set_threads(__doc__)
    train_audio(training_clips(FOLDER, seed=STAGE.seed, count=CLIPS))


if __name__ == "__main__":
    main()
