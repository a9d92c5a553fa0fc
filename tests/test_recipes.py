"""Recipes: the built-in ones are complete, a user's file works, and what cannot be done is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from edge_gemma import artifact as artifacts
from edge_gemma.errors import RecipeError
from edge_gemma.export.checkpoint import open_checkpoint
from edge_gemma.export.pipeline import export
from edge_gemma.recipes import (
    BUILT_IN,
    KV_DTYPES,
    MATRIX_KINDS,
    ROW_KINDS,
    MatrixFormat,
    find_recipe,
    load_recipes,
)

MINE: dict[str, Any] = {
    "description": "Mine.",
    "accuracy_level": 4,
    "matrices": {kind: {"bits": 4, "block": 32, "zero_points": False} for kind in MATRIX_KINDS},
    "rows": {"embedding": {"bits": 32, "block": 0}, "per_layer": {"bits": 4, "block": 16}},
    "kv_cache": {"sliding": "float16", "global": "int8"},
}


def write(path: Path, data: object) -> str:
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data), "utf-8")
    return str(path)


def refusal(name: str) -> str:
    with pytest.raises(RecipeError) as caught:
        find_recipe(name)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    return str(caught.value)


def test_built_in_recipes_are_complete() -> None:
    recipes = load_recipes()
    assert {"fp32", "int8", "int4"} <= set(recipes)
    for name, recipe in recipes.items():
        assert find_recipe(name) == recipe
        assert recipe.name == name and recipe.description
        assert set(recipe.matrices) == set(MATRIX_KINDS)
        assert set(recipe.rows) == set(ROW_KINDS)
        assert set(recipe.kv_cache) == set(KV_DTYPES)
    assert set(recipes["fp32"].matrices.values()) == {None}
    assert {row.bits for row in recipes["fp32"].rows.values()} == {32}


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_a_users_file_works_through_an_export(tmp_path: Path, suffix: str) -> None:
    recipe = find_recipe(write(tmp_path / f"mine{suffix}", {"mine": MINE}))
    assert recipe.matrices["mlp"] == MatrixFormat(bits=4, block=32, zero_points=False)
    export(open_checkpoint("synthetic:tiny"), recipe, tmp_path / "artifact")
    manifest = artifacts.read(tmp_path / "artifact").manifest
    assert manifest.recipe == "mine"
    assert {k: manifest.recipe_details[k] for k in MINE} == MINE
    assert {(b.kind, b.dtype) for b in manifest.decoder.kv} == {("sliding", "float16"), ("global", "int8")}


def test_unknown_names(tmp_path: Path) -> None:
    names = ", ".join(load_recipes())
    assert refusal("int3") == f"no recipe is called 'int3': choose {names}, or give a .yaml file"
    assert "none.yaml does not exist: expected a recipe file" in refusal(str(tmp_path / "none.yaml"))
    (tmp_path / "folder.yaml").mkdir()
    assert "folder.yaml cannot be read: Is a directory" in refusal(str(tmp_path / "folder.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: }", "is not valid YAML"),
        ("a: !!python/object:os.system {}", "is not valid YAML"),
        ("\x00", "is not valid YAML"),
        ("mine: 2026-02-30", "is not valid YAML"),
        ("mine: !!bool x", "is not valid YAML"),
        ("mine: !!timestamp x", "is not valid YAML"),
        ("mine: !!int ''", "is not valid YAML"),
        ("mine: " + "[" * 5000, "is not valid YAML"),
        ("? [a]\n: 1", "is not valid YAML"),
        ("", "holds NoneType, expected recipes by name"),
        ("- 1", "holds list, expected recipes by name"),
        ("{}", "holds 0 recipes, expected one"),
        ("mine: 3", "recipe 'mine' in "),
        ("mine:", "holds NoneType, expected a mapping"),
        ("mine: {1: 2, x: 3}", "unknown key '1'"),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(write(tmp_path / "mine.yaml", text))


def test_two_recipes_in_a_file(tmp_path: Path) -> None:
    path = write(tmp_path / "two.yaml", {"a": MINE, "b": MINE})
    assert "holds 2 recipes, expected one" in refusal(path)
    path = write(tmp_path / "two.yaml", BUILT_IN.read_text("utf-8"))
    assert f"holds {len(load_recipes())} recipes, expected one" in refusal(path)


def matrix(**change: object) -> dict[str, object]:
    formats = MINE["matrices"]
    return {"matrices": formats | {"mlp": {"bits": 4, "block": 32, "zero_points": False} | change}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, "unknown key 'extra'"),
        ({"accuracy_level": 5}, "accuracy_level is 5, expected 0, 1 or 4"),
        ({"accuracy_level": "4"}, "accuracy_level is '4', expected int"),
        ({"matrices": {}}, "matrices names [], expected ['altup', "),
        ({"matrices": dict.fromkeys((*MATRIX_KINDS, "router"))}, "'router'"),
        ({"rows": {"embedding": {"bits": 32, "block": 0}}}, "rows names ['embedding'], expected"),
        ({"kv_cache": {"sliding": "float16"}}, "kv_cache names ['sliding'], expected"),
        (
            {"kv_cache": {"sliding": "int8", "global": "int8"}},
            "sliding KV cache is int8, expected float32 or",
        ),
        (matrix(bits=3), "bits=3"),
        (matrix(block=48), "block=48"),
        (matrix(block=512), "blocks of 512"),
        (matrix(block="32"), "matrices.mlp.block is '32', expected int"),
        (matrix(blok=32), "unknown key 'blok' at matrices.mlp"),
        ({"rows": MINE["rows"] | {"per_layer": {"bits": 6, "block": 32}}}, "per_layer rows have 6 bits"),
        ({"rows": MINE["rows"] | {"per_layer": {"bits": 4, "block": 0}}}, "in blocks of 0"),
        ({"rows": MINE["rows"] | {"per_layer": {"bits": 4, "block": 15}}}, "in blocks of 15"),
    ],
)
def test_what_cannot_be_done(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = write(tmp_path / "mine.yaml", {"mine": MINE | change})
    found = refusal(path)
    assert found.startswith(f"recipe 'mine' in {path}: ") and message in found
