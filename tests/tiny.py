"""Random tiny checkpoints of the real architecture, and their reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

from edge_gemma.export.synthetic import TEMPLATE, tokenizer_json

S, F = "sliding_attention", "full_attention"
BASE: dict[str, Any] = {
    "vocab_size": 400,
    "vocab_size_per_layer_input": 384,
    "hidden_size": 64,
    "hidden_size_per_layer_input": 16,
    "intermediate_size": 128,
    "num_hidden_layers": 10,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_kv_shared_layers": 5,
    "laurel_rank": 8,
    "sliding_window": 16,
    "activation_sparsity_pattern": [0.95] * 3 + [0.0] * 7,
    "max_position_embeddings": 512,
}
# what makes BASE a model of E4B's pattern, which the published sub-models are made for
AS_E4B: dict[str, Any] = {
    "num_hidden_layers": 35,
    "num_kv_shared_layers": 15,
    "intermediate_size": 256,
    "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 25,
}
# name → what differs from BASE
SHAPES: dict[str, dict[str, Any]] = {
    "as-google": {},
    "no-sharing": {
        "num_hidden_layers": 5,
        "num_kv_shared_layers": 0,
        "activation_sparsity_pattern": [0.95] + [0.0] * 4,
    },
    "alternating": {
        "num_hidden_layers": 8,
        "num_kv_shared_layers": 3,
        "layer_types": [S, F] * 4,
        "activation_sparsity_pattern": [0.0, 0.9] * 4,
    },
    "only-sliding": {
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 2,
        "layer_types": [S] * 6,
        "activation_sparsity_pattern": 0.0,
    },
    "only-full": {
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 4,
        "layer_types": [F] * 6,
        "activation_sparsity_pattern": 0.5,
    },
    "widths": {"intermediate_size": [64, 128, 192, 64, 256, 128, 64, 192, 128, 96]},
    "multi-query": {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 8},
    "multi-head": {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32},
    "all-sparse": {"activation_sparsity_pattern": [0.5, 0.7, 0.8, 0.9, 0.95] * 2},
    "two-streams": {"altup_num_inputs": 2},
    "three-streams": {"altup_num_inputs": 3, "laurel_rank": 3, "altup_correct_scale": False},
    "narrow-window": {"sliding_window": 3},
    "window-beyond-prompt": {"sliding_window": 300},
    "minimal": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": [S, F, S, F],
        "activation_sparsity_pattern": 0.0,
        "hidden_size": 32,
        "hidden_size_per_layer_input": 8,
        "num_attention_heads": 2,
    },
    "vocabulary": {"vocab_size": 1111, "vocab_size_per_layer_input": 1000, "hidden_size": 96, "head_dim": 24},
    "rotary": {
        "rope_parameters": {
            F: {"rope_type": "default", "rope_theta": 500.0},
            S: {"rope_type": "default", "rope_theta": 77.0},
        },
        "final_logit_softcapping": 5.0,
    },
}


@dataclass(frozen=True)
class Tiny:
    """A checkpoint folder and transformers' model with the same weights, float32, eager attention."""

    folder: Path
    model: Any


def make(folder: Path, seed: int = 0, **changes: Any) -> Tiny:
    """Write a random checkpoint of BASE with `changes` to `folder`."""
    fields = BASE | changes
    sparsity = fields["activation_sparsity_pattern"]
    if isinstance(sparsity, float):
        fields["activation_sparsity_pattern"] = [sparsity] * fields["num_hidden_layers"]
    config = Gemma3nTextConfig(**fields)
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = Gemma3nForCausalLM(config).eval()
    randomise(model)
    model.save_pretrained(folder)
    write_tokenizer(folder, fields["vocab_size_per_layer_input"])
    return Tiny(folder, model)


def randomise(model: torch.nn.Module) -> None:
    """Random values for every parameter: initial zeros and ones would hide the paths they feed."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim == 1:
                parameter.copy_(1 + 0.3 * noise)
            elif "coefs" in name or "router" in name:
                parameter.copy_(0.3 * noise)
            elif "embed_tokens" in name:
                parameter.copy_(0.05 * noise)
            else:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    (folder / "tokenizer.json").write_bytes(tokenizer_json(vocabulary))
    (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
