"""One quantized matrix product after the other, and what it should be: the sharp end of the comparison.

Through a whole model the smallest difference moves some activation over an edge of its rounding to int8, and
logits then differ by as much as the rounding itself. A single product has no such excuse.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

INPUTS, OUTPUTS, ROWS = 2048, 256, 16
FORMATS = [(4, 64), (4, 128), (8, 128)]  # bits and block of the built-in recipes' matrices
STORED, ABSENT = "with zero points", "without"


@dataclass(frozen=True)
class Product:
    """A MatMulNBits at accuracy level 4, and what it multiplies."""

    name: str
    graph: Path
    block: int
    x: NDArray[np.float32]  # [ROWS, INPUTS]
    weight: NDArray[np.float32]  # [OUTPUTS, INPUTS]

    def run(self) -> NDArray[np.float32]:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(str(self.graph), options, providers=["CPUExecutionProvider"])
        result: NDArray[np.float32] = session.run(None, {"x": self.x})[0]
        return result

    def exact(self) -> NDArray[np.float64]:
        """With float32 activations."""
        return self.x.astype(np.float64) @ self.weight.T

    def rounded(self) -> NDArray[np.float64]:
        """With activations rounded to int8, one scale for each block: what accuracy level 4 allows."""
        blocks = self.x.astype(np.float64).reshape(ROWS, -1, self.block)
        scale = np.abs(blocks).max(-1, keepdims=True) / 127
        return (np.round(blocks / scale) * scale).reshape(self.x.shape) @ self.weight.T


def snr(found: NDArray[np.floating], expected: NDArray[np.float64]) -> float:
    """Signal to noise in dB."""
    return float(10 * np.log10((expected**2).sum() / max(((found - expected) ** 2).sum(), 1e-30)))


def write(folder: Path) -> None:
    """A random matrix in each format, quantized as the exporter does, with zero points and without."""
    import torch
    from onnx import TensorProto, helper, numpy_helper, save

    from edge_gemma.export.quantize import dequantize_matrix, quantize_matrix
    from edge_gemma.recipes import MatrixFormat

    rng = np.random.default_rng(0)
    weight = torch.from_numpy(rng.standard_normal((OUTPUTS, INPUTS)).astype(np.float32))
    arrays = {"x": rng.standard_normal((ROWS, INPUTS)).astype(np.float32)}
    for bits, block in FORMATS:
        fmt = MatrixFormat(bits=bits, block=block, zero_points=False)
        packed = quantize_matrix(weight, fmt)
        arrays[f"{bits}-{block}"] = dequantize_matrix(packed, k=INPUTS, fmt=fmt).numpy()
        operands = {"b": packed.packed, "scales": packed.scales, "zero_points": packed.zero_points}
        for kind in (STORED, ABSENT):
            used = {
                name: array for name, array in operands.items() if kind == STORED or name != "zero_points"
            }
            node = helper.make_node(
                *("MatMulNBits", ["x", *used], ["y"]),
                domain="com.microsoft",
                **{"K": INPUTS, "N": OUTPUTS, "bits": bits, "block_size": block, "accuracy_level": 4},
            )
            graph = helper.make_graph(
                [node],
                "product",
                [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, INPUTS])],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, OUTPUTS])],
                [numpy_helper.from_array(array, name) for name, array in used.items()],
            )
            imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
            model = helper.make_model(graph, opset_imports=imports, ir_version=10)
            save(model, folder / f"product-{bits}-{block}-{kind}.onnx")
    np.savez(folder / "products.npz", **arrays)


def read(folder: Path) -> Iterator[Product]:
    with np.load(folder / "products.npz") as arrays:
        for bits, block in FORMATS:
            for kind in (STORED, ABSENT):
                graph = folder / f"product-{bits}-{block}-{kind}.onnx"
                yield Product(
                    f"{bits} bits, block {block}, {kind}",
                    graph,
                    block,
                    arrays["x"],
                    arrays[f"{bits}-{block}"],
                )
