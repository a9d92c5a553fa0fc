"""GET /openapi.json: the description for programs, made of the tables that requests are checked with."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from edge_gemma import __version__
from edge_gemma.runtime.serving.audio_request import LAYOUTS
from edge_gemma.runtime.serving.chat_request import FIELDS, MOST_TOOLS, REQUIRED
from edge_gemma.runtime.serving.service import Service

TEXT = {"type": "string"}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": TEXT,
                "type": TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
PROBLEMS = {  # of every path
    "401": "the key is missing or unknown",
    "403": "the Host or the Origin is foreign",
    "429": "too many requests in a minute; Retry-After says when to try again",
}
OF_A_BODY = {
    "400": "a field is malformed, or asks for what there is not",
    "404": "there is no such model",
    "408": "the body took too long",
    "413": "the body is too large",
    "415": "the body is of another kind",
    "503": "too many prompts wait, or the server ends; Retry-After says when to try again",
    "504": "time was up before the answer began",
}


def describe(service: Service) -> dict[str, Any]:
    """The OpenAPI 3.1 document of a server."""
    model = {"enum": list(service.models)}
    transcription = {"model": model, "language": TEXT, "prompt": TEXT}
    translation = {"target_language": TEXT} | transcription
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "edge-gemma",
            "version": __version__,
            "description": "A Gemma 3n on this machine, for clients of OpenAI's API.",
        },
        "security": [{"key": []}] if service.settings.api_keys else [],
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": ERROR, "Chat": _chat(model, service.settings.max_messages)},
        },
        "paths": {
            "/v1/chat/completions": {
                "post": _posting(
                    "Answer a conversation",
                    {"application/json": {"schema": {"$ref": "#/components/schemas/Chat"}}},
                    {
                        "application/json": {"schema": _object("chat.completion", choices="array")},
                        "text/event-stream": {"schema": TEXT},
                    },
                )
            },
            "/v1/audio/transcriptions": {"post": _listening("Write down what is said", transcription)},
            "/v1/audio/translations": {"post": _listening("Translate what is said", translation)},
            "/v1/models": {"get": _getting("List the models", _object("list", data="array"))},
            "/v1/models/{name}": {
                "parameters": [{"name": "name", "in": "path", "required": True, "schema": TEXT}],
                "get": _getting("Show a model", _object("model"), **{"404": OF_A_BODY["404"]}),
            },
            "/health": {"get": _getting("Tell how the server is", {"type": "object"})},
            "/metrics": {"get": _getting("Figures for Prometheus", TEXT, kind="text/plain")},
        },
    }


async def show(request: Request) -> JSONResponse:
    service: Service = request.app.state.service
    return JSONResponse(describe(service))


def _chat(model: dict[str, Any], max_messages: int) -> dict[str, Any]:
    properties = {name: field.nullable for name, field in FIELDS.items() if name not in REQUIRED}
    properties["tools"] = {
        "anyOf": [{"type": "array", "items": TOOL, "maxItems": MOST_TOOLS}, {"type": "null"}]
    }
    return {
        "type": "object",
        "required": list(REQUIRED),
        "additionalProperties": False,
        "properties": {
            "model": model,
            "messages": {
                "type": "array",
                "minItems": 1,
                "maxItems": max_messages,
                "items": MESSAGE,
            },
            **properties,
        },
    }


def _part(kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["type", kind],
        "properties": {"type": {"const": kind}, kind: value},
    }


def _with(**texts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(texts), "properties": texts}


SAID = {"type": "string", "pattern": "\\S"}
PARTS = {
    "type": "array",
    "minItems": 1,
    "items": {
        "anyOf": [
            _part("text", SAID),
            _part("image_url", _with(url={"type": "string", "pattern": "^data:image/[a-z]+;base64,"})),
            _part("input_audio", _with(data={"type": "string", "format": "byte"})),
        ]
    },
}
CALL = _with(
    id=TEXT, function=_with(name=TEXT, arguments={"type": "string", "contentMediaType": "application/json"})
)
MESSAGE = {
    "anyOf": [
        _with(role={"enum": ["system", "developer"]}, content=SAID),
        _with(role={"const": "user"}, content={"anyOf": [SAID, PARTS]}),
        _with(role={"const": "assistant"}, content=SAID),
        _with(role={"const": "assistant"}, tool_calls={"type": "array", "minItems": 1, "items": CALL}),
        _with(role={"const": "tool"}, tool_call_id=TEXT, content=TEXT),
    ]
}
TOOL = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
                "description": TEXT,
                "parameters": {"type": "object"},
            },
        },
    },
}


def _listening(summary: str, fields: dict[str, Any]) -> dict[str, Any]:
    form = {
        "type": "object",
        "required": ["file"],
        "additionalProperties": False,
        "properties": {
            "file": {"type": "string", "format": "binary"},
            "response_format": {"enum": list(LAYOUTS)},
            "temperature": {"type": "number", "minimum": 0},
            "stream": {"enum": ["false", "true"]},
            "timestamp_granularities[]": {"type": "array", "items": {"const": "segment"}},
            **fields,
        },
    }
    kinds = ("text/plain", "text/vtt", "application/x-subrip", "text/event-stream")
    answers = {"application/json": {"schema": {"type": "object"}}, **{k: {"schema": TEXT} for k in kinds}}
    return _posting(summary, {"multipart/form-data": {"schema": form}}, answers)


def _posting(summary: str, body: dict[str, Any], answers: dict[str, Any]) -> dict[str, Any]:
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": body},
        "responses": _responses(answers, OF_A_BODY),
    }


def _getting(
    summary: str, schema: dict[str, Any], *, kind: str = "application/json", **problems: str
) -> dict[str, Any]:
    return {"summary": summary, "responses": _responses({kind: {"schema": schema}}, problems)}


def _responses(content: dict[str, Any], problems: dict[str, str]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        "200": {"description": "the answer", "content": content},
        **{
            status: {"description": text, "content": error}
            for status, text in {**PROBLEMS, **problems}.items()
        },
    }


def _object(name: str, **properties: str) -> dict[str, Any]:
    """OpenAI's objects tell what they are."""
    return {
        "type": "object",
        "required": ["object", *properties],
        "properties": {"object": {"const": name}, **{p: {"type": kind} for p, kind in properties.items()}},
    }


routes = [Route("/openapi.json", show)]
