"""config.json is read in every form that exists, and refused in one line where it is not Gemma 3n's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from transformers import Gemma3nTextConfig

from edge_gemma.config import FULL, SLIDING, ModelConfig, parse_config, read_config
from edge_gemma.errors import CheckpointError
from edge_gemma.export.synthetic import CONFIGS

# the text_config of google/gemma-3n-E2B-it, as published
GOOGLE: dict[str, Any] = {
    "model_type": "gemma3n_text",
    "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 20,
    "altup_active_idx": 0,
    "altup_coef_clip": 120.0,
    "altup_correct_scale": True,
    "altup_num_inputs": 4,
    "attention_bias": False,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2048,
    "hidden_size_per_layer_input": 256,
    "intermediate_size": [8192] * 30,
    "laurel_rank": 64,
    "layer_types": ([SLIDING] * 4 + [FULL]) * 6,
    "max_position_embeddings": 32768,
    "num_attention_heads": 8,
    "num_hidden_layers": 30,
    "num_key_value_heads": 2,
    "num_kv_shared_layers": 10,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": 512,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 262400,
    "vocab_size_per_layer_input": 262144,
}
MEDIA = {"vocab_offset": 262144, "vocab_size": 128, "hidden_size": 2048, "rms_norm_eps": 1e-6}


def without(*names: str) -> dict[str, Any]:
    return {k: v for k, v in GOOGLE.items() if k not in names}


def test_googles_form_and_that_of_transformers_5_are_one(tmp_path: Path) -> None:
    Gemma3nTextConfig(**GOOGLE).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert "rope_theta" not in saved and "rope_parameters" in saved  # it is the other form
    assert read_config(tmp_path / "config.json") == parse_config(GOOGLE)


@pytest.mark.parametrize(
    "data",
    [
        without("layer_types"),
        without("layer_types", "activation_sparsity_pattern"),
        GOOGLE | {"intermediate_size": 8192},
        GOOGLE | {"activation_sparsity_pattern": None, "layer_types": None},
        without("rope_theta", "rope_local_base_freq", "rope_scaling"),
        without("altup_correct_scale", "max_position_embeddings", "attention_bias", "hidden_activation"),
        {"model_type": "gemma3n", "text_config": GOOGLE},
        CONFIGS["E2B"]["text_config"],
    ],
)
def test_what_is_left_out_is_googles(data: dict[str, Any]) -> None:
    assert parse_config(data) == parse_config(GOOGLE)


def test_one_sparsity_serves_all_layers() -> None:
    text = parse_config(GOOGLE | {"activation_sparsity_pattern": 0.5}).text
    assert text.activation_sparsity_pattern == (0.5,) * 30


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_reads_what_transformers_saves(shape: str, tmp_path: Path) -> None:
    fields = tiny.BASE | tiny.SHAPES[shape]
    if isinstance(fields["activation_sparsity_pattern"], float):
        fields["activation_sparsity_pattern"] = [fields["activation_sparsity_pattern"]] * fields[
            "num_hidden_layers"
        ]
    theirs = Gemma3nTextConfig(**fields)
    theirs.save_pretrained(tmp_path)
    ours = read_config(tmp_path / "config.json").text
    for name in vars(ours):
        if name == "rope_theta":
            assert ours.rope_theta == {k: theirs.rope_parameters[k]["rope_theta"] for k in (FULL, SLIDING)}
        else:
            value = getattr(theirs, name)
            assert getattr(ours, name) == (tuple(value) if isinstance(value, list) else value), name


@pytest.mark.parametrize(("name", "sliding", "full"), [("E2B", 18, 19), ("E4B", 18, 19)])
def test_kv_source(name: str, sliding: int, full: int) -> None:
    text = parse_config(CONFIGS[name]).text
    for layer, kind in enumerate(text.layer_types):
        shared = full if kind == FULL else sliding
        assert text.kv_source(layer) == (layer if layer < 20 else shared)
        assert text.window(layer) == (None if (layer + 1) % 5 == 0 else 512)


def test_towers_and_their_ids() -> None:
    data = {"model_type": "gemma3n", "text_config": GOOGLE, "vision_config": MEDIA, "boi_token_id": 255_999}
    config = parse_config(data | {"image_token_id": None})
    assert config.vision is not None and config.vision.offset == 262_144
    assert config.audio is None
    assert config.token_ids == {"boi": 255_999}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "llama"}, "'llama': expected Gemma 3n"),
    ({"model_type": "gemma3"}, "'gemma3': expected Gemma 3n"),
    ({"model_type": None}, "None: expected Gemma 3n"),
    ({"model_type": "gemma3n"}, "no text_config"),
    ({"intermediate_size": [8192] * 29}, "intermediate_size has 29 entries for 30 layers"),
    ({"layer_types": [SLIDING, FULL]}, "layer_types has 2 entries for 30 layers"),
    ({"activation_sparsity_pattern": [0.0] * 31}, "activation_sparsity_pattern has 31 entries"),
    ({"activation_sparsity_pattern": 1.0}, "activation_sparsity_pattern holds 1.0"),
    ({"activation_sparsity_pattern": ["x"] * 30}, "activation_sparsity_pattern holds 'x'"),
    ({"intermediate_size": ["wide"] * 30}, "intermediate_size holds 'wide'"),
    ({"intermediate_size": 8192.5}, "intermediate_size is 8192.5"),
    ({"layer_types": ["chunked_attention"] * 30}, "layer_types holds ['chunked_attention']"),
    ({"layer_types": [{}] * 30}, "cannot be used"),
    ({"num_attention_heads": 7}, "7 attention heads cannot be grouped over 2 KV heads"),
    ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
    ({"head_dim": 255}, "head_dim is 255"),
    ({"head_dim": 12}, "head_dim is 12, expected a multiple of 8"),
    ({"sliding_window": 1}, "sliding_window is 1, expected a whole number of at least 2"),
    ({"hidden_size": "2048"}, "hidden_size is '2048'"),
    ({"hidden_size": float("inf")}, "hidden_size is inf"),
    ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
    ({"final_logit_softcapping": None}, "final_logit_softcapping is None"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    ({"final_logit_softcapping": float("inf")}, "final_logit_softcapping is inf"),
    ({"num_kv_shared_layers": 30}, "30 of 30 layers share"),
    ({"num_kv_shared_layers": 27}, "['full_attention'] share the KV of an earlier layer, and none exists"),
    ({"tie_word_embeddings": False}, "tie_word_embeddings is false"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling is"),
    ({"rope_parameters": {FULL: {"rope_type": "yarn", "rope_theta": 1e6}}}, "expected rope_type 'default'"),
    ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_parameters are"),
    ({"rope_parameters": [1.0]}, "rope_parameters are [1.0]"),
    ({"rope_parameters": {FULL: 1e6}}, "rope_parameters of full_attention are 1000000.0"),
    ({"altup_active_idx": 1}, "altup_active_idx is 1, expected 0"),
    ({"attention_bias": True}, "attention_bias is set"),
    ({"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
    ({"vision_config": {"vocab_offset": 1}}, "has no 'vocab_size'"),
    ({"vision_config": [1]}, "cannot be used"),
    ({"boi_token_id": "x"}, "boi_token_id is 'x'"),
]


@pytest.mark.parametrize(
    ("change", "message"), BAD, ids=[f"{i}-{next(iter(c))}" for i, (c, _) in enumerate(BAD)]
)
def test_bad_ones_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_config(GOOGLE | change, where="the/config.json")
    assert message in str(caught.value)
    assert str(caught.value).startswith("the/config.json ") and "\n" not in str(caught.value)


REQUIRED = sorted(
    set(GOOGLE)
    - {"activation_sparsity_pattern", "altup_coef_clip", "altup_correct_scale", "attention_bias"}
    - {"hidden_activation", "layer_types", "max_position_embeddings", "model_type", "rope_local_base_freq"}
    - {"rope_scaling", "rope_theta", "torch_dtype", "use_cache"}
)


@pytest.mark.parametrize("name", REQUIRED)
def test_missing_keys_are_named(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"^config has no '{name}': expected a complete"):
        parse_config(without(name))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@given(st.sampled_from(sorted(GOOGLE)), json_values)
def test_any_value_is_read_or_refused(name: str, value: Any) -> None:
    try:
        assert isinstance(parse_config(GOOGLE | {name: value}), ModelConfig)
    except CheckpointError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 5000, b"[]"], ids=lambda raw: repr(raw[:4])
)
def test_not_a_json_object(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"config\.json (is not valid JSON|holds list)") as caught:
        read_config(path)
    assert "\n" not in str(caught.value)


def test_no_file_or_a_folder_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no config.json: expected a Hugging Face checkpoint"):
        read_config(tmp_path / "config.json")
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read: Is a directory"):
        read_config(tmp_path / "config.json")
