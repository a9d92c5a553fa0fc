"""Prompts: where others are likely to part from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import edge_gemma
from edge_gemma import Model


@pytest.fixture(scope="module")
def model(made: Callable[[str], Path]) -> Iterator[Model]:
    with edge_gemma.load(made("tiny-fp32"), context=256, threads=1) as model:
        yield model


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


SYSTEM = {"role": "system", "content": "Be brief."}
USER = {
    "role": "user",
    "content": [text("The document."), text("It has two parts."), text("What is it about?")],
}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "user", "content": "hello"}], []),
        ([USER], ["user\nThe document.It has two parts."]),
        ([SYSTEM, {"role": "user", "content": "hello"}], ["system\nBe brief.\nuser\n"]),
        (
            [SYSTEM, USER],
            ["system\nBe brief.\nuser\n", "system\nBe brief.\nuser\nThe document.It has two parts."],
        ),
        ([SYSTEM, USER, {"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}], []),
        ([{"role": "user", "content": [text(""), text("hello")]}], ["user\n"]),
    ],
)
def test_partings(messages: list[dict[str, Any]], expected: list[str], model: Model) -> None:
    prompt = model._prompts.build(messages)
    found = [model.tokenizer.decode(prompt.ids[:place]) for place in prompt.partings]
    assert found == expected


def test_a_prompt_is_what_it_is(model: Model) -> None:
    prompt = model._prompts.build("hello")
    assert model._prompts.build(prompt) is prompt
    assert model.encode(prompt) == model.encode("hello")  # type: ignore[arg-type]
