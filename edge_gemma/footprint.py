"""Sizes of an artifact before it is made: on disk, and in memory as onnxruntime packs it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from edge_gemma.artifact import MemorySpec
from edge_gemma.config import FULL, SLIDING, TextConfig
from edge_gemma.memory import KV_BYTES
from edge_gemma.recipes import KV_DTYPES, MatrixFormat, Recipe
from edge_gemma.shapes import head_shards, is_read, text_shapes

FLOAT_BYTES = 4
KINDS = (
    (r"embed_tokens\.", "head"),
    (r"altup_(unembed_)?projections\.", "altup"),
    (r".*\.self_attn\.o_proj\.", "attention_output"),
    (r".*\.self_attn\.[qkv]_proj\.", "attention"),
    (r".*\.mlp\.", "mlp"),
    (r".*\.laurel\.linear", "laurel"),
    (r"(.*\.)?per_layer_(model_projection|input_gate|projection)\.", "per_layer_input"),
)


def decoder_bytes(config: TextConfig, recipe: Recipe) -> int:
    """Size of decoder.data."""
    return sum(_stored(shape, fmt) for shape, fmt in _decoder_tensors(config, recipe))


def encoder_bytes(shapes: Iterable[tuple[int, ...]], fmt: MatrixFormat | None) -> int:
    """About the size of an encoder's data file, by the shapes of its tensors and the format of matrices."""
    total = 0
    for shape in shapes:
        matrix = len(shape) == 2 or shape[2:] == (1, 1)  # a 1×1 convolution is a product, too
        total += _stored((shape[0], shape[1]), fmt) if matrix else _stored(shape, None)
    return total


def memory_spec(config: TextConfig, recipe: Recipe, tokenizer_bytes: int) -> MemorySpec:
    """The parts of the decoder's memory that edge_gemma.memory adds up."""
    c = config
    tensors = _decoder_tensors(c, recipe)
    packed = [packed_bytes(shape, fmt) for shape, fmt in tensors]
    row = {
        kind: 2 * c.num_key_value_heads * c.head_dim * KV_BYTES[recipe.kv_cache[kind]] for kind in KV_DTYPES
    }
    owning = c.layer_types[: c.first_shared_layer]
    # GroupQueryAttention goes through an int8 cache block by block. Of others it has the scores of all pairs,
    # and of a float16 cache copies in float32, where the processor does not compute in float16 itself.
    dtype = recipe.kv_cache["global"]
    return MemorySpec(
        weights=sum(packed),
        scales=sum(scale_bytes(shape, fmt) for shape, fmt in tensors),
        largest_matrix=max(packed),
        logits=2 * c.vocab_size * FLOAT_BYTES,
        scratch_per_token=_scratch_per_token(c),
        scores_per_pair=c.num_attention_heads * FLOAT_BYTES if dtype != "int8" else 0,
        keys_per_token=c.head_dim * FLOAT_BYTES if dtype == "float16" else 0,
        kv_per_token=owning.count(FULL) * row["global"],
        kv_per_window_row=owning.count(SLIDING) * row["sliding"],
        sliding_window=c.sliding_window,
        tokenizer=tokenizer_bytes,
    )


def _scratch_per_token(c: TextConfig) -> int:
    """Activations that the allocator keeps: streams before, within and after a layer; gate, its GELU, up and
    their product; queries, keys and values; the per-layer inputs and the five steps that mix them."""
    streams = 3 * c.altup_num_inputs * c.hidden_size
    feed_forward = 4 * max(c.intermediate_size)
    attention = 6 * (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
    per_layer = (c.num_hidden_layers + 5 * c.first_shared_layer) * c.hidden_size_per_layer_input
    return (streams + feed_forward + attention + per_layer) * FLOAT_BYTES


def _decoder_tensors(c: TextConfig, recipe: Recipe) -> list[tuple[tuple[int, ...], MatrixFormat | None]]:
    """Shape and format of every tensor in the graph; the head in its shards."""
    found: list[tuple[tuple[int, ...], MatrixFormat | None]] = []
    for name, shape in text_shapes(c).items():
        if name.startswith("embed_tokens_per_layer.") or not is_read(c, name):
            continue
        kind = next((kind for pattern, kind in KINDS if re.match(pattern, name)), None)
        fmt = recipe.matrices[kind] if kind else None
        if kind == "head":
            found += [((last - first, shape[1]), fmt) for first, last in head_shards(shape[0])]
        else:
            found.append((shape, fmt))
    return found


def _stored(shape: tuple[int, ...], fmt: MatrixFormat | None) -> int:
    if fmt is None:
        return math.prod(shape) * FLOAT_BYTES
    rows, columns = shape
    blocks = math.ceil(columns / fmt.block)
    return rows * (blocks * (fmt.block * fmt.bits // 8 + FLOAT_BYTES) + math.ceil(blocks * fmt.bits / 8))


def scale_bytes(shape: tuple[int, ...], fmt: MatrixFormat | None) -> int:
    """Scales in the file: read while loading, and of no use once the matrix is packed."""
    return 0 if fmt is None else shape[0] * math.ceil(shape[1] / fmt.block) * FLOAT_BYTES


def packed_bytes(shape: tuple[int, ...], fmt: MatrixFormat | None) -> int:
    """MatMulNBits packs codes, scales and, for each block, the sum that corrects for its zero point."""
    if fmt is None:
        return math.prod(shape) * FLOAT_BYTES
    rows, columns = shape
    blocks = math.ceil(columns / fmt.block)
    return rows * blocks * (fmt.block * fmt.bits // 8 + 2 * FLOAT_BYTES)
