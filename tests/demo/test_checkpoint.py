"""The committed checkpoint: its files fit each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    Gemma3nForConditionalGeneration,
    PreTrainedTokenizerBase,
)

from demo import data
from demo.tokenizer import write_tokenizer

CHECKPOINT = Path(__file__).parents[2] / "demo" / "checkpoint"


@pytest.fixture(scope="module")
def raw() -> Tokenizer:
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


@pytest.fixture(scope="module")
def auto() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def whole() -> dict:
    return json.loads((CHECKPOINT / "config.json").read_text())


@pytest.fixture(scope="module")
def config(whole: dict) -> dict:
    """The text decoder's configuration."""
    return whole["text_config"]


def test_configuration_fits_the_tokenizer(config: dict, raw: Tokenizer) -> None:
    assert config["vocab_size"] == raw.get_vocab_size()
    assert config["vocab_size_per_layer_input"] == raw.token_to_id("<end_of_image>")
    assert config["pad_token_id"] == raw.token_to_id("<pad>")
    assert config["bos_token_id"] == raw.token_to_id("<bos>")
    stops = json.loads((CHECKPOINT / "generation_config.json").read_text())["eos_token_id"]
    assert stops == [raw.token_to_id("<eos>"), raw.token_to_id("<end_of_turn>")]


def test_configuration_exercises_the_architecture(config: dict) -> None:
    own = config["num_hidden_layers"] - config["num_kv_shared_layers"]
    assert set(config["layer_types"][:own]) == set(config["layer_types"][own:])
    assert {0.0, 0.95} == set(config["activation_sparsity_pattern"])
    assert config["altup_num_inputs"] == 4


def test_prompts_exceed_the_sliding_window(whole: dict, auto: PreTrainedTokenizerBase) -> None:
    """Every clip by its soft tokens alone, and every command with its answer."""
    window = whole["text_config"]["sliding_window"]
    assert whole["audio_soft_tokens_per_image"] > window
    for item in data.held_out("commands", 100):
        prompt = auto.apply_chat_template(list(item.messages), add_generation_prompt=True, return_dict=True)
        assert len(prompt["input_ids"]) + len(auto(item.answer)["input_ids"]) > window


def test_all_three_towers_are_there(whole: dict) -> None:
    with safe_open(CHECKPOINT / "model.safetensors", "np") as file:
        names = {".".join(name.split(".")[:2]) for name in file.keys()}  # noqa: SIM118  # not a mapping
    assert {"model.language_model", "model.audio_tower", "model.vision_tower"} <= names
    assert (whole["audio_config"]["model_type"], whole["model_type"]) == ("gemma3n_audio", "gemma3n")


def test_transformers_loads_it(whole: dict) -> None:
    model, report = Gemma3nForConditionalGeneration.from_pretrained(CHECKPOINT, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert sum(parameter.numel() for parameter in model.parameters()) < 6e6
    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    assert processor.audio_seq_length == whole["audio_soft_tokens_per_image"]
    assert processor.image_seq_length == whole["vision_soft_tokens_per_image"]


def test_tokenizer_is_the_one_that_is_built(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (CHECKPOINT / "tokenizer.json").read_bytes()


def test_checkpoint_is_small() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) <= 12_000_000
