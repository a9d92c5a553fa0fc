"""What a request to /v1/chat/completions asks for.

FIELDS is all that is accepted; openapi.py shows the same table. OpenAI's fields that would change the answer
in a way that there is not are refused, unless they say what happens anyway; those that change nothing are
ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_gemma.runtime.serving import fields
from edge_gemma.runtime.serving.chat_messages import read_messages
from edge_gemma.runtime.serving.fields import (
    Field,
    anything,
    brief,
    flag,
    is_text,
    number,
    one_of,
    text,
    whole,
)
from edge_gemma.runtime.serving.models import find_level
from edge_gemma.runtime.serving.problems import Problem
from edge_gemma.runtime.serving.service import Service
from edge_gemma.runtime.tools import Tool, call_format, tool_messages

MOST_STOPS = 4
MOST_STOP_CHARS = 500  # looking for the beginnings of long ones takes time
MOST_TOOLS = 128
SEEDS = 2**63

OBJECT = Field("an object", {"type": "object"}, lambda v: isinstance(v, dict))
LIST = Field(
    "a list of objects", {"type": "array", "items": {"type": "object"}}, lambda v: isinstance(v, list)
)
STOP_TEXT = {"type": "string", "minLength": 1, "maxLength": MOST_STOP_CHARS}
STOP = Field(
    f"a text of 1 to {MOST_STOP_CHARS} characters or up to {MOST_STOPS} of them",
    {"anyOf": [STOP_TEXT, {"type": "array", "items": STOP_TEXT, "maxItems": MOST_STOPS}]},
    lambda v: _is_stop(v) or isinstance(v, list) and len(v) <= MOST_STOPS and all(map(_is_stop, v)),
)
TOOL_CHOICE = Field(
    'none, auto, required or {"type": "function", "function": {"name": …}}',
    {"anyOf": [{"enum": ["none", "auto", "required"]}, {"type": "object"}]},
    lambda v: v in ("none", "auto", "required") or isinstance(v, dict),
)

SAMPLING = {  # by our names, which are those of OpenAI where it has them
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "top_k": whole(0),
    "min_p": number(0, 1),
    "repetition_penalty": number(0.01, 10),
}
IGNORED = (
    *("metadata", "parallel_tool_calls", "prediction", "prompt_cache_key", "prompt_cache_options"),
    *("prompt_cache_retention", "reasoning_effort", "safety_identifier", "service_tier", "store", "user"),
)
NEUTRAL = {  # refused where they say anything else
    "frequency_penalty": 0,
    "function_call": "none",
    "functions": [],
    "logit_bias": {},
    "logprobs": False,
    "modalities": ["text"],
    "n": 1,
    "presence_penalty": 0,
    "top_logprobs": 0,
}
FIELDS: dict[str, Field] = {
    "model": text(),
    "messages": LIST,
    "stream": flag(),
    "stream_options": OBJECT,
    "max_tokens": whole(1),
    "max_completion_tokens": whole(1),
    "seed": whole(-SEEDS, SEEDS - 1),
    "stop": STOP,
    "tools": LIST,
    "tool_choice": TOOL_CHOICE,
    "response_format": OBJECT,
    "level": text(),
    "speculate": one_of("lookup", "level"),
    **SAMPLING,
    **{name: one_of(value) for name, value in NEUTRAL.items()},
    **dict.fromkeys(IGNORED, anything()),
}
REQUIRED = ("model", "messages")


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A request that was read."""

    model: str
    messages: list[dict[str, Any]]  # for Model.stream
    options: dict[str, Any]  # for Model.stream, too
    tools: list[Tool]  # that may be called
    parallel_calls: bool
    stream: bool
    include_usage: bool


def read(body: bytes, service: Service) -> ChatRequest:
    """Read a request: everything that can be known to be wrong without the model.

    Raises:
        Problem: it asks for what there is not, or is malformed or too large.
        PromptError: so does its tools' or its response's format.
        MediaError: an image is none.
    """
    asked = fields.check(fields.parse_object(body), FIELDS, REQUIRED)
    options = {name: asked[name] for name in (*SAMPLING, "speculate") if name in asked}
    options["level"] = asked.get("level", find_level(service, asked["model"]))
    if limit := asked.get("max_completion_tokens", asked.get("max_tokens")):
        options["max_new_tokens"] = int(limit)
    if "seed" in asked:
        options["seed"] = int(asked["seed"]) % SEEDS
    if "top_k" in asked:
        options["top_k"] = int(asked["top_k"])
    stop = asked.get("stop", [])
    options["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    messages = read_messages(asked["messages"], service.settings)
    tools, form = _read_tools(asked)
    if form:
        options["response_format"] = form
    stream_options = asked.get("stream_options", {})
    return ChatRequest(
        model=asked["model"],
        messages=tool_messages(messages, tools),
        options=options,
        tools=tools,
        parallel_calls=asked.get("parallel_tool_calls") is not False,
        stream=asked.get("stream", False),
        include_usage=stream_options.get("include_usage") is True,
    )


def _read_tools(asked: Mapping[str, Any]) -> tuple[list[Tool], dict[str, Any] | None]:
    """The tools that may be called, and the form that the answer must have."""
    form, choice = asked.get("response_format"), asked.get("tool_choice", "auto")
    if form and form.get("type") == "text":
        form = None
    if not asked.get("tools"):
        if choice not in ("auto", "none"):
            raise Problem(400, "tool_choice asks for a call, and there are no tools", param="tool_choice")
        return [], form
    if len(asked["tools"]) > MOST_TOOLS:
        raise Problem(400, f"there are more than {MOST_TOOLS} tools", param="tools")
    tools = [Tool.of(tool) for tool in asked["tools"]]
    if choice == "none":
        return [], form
    if form:
        raise Problem(
            400,
            'a response_format leaves no room for calls of tools: leave it out, or say "tool_choice": "none"',
            param="response_format",
        )
    if choice == "auto":
        return tools, None
    return tools, dict(call_format(tools, None if choice == "required" else _chosen(choice, tools)))


def _chosen(choice: Mapping[str, Any], tools: list[Tool]) -> str:
    function = choice.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    if name not in [tool.name for tool in tools]:
        raise Problem(
            400, f"tool_choice is {brief(choice)}: expected {TOOL_CHOICE.expected}", param="tool_choice"
        )
    return str(name)


def _is_stop(value: Any) -> bool:
    return is_text(value) and 1 <= len(value) <= MOST_STOP_CHARS
