from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import edge_gemma
from edge_gemma import Model
from edge_gemma.errors import PromptError, RefusedError
from edge_gemma.runtime.answer import Piece
from edge_gemma.runtime.prompt import Messages
from edge_gemma.runtime.safety import (
    KeywordFilter,
    Refusal,
    check_prompt,
    content_digest,
    guard,
    guarded,
)
from edge_gemma.runtime.statistics import Statistics


def cut(text: str, size: int = 3) -> list[Piece]:
    """An answer in pieces of `size` characters."""
    parts = [text[i : i + size] for i in range(0, len(text), size)]
    pieces = [Piece(part, Statistics()) for part in parts]
    return [*pieces, Piece("", Statistics(), "stop")]


def passed(pieces: Sequence[Piece], *keywords: str) -> tuple[str, str | None]:
    """What comes through a keyword filter, and how it ends."""
    found = list(guard(pieces, "hi", [KeywordFilter(keywords)]))
    assert [piece.finish_reason for piece in found[:-1]] == [None] * (len(found) - 1)
    return "".join(piece.text for piece in found), found[-1].finish_reason


@dataclass
class Recorder:
    """A filter that remembers what it was asked, and refuses a text with "!"."""

    hold_back: int | None = None
    seen: list[str] = field(default_factory=list)

    def check_prompt(self, messages: Messages) -> Refusal | None:
        return None

    def check_answer(self, text: str, messages: Messages) -> Refusal | None:
        self.seen.append(text)
        return Refusal("it shouts") if "!" in text else None


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a pipe organ and a bombastic tune", "a pipe organ and a bombastic tune"),
        ("one pipe", "one pipe"),
        ("how to make a pipe bomb", "how to make a "),
        ("how to make a PIPE --\n bomb, or not", "how to make a "),
        ("pipe pipe bomb", "pipe "),
        ("a secret is kept", "a "),
        ("a ｓｅｃｒｅｔ is kept", "a "),
        ("a 𝐒𝐞𝐜𝐫𝐞𝐭 is kept", "a "),
        ("a se\u200bcret is kept", "a "),
        ("_secret_", ""),
        ("un secreto secrets", "un secreto secrets"),
    ],
)
def test_whole_words_are_never_emitted(text: str, expected: str, size: int) -> None:
    found, reason = passed(cut(text, size), "pipe bomb", "secret")
    if expected == text:
        assert (found, reason) == (text, "stop")
    else:
        assert expected.startswith(found) and reason == "content_filter"


def test_what_can_be_told_is_emitted_at_once() -> None:
    """A word as soon as it ends; with phrases of two words, one word later."""
    answer = "one two three four"

    def emitted(*keywords: str) -> list[str]:
        return [piece.text for piece in guard(cut(answer, 1), "hi", [KeywordFilter(keywords)])]

    assert emitted("secret") == ["one ", "two ", "three ", "four"]
    assert emitted("pipe bomb") == ["one ", "two ", "three four"]


@given(
    st.lists(st.sampled_from(["pipe", "BOMB", "a", "-", "\n", " ", "  ", "é", "e\u0301", "\u200b", "bombs"])),
    st.integers(1, 5),
)
def test_nothing_refused_is_ever_emitted(parts: list[str], size: int) -> None:
    """However an answer is cut: what is emitted is its beginning, without the phrase or its first word."""
    text = "".join(parts)
    found, reason = passed(cut(text, size), "pipe bomb")
    words = re.findall(r"[^\W_]+", text.replace("\u200b", "").casefold())
    refused = ("pipe", "bomb") in zip(words, words[1:], strict=False)
    assert reason == ("content_filter" if refused else "stop")
    assert text.startswith(found) if refused else found == text
    assert KeywordFilter(["pipe bomb"]).check_answer(found, "hi") is None


def test_a_filter_of_whole_answers_is_asked_once() -> None:
    recorder = Recorder()
    (piece,) = guard(cut("one two three"), "hi", [recorder])
    assert recorder.seen == ["one two three"] and piece.text == "one two three"
    (piece,) = guard(cut("one two!"), "hi", [recorder])
    assert (piece.text, piece.finish_reason) == ("", "content_filter")


def test_a_growing_answer_is_judged_by_complete_words() -> None:
    recorder = Recorder(hold_back=0)
    list(guard(cut("one two three", 2), "hi", [recorder]))
    assert recorder.seen == ["one ", "one two ", "one two three"]


def test_one_filter_of_whole_answers_keeps_back_all_and_another_still_ends_early() -> None:
    asked = []

    def pieces() -> Iterator[Piece]:
        for word in ["a ", "secret ", "never ", "asked "]:
            asked.append(word)
            yield Piece(word, Statistics())

    source = pieces()
    found = list(guard(source, "hi", [Recorder(), KeywordFilter(["secret"])]))
    assert [(piece.text, piece.finish_reason) for piece in found] == [("", "content_filter")]
    assert next(source, None) is None and asked == ["a ", "secret "]


def test_the_last_piece_may_have_text() -> None:
    """It is judged when the stream has ended."""
    recorder = Recorder(hold_back=0)
    pieces = [Piece("one ", Statistics()), Piece("two three ", Statistics(), "stop")]
    found = list(guard(pieces, "hi", [recorder]))
    assert [(p.text, p.finish_reason) for p in found] == [("one ", None), ("two three ", "stop")]
    assert recorder.seen == ["one ", "one two three "]


def test_without_filters_nothing_changes() -> None:
    found = list(guard(cut("one two", 4), "hi", []))
    assert "".join(piece.text for piece in found) == "one two"


def test_prompts() -> None:
    filters = [KeywordFilter(["secret"])]
    check_prompt("nothing", filters)
    image = {"type": "image", "image": "secret"}  # a path is no text
    check_prompt([{"role": "user", "content": [image, {"type": "text", "text": "what?"}]}], filters)
    for refused in (
        "a Secret!",
        [{"role": "system", "content": "secret"}, {"role": "user", "content": "hi"}],
        [{"role": "user", "content": [image, {"type": "text", "text": "secret"}]}],
    ):
        with pytest.raises(RefusedError, match="the prompt is refused: it has keyword 1 of 1") as error:
            check_prompt(refused, filters)
        assert error.value.exit_code == 2
    with pytest.raises(PromptError, match="role"):
        check_prompt([{"role": "nobody", "content": "hi"}], [])


def test_a_keyword_needs_letters() -> None:
    with pytest.raises(PromptError, match="keyword ' -' has no letters"):
        KeywordFilter(["good", " -"])


@pytest.fixture(scope="module")
def model(tiny_artifact: Path) -> Iterator[Model]:
    with edge_gemma.load(tiny_artifact, context=256, threads=1) as model:
        yield model


GREEDY = {"temperature": 0, "max_new_tokens": 40}


def test_a_guarded_model(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    plain = model.generate("hello", **GREEDY)
    word = re.findall(r"\w+", plain.text)[0]
    same = guarded(model, [KeywordFilter(["certainlynothere"])]).generate("hello", **GREEDY)
    assert (same.text, same.finish_reason) == (plain.text, "length")
    with caplog.at_level(logging.INFO, "edge_gemma"):
        refused = guarded(model, [KeywordFilter([word])]).generate("hello", **GREEDY)
    assert refused.finish_reason == "content_filter"
    assert plain.text.startswith(refused.text) and word not in refused.text
    assert caplog.messages == ["an answer was refused: it has keyword 1 of 1"]
    with pytest.raises(RefusedError):
        guarded(model, [KeywordFilter(["hello"])]).stream("hello")
    assert model.generate("hello", **GREEDY).text == plain.text  # it is not busy


def test_leaving_a_guarded_answer_frees_the_model(model: Model) -> None:
    stream = guarded(model, [KeywordFilter(["x"])]).stream("hello", **GREEDY)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert model.generate("hello", max_new_tokens=1).statistics.generated_tokens == 1  # it is not busy


def test_digests() -> None:
    assert content_digest("secret") == content_digest("secret") != content_digest("secrets")
    assert re.fullmatch(r"[0-9a-f]{12}, 6 characters", content_digest("secret"))
    assert content_digest("\ud800").endswith("1 characters")
    code = "from edge_gemma.runtime.safety import content_digest; print(content_digest('secret'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() != content_digest("secret")


def test_an_answer_makes_no_connection(media_artifact: Path) -> None:
    """Importing, loading and answering about a picture and a sound, where every use of the network raises."""
    code = """
import sys

def refuse(event, arguments):
    if event.startswith(("socket.", "http.client.", "urllib.", "ssl.")):
        raise RuntimeError(event)

sys.addaudithook(refuse)
import numpy as np
import edge_gemma

with edge_gemma.load(sys.argv[1], context=512, threads=1) as model:
    parts = [
        {"type": "image", "image": np.zeros((64, 64, 3), np.uint8)},
        {"type": "audio", "audio": np.zeros(16_000, np.float32)},
        {"type": "text", "text": "What is this?"},
    ]
    print(model.generate([{"role": "user", "content": parts}], max_new_tokens=3).statistics.generated_tokens)
import socket
try:
    socket.create_connection(("127.0.0.1", 9))
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(media_artifact)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3\nsocket.getaddrinfo\n"
