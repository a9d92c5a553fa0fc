"""JSON Schema of Python functions, and whether and how arguments fit it."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, Literal, Union

from edge_gemma.errors import PromptError, ToolCallError

Schema = dict[str, Any]
SCALARS: dict[Any, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    type(None): "null",
}
TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: _is_bool(value),
    "integer": lambda value: TYPES["number"](value) and (isinstance(value, int) or value.is_integer()),
    "number": lambda value: (
        not _is_bool(value) and (isinstance(value, int) or isinstance(value, float) and isfinite(value))
    ),
    "null": lambda value: value is None,
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
FORMS = {
    "properties": dict,
    "required": list,
    "enum": list,
    "anyOf": list,
    "oneOf": list,
}  # of a schema's keys
DEEPEST = 64  # levels of a schema; what reads it is recursive
ARGUMENT = re.compile(r"\s*(\w+)\s*(?:\([^)]*\))?:\s*(.*)")  # of an Args section: `name (type): text`


def describe(function: Callable[..., Any]) -> tuple[str, str, Schema]:
    """Name, description and parameters of a function, from its signature, type hints and docstring.

    The description is the docstring's first paragraph, that of a parameter comes from the section Args. A
    parameter with a default is not required.

    Raises:
        PromptError: a parameter cannot be written as JSON Schema.
    """
    name = getattr(function, "__name__", type(function).__name__)
    description, about = _read_docstring(inspect.getdoc(function) or "")
    hints = typing.get_type_hints(function)
    properties: dict[str, Schema] = {}
    required = []
    for parameter in inspect.signature(function).parameters.values():
        where = f"the parameter {parameter.name} of {name}"
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise PromptError(f"{where} has no name that a call can give; expected named parameters only")
        schema = schema_of(hints.get(parameter.name, parameter.empty), where)
        if parameter.name in about:
            schema["description"] = about[parameter.name]
        properties[parameter.name] = schema
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    return name, description, _object(properties, required)


def schema_of(hint: Any, where: str) -> Schema:
    """The schema of a type: str, int, float, bool, None, Any, Literal, unions, list, dict, a dataclass or a
    TypedDict, and those in one another.

    Raises:
        PromptError: it is another type; the message calls it `where`.
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return {}
    if hint in SCALARS:
        return {"type": SCALARS[hint]}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [schema_of(one, where) for one in inner]}
    if hint is list or origin is list:
        return {"type": "array"} | ({"items": schema_of(inner[0], where)} if inner else {})
    if hint is dict or (origin is dict and inner[0] is str):
        values = schema_of(inner[1], where) if inner else {}
        return {"type": "object"} | ({"additionalProperties": values} if values else {})
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = typing.get_type_hints(hint)
        fields = [field for field in dataclasses.fields(hint) if field.init]
        required = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
        return _object({f.name: schema_of(hints[f.name], where) for f in fields}, required)
    if typing.is_typeddict(hint):
        members = {name: schema_of(one, where) for name, one in typing.get_type_hints(hint).items()}
        return _object(members, [name for name in members if name in hint.__required_keys__])
    found = "no type hint" if hint is inspect.Parameter.empty else f"the type {hint!r}"
    raise PromptError(
        f"{where} has {found}; expected str, int, float, bool, Literal, Optional, list, dict, a dataclass or "
        "a TypedDict"
    )


def check_schema(schema: Any, where: str) -> None:
    """Whether what `check` reads of a schema is well-formed.

    Raises:
        PromptError: it is not, or nested too deep; the message calls it `where`.
    """
    if not _shallow(schema, DEEPEST):
        raise PromptError(f"{where} is nested too deep; expected at most {DEEPEST} levels")
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        raise PromptError(f"{where} is {_brief(schema)}; expected a JSON Schema, a dict")
    for key, form in FORMS.items():
        if key in schema and not isinstance(schema[key], form):
            raise PromptError(f"{key} of {where} is {_brief(schema[key])}; expected a {form.__name__}")
    if unknown := [name for name in _type_names(schema) if name not in TYPES]:
        raise PromptError(f"{where} has the type {_brief(unknown[0])}; expected one of {', '.join(TYPES)}")
    for name, inner in schema.get("properties", {}).items():
        check_schema(inner, f"{where}.{name}")
    for key in ("items", "additionalProperties"):
        check_schema(schema.get(key, True), f"{key} of {where}")
    for inner in [*schema.get("anyOf", []), *schema.get("oneOf", [])]:
        check_schema(inner, where)


def check(value: Any, schema: Any, where: str) -> None:
    """Whether a value fits a schema, by its type, enum, const, anyOf, required, properties and items.

    What else a schema asks for (ranges, patterns, references) is not looked at: a grammar made of the schema
    keeps to it. Properties that an object's schema does not name are refused unless it speaks of them.

    Raises:
        ToolCallError: it does not fit; the message calls it `where`.
    """
    if isinstance(schema, bool):  # False is for members and items that may not be there at all
        return
    names = _type_names(schema)
    if names and not any(TYPES[name](value) for name in names):
        raise ToolCallError(f"{where} is {_brief(value)}; expected {' or '.join(names)}")
    allowed = [schema["const"]] if "const" in schema else schema.get("enum")
    if allowed is not None and not any(value == v and _is_bool(value) == _is_bool(v) for v in allowed):
        raise ToolCallError(f"{where} is {_brief(value)}; expected one of {_brief(allowed)}")
    for several in (schema[key] for key in ("anyOf", "oneOf") if key in schema):
        if not any(_fits(value, one, where) for one in several):
            raise ToolCallError(f"{where} is {_brief(value)}; expected one of {_brief(several)}")
    if isinstance(value, dict):
        _check_members(value, schema, where)
    if isinstance(value, list) and "items" in schema:
        for number, item in enumerate(value):
            check(item, schema["items"], f"{where}[{number}]")


def convert_arguments(arguments: Mapping[str, Any], function: Callable[..., Any]) -> dict[str, Any]:
    """Arguments that fit the schema of a function's parameters, as values of the types of its hints."""
    hints = typing.get_type_hints(function) if inspect.isroutine(function) else {}
    return {name: convert(value, hints.get(name, Any)) for name, value in arguments.items()}


def convert(value: Any, hint: Any) -> Any:
    """JSON that fits the schema of a type, as a value of it: 3 as the float 3.0, a dict as a dataclass."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        fitting = (one for one in inner if _fits(value, schema_of(one, ""), ""))
        return convert(value, next(fitting, Any))
    if hint in (int, float) and TYPES["number"](value):
        return hint(value)
    if origin is list:
        return [convert(item, inner[0]) for item in value]
    if origin is dict:
        return {name: convert(item, inner[1]) for name, item in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = typing.get_type_hints(hint)
        return hint(**{name: convert(item, hints[name]) for name, item in value.items()})
    return value


def _check_members(value: dict[str, Any], schema: Mapping[str, Any], where: str) -> None:
    properties = schema.get("properties", {})
    if missing := [name for name in schema.get("required", []) if name not in value]:
        raise ToolCallError(f"{where} are without {missing[0]!r}; expected {', '.join(schema['required'])}")
    others = schema.get("additionalProperties", "properties" not in schema)
    for name, item in value.items():
        if name in properties:
            check(item, properties[name], f"{where}.{name}")
        elif others is False:
            known = ", ".join(properties) or "none"
            raise ToolCallError(f"{where} have the name {name!r}; expected none but {known}")
        else:
            check(item, others, f"{where}.{name}")


def _type_names(schema: Mapping[str, Any]) -> list[Any]:
    wanted = schema.get("type", [])
    return wanted if isinstance(wanted, list) else [wanted]


def _is_bool(value: Any) -> bool:  # True == 1 in Python, and not in JSON
    return isinstance(value, bool)


def _shallow(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return levels > 0 and all(_shallow(item, levels - 1) for item in inner)


def _fits(value: Any, schema: Any, where: str) -> bool:
    try:
        check(value, schema, where)
    except ToolCallError:
        return False
    return True


def _object(properties: dict[str, Schema], required: list[str]) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """The first paragraph, and the texts of the section Args by name."""
    first = " ".join(text.partition("\n\n")[0].split())
    about: dict[str, str] = {}
    name, indent = "", 0
    for line in text.partition("\nArgs:\n")[2].splitlines():
        if line.strip() and not line.startswith(" "):
            break  # another section
        depth = len(line) - len(line.lstrip())
        match = ARGUMENT.fullmatch(line)
        if match and (not name or depth <= indent):
            name, indent = match[1], depth
            about[name] = match[2]
        elif name:
            about[name] = f"{about[name]} {line.strip()}".strip()
    return first, about


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
