"""Modules of the audio tower in other forms: for one clip without padding they compute the same as those of
transformers, with fewer and plainer operators.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.nn import functional

from edge_gemma.export.timm_support import repair_torchvision

BLOCK = 24  # steps that attend together


@contextmanager
def plain_forms() -> Iterator[None]:
    """Encoders used inside compute the same with fewer and plainer operators."""
    repair_torchvision()
    from transformers.models.gemma3n import modeling_gemma3n as theirs

    with (
        mock.patch.object(theirs.Gemma3nAudioSSCPConvBlock, "forward", subsample),
        mock.patch.object(theirs.Gemma3nAudioConformerBlock, "forward", conformer_block),
        mock.patch.object(theirs.Gemma3nAudioAttention, "forward", local_attention),
    ):
        yield


def subsample(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Convolution and cumulative group norm, channels staying in front: [1, C, T, F] → [1, C', T', F']"""
    x = self.conv(functional.pad(x, self.manual_padding))
    _, channels, steps, bins = x.shape
    counts = (torch.arange(steps, dtype=torch.float32) + 1).view(1, 1, -1, 1) * (channels * bins)
    centred = x - x.sum((1, 3), keepdim=True).cumsum(2) / counts
    variance = centred.square().sum((1, 3), keepdim=True).cumsum(2) / counts
    scale = torch.rsqrt(variance + self.norm.eps) * self.norm.weight.view(1, -1, 1, 1)
    activated: torch.Tensor = self.activation(centred * scale)
    return activated


def conformer_block(self: Any, x: torch.Tensor, mask: None) -> torch.Tensor:
    """A conformer block without the mask: [1, T, D] → [1, T, D]"""
    x = self.ffw_layer_end(self.lconv1d(self.attention(self.ffw_layer_start(x), mask)))
    normed: torch.Tensor = self.norm(torch.clamp(x, -self.gradient_clipping, self.gradient_clipping))
    return normed


def local_attention(self: Any, x: torch.Tensor, mask: None) -> torch.Tensor:
    """Attention of each step to a few before it (and behind), in blocks: [1, T, D] → [1, T, heads, head_dim]

    The keys of a block are its own and the few before, cut from the block before. The projected positions
    are a table of the distance alone, which is shifted into place by reading it in rows one longer.
    The query's scale and the soft cap's divisor go into the query's matrix.
    """
    heads, width, cap = self.num_heads, self.head_dim, self.attention_logits_soft_cap
    past, future = self.max_past_horizon, self.max_future_horizon
    block = max(BLOCK, past, future)
    steps = x.shape[1]
    count = (steps + block - 1) // block
    scale = functional.softplus(self.per_dim_scale) * (self.q_scale / cap)
    query = self.q_proj.weight * scale.repeat(heads).unsqueeze(1)
    x = functional.pad(x, (0, 0, 0, count * block - steps))

    def blocks(weight: torch.Tensor) -> torch.Tensor:  # [count, block, heads, width]
        return functional.linear(x, weight).view(count, block, heads, width)

    def with_neighbours(own: torch.Tensor) -> torch.Tensor:  # [count, heads, past + block + future, width]
        parts = [own]
        if past:
            parts.insert(0, functional.pad(own[:-1, block - past :], (0, 0, 0, 0, 0, 0, 1, 0)))
        if future:
            parts.append(functional.pad(own[1:, :future], (0, 0, 0, 0, 0, 0, 0, 1)))
        return torch.cat(parts, 1).transpose(1, 2)

    q = blocks(query).transpose(1, 2)
    k = with_neighbours(blocks(self.k_proj.weight))
    v = with_neighbours(blocks(self.v_proj.weight))
    context, span = past + block + future, past + future + 1
    embedding = self.relative_position_embedding
    distances = torch.arange(past, -future - 1, -1).unsqueeze(0)
    table = embedding.pos_proj(embedding._get_timing_signal_1d_pos(distances, x.dtype))
    table = table.view(span, heads, width).permute(1, 2, 0)  # [heads, width, span]
    rows = functional.pad(q @ table, (0, context + 1 - span)).view(count, heads, block * (context + 1))
    shifted = rows[:, :, : block * context].view(count, heads, block, context)
    scores = torch.tanh(q @ k.transpose(2, 3) + shifted) * cap

    offsets = torch.arange(context) - torch.arange(block).unsqueeze(1)
    key = torch.arange(count).view(-1, 1, 1, 1) * block + torch.arange(context) - past
    visible = (offsets >= 0) & (offsets < span) & (key >= 0)
    if future:
        visible = visible & (key < steps)
    scores = torch.where(visible, scores, torch.finfo(scores.dtype).min)
    mixed = torch.softmax(scores, -1) @ v
    return mixed.transpose(1, 2).reshape(1, count * block, heads, width)[:, :steps]
