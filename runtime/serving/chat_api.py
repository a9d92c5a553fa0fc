"""POST /v1/chat/completions: OpenAI's chat completions, whole or as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from threading import Event
from typing import TYPE_CHECKING, Any

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from edge_gemma.errors import RefusedError
from edge_gemma.runtime.safety import guarded
from edge_gemma.runtime.serving import chat_request
from edge_gemma.runtime.serving.chat_request import ChatRequest
from edge_gemma.runtime.serving.completion import Completion
from edge_gemma.runtime.serving.fields import json_body
from edge_gemma.runtime.serving.journal import Entry
from edge_gemma.runtime.serving.problems import Problem
from edge_gemma.runtime.serving.service import Service, server_sent_event, watching

if TYPE_CHECKING:
    from edge_gemma.runtime.engine import Model, Piece
    from edge_gemma.runtime.scheduler import Job


async def complete(request: Request) -> Response:
    service: Service = request.app.state.service
    body = await json_body(request)
    asked = await to_thread.run_sync(chat_request.read, body, service)  # large images take a while

    filters = service.settings.filters

    def work(model: Model, cancel: Event) -> Iterator[Piece]:
        answering = guarded(model, filters) if filters else model
        return answering.stream(asked.messages, cancel=cancel, **asked.options)

    answer = _Answer(asked, service.submit(request, work), request.state.entry)
    if service.settings.log_content:
        request.state.entry.content = {"request": body.decode(), "answer": ""}
    async with watching(request, answer.job):
        await answer.begin()  # what is wrong until here has a status of its own, in a stream, too
        if not asked.stream:
            async for _ in answer.chunks():
                pass
            return JSONResponse(answer.completion.whole())
    return StreamingResponse(
        _events(answer), media_type="text/event-stream", headers={"cache-control": "no-cache"}
    )


class _Answer:
    """A completion and the job that fills it."""

    def __init__(self, asked: ChatRequest, job: Job[Piece], entry: Entry) -> None:
        self.job = job
        self.completion = Completion(asked)
        self._entry = entry
        self._pieces = aiter(job)
        self._first: Piece | None = None

    async def begin(self) -> None:
        """Wait for the first piece. A prompt that a filter refuses is an answer without any."""
        try:
            self._first = await anext(self._pieces, None)
        except RefusedError as error:
            self.completion.refusal = str(error)

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        completion = self.completion
        async with aclosing(self._pieces):
            yield completion.chunk({"role": "assistant", "content": ""})
            if self._first:
                for chunk in self._add(self._first):
                    yield chunk
            async for piece in self._pieces:
                for chunk in self._add(piece):
                    yield chunk
        for chunk in completion.end(self.job):
            yield chunk

    def _add(self, piece: Piece) -> Iterator[dict[str, Any]]:
        entry = self._entry
        entry.statistics, entry.finish_reason = piece.statistics, piece.finish_reason
        if entry.content:
            entry.content["answer"] += piece.text
        return self.completion.add(piece)


async def _events(answer: _Answer) -> AsyncGenerator[str, None]:
    """Server-sent events. An error is an event, too, and the last one."""
    try:
        async with aclosing(answer.chunks()) as chunks:
            async for chunk in chunks:
                yield server_sent_event(chunk)
    except Exception as error:
        yield server_sent_event(Problem.of(error).body())
    else:
        yield "data: [DONE]\n\n"


routes = [Route("/v1/chat/completions", complete, methods=["POST"])]
