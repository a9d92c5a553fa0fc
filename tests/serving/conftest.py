"""Servers of the demo artifact, in a thread of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import edge_gemma
from edge_gemma import Model

pytest.importorskip("uvicorn", reason="uvicorn, which a server needs, is not installed")

from starlette.applications import Starlette  # noqa: E402

from edge_gemma.runtime.serving.app import create_app  # noqa: E402
from edge_gemma.runtime.serving.process import Server, listen  # noqa: E402
from edge_gemma.runtime.serving.service import Service  # noqa: E402
from edge_gemma.runtime.serving.settings import Settings  # noqa: E402

CONTEXT = 768


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    url: str  # http://127.0.0.1:PORT
    port: int
    app: Starlette
    service: Service
    model: Model
    stop: Callable[[], None]  # as SIGTERM does; returns when it has ended


Serve = Callable[[Model, Settings], AbstractContextManager[Running]]


@contextmanager
def running(model: Model, settings: Settings) -> Iterator[Running]:
    with listen(settings) as bound:
        port = bound.getsockname()[1]
        app = create_app(model, settings, "demo")
        server = Server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()

        def stop() -> None:
            server.should_exit = True
            thread.join()

        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.005)
            yield Running(f"http://127.0.0.1:{port}", port, app, app.state.service, model, stop)
        finally:
            stop()


@pytest.fixture(scope="session")
def serve() -> Serve:
    """Runs a server of a model with settings, as a context manager."""
    return running


@pytest.fixture(scope="session")
def server(demo_artifact: Path) -> Iterator[Running]:
    """A server for all tests that leave it as it is; without keys, without a limit of requests."""
    with (
        edge_gemma.load(demo_artifact, context=CONTEXT, threads=1) as model,
        running(model, Settings(port=0, requests_per_minute=0)) as server,
    ):
        yield server


@pytest.fixture(scope="session")
def shared_model(demo_artifact: Path) -> Iterator[Model]:
    with edge_gemma.load(demo_artifact, context=CONTEXT, threads=1) as model:
        yield model


@pytest.fixture
def start_server(serve: Serve) -> Iterator[Callable[..., Running]]:
    """Starts a server of a model with these settings, which ends with the test."""
    with ExitStack() as started:
        yield lambda model, **settings: started.enter_context(
            serve(model, Settings(**{"port": 0, **settings}))
        )


@pytest.fixture
def make_server(shared_model: Model, start_server: Callable[..., Running]) -> Callable[..., Running]:
    """Starts a server of the demo with these settings; use one at a time, for they share the model."""
    return lambda **settings: start_server(shared_model, **settings)
