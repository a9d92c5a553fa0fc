"""Quantized weights mean what onnxruntime computes with, and no block is worse than plain rounding."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_gemma.errors import CheckpointError, RecipeError
from edge_gemma.export import quantize
from edge_gemma.export.quantize import (
    BlockQuantized,
    dequantize_matrix,
    dequantize_rows,
    quantize_matrix,
    quantize_rows,
)
from edge_gemma.recipes import MatrixFormat

Floats = NDArray[np.float64]
FORMATS = [
    MatrixFormat(bits=bits, block=block, zero_points=zero_points)
    for bits in (4, 8)
    for block in (16, 32, 64, 128)
    for zero_points in (False, True)
]
formats = pytest.mark.parametrize(
    "fmt", FORMATS, ids=lambda f: f"{f.bits}bit-{f.block}-{'zero_points' if f.zero_points else 'symmetric'}"
)
bits_and_blocks = pytest.mark.parametrize(("bits", "block"), [(4, 32), (4, 256), (8, 32), (8, 256)])


@st.composite
def weights(draw: st.DrawFn, width: int) -> torch.Tensor:
    """[8, width]: rows that quantizers get wrong: skewed, spiked, constant, sparse, on a grid, huge, tiny."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kinds = [
        lambda: rng.standard_normal(width),
        lambda: rng.standard_t(2, width),
        lambda: rng.standard_normal(width) + 3,
        lambda: -np.abs(rng.laplace(size=width)),
        lambda: np.full(width, rng.standard_normal()),
        lambda: rng.standard_normal(width) * (rng.random(width) < 0.1),
        lambda: rng.integers(-8, 8, width) * 0.25,
        lambda: np.where(np.arange(width) == width // 3, 50.0, rng.standard_normal(width)),
    ]
    exponent = draw(st.integers(-60, 60))
    rows = [kinds[draw(st.integers(0, len(kinds) - 1))]() for _ in range(8)]
    return torch.from_numpy(np.stack(rows) * 2.0**exponent).float()


def blocks_of(values: torch.Tensor | NDArray[np.float32], block: int) -> Floats:
    """[N, K] -> float64 [N, C, block], padded with zeros."""
    array = np.asarray(values, dtype=np.float64)
    array = np.pad(array, ((0, 0), (0, -array.shape[1] % block)))
    return array.reshape(len(array), -1, block)


def min_max_error(w: Floats, bits: int, zero_points: bool) -> Floats:
    """Squared error of rounding to the nearest in the block's range, written independently: [N, C]."""
    top = 2**bits - 1
    if zero_points:
        low, high = np.minimum(w.min(-1), 0), np.maximum(w.max(-1), 0)
        scale = np.where(high > low, high - low, 1) / top
        zero = np.rint(-low / scale)
    else:
        largest = np.abs(w).max(-1)
        scale = np.where(largest > 0, largest, 1) / (top // 2)
        zero = np.full_like(scale, 2 ** (bits - 1))
    codes = np.clip(np.rint(w / scale[..., None]) + zero[..., None], 0, top)
    return ((w - (codes - zero[..., None]) * scale[..., None]) ** 2).sum(-1)


def codes_of(q: BlockQuantized, fmt: MatrixFormat) -> NDArray[np.int64]:
    """Unpack MatMulNBits' B bit by bit: [N, C, block]."""
    n, columns, _ = q.packed.shape
    bits = np.unpackbits(q.packed, axis=-1, bitorder="little").reshape(n, columns, fmt.block, fmt.bits)
    return (bits.astype(np.int64) << np.arange(fmt.bits)).sum(-1)


def matmul_nbits(
    x: NDArray[np.float32], q: BlockQuantized, fmt: MatrixFormat, level: int
) -> NDArray[np.float32]:
    """Run one MatMulNBits node on x [M, K]; returns [M, N]."""
    n, k = len(q.packed), x.shape[1]
    node = onnx.helper.make_node(
        "MatMulNBits",
        ["x", *q._fields],
        ["y"],
        domain="com.microsoft",
        K=k,
        N=n,
        bits=fmt.bits,
        block_size=fmt.block,
        accuracy_level=level,
    )
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, k])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None, n])],
        [onnx.numpy_helper.from_array(array, name) for name, array in q._asdict().items()],
    )
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y: NDArray[np.float32] = session.run(None, {"x": x})[0]
    return y


@formats
@pytest.mark.parametrize(("n", "k"), [(48, 256), (33, 200), (5, 48)])
def test_onnxruntime_multiplies_with_the_dequantized_weight(fmt: MatrixFormat, n: int, k: int) -> None:
    rng = np.random.default_rng(n)
    weight = torch.from_numpy(rng.standard_normal((n, k)).astype(np.float32) * 0.02)
    q = quantize_matrix(weight, fmt)
    if not fmt.zero_points:
        assert (q.scales > 0).any() and (q.scales < 0).any()  # both signs are put to the test
    for m in (1, 17):
        x = rng.standard_normal((m, k)).astype(np.float32)
        expected = x.astype(np.float64) @ dequantize_matrix(q, k=k, fmt=fmt).double().numpy().T
        largest = np.abs(expected).max()
        for level, tolerance in ((0, 1e-5), (1, 1e-5), (4, 2e-2)):  # at 4, x is rounded to 8 bits
            error = np.abs(matmul_nbits(x, q, fmt, level) - expected).max() / largest
            assert error < tolerance, (m, level)


@formats
def test_shapes_and_dtypes_are_those_of_the_node(fmt: MatrixFormat) -> None:
    n, k = 3, 5 * fmt.block - 7
    q = quantize_matrix(torch.randn(n, k), fmt)
    assert q.packed.shape == (n, 5, fmt.block * fmt.bits // 8)
    assert q.scales.shape == (n, 5)
    assert q.zero_points.shape == (n, 5 if fmt.bits == 8 else 3)
    assert [a.dtype for a in q] == [np.uint8, np.float32, np.uint8]
    assert all(a.flags.c_contiguous for a in q)
    assert dequantize_matrix(q, k=k, fmt=fmt).shape == (n, k)
    if not fmt.zero_points:
        assert set(np.unique(q.zero_points)) <= ({128} if fmt.bits == 8 else {0x88, 0x08})


@pytest.mark.parametrize("bits", [4, 8])
def test_packing(bits: int) -> None:
    """Weights on the grid come back exactly, so every code is known beforehand."""
    fmt = MatrixFormat(bits=bits, block=16, zero_points=False)
    middle = 2 ** (bits - 1)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2**bits, (6, 3, 16))
    codes[..., 5] = 0
    sign = rng.choice([-0.5, 0.5], (6, 3))
    weight = torch.from_numpy(((codes - middle) * sign[..., None]).reshape(6, 48)).float()
    q = quantize_matrix(weight, fmt)
    np.testing.assert_array_equal(q.scales, sign)
    flat = codes.astype(np.uint8)
    np.testing.assert_array_equal(q.packed, flat if bits == 8 else flat[..., 0::2] + 16 * flat[..., 1::2])
    torch.testing.assert_close(dequantize_matrix(q, k=48, fmt=fmt), weight, rtol=0, atol=0)


@formats
@settings(max_examples=25)
@given(data=st.data())
def test_no_block_is_worse_than_min_max_rounding(fmt: MatrixFormat, data: st.DataObject) -> None:
    k = 2 * fmt.block - 3
    weight = data.draw(weights(k))
    w = blocks_of(weight, fmt.block)
    dequantized = blocks_of(dequantize_matrix(quantize_matrix(weight, fmt), k=k, fmt=fmt), fmt.block)
    error, plain = ((w - dequantized) ** 2).sum(-1), min_max_error(w, fmt.bits, fmt.zero_points)
    rounding = 2**-22 * np.sqrt((w**2).sum(-1))  # of float32, which `plain` is not computed in
    assert (np.sqrt(error) <= np.sqrt(plain) * (1 + 5e-5) + rounding).all()


@formats
@settings(max_examples=25)
@given(data=st.data())
def test_every_code_is_the_nearest(fmt: MatrixFormat, data: st.DataObject) -> None:
    """Within half a step, unless the code is the last one and the weight lies beyond it."""
    weight = data.draw(weights(2 * fmt.block))
    q = quantize_matrix(weight, fmt)
    w, codes = blocks_of(weight, fmt.block), codes_of(q, fmt)
    dequantized = blocks_of(dequantize_matrix(q, k=2 * fmt.block, fmt=fmt), fmt.block)
    steps = (w - dequantized) / q.scales[..., None].astype(np.float64)
    assert (np.abs(steps) <= 0.5 + 1e-3)[(codes > 0) & (codes < 2**fmt.bits - 1)].all()
    assert (steps[codes == 0] <= 0.5 + 1e-3).all()
    assert (steps[codes == 2**fmt.bits - 1] >= -0.5 - 1e-3).all()


def test_the_search_pays() -> None:
    """Signal to noise of Gaussian weights, in dB: the ranks that the recipes rely on."""
    weight = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    snr = {}
    for block in (32, 128):
        w = blocks_of(weight, block)
        for zero_points in (False, True):
            fmt = MatrixFormat(bits=4, block=block, zero_points=zero_points)
            error = (
                w - blocks_of(dequantize_matrix(quantize_matrix(weight, fmt), k=1024, fmt=fmt), block)
            ) ** 2
            gain = min_max_error(w, 4, zero_points).sum() / error.sum()
            assert 10 * np.log10(gain) > 0.4, fmt
            snr[block, zero_points] = 10 * np.log10((w**2).sum() / error.sum())
    assert snr[32, True] > snr[32, False] + 0.4
    assert snr[128, True] > snr[128, False] + 0.1


@formats
@pytest.mark.parametrize("value", [0.0, 1e-38])
def test_an_all_zero_block_stays_zero(fmt: MatrixFormat, value: float) -> None:
    weight = torch.randn(4, 3 * fmt.block)
    weight[1] = value
    weight[2, fmt.block : 2 * fmt.block] = value
    q = quantize_matrix(weight, fmt)
    assert np.isfinite(q.scales).all() and (q.scales != 0).all()
    dequantized = dequantize_matrix(q, k=3 * fmt.block, fmt=fmt)
    assert not dequantized[1].any() and not dequantized[2, fmt.block : 2 * fmt.block].any()
    assert dequantized[0].any() and dequantized[2, : fmt.block].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_dtype_layout_and_chunk_gives_the_same(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    fmt = MatrixFormat(bits=4, block=32, zero_points=True)
    weight = torch.randn(40, 90, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = quantize_matrix(weight.float(), fmt)
    for view in (weight, weight.t().contiguous().t(), torch.nn.Parameter(weight)):
        for got, want in zip(quantize_matrix(view, fmt), expected, strict=True):
            np.testing.assert_array_equal(got, want)
    monkeypatch.setattr(quantize, "CHUNK", 3 * 96)  # three rows, and one row in the last chunk
    got = quantize_matrix(weight, fmt)
    np.testing.assert_array_equal(got.packed, expected.packed)
    np.testing.assert_array_equal(got.zero_points, expected.zero_points)
    np.testing.assert_allclose(got.scales, expected.scales, rtol=1e-6)  # sums in another order


def test_no_rows() -> None:
    fmt = MatrixFormat(bits=4, block=32, zero_points=True)
    assert quantize_matrix(torch.empty(0, 64), fmt).packed.shape == (0, 2, 16)
    assert quantize_rows(torch.empty(0, 64), bits=8, block=32)[0].shape == (0, 64)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(bad: float) -> None:
    weight = torch.randn(7, 64)
    weight[5, 33] = bad
    message = "found NaN or infinity in rows 0 to 6 of [7, 64] torch.float32 weights; expected finite"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        quantize_matrix(weight, MatrixFormat(bits=8, block=32, zero_points=False))
    with pytest.raises(CheckpointError, match=re.escape(message)):
        quantize_rows(weight, bits=4, block=32)


def test_torch_gets_its_threads_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        quantize_rows(torch.randn(2, 64), bits=8, block=32)
        assert torch.get_num_threads() == 3
        with pytest.raises(CheckpointError):
            quantize_matrix(torch.randn(64), FORMATS[0])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_malformed_requests_are_refused() -> None:
    with pytest.raises(RecipeError, match="found bits=3"):
        MatrixFormat(bits=3, block=32, zero_points=False)
    for block in (0, 8, 48):
        with pytest.raises(RecipeError, match=f"found block={block} "):
            MatrixFormat(bits=4, block=block, zero_points=False)
    with pytest.raises(CheckpointError, match=re.escape("found a weight of shape [64]")):
        quantize_matrix(torch.randn(64), FORMATS[0])
    with pytest.raises(RecipeError, match="found bits=2"):
        quantize_rows(torch.randn(2, 64), bits=2, block=32)
    for block in (0, 1, 48):
        with pytest.raises(RecipeError, match=re.escape(f"[2, 64] and block={block};")):
            quantize_rows(torch.randn(2, 64), bits=8, block=block)


def read_rows(codes: NDArray[np.generic], scales: NDArray[np.float16], bits: int) -> tuple[Floats, Floats]:
    """Signed codes [R, C, block] and the values they stand for, byte by byte, as a runtime would."""
    raw = codes.view(np.uint8).astype(np.int64)
    if bits == 8:
        signed = np.where(raw > 127, raw - 256, raw)
    else:
        signed = np.stack((raw % 16, raw // 16), -1).reshape(len(raw), -1) - 8
    signed = signed.reshape(*scales.shape, -1)
    return signed.astype(np.float64), signed * scales.astype(np.float64)[..., None]


@bits_and_blocks
@settings(max_examples=25)
@given(data=st.data())
def test_rows(bits: int, block: int, data: st.DataObject) -> None:
    rows = data.draw(weights(2 * block))
    rows = rows / rows.abs().amax().clamp(min=1e-30) * 2.0 ** data.draw(st.integers(-6, 10))
    codes, scales = quantize_rows(rows, bits=bits, block=block)
    assert (codes.dtype, codes.shape) == ((np.int8, (8, 2 * block)) if bits == 8 else (np.uint8, (8, block)))
    assert (scales.dtype, scales.shape) == (np.float16, (8, 2))
    signed, values = read_rows(codes, scales, bits)
    np.testing.assert_array_equal(
        dequantize_rows(codes, scales, bits=bits, block=block).reshape(values.shape),
        values.astype(np.float32),
    )
    w = blocks_of(rows, block)
    steps = (w - values) / scales[..., None].astype(np.float64)
    last = 2 ** (bits - 1)
    assert (np.abs(steps) <= 0.5 + 1e-3)[(signed > -last) & (signed < last - 1)].all()
    normal = np.abs(scales) > 2.0**-13  # below, float16 itself is coarse
    bound = min_max_error(w, bits, False) * 1.02 + 3e-7 * (w**2).sum(-1)  # the scale is off by 2**-12 at most
    assert (((w - values) ** 2).sum(-1) <= bound)[normal].all()


@pytest.mark.parametrize("bits", [4, 8])
def test_row_scales_at_the_ends_of_float16(bits: int) -> None:
    rows = torch.stack(
        [torch.randn(64), torch.zeros(64), *(torch.randn(64) * 10.0**-e for e in range(5, 45, 3))]
    )
    codes, scales = quantize_rows(rows, bits=bits, block=32)
    assert (scales != 0).all()
    values = dequantize_rows(codes, scales, bits=bits, block=32)
    assert not values[1].any() and not values[-1].any()
    small = np.abs(rows[2:].numpy()).max(-1) < 1e-7
    assert np.abs(values[2:] - rows[2:].numpy())[small].max() <= 2.0**-25
    largest = 60000.0 * (2 ** (bits - 1) - 1)
    rows = torch.full((1, 32), -largest)
    np.testing.assert_array_equal(
        dequantize_rows(*quantize_rows(rows, bits=bits, block=32), bits=bits, block=32), rows
    )
    with pytest.raises(CheckpointError, match="expected a scale of at most 65504"):
        quantize_rows(rows * 1.2, bits=bits, block=32)
