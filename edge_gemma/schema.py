"""Strict conversion of JSON data to frozen dataclasses: unknown and missing keys are errors."""

from __future__ import annotations

import dataclasses
import functools
import reprlib
import types
import typing
from typing import Annotated, Any, TypeVar

from edge_gemma.errors import EdgeGemmaError

T = TypeVar("T")


class SchemaError(ValueError):
    """The data does not have the shape of the dataclass; the message says where."""


def from_dict(cls: type[T], data: Any, where: str = "") -> T:
    """Build a dataclass from decoded JSON, checking every key and type.

    A field of type Annotated[T, parse, what] is text in the data, of which `parse` makes a T.

    Raises:
        SchemaError: a key is unknown or missing, or a value has the wrong type.
    """
    place = where or "the top level"
    if not isinstance(data, dict):
        raise SchemaError(f"{place} holds {type(data).__name__}, expected an object")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # T is a dataclass
    if unknown := sorted(map(str, set(data) - set(fields))):
        raise SchemaError(f"unknown key {unknown[0]!r} at {place}")
    required = {n for n, f in fields.items() if f.default is dataclasses.MISSING}
    if missing := sorted(required - set(data)):
        raise SchemaError(f"missing key {missing[0]!r} at {place}")
    hints = _hints(cls)  # type: ignore[arg-type]  # classes are hashable
    return cls(**{name: _value(hints[name], data[name], f"{where}.{name}".lstrip(".")) for name in data})


@functools.cache  # a manifest has hundreds of objects of a few classes
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _value(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:  # text that a function reads
        _, parse, what = arguments
        try:
            if isinstance(value, str):
                return parse(value)
        except EdgeGemmaError as error:
            raise SchemaError(f"{where}: {error}") from None
        raise SchemaError(f"{where} is {reprlib.repr(value)}, expected {what}")
    if origin in (types.UnionType, typing.Union):
        if isinstance(value, dict) and (objects := [o for o in arguments if dataclasses.is_dataclass(o)]):
            return _value(objects[0], value, where)  # its error says which key is wrong
        for option in arguments:
            try:
                return _value(option, value, where)
            except SchemaError:
                continue
    elif dataclasses.is_dataclass(kind):
        return from_dict(kind, value, where)  # type: ignore[arg-type]  # a dataclass type, not an instance
    elif origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_value(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    elif origin is dict and isinstance(value, dict):
        return {str(k): _value(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    elif kind is float and type(value) is int:
        return float(value)
    elif origin is None and type(value) is kind:
        return value
    elif kind is type(None) and value is None:
        return None
    name = getattr(kind, "__name__", str(kind)) if origin is None else str(kind)
    raise SchemaError(f"{where} is {reprlib.repr(value)}, expected {name}")
