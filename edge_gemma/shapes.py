"""The tensors of a Gemma 3n decoder by name and shape, and which of them an export writes how."""

from __future__ import annotations

import re

from edge_gemma.config import TextConfig

HEAD_SHARD_ROWS = 32_800  # an eighth of the vocabulary: loading peaks by the size of the largest matrix


def head_shards(vocab_size: int) -> list[tuple[int, int]]:
    """First and last (exclusive) row of each shard of the head."""
    starts = range(0, vocab_size, HEAD_SHARD_ROWS)
    return [(first, min(first + HEAD_SHARD_ROWS, vocab_size)) for first in starts]


def text_shapes(c: TextConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of Gemma3nTextModel with its shape, as Google's checkpoints hold them.

    That includes K and V projections of the layers that share another layer's KV, which nothing reads.
    """
    h, p, n = c.hidden_size, c.hidden_size_per_layer_input, c.altup_num_inputs
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (c.vocab_size, h),
        "embed_tokens_per_layer.weight": (c.vocab_size_per_layer_input, c.num_hidden_layers * p),
        "per_layer_model_projection.weight": (c.num_hidden_layers * p, h),
        "per_layer_projection_norm.weight": (p,),
        "norm.weight": (h,),
    }
    for i in range(n - 1):
        shapes[f"altup_projections.{i}.weight"] = (h, h)
        shapes[f"altup_unembed_projections.{i}.weight"] = (h, h)
    for i, width in enumerate(c.intermediate_size):
        layer: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (q, h),
            "self_attn.k_proj": (kv, h),
            "self_attn.v_proj": (kv, h),
            "self_attn.o_proj": (h, q),
            "self_attn.q_norm": (c.head_dim,),
            "self_attn.k_norm": (c.head_dim,),
            "mlp.gate_proj": (width, h),
            "mlp.up_proj": (width, h),
            "mlp.down_proj": (h, width),
            "input_layernorm": (h,),
            "post_attention_layernorm": (h,),
            "pre_feedforward_layernorm": (h,),
            "post_feedforward_layernorm": (h,),
            "altup.correction_coefs": (n, n),
            "altup.prediction_coefs": (n * n, n),
            "altup.modality_router": (n, h),
            "altup.router_norm": (h,),
            "laurel.linear_left": (c.laurel_rank, h),
            "laurel.linear_right": (h, c.laurel_rank),
            "laurel.post_laurel_norm": (h,),
            "per_layer_input_gate": (p, h),
            "per_layer_projection": (h, p),
            "post_per_layer_input_norm": (h,),
        }
        shapes |= {f"layers.{i}.{name}.weight": shape for name, shape in layer.items()}
        shapes[f"layers.{i}.altup.correct_output_scale"] = (h,)
    return shapes


def is_read(config: TextConfig, name: str) -> bool:
    """Whether the export reads a tensor: the K and V of a layer that shares another's are never used."""
    layer = re.match(r"layers\.(\d+)\.self_attn\.[kv]_", name)
    return not layer or int(layer[1]) < config.first_shared_layer
