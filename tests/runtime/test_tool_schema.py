"""JSON Schema of Python functions, and arguments that fit it or do not."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field
from typing import Any, Literal, Optional, TypedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_gemma.errors import PromptError, ToolCallError
from edge_gemma.runtime.tool_schema import check, convert, convert_arguments, describe, schema_of


@dataclass
class Place:
    name: str
    height: float = 0.0
    tags: list[str] = field(default_factory=list)
    known: bool = field(default=True, init=False)


class Trip(TypedDict, total=False):
    to: str
    nights: int


def book(
    place: Place,
    trip: Trip,
    mode: Literal["train", "bus"],
    guests: list[dict[str, int]],
    budget: Optional[float] = None,  # noqa: UP045  # both ways of writing it
    note: str | None = None,
    extra: Any = None,
    raw: dict = {},  # noqa: B006
) -> None:
    """Book a trip,
    there and back.

    More about it: nothing.

    Args:
        place: where from; a sentence that goes on
            next: with a colon.
        mode (str): how to travel
        unknown: is not a parameter

    Returns:
        note: nothing
    """


def test_a_function_s_schema() -> None:
    name, description, schema = describe(book)
    assert (name, description) == ("book", "Book a trip, there and back.")
    text = {"type": "string"}
    null = {"type": "null"}
    assert schema == {
        "type": "object",
        "properties": {
            "place": {
                "type": "object",
                "properties": {
                    "name": text,
                    "height": {"type": "number"},
                    "tags": {"type": "array", "items": text},
                },
                "required": ["name"],
                "additionalProperties": False,
                "description": "where from; a sentence that goes on next: with a colon.",
            },
            "trip": {
                "type": "object",
                "properties": {"to": text, "nights": {"type": "integer"}},
                "required": [],
                "additionalProperties": False,
            },
            "mode": {"enum": ["train", "bus"], "description": "how to travel"},
            "guests": {
                "type": "array",
                "items": {"type": "object", "additionalProperties": {"type": "integer"}},
            },
            "budget": {"anyOf": [{"type": "number"}, null]},
            "note": {"anyOf": [text, null]},
            "extra": {},
            "raw": {"type": "object"},
        },
        "required": ["place", "trip", "mode", "guests"],
        "additionalProperties": False,
    }


def test_without_a_docstring() -> None:
    def f(*, n: int) -> None: ...

    assert describe(f)[:2] == ("f", "")


def no_hint(n) -> None: ...  # type: ignore[no-untyped-def]
def odd_hint(n: set[int]) -> None: ...
def bytes_hint(n: list[bytes]) -> None: ...
def int_keys(n: dict[int, str]) -> None: ...
def many(*n: int) -> None: ...
def named(**n: int) -> None: ...
def positional(n: int, /) -> None: ...


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (no_hint, "the parameter n of no_hint has no type hint; expected str, int"),
        (odd_hint, r"n of odd_hint has the type set\[int\]"),
        (bytes_hint, "n of bytes_hint has the type <class 'bytes'>"),
        (int_keys, r"n of int_keys has the type dict\[int, str\]"),
        (many, "n of many has no name that a call can give"),
        (named, "n of named has no name"),
        (positional, "n of positional has no name"),
    ],
)
def test_what_has_no_schema_is_refused(function: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        describe(function)


def test_arguments_become_what_the_hints_say() -> None:
    given = {
        "place": {"name": "Rome", "height": 21, "tags": ["old"]},
        "trip": {"to": "Bari", "nights": 2.0},
        "mode": "bus",
        "guests": [{"Ann": 3}],
        "budget": 90,
        "note": None,
        "extra": [1],
    }
    check(given, describe(book)[2], "it")
    made = convert_arguments(given, book)
    assert made == given | {"place": Place("Rome", 21.0, ["old"])}
    assert type(made["place"].height) is type(made["budget"]) is float
    assert type(convert(3.0, int)) is int
    assert convert([{"name": "a"}, None], list[Place | None]) == [Place("a"), None]
    assert convert({"a": {"name": "a"}}, dict[str, Place]) == {"a": Place("a")}
    assert convert_arguments({"n": 1}, functools.partial(book)) == {"n": 1}


MEMBERS = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.mark.parametrize(
    ("value", "schema", "message"),
    [
        (True, {"type": "integer"}, "it is True; expected integer"),
        (1.5, {"type": "integer"}, "it is 1.5; expected integer"),
        (float("inf"), {"type": "number"}, "it is inf; expected number"),
        ("1", {"type": ["integer", "null"]}, "it is '1'; expected integer or null"),
        (1, {"enum": [True, "1"]}, "it is 1; expected one of"),
        (2, {"const": 1}, "it is 2; expected one of"),
        ("a", {"anyOf": [{"type": "null"}, {"type": "integer"}]}, "it is 'a'; expected one of"),
        ([1, "2"], {"type": "array", "items": {"type": "integer"}}, r"it\[1\] is '2'"),
        ({}, MEMBERS, "it are without 'a'; expected a"),
        ({"a": "1"}, MEMBERS, "it.a is '1'; expected integer"),
        ({"a": 1, "b": 2}, MEMBERS, "it have the name 'b'; expected none but a"),
        ({"a": 1, "b": "c"}, {"additionalProperties": {"type": "integer"}}, "it.b is 'c'"),
    ],
)
def test_values_that_do_not_fit(value: Any, schema: Any, message: str) -> None:
    with pytest.raises(ToolCallError, match=message):
        check(value, schema, "it")


@pytest.mark.parametrize(
    ("value", "schema"),
    [
        (3.0, {"type": "integer"}),
        (3, {"type": "number"}),
        (10**400, {"type": "number"}),
        (-(10**400), {"type": "integer"}),
        (None, {"type": ["integer", "null"]}),
        (1.0, {"enum": [1]}),
        ({"b": 2}, {}),
        ({"b": 2}, {"type": "object"}),
        ({"a": 1, "b": 2}, MEMBERS | {"additionalProperties": True}),
        ([], True),
    ],
)
def test_values_that_fit(value: Any, schema: Any) -> None:
    check(value, schema, "it")


@settings(max_examples=100)
@given(
    value=st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.just([]), st.just({}))
)
@pytest.mark.parametrize("kind", [str, int, float, bool, None, list, dict, Literal["", 0, True]])
def test_it_agrees_with_jsonschema(kind: Any, value: Any) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = schema_of(type(None) if kind is None else kind, "it")
    if isinstance(value, float) and json.dumps(value) in ("NaN", "Infinity", "-Infinity"):
        return  # no JSON
    fits = jsonschema.Draft202012Validator(schema).is_valid(value)
    try:
        check(value, schema, "it")
    except ToolCallError:
        assert not fits
    else:
        assert fits
