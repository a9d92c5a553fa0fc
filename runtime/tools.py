"""Tool calling: functions are described to the model, and its answers are read as calls of them.

Gemma has no tokens for tools. The wording and both forms of a call, JSON and Python's, are those that Google
documents (ai.google.dev/gemma/docs/capabilities/function-calling); results go back in a block `tool_output`
(ai.google.dev/gemma/docs/meme-generator).
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_gemma.errors import PromptError, ToolCallError
from edge_gemma.runtime.chat import Message
from edge_gemma.runtime.tool_schema import Schema, check, check_schema, describe
from edge_gemma.runtime.tool_text import written_calls

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # as OpenAI has it
INSTRUCTION = """\
You have access to functions. If you decide to invoke any of the function(s), you MUST put it in the format of
{"name": function name, "parameters": dictionary of argument name and its value}
or, to invoke several, a list of these.

You SHOULD NOT include any other text in the response if you call a function
"""


@dataclass(frozen=True)
class Tool:
    """A function that the model may call."""

    name: str
    description: str
    parameters: Schema  # of an object
    function: Callable[..., Any] | None = None

    @classmethod
    def of(cls, thing: Any) -> Tool:
        """A tool of OpenAI's form, {"type": "function", "function": {"name": …, "parameters": {…}}}, or of a
        Python function with type hints and a docstring (see `tool_schema.describe`).

        Raises:
            PromptError: it is neither, or its parameters are no schema.
        """
        if isinstance(thing, Tool):
            return thing
        if inspect.isroutine(thing):
            return cls(*describe(thing), thing)
        described = thing.get("function") if isinstance(thing, Mapping) else None
        if not isinstance(described, Mapping):
            raise PromptError(
                f"a tool is a {type(thing).__name__} without a function; expected a Python function, or "
                '{"type": "function", "function": {"name": "…", "parameters": {…}}}'
            )
        name, text = described.get("name"), described.get("description") or ""
        if not isinstance(name, str) or not NAME.fullmatch(name) or not isinstance(text, str):
            raise PromptError(
                f"a tool has the name {repr(name)[:80]}; expected up to 64 letters, digits, _ and -, and a "
                "description that is a str"
            )
        parameters = described.get("parameters") or {}
        check_schema(parameters, f"the schema of {name}")
        if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
            raise PromptError(f"the parameters of {name} are no object; expected the schema of one")
        return cls(name, text, {"type": "object", "properties": {}, **parameters})


@dataclass(frozen=True)
class ToolCall:
    """What the model asks for."""

    name: str
    arguments: dict[str, Any]


def describe_tools(tools: Iterable[Any]) -> str:
    """What to tell the model about its tools, as a system instruction."""
    definitions = [
        {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
        for tool in map(Tool.of, tools)
    ]
    return INSTRUCTION + json.dumps(definitions, ensure_ascii=False)


def call_format(tools: Iterable[Any], name: str | None = None) -> dict[str, Any]:
    """A response_format that makes the answer one call: of any tool, or of the one with this name.

    Raises:
        PromptError: there is no such tool.
    """
    every = [Tool.of(tool) for tool in tools]
    chosen = [tool for tool in every if name in (None, tool.name)]
    if not chosen:
        raise PromptError(f"there is no tool {name!r}; expected one of {', '.join(t.name for t in every)}")
    calls = []
    for index, tool in enumerate(chosen):
        parameters = {"additionalProperties": False, **tool.parameters}
        place = f"#/anyOf/{index}/properties/parameters"
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, "parameters": _moved(parameters, place)},
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        )
    return {"type": "json_schema", "json_schema": {"name": "call", "schema": {"anyOf": calls}}}


def tool_messages(messages: str | Sequence[Mapping[str, Any]], tools: Iterable[Any]) -> list[Message]:
    """Messages of OpenAI's form as `Model.stream` takes them.

    The tools go into the system text. The assistant's calls ("tool_calls") are written as the model was told
    to write them; results (messages of the role "tool") and what the user says beside them are one turn.

    Raises:
        PromptError: a tool, a call or a result is malformed.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    plain: list[Message] = []
    names: dict[str, str] = {}  # id of a call → name of its tool
    before = None
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise PromptError(f"message {index} is a {type(message).__name__}; expected a dict")
        role = message.get("role")
        if role == "tool":
            turn = {"role": "user", "content": _result_text(message, names, f"message {index}")}
        elif role == "assistant":
            calls = _read_calls(message, names, f"message {index}")
            written = [render_calls(calls)] if calls else []
            turn = {"role": role, "content": _joined(message.get("content") or "", *written)}
        else:
            turn = dict(message)
        if plain and turn.get("role") == plain[-1].get("role") == "user" and "tool" in (role, before):
            plain[-1] = {"role": "user", "content": _joined(plain[-1]["content"], turn.get("content"))}
        else:
            plain.append(turn)
        before = role
    if told := [Tool.of(tool) for tool in tools]:
        begun = [plain.pop(0).get("content")] if plain and plain[0].get("role") == "system" else []
        system = "\n\n".join(
            [*(_text(content, "the system's message") for content in begun), describe_tools(told)]
        )
        plain.insert(0, {"role": "system", "content": system})
    return plain


def render_calls(calls: Sequence[ToolCall]) -> str:
    """Calls as the model is told to write them."""
    written = [{"name": call.name, "parameters": call.arguments} for call in calls]
    return json.dumps(written[0] if len(written) == 1 else written, ensure_ascii=False)


def render_result(name: str, result: Any) -> str:
    """What a tool gave, as the model reads it: JSON, and str() of what has no JSON."""
    line = json.dumps({"name": name, "result": result}, ensure_ascii=False, default=str)
    return f"```tool_output\n{line}\n```"


def parse_calls(text: str, tools: Iterable[Any]) -> list[ToolCall]:
    """The calls that an answer consists of, or each of its fenced blocks; [] where it is text.

    See `tool_text` for what is read as a call.

    Raises:
        ToolCallError: there is no such tool, or the arguments do not fit its schema as far as
            `tool_schema.check` looks. The message is one that a model can read.
    """
    known = {tool.name: tool for tool in map(Tool.of, tools)}
    calls = []
    for name, arguments in written_calls(
        text, {name: list(tool.parameters["properties"]) for name, tool in known.items()}
    ):
        if name not in known:
            raise ToolCallError(f"there is no function {name!r}; expected one of {', '.join(known)}")
        check(arguments, known[name].parameters, f"the parameters of {name}")
        calls.append(ToolCall(name, arguments))
    return calls


def _read_calls(message: Mapping[str, Any], names: dict[str, str], where: str) -> list[ToolCall]:
    """The calls of an assistant's message; the id of each is noted in `names`."""
    written = message.get("tool_calls") or []
    calls = []
    for call in written if isinstance(written, list) else [written]:
        try:
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        except (LookupError, TypeError, ValueError, RecursionError):
            name = arguments = None
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise PromptError(
                f'a call of {where} is malformed; expected {{"id": "…", "function": {{"name": "…", '
                '"arguments": "an object in JSON"}}'
            )
        names[str(call.get("id"))] = name
        calls.append(ToolCall(name, arguments))
    return calls


def _result_text(message: Mapping[str, Any], names: Mapping[str, str], where: str) -> str:
    name = message.get("name") or names.get(str(message.get("tool_call_id")))
    if not isinstance(name, str):
        raise PromptError(
            f"{where} is the result of no call before it; expected the 'tool_call_id' of one, or the 'name' "
            "of a tool"
        )
    text = _text(message.get("content"), where)
    try:
        return render_result(name, json.loads(text))
    except (ValueError, RecursionError):  # it is no JSON
        return render_result(name, text)


def _text(content: Any, where: str) -> str:
    """The text of a message's content, which is nothing else."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    known = parts if isinstance(parts, (list, tuple)) else [None]
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in known]
    if not all(isinstance(text, str) for text in texts):
        raise PromptError(f"{where} has a content that is no text; expected a str")
    return "\n".join(map(str, texts))


def _joined(*contents: Any) -> Any:
    """The contents of two messages as one: a text, or parts where one of them has parts."""
    contents = tuple(content for content in contents if content)
    if all(isinstance(content, str) for content in contents):
        return "\n\n".join(contents)
    parts: list[Any] = []
    for content in contents:
        parts += [{"type": "text", "text": content}] if isinstance(content, str) else content
    return parts


def _moved(schema: Any, place: str) -> Any:
    """A schema whose references hold when it is at `place`, a JSON pointer, of a larger one."""
    if isinstance(schema, Mapping):
        return {
            key: place + value[1:]
            if key == "$ref" and isinstance(value, str) and value.startswith("#")
            else _moved(value, place)
            for key, value in schema.items()
        }
    return [_moved(item, place) for item in schema] if isinstance(schema, list) else schema
