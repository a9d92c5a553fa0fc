"""Questions and answers survive being written; a model that is led says what its logits say."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import answers  # noqa: E402

from demo.items import Item  # noqa: E402


def test_questions_with_media_are_read_as_written(tmp_path: Path) -> None:
    clip, picture = np.linspace(-1, 1, 50, dtype=np.float32), np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    parts = [
        {"type": "audio", "audio": clip},
        {"type": "image", "image": picture},
        {"type": "text", "text": "¿qué?"},
    ]
    asked = [
        Item("sums", ({"role": "user", "content": "1 + 1"},), "2", "key"),
        Item("translation", ({"role": "user", "content": parts},), "what?", "k", "¿qué?", "English"),
    ]
    answers.write_questions(tmp_path, "set", asked)
    plain, media = answers.read_questions(tmp_path, "set")
    assert vars(plain) == vars(asked[0])
    assert (media.task, media.answer, media.reference, media.target) == (
        "translation",
        "what?",
        "¿qué?",
        "English",
    )
    content = media.messages[0]["content"]
    np.testing.assert_array_equal(content[0]["audio"], clip)
    np.testing.assert_array_equal(content[1]["image"], picture)
    assert content[1]["image"].dtype == np.uint8 and content[2] == parts[2]


def test_answers_are_read_as_written(tmp_path: Path) -> None:
    said = [answers.Answer(tuple(range(n)), np.full((n, 7), n, np.float32)) for n in (3, 1, 12)]
    answers.write_answers(tmp_path, "a", said)
    for found, expected in zip(answers.read_answers(tmp_path, "a"), said, strict=True):
        assert found.tokens == expected.tokens
        np.testing.assert_array_equal(found.logits, expected.logits)


def test_a_model_that_is_led_along_its_own_answer_finds_the_same_logits(tiny_artifact: Path) -> None:
    question = Item("text", ({"role": "user", "content": "red fox, blue fox"},), "", "")
    with answers.open_model(tiny_artifact) as model:
        own = answers.answer(model, question)
    with answers.open_model(tiny_artifact) as model:
        led = answers.answer(model, question, own.tokens)
    assert len(own.tokens) == answers.MAX_NEW_TOKENS and led.tokens == own.tokens
    np.testing.assert_array_equal(led.logits, own.logits)
    assert own.logits.argmax(1).tolist() == list(own.tokens)
