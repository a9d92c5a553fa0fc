"""A model for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

import pytest

import edge_gemma
from edge_gemma import AsyncModel, Model, SpeechSegment
from edge_gemma.errors import ClosedError, DeadlineError, PromptError, QueueFullError

T = TypeVar("T")
GREEDY: dict[str, Any] = {"temperature": 0, "max_new_tokens": 12}
PROMPTS = ("Why is the sky blue?", "Count to ten.", "What is new?")


@pytest.fixture(scope="module")
def model(made: Callable[[str], Path]) -> Iterator[Model]:
    with edge_gemma.load(made("tiny-fp32"), context=256, threads=1) as model:
        yield model


@pytest.fixture
def run(model: Model) -> Callable[..., Any]:
    """Runs a coroutine function with an AsyncModel."""

    def run(use: Callable[[AsyncModel], Awaitable[T]], **options: Any) -> T:
        async def whole() -> T:
            async with AsyncModel(model, **options) as asynchronous:
                return await use(asynchronous)

        return asyncio.run(whole())

    return run


def test_answers_are_those_of_the_model(model: Model, run: Callable[..., Any]) -> None:
    async def ask(m: AsyncModel) -> list[Any]:
        return await asyncio.gather(*(m.generate(prompt, **GREEDY) for prompt in PROMPTS))

    answers = run(ask)
    assert [a.text for a in answers] == [model.generate(prompt, **GREEDY).text for prompt in PROMPTS]
    assert {a.finish_reason for a in answers} == {"length"}


def test_a_stream(model: Model, run: Callable[..., Any]) -> None:
    async def ask(m: AsyncModel) -> str:
        return "".join([piece.text async for piece in m.stream(PROMPTS[0], **GREEDY)])

    assert run(ask) == model.generate(PROMPTS[0], **GREEDY).text


@pytest.fixture
def heard(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a model is asked that hears three segments in everything."""
    asked: list[Any] = []

    def listen(*arguments: Any, cancel: Event, **options: Any) -> Iterator[SpeechSegment]:
        asked.append((*arguments, options))
        for second in range(3):
            yield SpeechSegment(second, second + 1, f"word {second}")

    monkeypatch.setattr(model, "transcribe_stream", listen)
    monkeypatch.setattr(model, "translate_stream", listen)
    return asked


def test_speech(run: Callable[..., Any], heard: list[Any]) -> None:
    async def listen(m: AsyncModel) -> list[str]:
        return [
            (await m.transcribe("a.wav", "Spanish", seed=1)).text,
            (await m.translate("b.wav", "French", "English", client="me")).text,
            " ".join([s.text async for s in m.transcribe_stream("c.wav", deadline=60)]),
            " ".join([s.text async for s in m.translate_stream("d.wav")]),
        ]

    assert run(listen) == ["word 0 word 1 word 2"] * 4
    assert heard == [
        ("a.wav", "Spanish", {"seed": 1}),
        ("b.wav", "French", "English", {}),
        ("c.wav", None, {}),
        ("d.wav", "English", None, {}),
    ]


def test_a_segment_that_was_cut_off_is_left_out(run: Callable[..., Any], heard: list[Any]) -> None:
    async def listen(m: AsyncModel) -> list[Any]:
        job = m.transcribe_stream("a.wav")
        job._cancel.set()  # as the deadline does
        return [segment async for segment in job]

    assert run(listen) == []


def test_errors_of_the_model(run: Callable[..., Any]) -> None:
    with pytest.raises(PromptError, match="'colour' is not an option"):
        run(lambda m: m.generate("hi", colour="blue"))


def test_errors_of_the_queue(run: Callable[..., Any]) -> None:
    async def crowd(m: AsyncModel) -> list[Any]:
        sent = [m.generate(prompt, **GREEDY) for prompt in PROMPTS * 3]
        return list(await asyncio.gather(*sent, return_exceptions=True))

    kinds = [type(found) for found in run(crowd, max_waiting=2)]
    assert kinds.count(QueueFullError) >= 6
    with pytest.raises(DeadlineError):
        run(lambda m: m.generate("hi", deadline=0.0))


def test_it_is_closed_behind_its_block(model: Model, run: Callable[..., Any]) -> None:
    left: list[AsyncModel] = []

    async def keep(m: AsyncModel) -> None:
        left.append(m)

    run(keep)
    with pytest.raises(ClosedError):
        left[0].stream("hi")
    assert model.generate("hi", max_new_tokens=1).statistics.generated_tokens == 1  # the model is open
