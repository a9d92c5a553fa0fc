"""How much may be asked: requests per minute, and bodies by size and time."""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from math import ceil
from time import monotonic

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge_gemma.memory import release_free_memory
from edge_gemma.runtime.serving.problems import Problem
from edge_gemma.runtime.serving.settings import Settings

WINDOW = 60.0  # seconds
LARGE = 1 << 20  # bytes of a body that takes several times as much once it is parsed or decoded
LIMITED_PATHS = "/v1/"


class RateLimit:
    """At most so many requests of a client in any 60 seconds: a window that slides over their times.

    Answers carry the headers of OpenAI's: x-ratelimit-limit-requests, -remaining-requests and
    -reset-requests, the seconds until all is allowed again.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self._limit = limit
        self._times: dict[str, deque[float]] = {}  # by client, the one seen last at the end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._limit or not scope["path"].startswith(LIMITED_PATHS):
            await self.app(scope, receive, send)
            return
        times, now = self._recent(scope["state"]["entry"].client), monotonic()
        allowed = len(times) < self._limit
        if allowed:
            times.append(now)
        usage = {
            "x-ratelimit-limit-requests": str(self._limit),
            "x-ratelimit-remaining-requests": str(self._limit - len(times)),
            "x-ratelimit-reset-requests": f"{times[-1] + WINDOW - now:.1f}s",
        }

        async def with_usage(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(usage)
            await send(message)

        if allowed:
            await self.app(scope, receive, with_usage)
            return
        wait = ceil(times[0] + WINDOW - now)
        problem = Problem(
            429,
            f"more than {self._limit} requests in a minute: try again in {wait} s",
            code="rate_limit_exceeded",
            headers={"retry-after": str(wait)},
        )
        await problem.response()(scope, receive, with_usage)

    def _recent(self, client: str) -> deque[float]:
        """The times of a client's requests in the window. Clients without any are forgotten."""
        before = monotonic() - WINDOW
        self._times[client] = self._times.pop(client, deque())
        while (oldest := next(iter(self._times))) != client and self._times[oldest][-1] < before:
            del self._times[oldest]
        times = self._times[client]
        while times and times[0] < before:
            times.popleft()
        return times


class BodyLimit:
    """Bodies of a size, in a time, and no more of them at once than memory has room for.

    Bytes are counted as they come, so that it holds for chunked bodies, too.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self._settings = settings
        self._held = 0  # bytes of all bodies that are in memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        settings = self._settings
        until = monotonic() + settings.body_timeout
        headers = Headers(scope=scope)
        length = _number(headers.get("content-length", "0"))
        size = 0
        more = length > 0 or "transfer-encoding" in headers

        async def limited() -> Message:
            nonlocal size, more
            if not more:
                return await receive()
            try:
                if monotonic() >= until:  # fail_after would not notice where receive never waits
                    raise TimeoutError
                with anyio.fail_after(until - monotonic()):
                    message = await receive()
            except TimeoutError:
                seconds = settings.body_timeout
                raise Problem(408, f"the body did not come within {seconds:g} s: send it faster") from None
            if message["type"] == "http.request":
                more = message.get("more_body", False)
                added = len(message.get("body", b""))
                size += added
                self._held += added
                self._check(size)
            return message

        async def closing(message: Message) -> None:
            if message["type"] == "http.response.start" and more:  # what remains of the body is not read
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        try:
            self._check(length)
            await self.app(scope, limited, closing)
        except Problem as problem:
            await problem.response()(scope, receive, closing)
        finally:
            self._held -= size
            if size > LARGE:
                asyncio.get_running_loop().call_later(1.0, _give_memory_back)

    def _check(self, size: int) -> None:
        limit = self._settings.max_body_bytes
        if size > limit:
            raise Problem(413, f"the body is larger than {limit:,} bytes: send less")
        if self._held > self._settings.max_bodies_bytes:
            raise Problem(
                503,
                "too much is being sent to this server at once: try again in 5 s",
                code="overloaded",
                headers={"retry-after": "5"},
            )


def _give_memory_back() -> None:
    """After a large request: an error may hold it in a circle, and the allocator keeps what was freed."""
    gc.collect()
    release_free_memory()


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0
