"""Writes embeddings.bin: one fixed-size record for each token id, holding all that the id looks up.

A record is the embedding row and the per-layer rows of the id, already multiplied by sqrt(H) and sqrt(P)
and quantized by the recipe. Ids behind the text vocabulary (image and audio markers and soft tokens) have
the hard embedding of their tower, normed and projected, and the per-layer rows of id 0, as in
transformers' Gemma3nModel.forward: the runtime never asks which kind an id is.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edge_gemma.artifact import SCALE_BYTES, EmbeddingSpec, RowField
from edge_gemma.config import MediaVocabulary
from edge_gemma.errors import RecipeError
from edge_gemma.export.checkpoint import Checkpoint
from edge_gemma.export.quantize import quantize_rows
from edge_gemma.progress import Progress
from edge_gemma.recipes import Recipe, RowFormat

CHUNK = 1024  # ids quantized and written together: 40 MB of float32 for E4B


def embedding_layout(checkpoint: Checkpoint, recipe: Recipe, file: str) -> EmbeddingSpec:
    """Offsets of a record: the codes of both vectors, then the scales of both.

    Raises:
        RecipeError: a vector cannot be cut into the recipe's blocks.
    """
    c = checkpoint.config.text
    sizes = {"embedding": c.hidden_size, "per_layer": c.num_hidden_layers * c.hidden_size_per_layer_input}
    for name, size in sizes.items():
        fmt = recipe.rows[name]
        if fmt.bits != 32 and size % fmt.block:
            raise RecipeError(
                f"recipe {recipe.name!r} cuts {name} rows into blocks of {fmt.block}, "
                f"which do not divide their {size} values"
            )
    offset = 0
    starts = {}
    for name, size in sizes.items():
        starts[name] = offset
        offset += size * recipe.rows[name].bits // 8
    fields = []
    for name, size in sizes.items():
        fmt = recipe.rows[name]
        fields.append(
            RowField(
                name=name,
                offset=starts[name],
                values=size,
                bits=fmt.bits,
                block=fmt.block,
                scale_offset=0 if fmt.bits == 32 else offset,
            )
        )
        offset += 0 if fmt.bits == 32 else size // fmt.block * SCALE_BYTES
    return EmbeddingSpec(
        file=file,
        records=c.vocab_size,
        record_bytes=offset,
        hidden_size=c.hidden_size,
        layers=c.num_hidden_layers,
        per_layer_width=c.hidden_size_per_layer_input,
        fields=tuple(fields),
    )


def write_embeddings(checkpoint: Checkpoint, recipe: Recipe, path: Path, progress: Progress) -> EmbeddingSpec:
    """Write the record of every id, in order, holding CHUNK of them in memory."""
    spec = embedding_layout(checkpoint, recipe, path.name)
    progress.stage("embedding records", spec.records)
    with path.open("wb") as file:
        for first in range(0, spec.records, CHUNK):
            last = min(first + CHUNK, spec.records)
            records = np.empty((last - first, spec.record_bytes), np.uint8)
            for field in spec.fields:
                make = embedding_rows if field.name == "embedding" else per_layer_rows
                _store(records, field, make(checkpoint, first, last), recipe.rows[field.name])
            file.write(records.data)
            progress.advance(last - first)
    return spec


def embedding_rows(checkpoint: Checkpoint, first: int, last: int) -> torch.Tensor:
    """What the decoder takes as inputs_embeds for ids first … last-1: float32 [last-first, H]"""
    c = checkpoint.config
    rows = checkpoint.rows("embed_tokens.weight", first, last).float() * math.sqrt(c.text.hidden_size)
    for tower, media in (("embed_vision", c.vision), ("embed_audio", c.audio)):
        if media and checkpoint.has(f"{tower}.embedding.weight"):
            low, high = max(first, media.offset), min(last, media.offset + media.size)
            if low < high:
                rows[low - first : high - first] = _hard_embeddings(checkpoint, tower, media, low, high)
    return rows


def per_layer_rows(checkpoint: Checkpoint, first: int, last: int) -> torch.Tensor:
    """The per-layer inputs of ids first … last-1: float32 [last-first, L·P]; row 0's behind the table"""
    c = checkpoint.config.text
    inside = min(last, c.vocab_size_per_layer_input)
    parts = []
    if first < inside:
        parts.append(checkpoint.rows("embed_tokens_per_layer.weight", first, inside).float())
    outside = last - max(first, c.vocab_size_per_layer_input)
    if outside > 0:
        row = checkpoint.rows("embed_tokens_per_layer.weight", 0, 1).float()
        parts.append(row.expand(outside, -1))
    return torch.cat(parts) * math.sqrt(c.hidden_size_per_layer_input)


def _hard_embeddings(
    checkpoint: Checkpoint, tower: str, media: MediaVocabulary, first: int, last: int
) -> torch.Tensor:
    """rms(proj(rms(Emb[id - offset], w_hard))): Gemma3nMultimodalEmbedder for ids first … last-1, [·, H]"""
    table = checkpoint.rows(f"{tower}.embedding.weight", first - media.offset, last - media.offset).float()
    weight = checkpoint.tensor(f"{tower}.hard_embedding_norm.weight").float()
    projection = checkpoint.tensor(f"{tower}.embedding_projection.weight").float()
    return _rms(_rms(table, media.rms_norm_eps) * weight @ projection.T, media.rms_norm_eps)


def _rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def _store(records: NDArray[np.uint8], field: RowField, rows: torch.Tensor, fmt: RowFormat) -> None:
    """Write one vector of every record: rows float32 [R, values] into records uint8 [R, record_bytes]"""
    if fmt.bits == 32:
        _put(records, field.offset, rows.numpy())
        return
    codes, scales = quantize_rows(rows, bits=fmt.bits, block=fmt.block)
    _put(records, field.offset, codes)
    _put(records, field.scale_offset, scales)


def _put(records: NDArray[np.uint8], offset: int, values: NDArray[np.generic]) -> None:
    raw = np.ascontiguousarray(values).view(np.uint8)
    records[:, offset : offset + raw.shape[1]] = raw
