"""What the routes share: the queue in front of the model, the limits, the figures."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request

from edge_gemma.runtime.monitoring import Monitor
from edge_gemma.runtime.scheduler import Job, Scheduler, Work
from edge_gemma.runtime.serving.journal import Entry
from edge_gemma.runtime.serving.settings import Settings

if TYPE_CHECKING:
    from edge_gemma.artifact import Manifest

T = TypeVar("T")


@dataclass(frozen=True)
class Service:
    """`request.app.state.service`, made by `create_app`."""

    model_id: str
    manifest: Manifest
    scheduler: Scheduler
    settings: Settings
    monitor: Monitor
    level: str | None = None
    """The level of an elastic artifact that answers where a request names none."""
    started: float = field(default_factory=time.time)  # seconds since the epoch

    @property
    def models(self) -> dict[str, str | None]:
        """Names under which the model answers, and the level each means: "demo", "demo:small", …"""
        levels = {f"{self.model_id}:{level.name}": level.name for level in self.manifest.levels}
        return {self.model_id: self.level, **levels}

    def submit(self, request: Request, work: Work[T]) -> Job[T]:
        """Queue work for a request; raises what `Scheduler.submit` does."""
        entry: Entry = request.state.entry
        job = self.scheduler.submit(work, client=entry.client, deadline=self.settings.timeout)
        entry.job = job
        return job


@asynccontextmanager
async def watching(request: Request, job: Job[Any]) -> AsyncGenerator[None, None]:
    """Cancels the job where the client goes away; the work then ends soon.

    Read the whole body first: what comes after it is the end of the connection.
    """

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        job.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()


async def collect(request: Request, job: Job[T]) -> list[T]:
    """All that a job makes; where the client goes away, what there was until then."""
    async with watching(request, job):
        return [item async for item in job]


def server_sent_event(data: dict[str, Any]) -> str:
    """In ASCII, on one line."""
    return f"data: {json.dumps(data)}\n\n"
