"""A model for asyncio: many tasks may ask at once, and take turns.

with edge_gemma.load("artifacts/e2b") as loaded:
    async with edge_gemma.AsyncModel(loaded) as model:
        async for piece in model.stream("Why is the sky blue?"):
            print(piece.text, end="")
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from threading import Event
from types import TracebackType
from typing import Any

from edge_gemma.runtime.engine import Answer, Model, Piece
from edge_gemma.runtime.prompt import Messages
from edge_gemma.runtime.scheduler import Job, Scheduler
from edge_gemma.runtime.speech import SpeechSegment, Transcript


class AsyncModel:
    """What `Model` does, for asyncio and through a Scheduler; use it as an asynchronous context manager.

    Every method takes, besides the options of Model's, `client`, whose turn it is to be, and `deadline`, the
    seconds that waiting and answering may take together. It raises, besides what Model's does,
    QueueFullError where too much waits already, and DeadlineError where the deadline comes before the turn.
    Where the deadline cuts an answer off, its finish_reason is "cancelled"; a transcript just ends. Leaving
    a loop or cancelling a task ends the work.
    """

    def __init__(self, model: Model, *, max_waiting: int = 16) -> None:
        self._scheduler = Scheduler(model, max_waiting=max_waiting)

    def stream(
        self, prompt: Messages, *, client: str = "", deadline: float | None = None, **options: Any
    ) -> Job[Piece]:
        """`Model.stream`, for `async for`. It is in the queue from now on: begin to read soon."""

        def work(model: Model, cancel: Event) -> Iterator[Piece]:
            return model.stream(prompt, cancel=cancel, **options)

        return self._scheduler.submit(work, client=client, deadline=deadline)

    async def generate(self, prompt: Messages, **options: Any) -> Answer:
        """`Model.generate`."""
        return Answer.of([piece async for piece in self.stream(prompt, **options)])

    def transcribe_stream(
        self,
        audio: Any,
        language: str | None = None,
        *,
        client: str = "",
        deadline: float | None = None,
        **options: Any,
    ) -> Job[SpeechSegment]:
        """`Model.transcribe_stream`, for `async for`; begin to read soon."""

        def work(model: Model, cancel: Event) -> Iterator[SpeechSegment]:
            return _until(cancel, model.transcribe_stream(audio, language, cancel=cancel, **options))

        return self._scheduler.submit(work, client=client, deadline=deadline)

    async def transcribe(self, audio: Any, language: str | None = None, **options: Any) -> Transcript:
        """`Model.transcribe`."""
        return Transcript(tuple([s async for s in self.transcribe_stream(audio, language, **options)]))

    def translate_stream(
        self,
        audio: Any,
        target: str = "English",
        source: str | None = None,
        *,
        client: str = "",
        deadline: float | None = None,
        **options: Any,
    ) -> Job[SpeechSegment]:
        """`Model.translate_stream`, for `async for`; begin to read soon."""

        def work(model: Model, cancel: Event) -> Iterator[SpeechSegment]:
            return _until(cancel, model.translate_stream(audio, target, source, cancel=cancel, **options))

        return self._scheduler.submit(work, client=client, deadline=deadline)

    async def translate(
        self, audio: Any, target: str = "English", source: str | None = None, **options: Any
    ) -> Transcript:
        """`Model.translate`."""
        return Transcript(tuple([s async for s in self.translate_stream(audio, target, source, **options)]))

    async def close(self) -> None:
        """As `Scheduler.close`; the model stays open."""
        await asyncio.to_thread(self._scheduler.close)

    async def __aenter__(self) -> AsyncModel:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _until(cancel: Event, segments: Iterable[SpeechSegment]) -> Iterator[SpeechSegment]:
    """Segments until the event is set; the one that it cut off is not among them."""
    for segment in segments:
        if cancel.is_set():
            return
        yield segment
