"""Drawn pictures and questions about them: how many shapes of which colour and kind, and where.

A picture shows one group of one to four equal shapes. The split is by (count, colour, shape, place): training
never sees a held-out combination, whatever the drawing.
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from demo.items import Item, Message, is_held_out
from edge_gemma.runtime.tasks import DESCRIBE_PROMPT

COUNTS = ("one", "two", "three", "four")
COLOURS = {
    "red": (210, 35, 35),
    "green": (35, 150, 55),
    "blue": (35, 75, 210),
    "yellow": (235, 205, 30),
    "orange": (240, 130, 20),
    "purple": (130, 45, 165),
    "black": (15, 15, 15),
    "pink": (250, 140, 185),
}
SHAPES = ("circle", "square", "triangle", "star")
PLACES = (
    ("in the top left", "at the top", "in the top right"),
    ("on the left", "in the centre", "on the right"),
    ("in the bottom left", "at the bottom", "in the bottom right"),
)
BACKGROUNDS = ((245, 245, 245), (225, 225, 230), (200, 205, 210), (235, 230, 215), (215, 230, 215))
SIZES = (96, 320)  # pixels, the width
ASPECTS = (0.6, 1.6)  # height / width, for some of the pictures
GROUP = 0.28  # of a side: the span of a group around its place

# Where the shapes of a group lie, in units of GROUP around its middle; the middle of each is the group's.
LAYOUTS = {
    1: (((0.0, 0.0),),),
    2: (((-0.5, 0.0), (0.5, 0.0)), ((0.0, -0.5), (0.0, 0.5)), ((-0.45, -0.4), (0.45, 0.4))),
    3: (((-0.5, 0.35), (0.5, 0.35), (0.0, -0.5)), ((-0.5, -0.35), (0.5, -0.35), (0.0, 0.5))),
    4: (((-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)),),
}

WHAT_COLOUR = ("What colour {is_or_are}?", "Which colour {has_or_have}?")
HOW_MANY = ("How many shapes are there?", "Count the shapes.")
WHAT_SHAPE = ("What shape is shown?", "What kind of shape is this?")
WHERE = ("Where {is_or_are}?", "In which part of the image {is_or_are}?")


@dataclass(frozen=True)
class Scene:
    """What a picture shows: the indices of count (0-3), colour, shape, row and column of its place."""

    count: int
    colour: int
    shape: int
    row: int
    column: int

    @property
    def group(self) -> str:
        """Such as "three red circles"."""
        plural = "s" if self.count else ""
        return f"{COUNTS[self.count]} {self.colour_name} {SHAPES[self.shape]}{plural}"

    @property
    def colour_name(self) -> str:
        """Such as "red"."""
        return list(COLOURS)[self.colour]

    @property
    def place(self) -> str:
        """Such as "in the top left"."""
        return PLACES[self.row][self.column]

    @property
    def caption(self) -> str:
        """Such as "Three red circles in the top left"; also the key of the split."""
        return f"{self.group[0].upper()}{self.group[1:]} {self.place}"


SCENES = tuple(itertools.starmap(Scene, itertools.product(range(4), range(8), range(4), range(3), range(3))))


def draw_scene(rng: random.Random, *, want_held_out: bool) -> Scene:
    """A combination on the wanted side of the split."""
    while True:
        scene = rng.choice(SCENES)
        if is_held_out(scene.caption) == want_held_out:
            return scene


def draw_picture(scene: Scene, rng: random.Random) -> NDArray[np.uint8]:
    """The scene as uint8 [height, width, 3], a little different each time."""
    return draw_with_mask(scene, rng)[0]


def draw_with_mask(scene: Scene, rng: random.Random) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A picture, uint8 [height, width, 3], and where its shapes are: uint8 [height, width], 255 inside."""
    width = rng.randint(*SIZES)
    height = width if rng.random() < 0.4 else round(width * rng.uniform(*ASPECTS))
    background = tuple(c + rng.randint(-8, 8) for c in rng.choice(BACKGROUNDS))
    image = Image.new("RGB", (width, height), background)
    mask = Image.new("L", (width, height), 0)
    draw, draw_mask = ImageDraw.Draw(image), ImageDraw.Draw(mask)
    fill = tuple(min(255, max(0, c + rng.randint(-12, 12))) for c in COLOURS[scene.colour_name])
    layout = rng.choice(LAYOUTS[scene.count + 1])
    spacing = rng.uniform(0.9, 1.1) * GROUP
    middle_x = (0.24, 0.5, 0.76)[scene.column] + rng.uniform(-0.03, 0.03)
    middle_y = (0.24, 0.5, 0.76)[scene.row] + rng.uniform(-0.03, 0.03)
    largest = 0.12 if scene.count else 0.17
    radius = rng.uniform(0.07, largest) * min(width, height)
    for x, y in layout:
        at = ((middle_x + x * spacing) * width, (middle_y + y * spacing) * height)
        _draw_shape(draw, SHAPES[scene.shape], at, radius, fill)
        _draw_shape(draw_mask, SHAPES[scene.shape], at, radius, 255)
    grain = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(0, 6), (height, width, 3))
    return np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8), np.asarray(mask)


def _draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, at: tuple[float, float], radius: float, fill: tuple[int, ...] | int
) -> None:
    x, y = at
    if shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    elif shape == "square":
        side = 0.88 * radius
        draw.rectangle((x - side, y - side, x + side, y + side), fill=fill)
    else:
        corners, inner = (3, 1.0) if shape == "triangle" else (10, 0.42)
        reach = 1.15 * radius
        points = []
        for i in range(corners):
            r = reach * (inner if i % 2 and shape == "star" else 1.0)
            angle = 2 * math.pi * i / corners - math.pi / 2
            points.append((x + r * math.cos(angle), y + r * math.sin(angle)))
        draw.polygon(points, fill=fill)


def questions(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """One question of each kind with its answer, the description first."""
    many = bool(scene.count)
    words = {
        "is_or_are": "are the shapes" if many else "is the shape",
        "has_or_have": "do the shapes have" if many else "does the shape have",
    }
    place = scene.place[0].upper() + scene.place[1:]
    return [
        (DESCRIBE_PROMPT, scene.caption),
        (rng.choice(WHAT_COLOUR).format(**words), scene.colour_name.capitalize()),
        (rng.choice(HOW_MANY), COUNTS[scene.count].capitalize()),
        (rng.choice(WHAT_SHAPE), SHAPES[scene.shape].capitalize()),
        (rng.choice(WHERE).format(**words), place),
    ]


def picture_message(picture: NDArray[np.uint8] | None, question: str) -> Message:
    """What the user sends: a picture, uint8 [height, width, 3], and a question."""
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    return {"role": "user", "content": parts}


def held_out_pictures(n: int, *, seed: int = 0) -> list[Item]:
    """`n` pictures of held-out combinations; half of the questions ask for a description."""
    rng = random.Random(f"pictures {seed}")
    items = []
    for _ in range(n):
        scene = draw_scene(rng, want_held_out=True)
        asked = questions(scene, rng)
        question, answer = asked[0] if rng.random() < 0.5 else rng.choice(asked[1:])
        message = picture_message(draw_picture(scene, rng), question)
        items.append(Item("pictures", (message,), answer, scene.caption))
    return items
