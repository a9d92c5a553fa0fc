"""The Gemma 3n architecture, read from a checkpoint's config.json."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_gemma.errors import CheckpointError

SLIDING = "sliding_attention"
FULL = "full_attention"
MODEL_TYPES = ("gemma3n", "gemma3n_text")


@dataclass(frozen=True, kw_only=True)
class MediaVocabulary:
    """The hard embeddings that a tower adds behind the text vocabulary."""

    offset: int  # first token id
    size: int  # number of ids
    hidden_size: int  # width of the tower's table
    rms_norm_eps: float
    soft_tokens: int  # places that one clip or image takes in a prompt


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Shape of the decoder. Names are those of transformers' Gemma3nTextConfig."""

    vocab_size: int
    vocab_size_per_layer_input: int
    hidden_size: int
    hidden_size_per_layer_input: int
    intermediate_size: tuple[int, ...]  # one width per layer
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    layer_types: tuple[str, ...]  # SLIDING or FULL, one per layer
    num_kv_shared_layers: int
    sliding_window: int
    activation_sparsity_pattern: tuple[float, ...]  # one per layer; 0.0 is dense
    altup_num_inputs: int
    altup_active_idx: int
    altup_correct_scale: bool
    laurel_rank: int
    rms_norm_eps: float
    final_logit_softcapping: float
    rope_theta: dict[str, float]  # base by layer type
    max_position_embeddings: int

    @property
    def first_shared_layer(self) -> int:
        """Layers from this one on own no K and V: they read those of `kv_source`."""
        return self.num_hidden_layers - self.num_kv_shared_layers

    def kv_source(self, layer: int) -> int:
        """The layer whose K and V `layer` attends to: itself, or the last of its type before sharing."""
        if layer < self.first_shared_layer:
            return layer
        kind = self.layer_types[layer]
        return max(i for i in range(self.first_shared_layer) if self.layer_types[i] == kind)

    def window(self, layer: int) -> int | None:
        """Number of keys that a query of `layer` sees, itself included; None for full attention."""
        return self.sliding_window if self.layer_types[layer] == SLIDING else None


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A whole checkpoint: the decoder, and the vocabularies of the towers where it has them."""

    text: TextConfig
    vision: MediaVocabulary | None
    audio: MediaVocabulary | None
    token_ids: dict[str, int]  # boi, eoi, image, boa, eoa, audio → id; empty for a text-only checkpoint


def read_config(path: Path) -> ModelConfig:
    """Read config.json.

    Raises:
        CheckpointError: the file is missing, is not JSON, or does not describe a Gemma 3n model.
    """
    data = read_json(path)
    if data is None:
        raise CheckpointError(
            f"{path.parent} has no config.json: expected a Hugging Face checkpoint folder of Gemma 3n"
        )
    return parse_config(data, where=str(path))


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in one of a checkpoint's JSON files; None where there is no such file.

    Raises:
        CheckpointError: the file cannot be read, or holds something else.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}): download the checkpoint again") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds {type(data).__name__}, expected a JSON object")
    return data


def parse_config(data: dict[str, Any], *, where: str = "config") -> ModelConfig:
    """Build a ModelConfig from the contents of a config.json; `where` names it in errors."""
    model_type = data.get("model_type")
    if model_type not in MODEL_TYPES:
        raise CheckpointError(
            f"{where} describes a model of type {model_type!r}: "
            f"expected Gemma 3n ({' or '.join(MODEL_TYPES)})"
        )
    text = data if model_type == "gemma3n_text" else data.get("text_config")
    if not isinstance(text, dict):
        raise CheckpointError(f"{where} has no text_config: expected a Gemma 3n configuration")
    try:
        return ModelConfig(
            text=_parse_text(text, where),
            vision=_parse_media(data, "vision", 256),
            audio=_parse_media(data, "audio", 188),
            token_ids={
                name: _integer(data, f"{name}_token_id", least=0)
                for name in ("boi", "eoi", "image", "boa", "eoa", "audio")
                if data.get(f"{name}_token_id") is not None
            },
        )
    except KeyError as error:
        raise CheckpointError(f"{where} has no {error}: expected a complete Gemma 3n configuration") from None
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where} cannot be used: {error}") from None


def _parse_text(text: dict[str, Any], where: str) -> TextConfig:
    layers = _integer(text, "num_hidden_layers")
    width = text["intermediate_size"]
    widths = list(width) if isinstance(width, list) else [_integer(text, "intermediate_size")] * layers
    kinds = text.get("layer_types") or [FULL if (i + 1) % 5 == 0 else SLIDING for i in range(layers)]
    sparsity = text.get("activation_sparsity_pattern")
    if sparsity is None:
        sparse = 10 if layers > 10 else 0
        sparsity = [0.95] * sparse + [0.0] * (layers - sparse)
    elif isinstance(sparsity, (int, float)):
        sparsity = [sparsity] * layers
    for name, values in (
        ("intermediate_size", widths),
        ("layer_types", kinds),
        ("activation_sparsity_pattern", sparsity),
    ):
        if len(values) != layers:
            raise ValueError(f"{name} has {len(values)} entries for {layers} layers")
    if bad := [w for w in widths if type(w) is not int or w < 1]:
        raise ValueError(f"intermediate_size holds {bad[0]!r}, expected positive whole numbers")
    if bad := [s for s in sparsity if not isinstance(s, (int, float)) or not 0 <= s < 1]:
        raise ValueError(f"activation_sparsity_pattern holds {bad[0]!r}, expected numbers from 0 to below 1")
    if unknown := set(kinds) - {SLIDING, FULL}:
        raise ValueError(f"layer_types holds {sorted(unknown)}, expected {SLIDING} or {FULL}")
    config = TextConfig(
        vocab_size=_integer(text, "vocab_size"),
        vocab_size_per_layer_input=_integer(text, "vocab_size_per_layer_input"),
        hidden_size=_integer(text, "hidden_size"),
        hidden_size_per_layer_input=_integer(text, "hidden_size_per_layer_input"),
        intermediate_size=tuple(widths),
        num_hidden_layers=layers,
        num_attention_heads=_integer(text, "num_attention_heads"),
        num_key_value_heads=_integer(text, "num_key_value_heads"),
        head_dim=_integer(text, "head_dim"),
        layer_types=tuple(kinds),
        num_kv_shared_layers=_integer(text, "num_kv_shared_layers", least=0),
        sliding_window=_integer(text, "sliding_window", least=2),
        activation_sparsity_pattern=tuple(float(s) for s in sparsity),
        altup_num_inputs=_integer(text, "altup_num_inputs"),
        altup_active_idx=_integer(text, "altup_active_idx", least=0),
        altup_correct_scale=bool(text.get("altup_correct_scale", True)),
        laurel_rank=_integer(text, "laurel_rank"),
        rms_norm_eps=_number(text, "rms_norm_eps"),
        final_logit_softcapping=_number(text, "final_logit_softcapping"),
        rope_theta=_rope_theta(text),
        max_position_embeddings=_integer(
            {"max_position_embeddings": 32768} | text, "max_position_embeddings"
        ),
    )
    _check(config, text)
    return config


def _rope_theta(text: dict[str, Any]) -> dict[str, float]:
    """Rotary bases, from the nested form of transformers 5 or the flat form of Google's config.json."""
    nested = text.get("rope_parameters") or {}
    if not isinstance(nested, dict) or set(nested) - {FULL, SLIDING}:
        raise ValueError(f"rope_parameters are {nested!r}, expected those of {SLIDING} and of {FULL}")
    for kind, parameters in nested.items():
        if not isinstance(parameters, dict) or parameters.get("rope_type", "default") != "default":
            raise ValueError(f"rope_parameters of {kind} are {parameters!r}, expected rope_type 'default'")
    if text.get("rope_scaling"):
        raise ValueError(f"rope_scaling is {text['rope_scaling']!r}, expected none")
    return {
        kind: _number({"rope_theta": text.get(flat, default)} | nested.get(kind, {}), "rope_theta")
        for kind, flat, default in (
            (FULL, "rope_theta", 1_000_000.0),
            (SLIDING, "rope_local_base_freq", 10_000.0),
        )
    }


def _integer(values: dict[str, Any], name: str, *, least: int = 1) -> int:
    value = values[name]
    if type(value) is not int or value < least:
        raise ValueError(f"{name} is {value!r}, expected a whole number of at least {least}")
    return value


def _number(values: dict[str, Any], name: str) -> float:
    value = values[name]
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise ValueError(f"{name} is {value!r}, expected a positive number")
    return float(value)


def _check(config: TextConfig, text: dict[str, Any]) -> None:
    if config.num_attention_heads % config.num_key_value_heads:
        raise ValueError(
            f"{config.num_attention_heads} attention heads cannot be grouped over "
            f"{config.num_key_value_heads} KV heads"
        )
    if config.head_dim % 8:
        raise ValueError(
            f"head_dim is {config.head_dim}, expected a multiple of 8, as onnxruntime computes it"
        )
    if config.altup_active_idx != 0:
        raise ValueError(f"altup_active_idx is {config.altup_active_idx}, expected 0, as in every Gemma 3n")
    if not 0 <= config.num_kv_shared_layers < config.num_hidden_layers:
        raise ValueError(f"{config.num_kv_shared_layers} of {config.num_hidden_layers} layers share their KV")
    owning = set(config.layer_types[: config.first_shared_layer])
    if missing := set(config.layer_types) - owning:
        raise ValueError(
            f"layers of type {sorted(missing)} share the KV of an earlier layer, and none exists"
        )
    if text.get("attention_bias"):
        raise ValueError("attention_bias is set, expected none, as in every Gemma 3n")
    if text.get("hidden_activation", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
        raise ValueError(f"hidden_activation is {text['hidden_activation']!r}, expected 'gelu_pytorch_tanh'")
    if not text.get("tie_word_embeddings", True):
        raise ValueError("tie_word_embeddings is false, expected the head to be tied to the embedding")


def _parse_media(data: dict[str, Any], tower: str, soft_tokens: int) -> MediaVocabulary | None:
    media = data.get(f"{tower}_config")
    if not media:
        return None
    places = f"{tower}_soft_tokens_per_image"  # transformers' name, for audio too
    return MediaVocabulary(
        offset=_integer(media, "vocab_offset"),
        size=_integer(media, "vocab_size"),
        hidden_size=_integer(media, "hidden_size"),
        rms_norm_eps=_number(media, "rms_norm_eps"),
        soft_tokens=_integer({places: soft_tokens} | data, places),
    )
