"""A sub-model of a checkpoint, as a checkpoint of its own: the rest of the export sees nothing else.

Of each kept layer the gate's and up's first rows and down's first columns stay; the tables of per-layer
embeddings lose what belongs to dropped layers; layers are numbered anew. Nothing else changes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from edge_gemma.config import TextConfig, parse_config
from edge_gemma.errors import CheckpointError
from edge_gemma.export.checkpoint import Checkpoint, DerivedCheckpoint
from edge_gemma.shapes import text_shapes
from edge_gemma.submodels import Submodel, apply

LAYER = re.compile(r"layers\.(\d+)\.(.*)")
EMBEDDINGS = "embed_tokens_per_layer.weight"
PROJECTION = "per_layer_model_projection.weight"

Spans = Sequence[tuple[int, int]]  # firsts and lasts (exclusive), ascending


@dataclass(frozen=True)
class Cut:
    """Where a tensor of the sub-model lies in the source."""

    name: str  # of the source's tensor
    rows: Spans | None = None  # those that are kept; None: all
    columns: Spans | None = None


class SlicedCheckpoint(DerivedCheckpoint):
    """The sub-model of `source`, read from it in the pieces that are asked for.

    `block` is what the recipe quantizes feed-forward columns in, `edge_gemma.submodels.block_of(recipe)`.

    Raises:
        SubmodelError: the source has no such sub-model.
    """

    def __init__(self, source: Checkpoint, submodel: Submodel, *, block: int = 1) -> None:
        text = apply(submodel, source.config.text, block=block)
        super().__init__(source)
        self.name = source.name
        self.submodel = submodel.name
        self.config_json = _config_json(source.config_json, text)
        self.config = parse_config(self.config_json, where=f"{source.name}, {submodel.name}")
        self._layers = submodel.layers
        self._per_layer = _spans(submodel.layers, text.hidden_size_per_layer_input)

    def tensor(self, name: str) -> torch.Tensor:
        cut = self._cut(name)
        if cut.rows is None:
            whole = self._source.tensor(cut.name)
        else:
            whole = torch.cat([self._source.rows(cut.name, *span) for span in cut.rows])
        return _columns(whole, cut.columns)

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        cut = self._cut(name)
        spans = [(first, last)] if cut.rows is None else _within(cut.rows, first, last)
        return _columns(torch.cat([self._source.rows(cut.name, *s) for s in spans]), cut.columns)

    def has(self, name: str) -> bool:
        layer = LAYER.fullmatch(name)
        return not (layer and int(layer[1]) >= len(self._layers)) and self._source.has(self._cut(name).name)

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        """What the source has, cut; a shape that is not the one its config.json describes stays as it is."""
        found = self._source.text_shapes()
        described = text_shapes(self._source.config.text)
        here = text_shapes(self.config.text)
        return {
            name: here[name] if found[old] == described[old] else found[old]
            for name in here
            if (old := self._cut(name).name) in found
        }

    def _cut(self, name: str) -> Cut:
        if name == EMBEDDINGS:
            return Cut(name, columns=self._per_layer)
        if name == PROJECTION:
            return Cut(name, rows=self._per_layer)
        layer = LAYER.fullmatch(name)
        if not layer:
            return Cut(name)
        number, rest = int(layer[1]), layer[2]
        if number >= len(self._layers):
            raise CheckpointError(
                f"{self.name} has no tensor {name} in {self.submodel}, which has {len(self._layers)} layers"
            )
        old = f"layers.{self._layers[number]}.{rest}"
        prefix = [(0, self.config.text.intermediate_size[number])]
        if rest in ("mlp.gate_proj.weight", "mlp.up_proj.weight"):
            return Cut(old, rows=prefix)
        if rest == "mlp.down_proj.weight":
            return Cut(old, columns=prefix)
        return Cut(old)


def _config_json(source: dict[str, Any], text: TextConfig) -> dict[str, Any]:
    """The source's config.json with the sub-model's text part; towers stay."""
    changed = {
        "num_hidden_layers": text.num_hidden_layers,
        "num_kv_shared_layers": text.num_kv_shared_layers,
        "intermediate_size": list(text.intermediate_size),
        "layer_types": list(text.layer_types),
        "activation_sparsity_pattern": list(text.activation_sparsity_pattern),
    }
    if "text_config" in source:
        return source | {"text_config": source["text_config"] | changed}
    return source | changed


def _spans(layers: Sequence[int], width: int) -> list[tuple[int, int]]:
    """Places of the layers in a table that has `width` for each; neighbours in one piece."""
    spans: list[tuple[int, int]] = []
    for layer in layers:
        first = spans.pop()[0] if spans and spans[-1][1] == layer * width else layer * width
        spans.append((first, (layer + 1) * width))
    return spans


def _within(spans: Spans, first: int, last: int) -> list[tuple[int, int]]:
    """Which part of each span numbers first … last-1 are, counted through all spans."""
    found = []
    begin = 0
    for low, high in spans:
        start, end = max(first - begin, 0) + low, min(last - begin + low, high)
        if start < end:
            found.append((start, end))
        begin += high - low
    return found


def _columns(matrix: torch.Tensor, spans: Spans | None) -> torch.Tensor:
    """Copies of the columns that are kept: the others can leave memory."""
    return matrix if spans is None else torch.cat([matrix[:, low:high] for low, high in spans], 1)
