"""The demo's model: its configuration, its first weights, and the feed-forward width that training varies.

An ordinary Gemma3nForConditionalGeneration, so the checkpoint is one that transformers loads as it is.
Whoever needs transformers' Gemma 3n classes here takes them from this module: torchvision has to be made
importable first.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demo.tokenizer import AUDIO_OFFSET, MAX_LENGTH, RANGE, TEXT_VOCAB, VISION_OFFSET, VOCAB_SIZE
from edge_gemma.export.timm_support import require_timm

require_timm()

from timm.models._efficientnet_builder import decode_arch_def  # noqa: E402
from transformers import (  # noqa: E402
    AutoModel,
    Gemma3nAudioConfig,
    Gemma3nConfig,
    Gemma3nForConditionalGeneration,
    Gemma3nTextConfig,
    Gemma3nVisionConfig,
)
from transformers.models.gemma3n.modeling_gemma3n import (  # noqa: E402
    Gemma3nAudioEncoder,
    Gemma3nMultimodalEmbedder,
    Gemma3nTextMLP,
)

FULL_WIDTH = 512
HALF_WIDTH = 256
HIDDEN = 128
LAYERS = 10
SHARED = 4  # layers that read keys and values of earlier ones
FULL_ATTENTION = (2, 5, 7, 9)  # 7 and 9 read those of 5; 6 and 8 those of 4
SLIDING_WINDOW = 32
SPARSE_LAYERS = 3
BLOCK_SCALE = 0.2  # the first value of the norms after each block
AUDIO_BLOCK_SCALE = 0.4
LAYER_SCALE = 0.3  # of the vision tower's blocks
AUDIO_TOKENS = 48  # soft tokens of a clip of 7.68 s; shorter ones are filled up
IMAGE_TOKENS = 256
IMAGE_SIZE = 128  # pixels a side, after resizing

# Maps of 64 (stem), 32, 16 and 8 a side; the last two are fused. Every kind of block is there.
VISION_BLOCKS = (
    ("er_r1_k3_s2_e4_c24",),
    ("uir_r1_a3_k5_s2_e4_c48", "uir_r1_a5_k0_s1_e2_c48"),
    ("uir_r1_a3_k5_s2_e4_c64", "mqa_r1_k3_h4_v2_s1_d16_c64", "uir_r1_a0_k0_s1_e2_c64"),
)

__all__ = ["Gemma3nAudioEncoder", "Gemma3nForConditionalGeneration", "Gemma3nMultimodalEmbedder"]


def text_config() -> Gemma3nTextConfig:
    """Ten layers, four of them with full attention."""
    kinds = ["full_attention" if i in FULL_ATTENTION else "sliding_attention" for i in range(LAYERS)]
    return Gemma3nTextConfig(
        vocab_size=VOCAB_SIZE,
        vocab_size_per_layer_input=TEXT_VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=FULL_WIDTH,
        num_hidden_layers=LAYERS,
        num_kv_shared_layers=SHARED,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        hidden_size_per_layer_input=32,
        laurel_rank=16,
        sliding_window=SLIDING_WINDOW,
        layer_types=kinds,
        max_position_embeddings=MAX_LENGTH,
        activation_sparsity_pattern=[0.95] * SPARSE_LAYERS + [0.0] * (LAYERS - SPARSE_LAYERS),
        initializer_range=0.05,
    )


def audio_config() -> Gemma3nAudioConfig:
    """Four conformer blocks of 128."""
    return Gemma3nAudioConfig(
        vocab_size=RANGE,
        vocab_offset=AUDIO_OFFSET,
        hidden_size=128,
        conf_num_attention_heads=4,
        conf_num_hidden_layers=4,
        sscp_conv_channel_size=(16, 16),
    )


def vision_config() -> Gemma3nVisionConfig:
    """A MobileNetV5 of three stages; a new object each time, because timm changes the block arguments."""
    blocks = copy.deepcopy(decode_arch_def([list(stage) for stage in VISION_BLOCKS]))
    return Gemma3nVisionConfig(
        architecture="mobilenetv5_300m_enc",
        model_args={"block_args": blocks, "stem_size": 16, "layer_scale_init_value": LAYER_SCALE},
        vocab_size=RANGE,
        vocab_offset=VISION_OFFSET,
    )


def demo_config() -> Gemma3nConfig:
    """The whole: three towers, and the ids of the tokens that stand around and for media."""
    return Gemma3nConfig(
        architectures=["Gemma3nForConditionalGeneration"],
        text_config=text_config(),
        audio_config=audio_config(),
        vision_config=vision_config(),
        audio_soft_tokens_per_image=AUDIO_TOKENS,
        vision_soft_tokens_per_image=IMAGE_TOKENS,
        boi_token_id=6,
        boa_token_id=7,
        eoi_token_id=VISION_OFFSET,
        image_token_id=VISION_OFFSET + 1,
        eoa_token_id=AUDIO_OFFSET,
        audio_token_id=AUDIO_OFFSET + 1,
        initializer_range=0.05,
    )


def new_vision_tower() -> nn.Module:
    """The vision tower alone: pixels [B, 3, 128, 128] in 0..1 → [B, 2048, 16, 16]."""
    tower = AutoModel.from_config(vision_config())
    for module in tower.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    return tower


def new_model(seed: int) -> Gemma3nForConditionalGeneration:
    """Seeded random weights, with three scales set otherwise than transformers does; learning needs them.

    AltUp's corrected output starts at 1, not 0. Attention has no 1/sqrt(head_dim) of its own, so the norm of
    the queries starts with it: at 1 the first softmax is all but one-hot. The norms after each block start
    low: at 1 every layer adds three random vectors as long as the signal.
    """
    torch.manual_seed(seed)
    model = Gemma3nForConditionalGeneration(demo_config())
    head_dim = model.config.text_config.head_dim
    for layer in model.model.language_model.layers:
        nn.init.ones_(layer.altup.correct_output_scale)
        nn.init.constant_(layer.self_attn.q_norm.weight, head_dim**-0.5)
        nn.init.constant_(layer.post_attention_layernorm.weight, BLOCK_SCALE)
        nn.init.constant_(layer.post_feedforward_layernorm.weight, BLOCK_SCALE)
        nn.init.constant_(layer.post_per_layer_input_norm.weight, BLOCK_SCALE)
        nn.init.constant_(layer.laurel.post_laurel_norm.weight, BLOCK_SCALE)
    return model


def new_audio_tower() -> Gemma3nAudioEncoder:
    """The audio tower alone, with weights from which it learns.

    transformers' weights of 0.02 leave the signal weaker than what each block adds to it; here every layer
    keeps the size of what it reads, and the blocks start low.
    """
    tower = Gemma3nAudioEncoder(audio_config())
    for module in tower.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv1d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    for block in tower.conformer:
        for norm in (
            block.ffw_layer_start.post_layer_norm,
            block.ffw_layer_end.post_layer_norm,
            block.attention.post_norm,
        ):
            nn.init.constant_(norm.weight, AUDIO_BLOCK_SCALE)
        with torch.no_grad():
            block.lconv1d.linear_end.weight *= AUDIO_BLOCK_SCALE
    return tower


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
