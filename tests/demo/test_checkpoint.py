"""The committed checkpoint: its files fit each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from demo import data

CHECKPOINT = Path(__file__).parents[2] / "demo" / "checkpoint"


@pytest.fixture(scope="module")
def raw() -> Tokenizer:
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


@pytest.fixture(scope="module")
def auto() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def config() -> dict:
    """The text decoder's configuration."""
    whole = json.loads((CHECKPOINT / "config.json").read_text())
    return whole.get("text_config", whole)


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


def test_most_prompts_exceed_the_sliding_window(config: dict, auto: PreTrainedTokenizerBase) -> None:
    lengths = []
    for item in data.held_out("sums", 100) + data.held_out("commands", 100):
        prompt = auto.apply_chat_template(list(item.messages), add_generation_prompt=True, return_dict=True)
        lengths.append(len(prompt["input_ids"]))
    assert sum(length > config["sliding_window"] for length in lengths) > len(lengths) / 2


def test_checkpoint_is_small() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) <= 12_000_000
