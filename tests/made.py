"""The artifacts that the runtime's tests open, by name.

They are exported where they are asked for; or, where EDGE_GEMMA_TEST_ARTIFACTS names a folder that
tests/arm/record.py wrote, taken from it. So the runtime's tests run on boards and on emulated ARM
processors, which have neither torch nor onnx. Therefore the exporter is imported inside of functions.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_gemma.artifact import MANIFEST
from edge_gemma.recipes import Recipe, find_recipe
from edge_gemma.submodels import Submodel

VARIABLE = "EDGE_GEMMA_TEST_ARTIFACTS"
DEMO_CHECKPOINT = Path(__file__).parent.parent / "demo" / "checkpoint"
LEVELS = (
    Submodel("small", (0, 1, 2, 3, 4, 5, 7, 9), (128,) * 8),
    Submodel("large", tuple(range(10)), (256,) * 10),
)

# modules of tests/runtime that are about nothing but equality with a library that only exporters have
REFERENCES = {"test_bpe.py": "tokenizers", "test_chat.py": "tokenizers", "test_tokenizer.py": "tokenizers"}


def installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def needs(library: str) -> Any:
    """A library that the test compares with, or exports with; where it is missing the test is skipped."""
    return pytest.importorskip(library, reason=f"{library}, which this test needs, is not installed")


def folder() -> Path | None:
    """What EDGE_GEMMA_TEST_ARTIFACTS names."""
    named = os.environ.get(VARIABLE)
    return Path(named).absolute() if named else None


def find(name: str, make_in: Callable[[], Path]) -> Path:
    """The artifact of that name, from the folder that was made beforehand or else exported anew."""
    if shelf := folder():
        if not (shelf / name / MANIFEST).exists():
            pytest.fail(
                f"{VARIABLE} names {shelf}, which lacks the artifact {name}: run `make test-artifacts`"
            )
        return shelf / name
    target = make_in() / name
    MAKERS[name](target)
    return target


def int8_kv() -> Recipe:
    recipe = find_recipe("int4")
    return replace(recipe, kv_cache=recipe.kv_cache | {"global": "int8"})


def _export(source: str, recipe: Recipe, target: Path, **options: Any) -> None:
    from edge_gemma.export.checkpoint import open_checkpoint
    from edge_gemma.export.pipeline import export

    export(open_checkpoint(source), recipe, target, **options)


def _synthetic(recipe: str) -> Callable[[Path], None]:
    return lambda target: _export("synthetic:tiny", find_recipe(recipe), target)


def _random(seed: int = 0, levels: tuple[Submodel, ...] = (), **changes: Any) -> Callable[[Path], None]:
    """In float32 of a random checkpoint (tests/tiny.py) with these changes."""

    def make(target: Path) -> None:
        import tiny

        with tempfile.TemporaryDirectory() as checkpoint:
            tiny.make(Path(checkpoint), seed, **changes)
            _export(checkpoint, find_recipe("fp32"), target, **({"levels": levels} if levels else {}))

    return make


def _multimodal(target: Path) -> None:
    import multimodal

    with tempfile.TemporaryDirectory() as checkpoint:
        multimodal.make(Path(checkpoint))
        _export(checkpoint, find_recipe("fp32"), target)


def export_demo(recipe: str, target: Path, *, media: bool = True) -> None:
    """The demo checkpoint's artifact, with both encoders or none."""
    _export(str(DEMO_CHECKPOINT), find_recipe(recipe), target, audio=media, vision=media)


ONLY_SLIDING: dict[str, Any] = {  # tiny.SHAPES has it too, and needs torch
    "num_hidden_layers": 6,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention"] * 6,
    "activation_sparsity_pattern": 0.0,
}
MAKERS: dict[str, Callable[[Path], None]] = {
    "tiny-fp32": _synthetic("fp32"),
    "tiny-int8": _synthetic("int8"),
    "tiny-int4": _synthetic("int4"),
    "tiny-int4-hq": _synthetic("int4-hq"),
    "tiny-int4-int8-kv": lambda target: _export("synthetic:tiny", int8_kv(), target),
    "multimodal-fp32": _multimodal,
    "elastic-fp32": _random(levels=LEVELS, intermediate_size=256),
    "window-9": _random(1, sliding_window=9),
    "long-context": _random(2, max_position_embeddings=4096),
    "only-sliding": _random(1, sliding_window=9, **ONLY_SLIDING),
    "demo-text-fp32": lambda target: export_demo("fp32", target, media=False),
}
