"""Stage two: the vision tower alone learns to see shapes, `python -m demo.train_vision`.

A head that is thrown away afterwards reads from every soft token, as the decoder gets it, whether a shape
is there, and if so five things: how many there are, of which colour and shape, in which row and column of
the picture. So any soft token on a shape comes to hold the whole answer.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from demo import loop
from demo.model import (
    HIDDEN,
    Gemma3nMultimodalEmbedder,
    new_vision_tower,
    text_config,
    vision_config,
)
from demo.pictures import COLOURS, COUNTS, PLACES, SHAPES, draw_scene, draw_with_mask
from demo.sight import image_tokens, pixels

FOLDER = Path(__file__).with_name(".training")
BATCH = 24
STAGE = loop.Stage(name="vision", seed=0, steps=2000, rate=2e-3, warmup=100, decay=0.6)
CLASSES = (len(COUNTS), len(COLOURS), len(SHAPES), len(PLACES), len(PLACES))  # in the order of Scene's fields
GRID = 16  # soft tokens a side
COVERED = 0.15  # of a soft token's square: then it lies on a shape


class SceneReader(nn.Module):
    """Tower, embedder and head: images [B, 3, 128, 128] → logits [B, 256, 1 + all classes]."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = new_vision_tower()
        self.embedder = Gemma3nMultimodalEmbedder(vision_config(), text_config())
        self.head = nn.Linear(HIDDEN, 1 + sum(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(image_tokens(self.tower, self.embedder, images))


@dataclass(frozen=True)
class Seen:
    """Pictures float32 [B, 3, 128, 128], which of their soft tokens lie on shapes (float32 [B, 256]), and the
    fields of their scenes (int64 [B, 5])."""

    images: Tensor
    on_shape: Tensor
    fields: Tensor


def draw_batch(key: str, count: int, *, want_held_out: bool) -> Seen:
    """`count` pictures that the key's random numbers choose."""
    rng = random.Random(key)
    scenes = [draw_scene(rng, want_held_out=want_held_out) for _ in range(count)]
    drawn, masks = zip(*(draw_with_mask(scene, rng) for scene in scenes), strict=True)
    grid = (GRID, GRID)
    small = [np.asarray(Image.fromarray(mask).resize(grid, Image.Resampling.BOX)) for mask in masks]
    on_shape = torch.from_numpy(np.stack(small)).flatten(1) > COVERED * 255
    return Seen(pixels(list(drawn)), on_shape.float(), torch.tensor([astuple(scene) for scene in scenes]))


def loss_of(logits: Tensor, seen: Seen) -> Tensor:
    """Where shapes are, and on them the five questions; logits [B, 256, 1 + all classes]."""
    where, *answers = logits.split((1, *CLASSES), dim=-1)
    there = seen.on_shape.bool()
    loss = F.binary_cross_entropy_with_logits(where[..., 0], seen.on_shape)
    for i, answer in enumerate(answers):
        wanted = seen.fields[:, i, None].expand(there.shape)
        loss = loss + F.cross_entropy(answer[there], wanted[there])
    return loss


@torch.no_grad()
def accuracies(reader: SceneReader, count: int) -> list[float]:
    """The share of right answers to each of the five questions, and to all at once, on held-out scenes.

    An answer is the mean over the soft tokens that the head itself finds on shapes.
    """
    seen = draw_batch("seen", count, want_held_out=True)
    reader.eval()
    logits = torch.cat([reader(part) for part in seen.images.split(50)])
    reader.train()
    where, *answers = logits.split((1, *CLASSES), dim=-1)
    weights = where.sigmoid()
    best = torch.stack([(a.log_softmax(-1) * weights).sum(1).argmax(-1) for a in answers], dim=1)  # [B, 5]
    right = best == seen.fields
    return [*right.float().mean(0).tolist(), right.all(1).float().mean().item()]


def train_vision(stage: loop.Stage = STAGE, *, folder: Path = FOLDER, batch: int = BATCH) -> SceneReader:
    """The tower with embedder and head after the stage, gone on with where it was cut."""
    torch.manual_seed(stage.seed)
    reader = SceneReader()

    def losses(step: int) -> Iterator[tuple[str, Tensor]]:
        seen = draw_batch(f"{stage.seed} picture {step}", batch, want_held_out=False)
        yield "seen", loss_of(reader(seen.images), seen)

    def after(step: int) -> None:
        if (step + 1) % 200 == 0 or step + 1 == stage.steps:
            right = " ".join(f"{share:.3f}" for share in accuracies(reader, 200))
            print(f"held-out right: {right}", file=sys.stderr, flush=True)

    loop.run(reader, stage, losses, folder=folder, after=after)
    return reader


def main() -> None:
    """The command line."""
    loop.set_threads(__doc__)
    train_vision()


if __name__ == "__main__":
    main()
