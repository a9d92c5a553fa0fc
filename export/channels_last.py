"""MobileNetV5 with its channels last: the same modules and parameters, [N, H, W, C] between them.

timm's tower has its channels behind the batch. Most of its work is 1×1 convolutions, and its norms are over
the channels: with the channels last, the former are products with matrices, which a recipe can store in
blocks, and the latter single nodes. The spatial convolutions turn to channels first and back, which costs
little, since onnxruntime merges it with turning to their own blocked layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.nn import functional

from edge_gemma.errors import ExportError
from edge_gemma.export.graph import MICROSOFT
from edge_gemma.export.timm_support import require_timm

# Types of modules that are right in either layout, or through the forms below
KNOWN = frozenset(
    {
        "MobileNetV5Encoder",
        "MobileNetV5MultiScaleFusionAdapter",
        "EdgeResidual",
        "UniversalInvertedResidual",
        "MobileAttention",
        "MultiQueryAttention2d",
        "ConvNormAct",
        "Conv2d",
        "Conv2dSame",
        "RmsNorm2d",
        "RmsNormAct2d",
        "LayerScale2d",
        "Sequential",
        "GELU",
        "Identity",
        "Dropout",
    }
)


@contextmanager
def channels_last(tower: nn.Module) -> Iterator[None]:
    """Inside, timm's `tower` takes and gives [N, H, W, C]. What it computes exists in ONNX alone: trace it.

    Raises:
        ExportError: the tower has a kind of module that no known MobileNetV5 has.
    """
    require_timm()
    from timm.layers import Conv2dSame, LayerScale2d, RmsNorm2d, RmsNormAct2d
    from timm.layers.attention2d import MultiQueryAttention2d
    from timm.models.mobilenetv5 import MobileNetV5MultiScaleFusionAdapter

    if unknown := {type(module).__name__ for module in tower.modules()} - KNOWN:
        raise ExportError(
            f"the vision tower has modules of type {', '.join(sorted(unknown))}, "
            "expected a MobileNetV5 encoder as in Gemma 3n"
        )
    with ExitStack() as stack:
        for kind, form in (
            (nn.Conv2d, convolution),
            (Conv2dSame, same_convolution),
            (RmsNorm2d, rms_norm),
            (RmsNormAct2d, rms_norm_and_activation),
            (LayerScale2d, layer_scale),
            (MultiQueryAttention2d, multi_query_attention),
            (MobileNetV5MultiScaleFusionAdapter, fusion),
        ):
            stack.enter_context(mock.patch.object(kind, "forward", form))
        yield


def convolution(self: Any, x: torch.Tensor) -> torch.Tensor:
    """A 1×1 convolution as a product with a matrix, any other with its channels first inside"""
    if self.kernel_size == (1, 1) and self.stride == (1, 1) and self.groups == 1:
        return functional.linear(x, self.weight.flatten(1), self.bias)
    return _last(_convolve(self, _first(x), self.padding))


def same_convolution(self: Any, x: torch.Tensor) -> torch.Tensor:
    """A strided convolution padded as TensorFlow does it, more behind than before"""
    from timm.layers.padding import pad_same

    return _last(_convolve(self, pad_same(_first(x), self.kernel_size, self.stride, self.dilation), 0))


def _convolve(self: Any, x: torch.Tensor, padding: Any) -> torch.Tensor:
    return functional.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


def rms_norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    """x · (mean(x²) + eps)^-½ · weight, over the channels"""
    normed: torch.Tensor = x * torch.pow(x.pow(2).mean(-1, keepdim=True) + self.eps, -0.5) * self.weight
    return normed


def rms_norm_and_activation(self: Any, x: torch.Tensor) -> torch.Tensor:
    activated: torch.Tensor = self.act(rms_norm(self, x))
    return activated


def layer_scale(self: Any, x: torch.Tensor) -> torch.Tensor:
    scaled: torch.Tensor = x * self.gamma
    return scaled


def multi_query_attention(self: Any, x: torch.Tensor) -> torch.Tensor:
    """All heads share keys and values: their queries are as good as those of one head at more positions.

    So [1, H, W, heads · width] is read as [1, H · W · heads, width] by an attention with one head.
    """
    n, height, width, _ = x.shape
    query = self.query(x).reshape(n, -1, self.key_dim)
    key = self.key(x).flatten(1, 2)
    value = self.value(x).flatten(1, 2)
    mixed = torch.onnx.ops.symbolic(
        f"{MICROSOFT}::MultiHeadAttention",
        (query, key, value),
        {"num_heads": 1, "scale": self.scale},
        dtype=query.dtype,
        shape=(*query.shape[:2], self.value_dim),
        version=1,
    )
    out: torch.Tensor = self.output(mixed.reshape(n, height, width, -1))
    return out


def fusion(self: Any, maps: list[torch.Tensor]) -> torch.Tensor:
    """The last stages' maps, brought to the first's size, joined, mixed and averaged to the output's size"""
    size = maps[0].shape[1:3]
    height, width = self.output_resolution
    joined = [
        m if m.shape[1:3] == size else _last(functional.interpolate(_first(m), size, mode="nearest"))
        for m in maps
    ]
    x: torch.Tensor = self.ffn(torch.cat(joined, -1))
    if size[0] % height or size[1] % width:
        x = _last(functional.interpolate(_first(x), (height, width), mode="bilinear"))
    elif tuple(size) != (height, width):
        stride = size[0] // height, size[1] // width
        x = _last(functional.avg_pool2d(_first(x), stride, stride))
    normed: torch.Tensor = self.norm(x)
    return normed


def _first(x: torch.Tensor) -> torch.Tensor:
    """[N, H, W, C] → [N, C, H, W]"""
    return x.permute(0, 3, 1, 2)


def _last(x: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] → [N, H, W, C]"""
    return x.permute(0, 2, 3, 1)
