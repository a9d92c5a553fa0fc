"""Calls in what a model wrote, as they stand there.

A call is {"name": "f", "parameters": {"n": 3}} or f(n=3), alone or in a list: the two forms that Google
documents for Gemma. They are the whole text, or the whole of its fenced blocks. Arguments of the second form
are literals, which `ast` reads: nothing is executed.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from edge_gemma.errors import ToolCallError

FENCE = re.compile(r"^```(?:json|tool_code|tool_call)?[ \t]*\n(.*?)\n```[ \t]*$", re.DOTALL | re.MULTILINE)
JSON_NAMES = {"true": True, "false": False, "null": None}
Written = list[tuple[str, dict[str, Any]]]  # name and arguments of each call


def written_calls(text: str, parameters: Mapping[str, Sequence[str]]) -> Written:
    """The calls of a text. `parameters` has the names of each tool's parameters.

    f(n=3) on its own is a call only if there is a tool f: otherwise it may well be an answer.

    Raises:
        ToolCallError: the arguments of a tool are no literals, or too many.
    """
    blocks = [match[1] for match in FENCE.finditer(text)] or [text]
    return [call for block in blocks for call in _json_calls(block) or _python_calls(block, parameters)]


def _json_calls(text: str) -> Written:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    found: Written = []
    for item in value if isinstance(value, list) else [value]:
        name = item.get("name") if isinstance(item, dict) else None
        arguments = item.get("parameters", item.get("arguments")) if name else None
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return []
        found.append((name, arguments))
    return found


def _python_calls(text: str, parameters: Mapping[str, Sequence[str]]) -> Written:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that the model wrote
            statements = ast.parse(text.strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found: Written = []
    for statement in statements:
        value = statement.value if isinstance(statement, ast.Expr) else None
        listed = isinstance(value, (ast.List, ast.Tuple))
        for node in value.elts if isinstance(value, (ast.List, ast.Tuple)) else [value]:
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                return []
            name = node.func.id
            if name not in parameters and not listed:
                return []
            found.append((name, _literals(node, name, parameters[name]) if name in parameters else {}))
    return found


def _literals(node: ast.Call, name: str, parameters: Sequence[str]) -> dict[str, Any]:
    """The arguments of a call as JSON has them; those without a name have the parameters' names in turn."""
    given = [*zip(parameters, node.args, strict=False), *((k.arg, k.value) for k in node.keywords)]
    try:
        found = {key: ast.literal_eval(_JsonNames().visit(value)) for key, value in given if key}
        found = json.loads(json.dumps(found))  # tuples become lists, sets are refused
    except (ValueError, TypeError, RecursionError, MemoryError):
        found = {}
    if len(found) < len(node.args) + len(node.keywords):
        raise ToolCallError(
            f'the parameters of {name} cannot be read; expected literals such as "text", 3 and true, for '
            f"{', '.join(parameters) or 'no name'}"
        )
    return found


class _JsonNames(ast.NodeTransformer):
    """JSON's names of constants become Python's constants."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(JSON_NAMES[node.id]) if node.id in JSON_NAMES else node
