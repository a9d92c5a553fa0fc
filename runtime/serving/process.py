"""Runs the application: the socket, connections that are too slow, and a graceful end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from edge_gemma.errors import EdgeGemmaError
from edge_gemma.runtime.scheduler import GRACE
from edge_gemma.runtime.serving.service import Service
from edge_gemma.runtime.serving.settings import Settings


class Server(uvicorn.Server):
    """uvicorn, with our timeouts and our end."""

    def __init__(self, app: Starlette) -> None:
        self.service: Service = app.state.service
        settings = self.service.settings

        class Protocol(PatientProtocol):
            header_timeout = settings.header_timeout
            write_timeout = settings.write_timeout

        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                log_level="warning",
                server_header=False,
                proxy_headers=False,  # X-Forwarded-For may be anything
                limit_concurrency=settings.max_connections,
                timeout_graceful_shutdown=int(GRACE) + 1,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse what waits, let the answer that is given end or cut it after GRACE, and go."""
        await asyncio.gather(asyncio.to_thread(self.service.scheduler.close), super().shutdown(sockets))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends the server gracefully and with success, a second Ctrl-C at once."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


class PatientProtocol(H11Protocol):
    """Ends connections that take long to send the head of a request, or to read an answer.

    uvicorn has no such limits. The body's is in limits.py, where a request can still be answered.
    """

    header_timeout = 10.0  # seconds
    write_timeout = 30.0
    _head: asyncio.TimerHandle | None = None
    _write: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head, self._write):
            if timer:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write = self.loop.call_later(self.write_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write:
            self._write.cancel()

    def _await_head(self) -> None:
        """Start the clock where a request is expected, stop it where one has begun."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering and self._head:
            self._head.cancel()
            self._head = None
        elif not answering and not self._head:
            self._head = self.loop.call_later(self.header_timeout, self.transport.abort)


def listen(settings: Settings) -> socket.socket:
    """A socket at the address of the settings.

    Raises:
        EdgeGemmaError: the address cannot be used.
    """
    place = f"{settings.host} port {settings.port}"
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
        family, *_, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=256)
    except OSError as error:
        of_names = isinstance(error, socket.gaierror) or error.errno is None  # with numbers of their own
        reason = error.strerror if of_names else os.strerror(error.errno or 0)
        raise EdgeGemmaError(
            f"cannot listen on {place} ({reason}): choose another --host or --port"
        ) from None
