"""Quantization recipes: read from recipes.yaml or from a file of the user's."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from edge_gemma.errors import RecipeError
from edge_gemma.schema import SchemaError, from_dict
from edge_gemma.yaml_file import read_entries

BUILT_IN = Path(__file__).with_name("recipes.yaml")
DEFAULT_RECIPE = "int4"
MATRIX_KINDS = (
    "attention",
    "attention_output",
    "mlp",
    "head",
    "altup",
    "laurel",
    "per_layer_input",
    "audio",
    "vision",
)
ROW_KINDS = ("embedding", "per_layer")
KV_DTYPES = {"sliding": ("float32", "float16"), "global": ("float32", "float16", "int8")}


@dataclass(frozen=True, kw_only=True)
class MatrixFormat:
    """How one class of matrices is stored."""

    bits: int  # of a code: 4 or 8
    block: int  # consecutive weights along K that share one scale: a power of two, 16 or more
    zero_points: bool  # True: one is searched for each block; False: it is 2**(bits-1) everywhere

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise RecipeError(f"found bits={self.bits} in a matrix format; expected 4 or 8")
        if self.block < 16 or self.block & (self.block - 1):
            raise RecipeError(
                f"found block={self.block} in a matrix format; expected a power of two, 16 or more"
            )


@dataclass(frozen=True, kw_only=True)
class RowFormat:
    """How one vector of an embedding record is stored."""

    bits: int  # 32, 8 or 4
    block: int  # values that share one scale; unused at 32 bits


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the export does to every class of tensor."""

    name: str
    description: str
    accuracy_level: int  # of MatMulNBits: 4 is int8 activations, 1 is float32
    matrices: dict[str, MatrixFormat | None]  # by MATRIX_KINDS; None keeps float32
    rows: dict[str, RowFormat]  # by ROW_KINDS
    kv_cache: dict[str, str]  # sliding, global → dtype

    @property
    def global_kv(self) -> tuple[str, ...]:
        """dtypes of the global layers' KV cache that an artifact has graphs for, the recipe's own first."""
        own = self.kv_cache["global"]
        return (own, "int8") if own == "float16" else (own,)

    def details(self) -> dict[str, object]:
        """The recipe as plain data, for the manifest."""
        return dataclasses.asdict(self)


def load_recipes(path: Path = BUILT_IN) -> dict[str, Recipe]:
    """All recipes of a file, by name.

    Raises:
        RecipeError: the file is missing or malformed, or a recipe asks for what cannot be done.
    """
    recipes = {}
    for name, fields in read_entries(path, "recipe", RecipeError).items():
        try:
            recipes[name] = from_dict(Recipe, {**fields, "name": name})
            _check(recipes[name])
        except (SchemaError, RecipeError, ValueError) as error:
            raise RecipeError(f"recipe {name!r} in {path}: {error}") from None
    return recipes


def find_recipe(name: str) -> Recipe:
    """A built-in recipe by name, or the only recipe of a YAML file given by its path."""
    if name.endswith((".yaml", ".yml")):
        recipes = load_recipes(Path(name))
        if len(recipes) != 1:
            raise RecipeError(f"{name} holds {len(recipes)} recipes, expected one")
        return next(iter(recipes.values()))
    recipes = load_recipes()
    if name not in recipes:
        raise RecipeError(f"no recipe is called {name!r}: choose {', '.join(recipes)}, or give a .yaml file")
    return recipes[name]


def _check(recipe: Recipe) -> None:
    for label, found, expected in (
        ("matrices", recipe.matrices, MATRIX_KINDS),
        ("rows", recipe.rows, ROW_KINDS),
        ("kv_cache", recipe.kv_cache, tuple(KV_DTYPES)),
    ):
        if set(found) != set(expected):
            raise ValueError(f"{label} names {sorted(found)}, expected {sorted(expected)}")
    for kind, fmt in recipe.matrices.items():
        if fmt and (fmt.bits not in (4, 8) or fmt.block not in (16, 32, 64, 128, 256)):
            raise ValueError(
                f"{kind} has {fmt.bits} bits in blocks of {fmt.block}, expected 4 or 8 and 16 … 256"
            )
    for kind, row in recipe.rows.items():
        if row.bits not in (4, 8, 32) or (row.bits != 32 and (row.block < 2 or row.block % 2)):
            raise ValueError(
                f"{kind} rows have {row.bits} bits in blocks of {row.block}, expected 4, 8 or 32 bits"
            )
    for kind, dtype in recipe.kv_cache.items():
        if dtype not in KV_DTYPES[kind]:
            raise ValueError(f"{kind} KV cache is {dtype}, expected {' or '.join(KV_DTYPES[kind])}")
    if recipe.accuracy_level not in (0, 1, 4):
        raise ValueError(f"accuracy_level is {recipe.accuracy_level}, expected 0, 1 or 4")
