"""JSON data becomes dataclasses strictly: what does not fit is refused where it stands."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_gemma.errors import PromptError
from edge_gemma.schema import SchemaError, from_dict


def halve(text: str) -> int:
    if not text.isdecimal():
        raise PromptError(f"{text!r} is not a number")
    return int(text) // 2


@dataclass(frozen=True, kw_only=True)
class Parsed:
    half: Annotated[int, halve, "a number as text"]
    halves: tuple[Annotated[int, halve, "a number as text"], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Leaf:
    size: int
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Tree:
    name: str
    scale: float
    flag: bool
    shape: tuple[int | str, ...]
    leaf: Leaf
    leaves: tuple[Leaf, ...]
    by_name: dict[str, Leaf]
    maybe: Leaf | None
    anything: dict[str, Any]


GOOD: dict[str, Any] = {
    "name": "a",
    "scale": 0.5,
    "flag": True,
    "shape": [1, "S"],
    "leaf": {"size": 1},
    "leaves": [{"size": 2, "note": "n"}],
    "by_name": {"x": {"size": 3}},
    "maybe": None,
    "anything": {"k": [1, {"deep": None}]},
}
leaves = st.builds(Leaf, size=st.integers(), note=st.none() | st.text())
trees = st.builds(
    Tree,
    name=st.text(),
    scale=st.floats(allow_nan=False),
    flag=st.booleans(),
    shape=st.lists(st.integers() | st.text()).map(tuple),
    leaf=leaves,
    leaves=st.lists(leaves).map(tuple),
    by_name=st.dictionaries(st.text(), leaves),
    maybe=st.none() | leaves,
    anything=st.dictionaries(st.text(), st.lists(st.integers())),
)


@given(trees)
def test_round_trip_through_json(tree: Tree) -> None:
    assert from_dict(Tree, json.loads(json.dumps(dataclasses.asdict(tree)))) == tree


def test_defaults_and_whole_floats() -> None:
    tree = from_dict(Tree, GOOD | {"scale": 2})
    assert tree.leaf == Leaf(size=1, note=None)
    assert tree.scale == 2.0 and type(tree.scale) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, "unknown key 'extra' at the top level"),
        ({1: 1, "extra": 1}, "unknown key '1' at the top level"),
        ({"name": 1}, "name is 1, expected str"),
        ({"flag": 1}, "flag is 1, expected bool"),
        ({"leaf": {"size": True}}, "leaf.size is True, expected int"),
        ({"leaf": {"size": 1.0}}, "leaf.size is 1.0, expected int"),
        ({"scale": "2"}, "scale is '2', expected float"),
        ({"shape": [1, 1.5]}, "shape[1] is 1.5, expected int | str"),
        ({"shape": 3}, "shape is 3, expected tuple[int | str, ...]"),
        ({"leaf": None}, "leaf holds NoneType, expected an object"),
        ({"leaf": {}}, "missing key 'size' at leaf"),
        ({"leaves": [{"size": 1}, {"size": 1, "x": 0}]}, "unknown key 'x' at leaves[1]"),
        ({"by_name": {"x": {"size": "1"}}}, "by_name.x.size is '1', expected int"),
        ({"maybe": {"sise": 1}}, "unknown key 'sise' at maybe"),
        ({"maybe": 3}, "maybe is 3, expected "),
    ],
)
def test_says_what_is_wrong_and_where(change: dict[Any, Any], message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        from_dict(Tree, GOOD | change)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("key", GOOD)
def test_every_key_is_needed(key: str) -> None:
    with pytest.raises(SchemaError, match=f"^missing key '{key}' at the top level$"):
        from_dict(Tree, {k: v for k, v in GOOD.items() if k != key})


@pytest.mark.parametrize("data", [None, 1, "text", [GOOD]])
def test_not_an_object(data: Any) -> None:
    with pytest.raises(SchemaError, match="^the top level holds .*, expected an object$"):
        from_dict(Tree, data)


def test_a_large_value_does_not_flood_the_message() -> None:
    with pytest.raises(SchemaError) as caught:
        from_dict(Tree, GOOD | {"name": ["line\n"] * 10_000})
    assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)


def test_text_is_read_by_the_field() -> None:
    assert from_dict(Parsed, {"half": "10", "halves": ["4", "6"]}) == Parsed(half=5, halves=(2, 3))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"half": 10}, "half is 10, expected a number as text"),
        ({"half": None}, "half is None, expected a number as text"),
        ({"half": "ten"}, "half: 'ten' is not a number"),
        ({"half": "1", "halves": ["2", "x"]}, "halves[1]: 'x' is not a number"),
    ],
)
def test_text_that_the_field_cannot_read(data: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        from_dict(Parsed, data)
    assert str(caught.value) == message
