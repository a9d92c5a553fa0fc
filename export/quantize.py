"""Block quantization: the weights of onnxruntime's MatMulNBits, and the rows of the embedding store.

A block of consecutive weights along K shares one scale and one zero point,

    weight ≈ (code - zero_point) * scale,    0 <= code < 2**bits,    0 <= zero_point < 2**bits.

Rounding to the nearest code of the block's whole range (min-max) wastes levels on rare extremes, so
scale and zero point are searched for, to minimise each block's squared error:

1. A grid: the block's range shrunk or stretched by a few factors. An asymmetric block tries, for
   each, the two integer zero points around the one that centres the range. A symmetric block has its
   zero point in the middle and its extreme (the value of largest magnitude, of either sign) on the
   negative side, which has one level more: its scale is negative where the extreme is positive, like
   llama.cpp's Q4_0. MatMulNBits computes right with negative scales. The grid contains min-max.
2. Polishing: given its codes q, a block's best scale is the least-squares fit Σ(w q) / Σ(q q); given
   that scale, its best codes are the nearest ones. Neither step can raise the error.

The result is therefore never worse than min-max rounding on any block, up to float32's own rounding.
Blocks are independent and laid out as columns, [block, blocks], so that every step is one vectorised
pass, in chunks that stay in the cache. Each pass takes tens of microseconds, too little to share between
threads: where other programs compete for the cores, waiting for one another costs ten times the work.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from edge_gemma.errors import CheckpointError, RecipeError
from edge_gemma.recipes import MatrixFormat

CHUNK = 1 << 18
"""Weights quantized at a time (1 MiB as float32, about five such temporaries)."""

POLISH = 2
"""Rounds of step 2; a third gains less than 0.01 dB."""

NEGLIGIBLE = 2.0**-100
"""A block whose largest magnitude is below this is stored as zeros."""

ZERO_SCALE = 2.0**-24
"""Scale of an all-zero block, whose codes are its zero point: the smallest positive float16."""

HALF_MAX = 65504.0
"""Largest finite float16."""

# Step 1's grid. Symmetric: the level at which the extreme lies, where the negative side ends at
# 2**(bits-1) levels; above that it is clipped. Asymmetric: levels span this share of the block's range.
# At 8 bits clipping does not pay: the grid is as small as the guarantee allows.
EXTREME_LEVELS = {4: tuple(7 + i / 4 for i in range(24)), 8: (127.0, 128.0)}
RANGE_SHARES = {4: tuple(i / 20 for i in range(11, 23)), 8: (0.98, 1.0)}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep each of torch's operators on one thread meanwhile: chunks run side by side instead."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class BlockQuantized(NamedTuple):
    """MatMulNBits' inputs B, scales and zero_points for a weight [N, K], with C = ceil(K / block)."""

    packed: NDArray[np.uint8]
    """Codes, [N, C, block * bits / 8]; at 4 bits the low nibble comes first along K."""
    scales: NDArray[np.float32]
    """[N, C], possibly negative if symmetric, never zero."""
    zero_points: NDArray[np.uint8]
    """[N, ceil(C * bits / 8)], packed like the codes; an odd C leaves the last high nibble zero.
    Explicit even where symmetric: without them onnxruntime on ARM takes a less exact kernel."""


@_one_thread()
def quantize_matrix(weight: torch.Tensor, fmt: MatrixFormat) -> BlockQuantized:
    """Quantize a weight [N, K] (the layout of torch.nn.Linear, any float dtype) for MatMulNBits.

    If K is not a multiple of the block, the last block of each row is padded with zeros. Beside the
    result it takes a few megabytes and about two bytes a block. Raises CheckpointError, without the name of
    the tensor, if the weight is not a matrix or is not finite.
    """
    if weight.ndim != 2:
        raise CheckpointError(f"found a weight of shape {list(weight.shape)}; expected a matrix [N, K]")
    n, k = weight.shape
    columns = -(-k // fmt.block)
    packed = torch.empty(n * columns, fmt.block * fmt.bits // 8, dtype=torch.uint8)
    scales = torch.empty(n * columns, dtype=torch.float32)
    zeros = torch.empty(n * columns, dtype=torch.uint8)

    def work(part: slice, blocks: torch.Tensor, largest: torch.Tensor) -> None:
        scale, zero = _search(blocks, fmt.bits, fmt.zero_points)
        packed[part] = _encode(blocks, scale, zero, fmt.bits)
        scales[part] = torch.where(largest < NEGLIGIBLE, ZERO_SCALE, scale * largest)
        zeros[part] = zero.to(torch.uint8)

    _each_chunk(weight, fmt.block, work)
    zero_points = zeros.view(n, columns).numpy()
    if fmt.bits == 4:
        padded = np.pad(zero_points, ((0, 0), (0, columns % 2)))
        zero_points = padded[:, 0::2] | padded[:, 1::2] << 4
    return BlockQuantized(
        packed.view(n, columns, fmt.block * fmt.bits // 8).numpy(),
        scales.view(n, columns).numpy(),
        zero_points,
    )


def dequantize_matrix(q: BlockQuantized, *, k: int, fmt: MatrixFormat) -> torch.Tensor:
    """The weight that MatMulNBits multiplies with: float32 [N, k]."""
    n, columns, _ = q.packed.shape
    codes, zeros = q.packed, q.zero_points
    if fmt.bits == 4:
        codes, zeros = _unpack_nibbles(codes), _unpack_nibbles(zeros)[:, :columns]
    weight = (codes.astype(np.float32) - zeros[:, :, None].astype(np.float32)) * q.scales[:, :, None]
    return torch.from_numpy(weight.reshape(n, columns * fmt.block)[:, :k])


@_one_thread()
def quantize_rows(
    rows: torch.Tensor, *, bits: int, block: int
) -> tuple[NDArray[np.int8] | NDArray[np.uint8], NDArray[np.float16]]:
    """Quantize embedding rows [R, D] (any float dtype), symmetrically, in blocks along D.

    Returns codes and scales [R, D / block] in float16, possibly negative, never zero. At 8 bits the
    codes are int8 [R, D]; at 4 bits uint8 [R, D / 2], each nibble offset by 8 and the low one first.
    Codes are chosen for the scale as rounded to float16. Where that would underflow, the smallest
    float16 takes its place, so such values round to multiples of 2**-24. Where it would overflow,
    CheckpointError is raised, as for values that are not finite.
    """
    if bits not in (4, 8):
        raise RecipeError(f"found bits={bits} for embedding rows; expected 4 or 8")
    if rows.ndim != 2 or block < 2 or block % 2 or rows.shape[1] % block:
        raise RecipeError(
            f"found embedding rows {list(rows.shape)} and block={block}; expected a matrix [R, D] "
            "and an even block that divides D"
        )
    r, d = rows.shape
    codes = torch.empty(r * d // block, block * bits // 8, dtype=torch.uint8)
    scales = torch.empty(r * d // block, dtype=torch.float16)

    def work(part: slice, blocks: torch.Tensor, largest: torch.Tensor) -> None:
        scale, zero = _search(blocks, bits, False)
        wide = torch.where(largest < NEGLIGIBLE, ZERO_SCALE, scale * largest)
        if wide.numel() and float(wide.abs().max()) > HALF_MAX:
            raise CheckpointError(
                f"found values up to {float(largest.max()):.3g} in embedding rows {list(rows.shape)}; "
                f"expected a scale of at most {HALF_MAX:g} at {bits} bits: the checkpoint is damaged"
            )
        half = wide.half()
        half = torch.where(half == 0, torch.copysign(torch.tensor(ZERO_SCALE), wide).half(), half)
        scales[part] = half
        scale = half.float() / largest.clamp(min=NEGLIGIBLE)
        codes[part] = _encode(blocks, scale, zero, bits)

    _each_chunk(rows, block, work)
    if bits == 8:  # unsigned with zero point 128 to two's complement: flip the top bit
        signed: NDArray[np.int8] = codes.bitwise_xor_(0x80).view(r, d).numpy().view(np.int8)
        return signed, scales.view(r, d // block).numpy()
    return codes.view(r, d // 2).numpy(), scales.view(r, d // block).numpy()


def dequantize_rows(
    codes: NDArray[np.int8] | NDArray[np.uint8], scales: NDArray[np.float16], *, bits: int, block: int
) -> NDArray[np.float32]:
    """What a runtime reads back from `quantize_rows`: float32 [R, D]."""
    if bits == 8:
        values = codes.astype(np.float32)
    else:
        values = _unpack_nibbles(codes.view(np.uint8)).astype(np.float32) - 8
    rows, columns = scales.shape
    wide: NDArray[np.float32] = values.reshape(rows, columns, block)
    return (wide * scales.astype(np.float32)[:, :, None]).reshape(rows, columns * block)


def _each_chunk(
    weight: torch.Tensor, block: int, work: Callable[[slice, torch.Tensor, torch.Tensor], None]
) -> None:
    """Cut [N, K] into blocks, row by row, and call `work` for a few rows at a time, on all cores.

    `work` gets where the chunk's blocks lie among all N * ceil(K / block); the blocks as columns, divided
    by their largest magnitude, float32 [block, blocks]; and that magnitude, float32 [blocks].
    """
    n, k = weight.shape
    columns = -(-k // block)
    step = max(1, CHUNK // max(1, columns * block))

    def run(start: int) -> None:
        rows = weight[start : start + step].detach().to(device="cpu", dtype=torch.float32)
        rows = torch.nn.functional.pad(rows, (0, columns * block - k))
        blocks = rows.reshape(-1, block).t().clone(memory_format=torch.contiguous_format)
        largest = torch.maximum(blocks.amax(0), -blocks.amin(0))
        if not bool(torch.isfinite(largest).all()):
            raise CheckpointError(
                f"found NaN or infinity in rows {start} to {start + len(rows) - 1} of {[n, k]} "
                f"{weight.dtype} weights; expected finite values: the checkpoint is damaged"
            )
        blocks.div_(torch.where(largest < NEGLIGIBLE, torch.inf, largest))
        work(slice(start * columns, (start + len(rows)) * columns), blocks, largest)

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for _ in pool.map(run, range(0, n, step)):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def _search(blocks: torch.Tensor, bits: int, zero_points: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the scale and the zero point of each column: [block, blocks] -> float32 [blocks] each."""
    work = torch.empty_like(blocks)
    best = torch.full_like(blocks[0], torch.inf)
    scale, zero = torch.ones_like(best), torch.zeros_like(best)
    for s, z in _candidates(blocks, bits, zero_points):
        _round(blocks, s, z, bits, out=work)
        work.mul_(s).sub_(blocks)
        error = work.mul_(work).sum(0)
        better = error < best
        best = torch.where(better, error, best)
        scale, zero = torch.where(better, s, scale), torch.where(better, z, zero)
    other = torch.empty_like(blocks)
    for _ in range(POLISH):
        _round(blocks, scale, zero, bits, out=work)
        fit = torch.mul(work, blocks, out=other).sum(0)
        norm = work.mul_(work).sum(0)
        scale = torch.where(norm > 0, fit / norm, scale)
    return scale, zero


def _candidates(
    blocks: torch.Tensor, bits: int, zero_points: bool
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The grid of step 1: pairs of scale and zero point, float32 [blocks] each."""
    top = 2**bits - 1
    high, low = blocks.amax(0).clamp_(min=0), blocks.amin(0).clamp_(max=0)
    if not zero_points:
        extreme = torch.where(high > -low, high, low)
        extreme = torch.where(extreme == 0, 1.0, extreme)
        middle = torch.full_like(extreme, 2 ** (bits - 1))
        for level in EXTREME_LEVELS[bits]:
            yield extreme / -level, middle
        return
    spread = high - low
    spread = torch.where(spread == 0, 1.0, spread)
    for share in RANGE_SHARES[bits]:
        scale = spread * (share / top)
        centred = top / 2 - (high + low) / (2 * scale)
        zero = centred.floor_().clamp_(0, top - 1)
        yield scale, zero
        yield scale, zero + 1


def _round(
    blocks: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int, *, out: torch.Tensor
) -> None:
    """Write the nearest codes less their zero point to `out`: float32 [block, blocks]."""
    torch.mul(blocks, scale.reciprocal(), out=out)
    torch.clamp(out.round_(), -zero, 2**bits - 1 - zero, out=out)


def _encode(blocks: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes as stored: float32 [block, blocks] -> uint8 [blocks, block * bits / 8]."""
    codes = torch.empty_like(blocks)
    _round(blocks, scale, zero, bits, out=codes)
    codes.add_(zero)
    if bits == 4:
        codes = codes[0::2].add_(codes[1::2], alpha=16)
    return codes.to(torch.uint8).t()


def _unpack_nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[..., X] -> [..., 2 X], the low nibble first."""
    return np.stack((packed & 15, packed >> 4), axis=-1).reshape(*packed.shape[:-1], -1)
