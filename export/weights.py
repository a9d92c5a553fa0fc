"""A graph whose weights come from a checkpoint, stored as a recipe says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from edge_gemma.config import TextConfig
from edge_gemma.export.checkpoint import Checkpoint
from edge_gemma.export.graph import MICROSOFT, Graph
from edge_gemma.export.quantize import quantize_matrix
from edge_gemma.recipes import MatrixFormat, Recipe


class WeightedGraph(Graph):
    """Adds norms and matrix products by the names that the checkpoint gives their weights.

    Inside a scope `layers.I` names are those within the layer.
    """

    def __init__(self, name: str, path: Path, checkpoint: Checkpoint, recipe: Recipe) -> None:
        super().__init__(name, path)
        self.checkpoint = checkpoint
        self.recipe = recipe

    @property
    def config(self) -> TextConfig:
        return self.checkpoint.config.text

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor of the current layer, or a global one, as float32."""
        scope = self.current_scope
        prefix = f"{scope[0]}." if scope and scope[0].startswith("layers.") else ""
        return self.checkpoint.tensor(prefix + name).float()

    def rms(self, x: str, name: str) -> str:
        """RMS norm over the last axis with the weight of the checkpoint's module `name`."""
        return self.rms_by(x, self.weight(name, self.tensor(f"{name}.weight").numpy()))

    def rms_by(self, x: str, weight: str) -> str:
        """x / sqrt(mean(x²) + eps) · weight over the last axis"""
        return self.op(
            "SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=self.config.rms_norm_eps, stash_type=1
        )

    def linear(self, x: str, name: str, kind: str = "per_layer_input") -> str:
        """x · weightᵀ with the weight of the checkpoint's module `name`; `kind` is the recipe's class."""
        return self.matmul(x, self.tensor(f"{name}.weight"), name.split(".")[-1], kind)

    def matmul(self, x: str, weight: torch.Tensor, name: str, kind: str = "per_layer_input") -> str:
        """x · weightᵀ, weight [out, in] stored as the recipe says for its kind"""
        fmt = self.recipe.matrices[kind]
        if fmt is None:
            return self.op("MatMul", x, self.weight(name, weight.float().T.numpy()))
        return self._matmul_nbits(x, weight, name, fmt)

    def _matmul_nbits(self, x: str, weight: torch.Tensor, name: str, fmt: MatrixFormat) -> str:
        rows, columns = weight.shape
        packed = quantize_matrix(weight, fmt)
        parts: list[tuple[str, NDArray[np.uint8] | NDArray[np.float32]]] = [
            ("codes", packed.packed),
            ("scales", packed.scales),
            ("zero_points", packed.zero_points),
        ]
        return self.op(
            "MatMulNBits",
            x,
            *(self.weight(f"{name}.{part}", array) for part, array in parts),
            domain=MICROSOFT,
            K=columns,
            N=rows,
            bits=fmt.bits,
            block_size=fmt.block,
            accuracy_level=self.recipe.accuracy_level,
        )
