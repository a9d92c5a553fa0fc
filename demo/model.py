"""The demo's model: its configuration, its first weights, and the two ways training disturbs it.

The width of the feed-forward blocks and the int4 rounding are switched on an ordinary Gemma3nForCausalLM, so
the checkpoint stays one that transformers loads as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextMLP

from demo.tokenizer import MAX_LENGTH, TEXT_VOCAB, VOCAB_SIZE

FULL_WIDTH = 512
HALF_WIDTH = 256
INT4_BLOCK = 32
LAYERS = 10
SPARSE_LAYERS = 3
BLOCK_SCALE = 0.2


def demo_config() -> Gemma3nTextConfig:
    """Ten layers, full attention in the fifth and the last; layers 6-9 read keys and values of 4 and 5."""
    return Gemma3nTextConfig(
        architectures=["Gemma3nForCausalLM"],
        vocab_size=VOCAB_SIZE,
        vocab_size_per_layer_input=TEXT_VOCAB,
        hidden_size=128,
        intermediate_size=FULL_WIDTH,
        num_hidden_layers=LAYERS,
        num_kv_shared_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        hidden_size_per_layer_input=32,
        laurel_rank=16,
        sliding_window=16,
        max_position_embeddings=MAX_LENGTH,
        activation_sparsity_pattern=[0.95] * SPARSE_LAYERS + [0.0] * (LAYERS - SPARSE_LAYERS),
        initializer_range=0.05,
        attn_implementation="eager",
    )


def new_model(seed: int) -> Gemma3nForCausalLM:
    """Seeded random weights, with three scales set otherwise than transformers does; learning needs them.

    AltUp's corrected output starts at 1, not 0. Attention has no 1/sqrt(head_dim) of its own, so the norm of
    the queries starts with it: at 1 the first softmax is all but one-hot. The norms after each block start
    low: at 1 every layer adds three random vectors as long as the signal.
    """
    torch.manual_seed(seed)
    model = Gemma3nForCausalLM(demo_config())
    for layer in model.model.layers:
        nn.init.ones_(layer.altup.correct_output_scale)
        nn.init.constant_(layer.self_attn.q_norm.weight, model.config.head_dim**-0.5)
        nn.init.constant_(layer.post_attention_layernorm.weight, BLOCK_SCALE)
        nn.init.constant_(layer.post_feedforward_layernorm.weight, BLOCK_SCALE)
        nn.init.constant_(layer.post_per_layer_input_norm.weight, BLOCK_SCALE)
        nn.init.constant_(layer.laurel.post_laurel_norm.weight, BLOCK_SCALE)
    return model


def use_width(model: nn.Module, width: int) -> None:
    """From now on every feed-forward block of `model` computes with its first `width` neurons only."""
    for module in model.modules():
        if isinstance(module, Gemma3nTextMLP):
            module.forward = partial(_narrow_feed_forward, module, width)


def _narrow_feed_forward(mlp: Gemma3nTextMLP, width: int, x: Tensor) -> Tensor:
    """x [B, S, H] through the first `width` rows of gate and up and columns of down: [B, S, H]."""
    gate = F.linear(x, mlp.gate_proj.weight[:width])
    if mlp.activation_sparsity > 0:
        gate = mlp._gaussian_topk(gate)
    up = F.linear(x, mlp.up_proj.weight[:width])
    return F.linear(mlp.act_fn(gate) * up, mlp.down_proj.weight[:, :width])


@contextmanager
def int4_weights(model: nn.Module) -> Iterator[None]:
    """Inside, every matrix of `model` is rounded to 4 bits; the gradients go to the exact weights."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    exact = [parameter.data for parameter in matrices]
    for parameter in matrices:
        parameter.data = round_to_int4(parameter.data)
    try:
        yield
    finally:
        for parameter, weight in zip(matrices, exact, strict=True):
            parameter.data = weight


def round_to_int4(weight: Tensor) -> Tensor:
    """weight [rows, columns] to 15 levels, a scale for every 32 in a row; other row lengths unchanged."""
    if weight.shape[1] % INT4_BLOCK:
        return weight
    blocks = weight.reshape(-1, INT4_BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True).clamp(min=1e-8) / 7
    return ((blocks / scale).round() * scale).reshape(weight.shape)
