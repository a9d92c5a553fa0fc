"""Sizes foretold are the sizes that come out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from edge_gemma.artifact import DECODER, MemorySpec
from edge_gemma.export.checkpoint import open_checkpoint
from edge_gemma.export.graph import ALIGNMENT
from edge_gemma.export.pipeline import export
from edge_gemma.export.synthetic import CONFIGS, SyntheticCheckpoint
from edge_gemma.export.towers import tower_shapes
from edge_gemma.footprint import decoder_bytes, encoder_bytes, memory_spec
from edge_gemma.recipes import MatrixFormat, find_recipe
from edge_gemma.shapes import is_read, text_shapes

TINY = SyntheticCheckpoint.from_name("synthetic:tiny").config.text
E2B = SyntheticCheckpoint.from_name("synthetic:E2B").config.text


@pytest.mark.parametrize("recipe", ["fp32", "int8", "int4"])
def test_decoder_bytes(recipe: str, tmp_path: Path) -> None:
    """To 2 %, apart from the gaps that align tensors (which a model of the real size does not notice)."""
    export(open_checkpoint("synthetic:tiny"), find_recipe(recipe), tmp_path / "artifact")
    models = [onnx.load(tmp_path / "artifact" / name, load_external_data=False) for name in DECODER]
    weights = [t for model in models for t in model.graph.initializer if "constant" not in t.name]
    outside = [{e.key: e.value for e in t.external_data} for t in weights if t.external_data]
    stored = sum(int(entry["length"]) for entry in outside)
    inside = sum(len(t.raw_data) for t in weights)
    foretold = decoder_bytes(TINY, find_recipe(recipe))
    assert foretold == pytest.approx(stored + inside, rel=0.02)
    size = (tmp_path / "artifact" / "decoder.data").stat().st_size
    assert stored <= size <= stored + ALIGNMENT * len(outside)
    ends = [int(entry["offset"]) + int(entry["length"]) for entry in outside]
    assert size == max(ends) and all(int(entry["offset"]) % ALIGNMENT == 0 for entry in outside)


def test_each_recipe_takes_its_share() -> None:
    """Of E2B at full size: 4 bytes a weight, then about a quarter and an eighth of that."""
    sizes = {name: decoder_bytes(E2B, find_recipe(name)) for name in ("fp32", "int8", "int4")}
    read = {n: s for n, s in text_shapes(E2B).items() if is_read(E2B, n)}
    del read["embed_tokens_per_layer.weight"]
    weights = sum(s[0] * (s[1] if len(s) == 2 else 1) for s in read.values())
    assert sizes["fp32"] == 4 * weights
    assert 0.25 < sizes["int8"] / sizes["fp32"] < 0.27
    assert 0.125 < sizes["int4"] / sizes["fp32"] < 0.15


def test_what_is_read() -> None:
    unread = [name for name in text_shapes(E2B) if not is_read(E2B, name)]
    assert len(unread) == 3 * 10  # k_proj, v_proj and k_norm of the ten sharing layers
    assert not any(name.startswith(f"layers.{i}.") for i in range(20) for name in unread)
    assert all(".self_attn.k_" in name or ".self_attn.v_" in name for name in unread)


@pytest.mark.parametrize(("recipe", "kv_bytes"), [("fp32", 4), ("int8", 2)])
def test_memory_spec(recipe: str, kv_bytes: int) -> None:
    found = memory_spec(E2B, find_recipe(recipe), 1000)
    row = 2 * 2 * 256 * kv_bytes  # K and V, heads, width
    assert (found.scores_per_pair, found.keys_per_token) == (32, 1024 if kv_bytes == 2 else 0)
    int8 = replace(find_recipe(recipe), kv_cache={"sliding": "float16", "global": "int8"})
    blockwise = memory_spec(E2B, int8, 1000)
    assert (blockwise.scores_per_pair, blockwise.keys_per_token) == (0, 0)
    assert (found.kv_per_token, found.kv_per_window_row) == (4 * row, 16 * row)  # of 20 owning layers
    assert (found.sliding_window, found.tokenizer) == (512, 1000)
    assert found.logits == 2 * 4 * 262_400
    assert found.largest_matrix < found.weights
    assert found.weights == pytest.approx(decoder_bytes(E2B, find_recipe(recipe)), rel=0.1)


def test_memory_spec_goes_into_the_manifest(tiny_artifact: Path) -> None:
    from edge_gemma.artifact import read
    from edge_gemma.planning import Needs, plan

    manifest = read(tiny_artifact).manifest
    assert manifest.memory == memory_spec(TINY, find_recipe("int4"), manifest.memory.tokenizer)
    assert isinstance(manifest.memory, MemorySpec)
    assert manifest.memory_estimate == {
        str(n): plan(Needs.of(manifest), context=n).peak for n in (1024, 4096, 8192, 16384, 32768)
    }


def test_a_tokenizer_takes_its_tables(tiny_artifact: Path) -> None:
    from edge_gemma.artifact import read

    manifest = read(tiny_artifact).manifest
    assert manifest.memory.tokenizer == manifest.files["tokenizer.bin"].bytes


@pytest.mark.parametrize("kind", ["audio", "vision"])
@pytest.mark.parametrize("bits", [None, 8])
def test_size_of_an_encoder(kind: str, bits: int | None) -> None:
    """Of the real ones, as `benchmarks.encoders` finds them: 657 and 303 MiB at 8 bits."""
    shapes = tower_shapes(CONFIGS["E2B"], kind).values()
    fmt = MatrixFormat(bits=8, block=128, zero_points=False) if bits else None
    expected = {"audio": (2597, 657), "vision": (1139, 303)}[kind][bits is not None]
    assert encoder_bytes(shapes, fmt) / 2**20 == pytest.approx(expected, rel=0.05)
