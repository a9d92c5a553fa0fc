"""Google's two models: what is known of them before anything is exported."""

from __future__ import annotations

import math
from typing import Any

from edge_gemma.artifact import Manifest
from edge_gemma.config import TextConfig, parse_config
from edge_gemma.footprint import memory_spec, packed_bytes, scale_bytes
from edge_gemma.planning import Needs
from edge_gemma.recipes import Recipe
from edge_gemma.shapes import text_shapes

TEXT: dict[str, Any] = {
    "model_type": "gemma3n_text",
    "vocab_size": 262_400,
    "vocab_size_per_layer_input": 262_144,
    "hidden_size": 2048,
    "hidden_size_per_layer_input": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "sliding_window": 512,
    "altup_num_inputs": 4,
    "altup_active_idx": 0,
    "laurel_rank": 64,
    "rms_norm_eps": 1e-6,
    "final_logit_softcapping": 30.0,
    "max_position_embeddings": 32_768,
}
# the text_config of their config.json; the smaller one first
MODELS: dict[str, dict[str, Any]] = {
    "E2B": TEXT | {"num_hidden_layers": 30, "num_kv_shared_layers": 10, "intermediate_size": 8192},
    "E4B": TEXT | {"num_hidden_layers": 35, "num_kv_shared_layers": 15, "intermediate_size": 16_384},
}
# Size of a tokenizer.bin with Gemma's vocabulary, as the synthetic checkpoints give it. Google's own has more
# merges, of 12 bytes each, and longer texts.
TOKENIZER_BYTES = 6_560_000
# The encoders, the same in both models: how many weights their graphs read, and what the allocator holds
# while they work. At 8 bits that is 879 and 743 MiB; `python -m benchmarks.encoders` measured 863 for a 30 s
# clip and 739 for an image (docs/media.md).
ENCODERS = {"audio": (663_000_000, 187 << 20), "image": (298_600_000, 432 << 20)}
TOWERS = {"audio": "audio", "image": "vision"}  # what a recipe calls the encoder of each kind of media


def text_config(name: str) -> TextConfig:
    """The shape of the decoder of "E2B" or "E4B"."""
    return parse_config(MODELS[name], where=name).text


def model_name(config: TextConfig) -> str | None:
    """Which of the two models has a decoder of these shapes; None: neither."""
    return next((n for n in MODELS if text_shapes(text_config(n)) == text_shapes(config)), None)


def model_of(manifest: Manifest) -> str | None:
    """Which of the two models an artifact holds, by its number of parameters; None: neither."""
    counts = {name: sum(map(math.prod, text_shapes(text_config(name)).values())) for name in MODELS}
    return next((name for name in MODELS if counts[name] == manifest.parameters.text), None)


def foretell(name: str, recipe: Recipe) -> Needs:
    """What a model, with both encoders, will need in memory once it is exported under a recipe."""
    return foretell_shape(text_config(name), recipe)


def foretell_shape(text: TextConfig, recipe: Recipe) -> Needs:
    """The same of a decoder of any shape with Gemma 3n's tokenizer and encoders."""
    encoders = {
        kind: packed_bytes(shape, fmt) + scale_bytes(shape, fmt) + working
        for kind, (weights, working) in ENCODERS.items()
        for shape, fmt in [((1, weights), recipe.matrices[TOWERS[kind]])]
    }
    decoder = memory_spec(text, recipe, TOKENIZER_BYTES)
    return Needs(decoder=decoder, global_kv=recipe.global_kv, encoders=encoders)
