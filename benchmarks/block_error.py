"""Error of 4-bit block quantization on random matrices: ours against rounding to nearest.

    python -m benchmarks.block_error [--size 2048]

Signal to noise in dB, where the signal is the matrix and the noise what quantization adds.
"""

from __future__ import annotations

from collections.abc import Callable

import click
import torch

from benchmarks.command import Benchmark
from benchmarks.report import print_report
from edge_gemma.export.quantize import dequantize_matrix, quantize_matrix
from edge_gemma.recipes import MatrixFormat

BLOCKS = (32, 64, 128)
Method = Callable[[torch.Tensor, int], torch.Tensor]  # float32 [N, K], block → the matrix as stored


def q4_0_codes(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """llama.cpp's Q4_0: the extreme at -8, float16 scale, round to nearest.

    Blocks [..., block] → codes -8 … 7 of the same shape and scales [..., 1], both float32.
    """
    extreme = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scale = (extreme / -8).half().float()
    return (blocks / torch.where(scale == 0, 1.0, scale)).round().clamp(-8, 7), scale


def q4_0(weight: torch.Tensor, block: int) -> torch.Tensor:
    codes, scale = q4_0_codes(weight.reshape(-1, block))
    return (codes * scale).reshape(weight.shape)


def symmetric_nearest(weight: torch.Tensor, block: int) -> torch.Tensor:
    blocks = weight.reshape(-1, block)
    scale = blocks.abs().amax(1, keepdim=True) / 7
    return ((blocks / scale).round().clamp(-8, 7) * scale).reshape(weight.shape)


def zero_points_nearest(weight: torch.Tensor, block: int) -> torch.Tensor:
    blocks = weight.reshape(-1, block)
    low, high = blocks.amin(1, keepdim=True).clamp(max=0), blocks.amax(1, keepdim=True).clamp(min=0)
    scale = (high - low) / 15
    zero = (-low / scale).round()
    return (((blocks / scale).round() + zero).clamp(0, 15) - zero).mul(scale).reshape(weight.shape)


def searched(zero_points: bool) -> Method:
    """The export's own quantizer."""

    def method(weight: torch.Tensor, block: int) -> torch.Tensor:
        fmt = MatrixFormat(bits=4, block=block, zero_points=zero_points)
        return dequantize_matrix(quantize_matrix(weight, fmt), k=weight.shape[1], fmt=fmt)

    return method


METHODS: dict[str, Method] = {
    "Q4_0": q4_0,
    "symmetric, nearest": symmetric_nearest,
    "symmetric, searched": searched(False),
    "zero points, nearest": zero_points_nearest,
    "zero points, searched": searched(True),
}


@click.command(cls=Benchmark)
@click.option("--size", default=2048, show_default=True, help="Rows and columns.")
def main(size: int) -> None:
    """Signal to noise of 4-bit blocks by method, distribution and block size."""
    torch.manual_seed(0)
    shape = (size, size)
    matrices = {
        "Gaussian": torch.randn(shape),
        "Student t(5)": torch.distributions.StudentT(5.0).sample(shape),
        "Laplace": torch.distributions.Laplace(0.0, 1.0).sample(shape),
    }
    rows, data = [], []
    for name, method in METHODS.items():
        cells = [name]
        for distribution, weight in matrices.items():
            values = []
            for block in (32,) if name == "Q4_0" else BLOCKS:
                noise = (method(weight, block) - weight).pow(2).mean()
                snr = float(10 * torch.log10(weight.pow(2).mean() / noise))
                values.append(f"{snr:.1f}")
                data.append({"method": name, "distribution": distribution, "block": block, "snr_db": snr})
            cells.append(" / ".join(values))
        rows.append(tuple(cells))
    print_report("benchmarks.block_error", ("method (block 32 / 64 / 128)", *matrices), rows, data)


if __name__ == "__main__":
    main()
