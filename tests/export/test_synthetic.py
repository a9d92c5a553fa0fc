"""Synthetic checkpoints: Google's shapes, the same values for the same seed, a tokenizer that works."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import Gemma3nForCausalLM

from edge_gemma.errors import CheckpointError
from edge_gemma.export.checkpoint import open_checkpoint
from edge_gemma.export.pipeline import count_parameters
from edge_gemma.export.synthetic import CONFIGS, SyntheticCheckpoint
from edge_gemma.export.synthetic_tokenizer import SPECIAL_TOKENS, TEMPLATE, tokenizer_json
from edge_gemma.export.towers import tower_shapes
from edge_gemma.export.verify import reference_config
from edge_gemma.runtime.chat import ChatTemplate

MEDIA = SyntheticCheckpoint.from_name("synthetic:tiny-media")
TINY = SyntheticCheckpoint.from_name("synthetic:tiny")
TABLE = "embed_tokens.weight"  # 1040 rows: more than one generator makes


def test_one_seed_one_checkpoint() -> None:
    again = open_checkpoint("synthetic:tiny:0")
    other = open_checkpoint("synthetic:tiny:1")
    for name, shape in TINY.text_shapes().items():
        tensor = TINY.tensor(name)
        assert tuple(tensor.shape) == shape and tensor.dtype == torch.float32
        assert torch.equal(tensor, again.tensor(name))
        assert not torch.equal(tensor, other.tensor(name))


def test_tensors_differ_from_one_another() -> None:
    firsts = {float(TINY.tensor(name).flatten()[0]) for name in TINY.text_shapes()}
    assert len(firsts) == len(TINY.text_shapes())


@given(st.tuples(st.integers(0, 1040), st.integers(0, 1040)).map(sorted))
def test_rows_are_slices_of_the_whole(bounds: list[int]) -> None:
    first, last = bounds
    assert torch.equal(TINY.rows(TABLE, first, last), TINY.tensor(TABLE)[first:last])


def test_spread() -> None:
    table = TINY.tensor(TABLE)
    assert float(table.std()) == pytest.approx(64**-0.5, rel=0.02)
    assert float(table.mean()) == pytest.approx(0, abs=0.002)
    assert float(TINY.tensor("norm.weight").mean()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_are_those_of_transformers(name: str) -> None:
    """Sharing layers have K and V in Google's checkpoints, and none in transformers' model."""
    checkpoint = SyntheticCheckpoint.from_name(f"synthetic:{name}")
    with torch.device("meta"):
        model = Gemma3nForCausalLM(reference_config(checkpoint.config.text)).model
    theirs = {name: tuple(p.shape) for name, p in model.named_parameters()}
    ours = checkpoint.text_shapes()
    assert theirs.items() <= ours.items()
    extra = {name.split(".", 2)[2] for name in set(ours) - set(theirs)}
    assert extra == {f"self_attn.{part}.weight" for part in ("k_proj", "v_proj", "k_norm")}


def test_parameters() -> None:
    """Google's counts: E2B has 1.91 billion effective parameters, E4B about four."""
    small, large = (count_parameters(open_checkpoint(f"synthetic:{name}")) for name in ("E2B", "E4B"))
    assert (small.text, small.effective) == (4_456_156_768, 1_905_495_648)
    assert large.effective == pytest.approx(4e9, rel=0.01)
    for found, layers in ((small, 30), (large, 35)):
        assert found.per_layer_embeddings == 262_144 * layers * 256
        assert found.text == found.effective + found.per_layer_embeddings + 262_400 * 2048


@pytest.mark.parametrize("kind", ["audio", "vision"])
def test_tower_tensors(kind: str) -> None:
    other = open_checkpoint("synthetic:tiny-media:1")
    shapes = tower_shapes(MEDIA.config_json, kind)
    for name, shape in shapes.items():
        tensor = MEDIA.tensor(name)
        assert MEDIA.has(name) and tuple(tensor.shape) == shape and tensor.dtype == torch.float32
        assert not torch.equal(tensor, other.tensor(name))
        if tensor.ndim > 1 and tensor.numel() > 1000:
            assert float(tensor.std()) == pytest.approx(tensor[0].numel() ** -0.5, rel=0.1)
    assert not MEDIA.has(f"{kind}_tower.nothing") and not MEDIA.has("layers.0.nothing")
    gammas = [MEDIA.tensor(name) for name in shapes if name.endswith("gamma")]
    assert all(float(g.min()) > 0 and float(g.max()) < 0.6 for g in gammas)


@pytest.mark.parametrize("kind", ["audio", "vision"])
def test_tables_of_the_embedders_are_those_of_transformers(kind: str) -> None:
    """The synthetic checkpoint writes their shapes down, so as not to import transformers for them."""
    for name, shape in tower_shapes(MEDIA.config_json, kind).items():
        if name.startswith("embed"):
            assert tuple(MEDIA.tensor(name).shape) == shape


@pytest.mark.parametrize("name", ["E2B", "E4B"])
def test_towers_have_googles_size(name: str) -> None:
    config = CONFIGS[name]
    count = {kind: sum(map(math.prod, tower_shapes(config, kind).values())) for kind in ("audio", "vision")}
    assert count == {"audio": 684_694_048, "vision": 298_587_456}


def test_text_alone_needs_no_transformers() -> None:
    """Nor do the hard embeddings of the towers: importing transformers and timm takes seconds."""
    code = """
import sys
from edge_gemma.export.checkpoint import open_checkpoint
checkpoint = open_checkpoint("synthetic:E2B")
checkpoint.tensor("norm.weight")
checkpoint.rows("embed_vision.embedding.weight", 3, 5)
assert checkpoint.has("embed_audio.embedding_projection.weight")
sys.exit("transformers" in sys.modules or "timm" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_tensors() -> None:
    assert not TINY.has("embed_vision.embedding.weight")
    assert not TINY.has("audio_tower.conformer.0.norm.weight")
    with pytest.raises(CheckpointError, match="^synthetic:tiny has no tensor layers.10.norm$"):
        TINY.tensor("layers.10.norm")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_buffer(tokenizer_json(2000))


@pytest.mark.parametrize("vocabulary", [384, 1024, 5000])
def test_tokenizer_has_the_size_asked_for_and_is_the_same_each_time(vocabulary: int) -> None:
    raw = tokenizer_json(vocabulary)
    assert raw == tokenizer_json(vocabulary)
    loaded = Tokenizer.from_buffer(raw)
    assert loaded.get_vocab_size() == vocabulary
    assert sorted(loaded.get_vocab().values()) == list(range(vocabulary))
    assert [loaded.id_to_token(i) for i in range(len(SPECIAL_TOKENS))] == list(SPECIAL_TOKENS)


@settings(max_examples=200)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
def test_tokenizer_round_trips_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert "<unk>" in text or tokenizer.token_to_id("<unk>") not in ids


def test_tokenizer_merges(tokenizer: Tokenizer) -> None:
    longest = max(tokenizer.get_vocab(), key=lambda t: len(t) if "<" not in t else 0)
    assert 1 < len(longest) <= 12
    text = longest.replace("▁", " ")
    assert len(tokenizer.encode(text).ids) < len(text)


def test_media_tokens_are_special_and_at_their_ids() -> None:
    loaded = Tokenizer.from_buffer(MEDIA.tokenizer_json())
    c = MEDIA.config
    assert loaded.get_vocab_size() == c.text.vocab_size == max(loaded.get_vocab().values()) + 1
    names = ("start_of_image", "end_of_image", "image_soft_token", "start_of_audio", "end_of_audio")
    texts = [f"<{name}>" for name in (*names, "audio_soft_token")]
    keys = ("boi", "eoi", "image", "boa", "eoa", "audio")
    assert {k: loaded.token_to_id(t) for k, t in zip(keys, texts, strict=True)} == c.token_ids
    assert loaded.encode("a" + "".join(texts) + "b").ids[1:-1] == [c.token_ids[key] for key in keys]
    assert loaded.id_to_token(c.text.vocab_size - 1) == "<unused_audio_7>"


def test_text_only_tokenizer_knows_no_media() -> None:
    loaded = Tokenizer.from_buffer(TINY.tokenizer_json())
    assert loaded.get_vocab_size() == 1024 and loaded.token_to_id("<start_of_image>") is None


def test_template_writes_soft_tokens_in_order() -> None:
    parts = [{"type": "image"}, {"type": "text", "text": " see "}, {"type": "audio"}]
    template = ChatTemplate.from_source(TEMPLATE)
    found = template.render([{"role": "user", "content": parts}])
    inside = "<image_soft_token>see<audio_soft_token>"
    assert found == f"<bos><start_of_turn>user\n{inside}<end_of_turn>\n<start_of_turn>model\n"


def test_images_are_as_large_as_the_tower_takes() -> None:
    assert MEDIA.image_processor()["size"] == {"height": 96, "width": 96}
    assert open_checkpoint("synthetic:E4B").image_processor()["size"] == {"height": 768, "width": 768}
    assert TINY.image_processor() == {}
