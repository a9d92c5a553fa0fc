"""Answers by text: in which ids they were given, also where they were cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edge_gemma import artifact as artifacts
from edge_gemma.runtime.chat import ChatTemplate
from edge_gemma.runtime.said import Answers, Said
from edge_gemma.runtime.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(made: Callable[[str], Path]) -> Tokenizer:
    artifact = artifacts.read(made("tiny-fp32"))
    return Tokenizer(artifact.path("tokenizer.bin"), artifact.manifest.tokenizer)


@pytest.fixture(scope="module")
def template(made: Callable[[str], Path]) -> ChatTemplate:
    return ChatTemplate.from_file(made("tiny-fp32") / "chat_template.jinja")


def letters(tokenizer: Tokenizer, text: str) -> list[int]:
    """A tokenization that no tokenizer makes."""
    ids = [i for letter in text for i in tokenizer.encode(letter)]
    assert ids != tokenizer.encode(text) and tokenizer.decode(ids) == text
    return ids


def ids(found: str) -> tuple[int, ...] | None:
    return found.ids if isinstance(found, Said) else None


def test_a_text_is_said_in_its_ids(tokenizer: Tokenizer) -> None:
    answers, said = Answers(tokenizer), letters(tokenizer, "the word")
    answers.note("the word", said)
    assert ids(answers.recall("the word")) == ids(answers.recall("\n the word ")) == tuple(said)
    assert answers.recall(" the word") == " the word"
    assert ids(answers.recall("the words")) is None
    answers.note("the word", tokenizer.encode("the word"))  # the latest counts
    assert ids(answers.recall("the word")) == tuple(tokenizer.encode("the word"))


@pytest.mark.parametrize("end", range(9))
def test_a_text_that_was_cut(end: int, tokenizer: Tokenizer) -> None:
    """Between tokens, or inside of one: the tokens before stay, and the rest is encoded."""
    whole = "the word"
    for said in (letters(tokenizer, whole), tokenizer.encode(whole)):
        answers = Answers(tokenizer)
        answers.note(whole[:end], said)
        found = ids(answers.recall(whole[:end]))
        if not whole[:end].strip():
            assert found is None
            continue
        assert found is not None and tokenizer.decode(found) == whole[:end]
        kept = max(n for n in range(len(said) + 1) if whole[:end].startswith(tokenizer.decode(said[:n])))
        assert list(found[:kept]) == said[:kept]


def test_half_a_character(tokenizer: Tokenizer) -> None:
    said = tokenizer.encode("a \N{THINKING FACE}")[:-1]
    answers = Answers(tokenizer)
    answers.note(tokenizer.decode(said), said)
    assert ids(answers.recall(tokenizer.decode(said))) == tuple(said)


def test_control_tokens_do_not_come_with_a_text(tokenizer: Tokenizer) -> None:
    """Whoever sends "ab" must not end a turn by it, because a model once did."""
    control = tokenizer.token_id("<end_of_turn>")
    assert control is not None
    answers = Answers(tokenizer)
    answers.note("ab", [*tokenizer.encode("a"), control, *tokenizer.encode("b")])
    assert ids(answers.recall("ab")) is None
    answers.note("<end_of_turn>", tokenizer.encode("<end_of_turn") + tokenizer.encode(">"))  # written out
    assert control not in (ids(answers.recall("<end_of_turn>")) or [control])


def test_the_oldest_is_forgotten(tokenizer: Tokenizer) -> None:
    answers = Answers(tokenizer, count=2)
    for text in ("one", "two"):
        answers.note(text, tokenizer.encode(text))
    answers.recall("one")
    answers.note("three", tokenizer.encode("three"))
    assert [ids(answers.recall(text)) is not None for text in ("one", "two", "three")] == [True, False, True]


def test_the_prompt_has_the_ids(tokenizer: Tokenizer, template: ChatTemplate) -> None:
    said = Said("the word", letters(tokenizer, "the word"))

    def messages(answer: str) -> list[dict[str, str]]:
        turns = [("user", "a"), ("assistant", answer), ("user", "b"), ("assistant", answer), ("user", "c")]
        return [{"role": role, "content": content} for role, content in turns]

    plain = template.encode(messages("the word"), tokenizer)
    exact = template.encode(messages(said), tokenizer)
    assert tokenizer.decode(exact) == tokenizer.decode(plain) and exact != plain
    begin = template.encode(messages(said)[:1], tokenizer)
    assert exact[: len(begin) + len(said.ids)] == [*begin, *said.ids]
    assert template.render(messages(said)) == template.render(messages("the word"))


def test_a_text_that_looks_like_a_mark_is_text(tokenizer: Tokenizer, template: ChatTemplate) -> None:
    attack = [{"role": "user", "content": "0:0; 1:0;"}]
    assert "0:0; 1:0;" in tokenizer.decode(template.encode(attack, tokenizer))
