"""The loop of tool calling, with a model that says what a test wrote down, and with the demo's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import edge_gemma
from edge_gemma.errors import PromptError, ToolCallError
from edge_gemma.runtime.answer import Answer
from edge_gemma.runtime.statistics import Statistics
from edge_gemma.runtime.tool_loop import ToolAnswer, run_tools, stream_tools
from edge_gemma.runtime.tools import ToolCall, call_format, describe_tools, parse_calls


class Scripted:
    """A model, and its only session, that answers what it is told to."""

    def __init__(self, *answers: str) -> None:
        self._answers = list(answers)
        self.heard: list[Any] = []
        self.options: list[dict[str, Any]] = []

    def session(self, *, messages: list[Any]) -> Scripted:
        self.heard += messages
        return self

    def generate(self, content: Any, **options: Any) -> Answer:
        self.heard.append(content)
        self.options.append(options)
        return Answer(self._answers.pop(0), Statistics(), "stop")


@dataclass
class Room:
    name: str


dimmed: list[tuple[Room, int]] = []


def dim(room: Room, percent: int) -> dict[str, Any]:
    """Dim the lights of a room."""
    if percent > 100:
        raise ValueError("too bright")
    dimmed.append((room, percent))
    return {"percent": percent}


def dim_light(room: str, percent: int) -> str:
    return f"{room} {percent}"


DIM = '{"name": "dim", "parameters": {"room": {"name": "hall"}, "percent": %d}}'


def asked(model: Scripted, **options: Any) -> ToolAnswer:
    return run_tools(model, "Dim the hall.", [dim], **options)  # type: ignore[arg-type]


def test_calls_are_run_and_their_results_are_read() -> None:
    dimmed.clear()
    model = Scripted(f"[{DIM % 40}, {DIM % 50}]", DIM % 60, "Done.")
    found = asked(model, temperature=0)
    assert found.text == "Done." and found.session is model  # type: ignore[comparison-overlap]
    assert dimmed == [(Room("hall"), 40), (Room("hall"), 50), (Room("hall"), 60)]
    assert [one.result for one in found.results] == [{"percent": n} for n in (40, 50, 60)]
    assert found.results[0].call == ToolCall("dim", {"room": {"name": "hall"}, "percent": 40})
    block = '```tool_output\n{"name": "dim", "result": {"percent": %d}}\n```'
    system, *contents = model.heard
    assert system == {"role": "system", "content": describe_tools([dim])}
    assert contents == ["Dim the hall.", f"{block % 40}\n\n{block % 50}", block % 60]
    assert model.options == [{"temperature": 0}] * 3


def test_an_answer_without_calls() -> None:
    found = asked(Scripted("Why?"))
    assert (found.text, found.results) == ("Why?", ())


def test_errors_are_read_by_the_model() -> None:
    model = Scripted(DIM % 101, '{"name": "dimm", "parameters": {}}', "dim()", "Sorry.")
    found = asked(model)
    assert found.text == "Sorry."
    assert [one.result for one in found.results] == [{"error": "ValueError: too bright"}]
    assert '"error": "ValueError: too bright"' in model.heard[-3]
    assert "no function 'dimm'; expected one of dim" in model.heard[-2]
    assert "without 'room'" in model.heard[-1]


def test_rounds_are_limited() -> None:
    dimmed.clear()
    with pytest.raises(ToolCallError, match="goes on calling functions after 2 rounds"):
        asked(Scripted(*[DIM % n for n in range(5)]), max_rounds=2)
    assert [percent for _, percent in dimmed] == [0, 1]  # the third call is not run
    with pytest.raises(ToolCallError):
        asked(Scripted(*["dim()"] * 5), max_rounds=2)
    assert asked(Scripted(DIM % 1, DIM % 2, "Done."), max_rounds=2).text == "Done."


def test_results_come_as_they_are_there() -> None:
    model: Any = Scripted(DIM % 40, "Done.")
    items = stream_tools(model, "Dim the hall.", [dim])
    assert next(items).result == {"percent": 40}  # type: ignore[union-attr]
    assert len(model.heard) == 2
    assert isinstance(next(items), ToolAnswer)
    assert not list(items)


def test_functions_of_tools_in_openai_s_form() -> None:
    parameters = {"type": "object", "properties": {"n": {"type": "integer"}}}
    tool = {"type": "function", "function": {"name": "double", "parameters": parameters}}
    model: Any = Scripted("double(n=4)", "It is 8.")
    functions = {"double": lambda n: 2 * n}
    assert run_tools(model, "2 times 4?", [tool], functions).results[0].result == 8
    with pytest.raises(PromptError, match="the tool double has no function; expected one in `functions`"):
        run_tools(model, "2 times 4?", [tool])

    async def later(n: int) -> int:
        return n

    for tools, runs in (([later], None), ([tool], {"double": later})):
        with pytest.raises(PromptError, match="is asynchronous; expected a function that returns its result"):
            run_tools(model, "2 times 4?", tools, runs)


def test_messages_that_do_not_end_with_the_user() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    with pytest.raises(PromptError, match="end with one of the assistant; expected the user's"):
        run_tools(Scripted(), messages, [dim])  # type: ignore[arg-type]


def test_a_model_and_a_session(made: Callable[[str], Path]) -> None:
    """The demo's answers are its own, so the first is forced to be a call."""
    with edge_gemma.load(made("demo-text-fp32"), threads=1) as model:
        options: dict[str, Any] = {"temperature": 0, "response_format": call_format([dim])}
        answer = model.generate("Dim the hall to 40 percent.", **options)
        (call,) = parse_calls(answer.text, [dim])
        assert call.name == "dim"
        with pytest.raises(ToolCallError, match="after 1 rounds"):
            run_tools(model, "Dim the hall to 40 percent.", [dim], max_rounds=1, **options)
        command = "Turn the kitchen lights to 40 percent."
        known = stream_tools(model.session(), command, [dim_light], temperature=0)
        assert next(known).result == "kitchen 40"  # type: ignore[union-attr]  # a command it was trained on
        session = model.session(system=describe_tools([dim]))
        found = run_tools(session, "Hi", [dim], max_new_tokens=5)
        assert found.session is session
        assert session.messages[-1]["content"] == found.text
