from __future__ import annotations

import doctest
from typing import Any

import pytest

from edge_gemma.errors import PromptError
from edge_gemma.runtime import prompts
from edge_gemma.runtime.chat import normalize


def test_the_examples() -> None:
    found = doctest.testmod(prompts)
    assert found.failed == 0 and found.attempted >= 5


def test_translation() -> None:
    (message,) = prompts.translation("Hallo", "en")
    assert message["content"] == (
        "Translate the following text into English. Only output the translation.\n\nHallo"
    )
    full = prompts.translation("Hi", "German", "en", register="formal", region="Austria")[0]["content"]
    for part in ("from English into German as it is spoken in Austria.", "formal register", "\n\nHi"):
        assert part in full
    wrong: Any = "rude"
    with pytest.raises(PromptError, match="the register is 'rude'; expected formal or informal"):
        prompts.translation("Hi", "German", register=wrong)
    with pytest.raises(PromptError, match="not a known language"):
        prompts.translation("Hi", "xx")


def test_images() -> None:
    (message,) = prompts.image_analysis("a.png", "How many?", aspects=["colour"])
    image, text = message["content"]
    assert image == {"type": "image", "image": "a.png"}
    assert "colour" in text["text"] and "Then answer this question: How many?" in text["text"]
    assert "aspects" not in prompts.image_analysis("a.png")[0]["content"][1]["text"]
    (message,) = prompts.image_comparison(["a", "b", "c"], "Which is brightest?")
    shown = [(part.get("text"), part.get("image")) for part in message["content"]]
    assert shown[:4] == [("Image 1:", None), (None, "a"), ("Image 2:", None), (None, "b")]
    assert shown[-1][0] == "Compare these 3 images. Which is brightest?"
    with pytest.raises(PromptError, match="there are 1 images to compare; expected two or more"):
        prompts.image_comparison(["a"])


@pytest.mark.parametrize(
    "messages",
    [
        prompts.translation("Hi", "es"),
        prompts.image_analysis("a.png"),
        prompts.image_comparison(["a.png", "b.png"]),
        prompts.tool_request("Dim it", {"room": "hall"}),
        prompts.answer_in("es", "Why?"),
    ],
)
def test_a_model_takes_them(messages: list[dict[str, Any]]) -> None:
    assert normalize(messages)[-1]["role"] == "user"
