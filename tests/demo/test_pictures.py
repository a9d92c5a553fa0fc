"""Drawn pictures and questions about them."""

from __future__ import annotations

import random

import numpy as np
import pytest

from demo import data
from demo.items import is_held_out
from demo.pictures import COLOURS, SCENES, draw_picture, draw_scene, draw_with_mask, questions
from edge_gemma.runtime.tasks import DESCRIBE_PROMPT


def test_a_tenth_of_the_combinations_is_held_out() -> None:
    held = [scene for scene in SCENES if is_held_out(scene.caption)]
    assert len({scene.caption for scene in SCENES}) == len(SCENES)
    assert 0.05 < len(held) / len(SCENES) < 0.15
    rng = random.Random(0)
    assert not any(is_held_out(draw_scene(rng, want_held_out=False).caption) for _ in range(2000))
    assert {draw_scene(rng, want_held_out=True) for _ in range(2000)} == set(held)


def test_pictures_depend_on_the_seed_alone() -> None:
    first = draw_picture(SCENES[7], random.Random(1))
    assert np.array_equal(first, draw_picture(SCENES[7], random.Random(1)))
    assert first.shape != draw_picture(SCENES[7], random.Random(2)).shape


@pytest.mark.parametrize("seed", range(30))
def test_shapes_are_where_and_of_the_colour_that_is_said(seed: int) -> None:
    rng = random.Random(seed)
    scene = draw_scene(rng, want_held_out=bool(seed % 2))
    picture, mask = draw_with_mask(scene, rng)
    assert picture.dtype == np.uint8
    assert picture.shape == (*mask.shape, 3)
    rows, columns = np.nonzero(mask)
    height, width = mask.shape
    assert int(3 * rows.mean() / height) == scene.row
    assert int(3 * columns.mean() / width) == scene.column
    shade = np.median(picture[rows, columns], axis=0)
    nearest = min(COLOURS, key=lambda name: np.abs(shade - COLOURS[name]).sum())
    assert nearest == scene.colour_name


def test_questions_begin_with_the_description() -> None:
    asked = questions(SCENES[-1], random.Random(0))
    assert asked[0] == (DESCRIBE_PROMPT, "Four pink stars in the bottom right")
    assert [answer for _, answer in asked[1:]] == ["Pink", "Four", "Star", "In the bottom right"]
    single = questions(SCENES[0], random.Random(0))
    assert single[0][1] == "One red circle in the top left"
    assert all(" is the shape" in q or " does the shape" in q for q, _ in (single[1], single[4]))


def test_held_out_pictures_are_repeatable() -> None:
    items, again = data.held_out("pictures", 20), data.held_out("pictures", 20)
    for item, same in zip(items, again, strict=True):
        image, question = item.messages[0]["content"]
        assert np.array_equal(image["image"], same.messages[0]["content"][0]["image"])
        assert question == same.messages[0]["content"][1]
        assert is_held_out(item.key)
        assert data.is_right(item, item.answer)
        assert not data.is_right(item, item.answer.lower())
