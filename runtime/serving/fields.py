"""Fields of a JSON request: what each may be, for the check and for the OpenAPI description alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NoReturn

from starlette.requests import Request

from edge_gemma.runtime.serving.problems import Problem

MOST_VALUES = 500_000  # in a body: an empty list is 3 bytes of it, and 64 of memory once it is parsed
BRIEF = 60  # characters


@dataclass(frozen=True)
class Field:
    """What a value may be. null is the same as nothing."""

    expected: str  # for people
    schema: dict[str, Any]  # JSON Schema, for programs
    accepts: Callable[[Any], bool]

    @property
    def nullable(self) -> dict[str, Any]:
        return {"anyOf": [self.schema, {"type": "null"}]}


def number(low: float, high: float) -> Field:
    """low to high, both included."""
    schema = {"type": "number", "minimum": low, "maximum": high}
    return Field(
        f"a number from {low:g} to {high:g}", schema, lambda v: _in_range(v, (int, float), low, high)
    )


def whole(low: int, high: int = 2**31 - 1) -> Field:
    schema = {"type": "integer", "minimum": low, "maximum": high}
    return Field(
        f"a whole number from {low} to {high}",
        schema,
        lambda v: _in_range(v, (int, float), low, high) and v == int(v),  # in JSON 3.0 is one, too
    )


def flag() -> Field:
    return Field("true or false", {"type": "boolean"}, lambda v: isinstance(v, bool))


def text() -> Field:
    return Field("a text", {"type": "string"}, is_text)


def one_of(*choices: Any) -> Field:
    names = " or ".join(json.dumps(choice) for choice in choices)
    return Field(names, {"enum": list(choices)}, lambda v: any(_same(v, c) for c in choices))


def anything() -> Field:
    return Field("anything", {}, lambda v: True)


def is_text(value: Any) -> bool:
    """Whether it is a str of whole characters: JSON may hold halves of them, which are no Unicode."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def check(body: Mapping[str, Any], fields: Mapping[str, Field], required: Iterable[str]) -> dict[str, Any]:
    """The fields that are there, without those that are null.

    Raises:
        Problem: a field is unknown, missing or not what it may be.
    """
    found = {name: value for name, value in body.items() if value is not None}
    for name, value in found.items():
        if name not in fields:
            raise Problem(400, f"there is no field {name[:100]!r}", param=name, code="unknown_parameter")
        if not fields[name].accepts(value):
            raise Problem(400, f"{name} is {brief(value)}: expected {fields[name].expected}", param=name)
    for name in required:
        if name not in found:
            raise Problem(400, f"{name} is missing", param=name, code="missing_required_parameter")
    return found


def brief(value: Any) -> str:
    """A value of a request for a message about it."""
    pieces = json.JSONEncoder().iterencode(value)  # no more of them than are shown: it may be large, or deep
    described = "".join(islice(pieces, BRIEF))
    return described if len(described) <= BRIEF else f"{described[: BRIEF - 3]}…"


async def json_body(request: Request) -> bytes:
    """The body of a request that says it is JSON.

    Raises:
        Problem: it does not say so.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(415, "the body must be JSON: send Content-Type: application/json")
    return await request.body()


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object, strictly: in UTF-8, and without NaN and Infinity.

    Raises:
        Problem: it is none.
    """

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON")

    if sum(map(body.count, (b"[", b"{", b","))) > MOST_VALUES:
        raise Problem(400, f"the body has more than {MOST_VALUES:,} brackets and commas: send less")
    try:
        found = json.loads(body.decode(), parse_constant=refuse)
    except UnicodeDecodeError as error:
        raise Problem(400, f"the body is not UTF-8 ({error.reason} at byte {error.start})") from None
    except ValueError as error:
        raise Problem(400, f"the body is not JSON ({str(error)[:200]})") from None
    except RecursionError:
        raise Problem(400, "the body is nested too deeply") from None
    if not isinstance(found, dict):
        raise Problem(400, f"the body is {brief(found)}: expected a JSON object")
    return found


def _in_range(value: Any, kind: Any, low: float, high: float) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high


def _same(value: Any, choice: Any) -> bool:
    """Equal as JSON: 1 is 1.0 and not true."""
    return isinstance(value, bool) == isinstance(choice, bool) and bool(value == choice)
