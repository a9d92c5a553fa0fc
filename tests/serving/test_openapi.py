"""The OpenAPI description, and what schemathesis finds by it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings

import edge_gemma
from edge_gemma.runtime.serving.chat_request import FIELDS
from edge_gemma.runtime.serving.settings import Settings

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis, which this needs, is not installed")
from schemathesis import GenerationMode, checks  # noqa: E402
from schemathesis.specs.openapi import checks as openapi_checks  # noqa: E402

http = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))
CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def described(demo_artifact: Path, serve: Any) -> Iterator[Any]:
    """The description of a server whose answers are short: its context is small."""
    with (
        edge_gemma.load(demo_artifact, context=96, threads=1) as model,
        serve(model, Settings(port=0, requests_per_minute=0)) as server,
    ):
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")


POSTED = ("/v1/chat/completions", "/v1/audio/transcriptions", "/v1/audio/translations")
GOT = ("/v1/models", "/v1/models/{name}", "/health", "/metrics")


@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [
        *((path, "POST", mode) for path in POSTED for mode in GenerationMode),
        *((path, "GET", GenerationMode.POSITIVE) for path in GOT),  # nothing can be wrong with them
    ],
)
def test_nothing_that_is_sent_breaks_it(described: Any, path: str, method: str, mode: GenerationMode) -> None:
    """Neither what the description admits nor what it does not."""

    @given(case=described[path][method].as_strategy(generation_mode=mode))
    @settings(
        max_examples=25 if method == "POST" else 5,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def send(case: Any) -> None:
        case.call_and_validate(checks=CHECKS)

    send()


def test_it_describes_every_route(server: Any) -> None:
    found = http.get(f"{server.url}/openapi.json").json()
    routes = {route.path_format for route in server.app.routes} - {"/", "/openapi.json"}
    assert set(found["paths"]) == routes
    assert set(found["components"]["schemas"]["Chat"]["properties"]) == set(FIELDS)
