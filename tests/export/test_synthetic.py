"""Synthetic checkpoints: Google's shapes, the same values for the same seed, a tokenizer that works."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import Gemma3nForCausalLM

from edge_gemma.errors import CheckpointError
from edge_gemma.export.checkpoint import open_checkpoint
from edge_gemma.export.pipeline import count_parameters
from edge_gemma.export.synthetic import CONFIGS, SPECIAL_TOKENS, SyntheticCheckpoint, tokenizer_json
from edge_gemma.export.verify import reference_config

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


def test_unknown_tensors() -> None:
    assert not TINY.has("embed_vision.embedding.weight")
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
