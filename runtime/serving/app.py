"""Puts the server together: routes, and the layers in front of them."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from edge_gemma.errors import EdgeGemmaError
from edge_gemma.runtime.engine import Model
from edge_gemma.runtime.monitoring import Monitor, Thresholds
from edge_gemma.runtime.scheduler import Scheduler
from edge_gemma.runtime.serving import audio_api, chat_api, health, models, openapi, page
from edge_gemma.runtime.serving.guard import Guard
from edge_gemma.runtime.serving.journal import Journal
from edge_gemma.runtime.serving.limits import BodyLimit, RateLimit
from edge_gemma.runtime.serving.problems import Problem, answer_error
from edge_gemma.runtime.serving.service import Service
from edge_gemma.runtime.serving.settings import Settings

NEAR_BUDGET = 0.95  # of a memory budget: from there on /health says degraded


def create_app(model: Model, settings: Settings, model_id: str = "edge-gemma") -> Starlette:
    """The server of a model, as an ASGI application. `app.state.service` is its Service.

    It does not close the model; close `app.state.service.scheduler` first.
    """
    budget = model.plan.budget
    thresholds = Thresholds(memory_bytes=int(NEAR_BUDGET * budget) if budget else None)
    service = Service(
        model_id=model_id,
        manifest=model.manifest,
        scheduler=Scheduler(model, max_waiting=settings.max_waiting),
        settings=settings,
        monitor=Monitor(thresholds=thresholds),
        level=model.level,
    )
    parts = (chat_api, audio_api, models, health, openapi, page)
    routes = [route for part in parts for route in part.routes]
    answering = {route.path for route in routes if "POST" in (route.methods or ())}
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(Journal, service.monitor, answering),
            Middleware(BodyLimit, settings),
            Middleware(Guard, settings.host, settings.api_keys),
            Middleware(RateLimit, settings.requests_per_minute),
        ],
        exception_handlers={
            Problem: answer_error,
            EdgeGemmaError: answer_error,
            HTTPException: _answer_http_error,
        },
    )
    app.state.service = service
    return app


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own: no such path, or not with this method."""
    assert isinstance(error, HTTPException)
    return Problem(error.status_code, error.detail, headers=error.headers or {}).response()
