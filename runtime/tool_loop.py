"""The loop of tool calling: generate, run what the model calls, feed the results back, until it answers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_gemma.errors import PromptError, ToolCallError
from edge_gemma.runtime.answer import Answer
from edge_gemma.runtime.conversation import Session
from edge_gemma.runtime.engine import Model
from edge_gemma.runtime.tool_schema import convert_arguments
from edge_gemma.runtime.tools import Tool, ToolCall, parse_calls, render_result, tool_messages


@dataclass(frozen=True)
class ToolResult:
    """A call that was run. Of one that raised, `result` is {"error": "…"}."""

    call: ToolCall
    result: Any


@dataclass(frozen=True)
class ToolAnswer:
    """The answer behind all calls."""

    answer: Answer
    results: tuple[ToolResult, ...]
    session: Session  # the conversation, for what comes next

    @property
    def text(self) -> str:
        return self.answer.text


def run_tools(
    model: Model | Session,
    messages: str | Sequence[Mapping[str, Any]],
    tools: Iterable[Any],
    functions: Mapping[str, Callable[..., Any]] | None = None,
    max_rounds: int = 8,
    **options: Any,
) -> ToolAnswer:
    """Let a model answer with the help of tools.

    Args:
        model: a model; or a session that was begun with `describe_tools(tools)` as its system text, which
            then goes on.
        messages: those of the conversation, in OpenAI's form; to a session, what the user says.
        tools: Python functions, or tools of OpenAI's form (see `Tool.of`).
        functions: what to run for the tools of OpenAI's form, by name. They get the arguments by name.
        max_rounds: most answers with calls.
        options: those of `Model.stream`, for every answer.

    A function that raises an exception ends nothing: the model reads the error, and may try again. So it is
    with a call that no tool can follow.

    Raises:
        PromptError: a tool has no function, or the messages or an option cannot be used.
        ToolCallError: the model goes on calling after `max_rounds` rounds.
    """
    *_, last = stream_tools(model, messages, tools, functions, max_rounds, **options)
    assert isinstance(last, ToolAnswer)
    return last


def stream_tools(
    model: Model | Session,
    messages: str | Sequence[Mapping[str, Any]],
    tools: Iterable[Any],
    functions: Mapping[str, Callable[..., Any]] | None = None,
    max_rounds: int = 8,
    **options: Any,
) -> Iterator[ToolResult | ToolAnswer]:
    """`run_tools`, result by result as they come; the last item is the ToolAnswer."""
    known = {tool.name: tool for tool in map(Tool.of, tools)}
    runs = {name: tool.function for name, tool in known.items() if tool.function} | dict(functions or {})
    if missing := known.keys() - runs.keys():
        raise PromptError(f"the tool {min(missing)} has no function; expected one in `functions`")
    for name, function in runs.items():
        if inspect.iscoroutinefunction(function):
            raise PromptError(f"the tool {name} is asynchronous; expected a function that returns its result")
    if isinstance(model, Session):
        session, content = model, messages
    else:
        *before, asked = tool_messages(messages, known.values())
        if asked["role"] != "user":
            raise PromptError(f"the messages end with one of the {asked['role']}; expected the user's")
        session, content = model.session(messages=before), asked["content"]
    results: list[ToolResult] = []
    for number in range(max_rounds + 1):
        answer = session.generate(content, **options)
        try:
            calls = parse_calls(answer.text, known.values())
        except ToolCallError as error:
            content = f"This call cannot be run: {error}."
            continue
        if not calls:
            yield ToolAnswer(answer, tuple(results), session)
            return
        if number == max_rounds:
            break
        done = []
        for call in calls:
            done.append(ToolResult(call, _run(runs[call.name], call)))
            yield done[-1]
        results += done
        content = "\n\n".join(render_result(one.call.name, one.result) for one in done)
    raise ToolCallError(
        f"the model goes on calling functions after {max_rounds} rounds; expected an answer: allow more, or "
        "describe the tools better"
    )


def _run(function: Callable[..., Any], call: ToolCall) -> Any:
    try:
        return function(**convert_arguments(call.arguments, function))
    except Exception as error:  # whatever it is, the model may know what to do
        return {"error": f"{type(error).__name__}: {error}"}
