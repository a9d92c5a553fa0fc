"""What the model is told of its tools, and what it writes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_gemma.errors import PromptError, ToolCallError
from edge_gemma.runtime.chat import normalize
from edge_gemma.runtime.tools import (
    Tool,
    ToolCall,
    call_format,
    describe_tools,
    parse_calls,
    render_calls,
    render_result,
    tool_messages,
)


def set_light(room: str, percent: int, *, colour: str | None = None) -> str:
    """Dim the lights."""
    return f"{room} {percent} {colour}"


WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get-weather",
        "description": "Says what the weather is.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"$ref": "#/$defs/count"}},
            "required": ["city"],
            "$defs": {"count": {"enum": [1, 2]}},
        },
    },
}
TOOLS = [set_light, WEATHER]
LIGHT = ToolCall("set_light", {"room": "kitchen", "percent": 40})
RAIN = ToolCall("get-weather", {"city": "Łódź"})


def test_tools_are_made_of_functions_and_of_openai_s_form() -> None:
    light, weather = map(Tool.of, TOOLS)
    assert (light.name, light.description, light.function) == ("set_light", "Dim the lights.", set_light)
    assert light.parameters["required"] == ["room", "percent"]
    assert (weather.name, weather.function) == ("get-weather", None)
    assert weather.parameters == WEATHER["function"]["parameters"]
    assert Tool.of(weather) is weather
    bare = Tool.of({"type": "function", "function": {"name": "now"}})
    assert bare == Tool("now", "", {"type": "object", "properties": {}})


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (None, "a tool is a dict without a function"),
        ({}, "the name None; expected up to 64 letters"),
        ({"name": "two words"}, "the name 'two words'"),
        ({"name": "f", "description": 3}, "a description that is a str"),
        ({"name": "f", "parameters": [1]}, "the schema of f is .1.; expected a JSON Schema"),
        ({"name": "f", "parameters": {"type": "string"}}, "the parameters of f are no object"),
        ({"name": "f", "parameters": {"properties": ["a"]}}, "properties of the schema of f"),
        ({"name": "f", "parameters": {"required": "a"}}, "required of the schema of f"),
        ({"name": "f", "parameters": {"properties": {"a": {"type": "int"}}}}, "f.a has the type 'int'"),
    ],
)
def test_what_is_no_tool_is_refused(function: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        Tool.of({"type": "function", "function": function} if function is not None else {})


def test_a_schema_of_any_depth_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(500):
        schema = {"not": [schema]}
    with pytest.raises(PromptError, match="nested too deep"):
        Tool.of({"type": "function", "function": {"name": "f", "parameters": schema}})


def test_the_wording_is_the_documented_one() -> None:
    told = describe_tools(TOOLS)
    assert told.startswith(
        "You have access to functions. If you decide to invoke any of the function(s), you MUST put it in "
        'the format of\n{"name": function name, "parameters": dictionary of argument name and its value}\n'
    )
    assert "You SHOULD NOT include any other text in the response if you call a function\n[" in told
    definitions = json.loads(told[told.index("\n[") :])
    assert definitions[1] == WEATHER["function"]


# Messages


def call(name: str, arguments: str, id: str = "a") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_a_conversation_with_calls_and_results() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Dim the kitchen. Weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                call("set_light", '{"room": "kitchen", "percent": 40}'),
                call("get-weather", '{"city": "Łódź"}', "b"),
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": "done"},
        {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": '{"rain": true}'}]},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "It rains."},
        {"role": "user", "content": "Thanks."},
    ]
    plain = tool_messages(messages, TOOLS)
    assert [m["role"] for m in normalize(plain)] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
        "user",
    ]
    assert plain[0]["content"] == "Be brief.\n\n" + describe_tools(TOOLS)
    assert parse_calls(plain[2]["content"], TOOLS) == [LIGHT, RAIN]
    assert plain[3]["content"] == (
        '```tool_output\n{"name": "set_light", "result": "done"}\n```\n\n'
        '```tool_output\n{"name": "get-weather", "result": {"rain": true}}\n```\n\n'
        "And now?"
    )
    assert plain[4:] == messages[6:]


def test_media_beside_results_stay() -> None:
    image = {"type": "image", "image": "a.png"}
    messages = [
        {"role": "user", "content": [image]},
        {"role": "assistant", "tool_calls": [call("f", "{}")], "content": "One moment."},
        {"role": "tool", "name": "f", "content": "1"},
        {"role": "user", "content": [image]},
    ]
    plain = tool_messages(messages, [])
    assert [m["role"] for m in plain] == ["user", "assistant", "user"]
    assert plain[1]["content"] == 'One moment.\n\n{"name": "f", "parameters": {}}'
    assert plain[2]["content"] == [{"type": "text", "text": render_result("f", 1)}, image]


def test_what_does_not_alternate_is_left_to_the_template() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "user", "content": "Hello?"}]
    assert tool_messages(messages, []) == messages


def test_without_tools_nothing_is_told() -> None:
    assert tool_messages("Hi", []) == [{"role": "user", "content": "Hi"}]
    told = tool_messages("Hi", TOOLS)
    assert told == [{"role": "system", "content": describe_tools(TOOLS)}, {"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("hi", "message 1 is a str"),
        ({"role": "tool", "content": "1"}, "message 1 is the result of no call"),
        ({"role": "tool", "tool_call_id": "z", "content": "1"}, "message 1 is the result of no call"),
        ({"role": "tool", "name": "f", "content": None}, "message 1 has a content that is no text"),
        ({"role": "tool", "name": "f", "content": 42}, "message 1 has a content that is no text"),
        (
            {"role": "tool", "name": "f", "content": [{"type": "image"}]},
            "message 1 has a content that is no text",
        ),
        ({"role": "assistant", "tool_calls": [3]}, "a call of message 1 is malformed"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "a call of message 1 is malformed"),
        ({"role": "assistant", "tool_calls": [call("f", "{")]}, "a call of message 1 is malformed"),
        ({"role": "assistant", "tool_calls": [call("f", "[]")]}, "a call of message 1 is malformed"),
        ({"role": "assistant", "tool_calls": 3}, "a call of message 1 is malformed"),
    ],
)
def test_malformed_messages_are_refused(message: Any, expected: str) -> None:
    with pytest.raises(PromptError, match=expected):
        tool_messages([{"role": "user", "content": "Hi"}, message], TOOLS)
    with pytest.raises(PromptError, match="the system's message has a content that is no text"):
        tool_messages([{"role": "system"}, {"role": "user", "content": "Hi"}], TOOLS)


# Reading calls


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "set_light", "parameters": {"room": "kitchen", "percent": 40}}',
        '{"name": "set_light", "arguments": {"room": "kitchen", "percent": 40}}',
        '[{"name": "set_light", "parameters": {"room": "kitchen", "percent": 40}}]',
        ' set_light(room="kitchen", percent=40)\n',
        "[set_light(room='kitchen', percent=40)]",
        "set_light('kitchen', 40)",
        "set_light('kitchen', percent=40)",
        '```json\n{\n  "name": "set_light",\n  "parameters": {"room": "kitchen", "percent": 40}\n}\n```',
        "Of course.\n```tool_code\n[set_light(room='kitchen', percent=40)]\n```\n",
        "```\nset_light(room='kitchen', percent=40)\n```",
    ],
)
def test_forms_of_one_call(text: str) -> None:
    assert parse_calls(text, TOOLS) == [LIGHT]


def test_several_calls() -> None:
    text = 'set_light("kitchen", 40)\nset_light("hall", 0, colour=null)'
    assert parse_calls(text, TOOLS) == [
        LIGHT,
        ToolCall("set_light", {"room": "hall", "percent": 0, "colour": None}),
    ]
    blocks = f"```json\n{render_calls([RAIN])}\n```\nand\n```tool_code\nset_light('kitchen', 40)\n```"
    assert parse_calls(blocks, TOOLS) == [RAIN, LIGHT]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The kitchen is dark now.",
        "set_light",
        "f(x)",
        "print('hello')",
        "set_light.room()",
        "x = set_light('kitchen', 40)",
        '{"name": "Ann", "age": 3}',
        '{"name": 3, "parameters": {}}',
        '{"name": "set_light", "parameters": "kitchen"}',
        "[1, 2]",
        "[]",
        "```python\nprint(1)\n```",
        "[" * 100_000,
        "(" * 200,
        "\0",
        "set_light(" + "-" * 100_000 + "1)",
        "'\\d'",
    ],
)
def test_text_is_no_call(text: str) -> None:
    assert parse_calls(text, TOOLS) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"name": "set_lamp", "parameters": {}}',
            "no function 'set_lamp'; expected one of set_light, get-w",
        ),
        ("[set_lamp(n=3)]", "no function 'set_lamp'"),
        ("set_light(room='kitchen')", "the parameters of set_light are without 'percent'"),
        ("set_light('kitchen', '40')", "set_light.percent is '40'; expected integer"),
        ("set_light('kitchen', true)", "set_light.percent is True; expected integer"),
        ("set_light('kitchen', 40, 'red', 3)", "cannot be read; expected literals"),
        ("set_light('kitchen', room='hall', percent=3)", "cannot be read"),
        ("set_light(room=kitchen, percent=40)", "cannot be read"),
        ("set_light(**{'room': 'kitchen'})", "cannot be read"),
        ("set_light({1, 2}, 40)", "cannot be read"),
        ("set_light('kitchen', __import__('os').getpid())", "cannot be read"),
        (
            "set_light(room='kitchen', percent=40, speed=3)",
            "'speed'; expected none but room, percent, colour",
        ),
        ('{"name": "get-weather", "parameters": {"city": NaN}}', "city is nan; expected string"),
    ],
)
def test_calls_that_cannot_be_followed(text: str, message: str) -> None:
    with pytest.raises(ToolCallError, match=message):
        parse_calls(text, TOOLS)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
ANYTHING = {"type": "function", "function": {"name": "do", "parameters": {"additionalProperties": {}}}}
calls = st.lists(
    st.dictionaries(st.from_regex(r"[a-z]{1,8}_", fullmatch=True), values, max_size=4).map(
        lambda arguments: ToolCall("do", arguments)
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=200)
@given(calls=calls, fence=st.sampled_from(["{}", "```json\n{}\n```", "Well:\n```tool_code\n{}\n```"]))
def test_what_is_written_is_read(calls: list[ToolCall], fence: str) -> None:
    assert parse_calls(fence.format(render_calls(calls)), [ANYTHING]) == calls
    arguments = [", ".join(f"{name}={value!r}" for name, value in call.arguments.items()) for call in calls]
    written = "[" + ", ".join(f"do({one})" for one in arguments) + "]"
    assert parse_calls(fence.format(written), [ANYTHING]) == calls


@settings(max_examples=200)
@given(st.text() | st.text("set_light(){}[]'\"=,:40\n`\\") | values.map(json.dumps))
def test_no_text_breaks_the_reader(text: str) -> None:
    try:
        found = parse_calls(text, TOOLS)
    except ToolCallError:
        return
    json.dumps([one.arguments for one in found])


# Forcing a call


def test_a_forced_call_is_a_call_of_its_tool() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = call_format(TOOLS)["json_schema"]["schema"]
    for one in (LIGHT, RAIN, ToolCall("get-weather", {"city": "Rome", "days": 2})):
        jsonschema.validate(json.loads(render_calls([one])), schema)
    for bad in (
        ToolCall("set_lamp", {}),
        ToolCall("set_light", {"room": "hall"}),
        ToolCall("get-weather", {"city": "Rome", "days": 3}),  # behind a reference
        ToolCall("get-weather", {"city": "Rome", "speed": 3}),
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(json.loads(render_calls([bad])), schema)
    only = call_format(TOOLS, "get-weather")["json_schema"]["schema"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(render_calls([LIGHT])), only)
    with pytest.raises(PromptError, match="no tool 'set_lamp'; expected one of set_light, get-weather"):
        call_format(TOOLS, "set_lamp")
