"""One line in the log and one record in the monitor for each request: counts, times and hashes, no content.

    2026-03-01T12:00:00Z req_5f0c… client=9a31f0 POST /v1/chat/completions 200 stop prompt=41 reused=12
    answer=17 waited=0.00 seconds=0.84

The client is a hash of its key or address, with a secret of this process: it tells clients apart and means
nothing elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge_gemma.runtime.monitoring import Monitor, RequestRecord
from edge_gemma.runtime.scheduler import Job
from edge_gemma.runtime.serving.problems import Problem
from edge_gemma.runtime.statistics import Statistics

SECRET = secrets.token_bytes(16)
LIMITED = (429, 503, 504)
logger = logging.getLogger(__name__)


@dataclass
class Entry:
    """What is known of a request; `request.state.entry`. Routes fill in the rest."""

    id: str
    client: str = ""  # hashed: see `client_hash`
    status: int = 0
    complete: bool = False  # whether the whole response was sent
    job: Job[Any] | None = None
    statistics: Statistics | None = None
    finish_reason: str | None = None
    content: dict[str, str] = field(default_factory=dict)  # filled only where content may be logged
    started: float = field(default_factory=time.time)  # seconds since the epoch
    began: float = field(default_factory=time.perf_counter)

    @property
    def outcome(self) -> str:
        """As monitoring.OUTCOMES."""
        if self.status in LIMITED:
            return "limited"
        if self.status >= 400:
            return "error" if self.status >= 500 else "refused"
        return "ok" if self.complete and self.finish_reason != "cancelled" else "cancelled"


def client_hash(identity: str) -> str:
    """6 hex digits of a key or an address."""
    return hashlib.blake2b(identity.encode(), digest_size=3, key=SECRET).hexdigest()


class Journal:
    """The outermost layer. It also answers what no other layer caught with a 500."""

    def __init__(self, app: ASGIApp, monitor: Monitor, recorded: Collection[str]) -> None:
        self.app = app
        self._monitor = monitor
        self._recorded = recorded  # paths whose POST requests are for the monitor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        entry = Entry(f"req_{secrets.token_hex(8)}")
        scope.setdefault("state", {})["entry"] = entry

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", entry.id.encode())]
            elif message["type"] == "http.response.body":
                entry.complete = not message.get("more_body", False)
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except Exception as error:
            problem = Problem.of(error)
            if entry.status:  # too late for another answer: the connection ends
                entry.status = problem.status
                raise
            await problem.response()(scope, receive, watch)
        finally:
            self._note(scope, entry)

    def _note(self, scope: Scope, entry: Entry) -> None:
        seconds = time.perf_counter() - entry.began
        waited = entry.job.waited if entry.job else 0.0
        if scope["method"] == "POST" and scope["path"] in self._recorded:
            self._monitor.record(
                RequestRecord.of(
                    entry.statistics,
                    started=entry.started,
                    route=scope["path"],
                    outcome=entry.outcome,
                    finish_reason=entry.finish_reason,
                    seconds=seconds,
                    waited_seconds=waited,
                )
            )
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(entry.started))
        words = [moment, entry.id, f"client={entry.client or '-'}", scope["method"]]
        words += [quote(scope["path"])[:100], str(entry.status), entry.finish_reason or entry.outcome]
        if s := entry.statistics:
            words.append(f"prompt={s.prompt_tokens} reused={s.reused_tokens} answer={s.generated_tokens}")
        words += [f"waited={waited:.2f}", f"seconds={seconds:.2f}"]
        logger.info(" ".join(words))
        if entry.content:
            logger.info("%s %s", entry.id, json.dumps(entry.content))
