"""GET /v1/models: the artifact, and each level of an elastic one as a model of its own."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from edge_gemma.runtime.serving.problems import Problem
from edge_gemma.runtime.serving.service import Service


def find_level(service: Service, model: str) -> str | None:
    """The level that a model's name means; raises Problem where there is no such model."""
    if model not in service.models:
        known = ", ".join(service.models)
        raise Problem(
            404,
            f"there is no model {model[:100]!r}: this server has {known}",
            param="model",
            code="model_not_found",
        )
    return service.models[model]


async def list_models(request: Request) -> JSONResponse:
    service: Service = request.app.state.service
    return JSONResponse({"object": "list", "data": [_card(service, name) for name in service.models]})


async def show_model(request: Request) -> JSONResponse:
    service: Service = request.app.state.service
    name = request.path_params["name"]
    find_level(service, name)
    return JSONResponse(_card(service, name))


def _card(service: Service, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(service.started), "owned_by": "edge-gemma"}


routes = [
    Route("/v1/models", list_models),
    Route("/v1/models/{name:path}", show_model),
]
