"""Training with the noise of 4-bit weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

INT4_BLOCK = 32


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
