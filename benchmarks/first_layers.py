"""A checkpoint's first layers as a model of their own: small enough to compare where the whole one is not."""

from __future__ import annotations

import copy
from typing import Any

import torch

from edge_gemma.config import TextConfig, parse_config
from edge_gemma.export.checkpoint import Checkpoint, DerivedCheckpoint
from edge_gemma.shapes import text_shapes

PER_LAYER_TABLE = "embed_tokens_per_layer.weight"


def layers_to_keep(config: TextConfig) -> tuple[int, int]:
    """How many layers have every kind of them that owns keys and values, and as many behind that share them.

    Returns:
        The number of layers, and of those among them that share.
    """
    own = 1 + max(config.layer_types.index(kind) for kind in set(config.layer_types))
    return (2 * own, own) if config.num_kv_shared_layers else (own, 0)


class FirstLayers(DerivedCheckpoint):
    """The Checkpoint of the first layers of `whole`: everything else, vocabulary and towers, is its own."""

    def __init__(self, whole: Checkpoint) -> None:
        text = whole.config.text
        layers, shared = layers_to_keep(text)
        super().__init__(whole)
        self.name = f"{whole.name}, first {layers} of {text.num_hidden_layers} layers"
        self.config_json: dict[str, Any] = copy.deepcopy(whole.config_json)
        self.config_json.get("text_config", self.config_json).update(
            num_hidden_layers=layers,
            num_kv_shared_layers=shared,
            layer_types=list(text.layer_types[:layers]),
            intermediate_size=list(text.intermediate_size[:layers]),
            activation_sparsity_pattern=list(text.activation_sparsity_pattern[:layers]),
        )
        self.config = parse_config(self.config_json, where=self.name)

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor that has no part for each layer."""
        return self._source.tensor(name)

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """Rows first … last-1; of the per-layer embeddings the columns of the layers that are kept."""
        rows = self._source.rows(name, first, last)
        text = self.config.text
        width = text.num_hidden_layers * text.hidden_size_per_layer_input
        return rows[:, :width] if name == PER_LAYER_TABLE else rows

    def has(self, name: str) -> bool:
        return self._source.has(name)

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        return text_shapes(self.config.text)
