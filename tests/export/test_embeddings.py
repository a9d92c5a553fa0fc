"""Records hold what transformers looks up for an id, whichever part of the vocabulary it is from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    Gemma3nAudioConfig,
    Gemma3nConfig,
    Gemma3nForConditionalGeneration,
    Gemma3nTextConfig,
    Gemma3nVisionConfig,
)
from transformers.models.gemma3n import modeling_gemma3n

from edge_gemma import artifact as artifacts
from edge_gemma.artifact import EmbeddingSpec
from edge_gemma.errors import RecipeError
from edge_gemma.export.checkpoint import Checkpoint, open_checkpoint
from edge_gemma.export.embeddings import (
    CHUNK,
    _store,
    embedding_layout,
    embedding_rows,
    per_layer_rows,
    write_embeddings,
)
from edge_gemma.export.parity import compare
from edge_gemma.export.pipeline import export
from edge_gemma.export.quantize import dequantize_rows, quantize_rows
from edge_gemma.export.verify import forced_logits
from edge_gemma.progress import Silent
from edge_gemma.recipes import Recipe, RowFormat, find_recipe
from edge_gemma.runtime.decoder import Decoder
from edge_gemma.runtime.embeddings import EmbeddingStore, dequantize

# 384 text ids, then 8 image ids, then 8 audio ids: the embedding table has 400 rows, the per-layer one 384
VISION = {"vocab_offset": 384, "vocab_size": 8, "hidden_size": 24, "rms_norm_eps": 1e-5}
AUDIO = {"vocab_offset": 392, "vocab_size": 8, "hidden_size": 32, "rms_norm_eps": 1e-3}
AUDIO_TOWER = {"conf_num_hidden_layers": 1, "conf_num_attention_heads": 2, "input_feat_size": 16}


def with_rows(embedding: RowFormat, per_layer: RowFormat) -> Recipe:
    return replace(find_recipe("fp32"), rows={"embedding": embedding, "per_layer": per_layer})


def write(checkpoint: Checkpoint, recipe: Recipe, path: Path) -> EmbeddingSpec:
    spec = write_embeddings(checkpoint, recipe, path, Silent())
    assert path.stat().st_size == spec.records * spec.record_bytes
    return spec


def test_text_records_are_exact(tmp_path: Path) -> None:
    """More ids than one chunk; those behind the per-layer table have its row 0."""
    checkpoint = open_checkpoint("synthetic:tiny")
    spec = write(checkpoint, find_recipe("fp32"), tmp_path / "embeddings.bin")
    assert spec.records == 1040 > CHUNK == 1024
    embeds, per_layer = EmbeddingStore(tmp_path / "embeddings.bin", spec).rows(range(1040))
    expected = checkpoint.tensor("embed_tokens.weight").numpy() * np.float32(8)  # sqrt(64)
    assert np.array_equal(embeds[0], expected)
    table = checkpoint.tensor("embed_tokens_per_layer.weight").numpy() * np.float32(4)  # sqrt(16)
    assert np.array_equal(per_layer[0, :1024].reshape(1024, -1), table)
    assert np.array_equal(per_layer[0, 1024:].reshape(16, -1), np.tile(table[0], (16, 1)))


@given(
    st.lists(st.integers(0, 1040) | st.integers(1020, 1040), min_size=2, max_size=2, unique=True).map(sorted)
)
def test_any_range_of_rows_is_that_of_the_whole(bounds: list[int]) -> None:
    checkpoint = open_checkpoint("synthetic:tiny")
    first, last = bounds
    for make in (embedding_rows, per_layer_rows):
        assert torch.equal(make(checkpoint, first, last), make(checkpoint, 0, 1040)[first:last])


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Gemma3nForConditionalGeneration without a vision tower: its folder, and the model."""
    folder = tmp_path_factory.mktemp("multimodal")
    config = Gemma3nConfig(
        text_config=Gemma3nTextConfig(**tiny.BASE),
        vision_config=Gemma3nVisionConfig(**VISION),
        audio_config=Gemma3nAudioConfig(**AUDIO, **AUDIO_TOWER),
        image_token_id=391,
        audio_token_id=399,
        boi_token_id=380,
        eoi_token_id=384,
        boa_token_id=381,
        eoa_token_id=392,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    real = modeling_gemma3n.AutoModel.from_config

    def from_config(config: Any, **options: Any) -> Any:
        return torch.nn.Identity() if isinstance(config, Gemma3nVisionConfig) else real(config, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_gemma3n.AutoModel, "from_config", from_config)
        model = Gemma3nForConditionalGeneration(config).eval()
    tiny.randomise(model)
    model.save_pretrained(folder)
    tiny.write_tokenizer(folder, 384)
    return folder, model


def test_marker_ids_have_the_hard_embeddings_of_their_tower(
    multimodal: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, model = multimodal
    spec = write(open_checkpoint(str(folder)), find_recipe("fp32"), tmp_path / "embeddings.bin")
    embeds, per_layer = EmbeddingStore(tmp_path / "embeddings.bin", spec).rows(range(400))
    with torch.no_grad():
        text = model.model.language_model.embed_tokens(torch.arange(384)).numpy()
        image = model.model.embed_vision(input_ids=torch.arange(384, 392)).numpy()
        audio = model.model.embed_audio(input_ids=torch.arange(392, 400)).numpy()
        rows = model.model.language_model.get_per_layer_inputs(torch.arange(400)[None]).numpy()
    assert np.array_equal(embeds[0, :384], text)
    np.testing.assert_allclose(embeds[0, 384:392], image, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(embeds[0, 392:], audio, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(per_layer, rows)


def test_whole_model_on_mixed_ids(multimodal: tuple[Path, Any], tmp_path: Path) -> None:
    """Text ids and the markers of both towers, through export and runtime."""
    folder, model = multimodal
    checkpoint = open_checkpoint(str(folder))
    manifest = export(checkpoint, find_recipe("fp32"), tmp_path / "artifact")
    assert manifest.tokens.media == {
        "boi": 380, "eoi": 384, "image": 391, "boa": 381, "eoa": 392, "audio": 399
    }  # fmt: skip
    ids = np.random.default_rng(0).integers(0, 400, 64)
    ids[10:20], ids[30:40] = np.arange(382, 392), np.arange(390, 400)
    artifact = artifacts.read(tmp_path / "artifact")
    store = EmbeddingStore(artifact.path("embeddings.bin"), manifest.embeddings)
    found = forced_logits(Decoder(artifact, threads=1), store, ids.tolist(), [0], chunk=16)
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(ids)[None]).logits[0].numpy()
    report = compare(found, expected)
    assert report.max_relative_error <= 1e-4 and report.argmax_agreement == 1.0


def test_towers_without_weights_leave_text_rows(multimodal: tuple[Path, Any]) -> None:
    """A text-only checkpoint may keep the towers' configuration."""
    checkpoint = open_checkpoint(str(multimodal[0]))
    checkpoint.has = lambda name: not name.startswith("embed_")  # type: ignore[method-assign]
    rows = embedding_rows(checkpoint, 380, 400)
    assert torch.equal(rows, checkpoint.rows("embed_tokens.weight", 380, 400) * 8)


FORMATS = [RowFormat(bits=bits, block=block) for bits in (4, 8) for block in (2, 8, 16, 32)]
row_formats = st.sampled_from([*FORMATS, RowFormat(bits=32, block=0)])


@given(
    embedding=row_formats,
    per_layer=row_formats,
    seed=st.integers(0, 2**32 - 1),
    exponent=st.integers(-20, 10),
)
def test_the_runtime_reads_what_quantization_wrote(
    embedding: RowFormat, per_layer: RowFormat, seed: int, exponent: int
) -> None:
    """Bit for bit, in any mix of formats side by side in a record."""
    recipe = with_rows(embedding, per_layer)
    spec = embedding_layout(open_checkpoint("synthetic:tiny"), recipe, "embeddings.bin")
    records = np.full((5, spec.record_bytes), 0xAA, np.uint8)
    rng = np.random.default_rng(seed)
    rows = {
        f.name: torch.from_numpy(rng.standard_normal((5, f.values), np.float32) * np.float32(2.0**exponent))
        for f in spec.fields
    }
    for field in spec.fields:
        _store(records, field, rows[field.name], recipe.rows[field.name])
    for field in spec.fields:
        fmt = recipe.rows[field.name]
        expected = rows[field.name].numpy()
        if fmt.bits != 32:
            codes, scales = quantize_rows(rows[field.name], bits=fmt.bits, block=fmt.block)
            expected = dequantize_rows(codes, scales, bits=fmt.bits, block=fmt.block)
        np.testing.assert_array_equal(dequantize(records, field), expected)


def test_fields_fill_the_record_without_overlap() -> None:
    recipe = with_rows(RowFormat(bits=8, block=32), RowFormat(bits=4, block=16))
    spec = embedding_layout(open_checkpoint("synthetic:tiny"), recipe, "embeddings.bin")
    assert spec.record_bytes == 64 + 160 // 2 + 2 * (64 // 32) + 2 * (160 // 16)
    assert [(f.offset, f.scale_offset) for f in spec.fields] == [(0, 144), (64, 148)]


def test_written_records_are_quantized_rows(tmp_path: Path) -> None:
    checkpoint = open_checkpoint("synthetic:tiny")
    spec = write(checkpoint, find_recipe("int4"), tmp_path / "embeddings.bin")
    records = np.fromfile(tmp_path / "embeddings.bin", np.uint8).reshape(1040, -1)
    for name, make in (("embedding", embedding_rows), ("per_layer", per_layer_rows)):
        field = spec.field(name)
        codes, scales = quantize_rows(make(checkpoint, 0, 1040), bits=field.bits, block=field.block)
        expected = dequantize_rows(codes, scales, bits=field.bits, block=field.block)
        np.testing.assert_array_equal(dequantize(records, field), expected)


@pytest.mark.parametrize(("kind", "size"), [("embedding", 64), ("per_layer", 160)])
def test_blocks_that_do_not_divide(tmp_path: Path, kind: str, size: int) -> None:
    plain = RowFormat(bits=32, block=0)
    recipe = with_rows(**({"embedding": plain, "per_layer": plain} | {kind: RowFormat(bits=8, block=48)}))
    message = f"'fp32' cuts {kind} rows into blocks of 48, which do not divide their {size} values"
    with pytest.raises(RecipeError, match=message):
        export(open_checkpoint("synthetic:tiny"), recipe, tmp_path / "artifact")
    assert not list(tmp_path.iterdir())
