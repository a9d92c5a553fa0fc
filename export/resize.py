"""An antialiased bilinear resize of bytes, equal bit for bit to torchvision's, as nodes of a graph.

onnxruntime's own Resize differs from torchvision's by one level in some values, up to 13 % of them where an
image grows by a simple fraction, which a random tower turns into differences of up to 1 % of its output.
torchvision, like Pillow, resizes along the width, rounds to bytes, then resizes along the height. Along one
axis an output is a sum of inputs, weighted by a triangle around its centre, in fixed point: the weights of a
whole axis are rounded to multiples of 2^-p, with the largest p for which all of them fit into 16 bits.

Here an axis is a product of matrices: one of weights, [outputs, window], with one of inputs, [window, rest].
Of the weights of all inputs few would differ from zero, so outputs go in groups that lie side by side, each
with the window of inputs that it can see. The product is exact: a weight is split into two bytes, and bytes
times bytes are summed in 32 bits.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from edge_gemma.export.graph import Graph

GROUP = 32  # outputs of an axis computed together, at most
MAX_PRECISION = 22  # bits of the weights' fraction, at most
MAX_WEIGHT = 1 << 15


def resize(g: Graph, image: str, size: tuple[int, int]) -> str:
    """uint8 [height, width, C] of any height and width → uint8 [*size, C]"""
    height, width = size
    with g.scope("width"):
        x = _resize_first(g, g.op("Transpose", image, perm=[1, 2, 0]), width)  # [width, C, rows]
    with g.scope("height"):
        x = _resize_first(g, g.op("Transpose", x, perm=[2, 1, 0]), height)  # [height, C, width]
    return g.op("Transpose", x, perm=[0, 2, 1])


def _resize_first(g: Graph, x: str, outputs: int) -> str:
    """uint8 [N, A, B] → uint8 [outputs, A, B]"""
    shape = g.op("Shape", x)
    inputs = g.op("Gather", shape, g.constant(0, np.int64))
    rest = g.op("Slice", shape, _integers(g, 1), _integers(g, 3))
    group = max(n for n in range(1, GROUP + 1) if outputs % n == 0)
    places, weights, one = _weights(g, inputs, outputs, group)

    flat = g.op("Reshape", x, g.constant([0, -1], np.int64))
    windows = g.op("Gather", flat, places, axis=0)  # uint8 [groups, window, A·B]
    high = g.op("Div", weights, g.constant(256, np.int32))
    low = g.op("Mod", weights, g.constant(256, np.int32))
    halves = [g.op("Cast", part, to=TensorProto.UINT8) for part in (high, low)]
    sums = g.op("MatMulInteger", g.op("Concat", *halves, axis=1), windows)  # int32 [groups, 2·group, A·B]
    high, low = g.ops("Split", sums, outputs=[None, None], axis=1, num_outputs=2)
    total = g.op("Add", g.op("Mul", high, g.constant(256, np.int32)), low)
    half = g.op("Div", one, g.constant(2, np.int32))
    rounded = g.op("Div", g.op("Add", total, half), one)  # at most 255: weights add up to one ± 2^-13
    level = g.op("Cast", rounded, to=TensorProto.UINT8)
    return g.op("Reshape", level, g.op("Concat", _integers(g, outputs), rest, axis=0))


def _weights(g: Graph, inputs: str, outputs: int, group: int) -> tuple[str, str, str]:
    """What each group of outputs sees of an axis of so many inputs, an int64 scalar.

    Returns:
        The places of its window, int64 [groups, window]; the weights there, int32 [groups, group, window];
        and the weight that stands for one, an int32 scalar.
    """
    count = g.op("Cast", inputs, to=TensorProto.DOUBLE)
    scale = g.op("Div", count, _number(g, outputs))
    support = g.op("Max", scale, _number(g, 1))  # inputs on either side of the centre
    numbers = np.arange(outputs, dtype=np.float64).reshape(-1, group, 1)
    centres = g.op("Mul", g.weight("outputs", numbers + 0.5), scale)  # [groups, group, 1]
    first = g.op("Slice", centres, _integers(g, 0), _integers(g, 1), _integers(g, 1))  # [groups, 1, 1]
    start = g.op("Max", g.op("Floor", g.op("Sub", first, support)), _number(g, 0))
    span = g.op("Add", g.op("Mul", scale, _number(g, group - 1)), g.op("Mul", support, _number(g, 2)))
    window = g.op("Cast", g.op("Ceil", g.op("Add", span, _number(g, 1))), to=TensorProto.INT64)
    steps = g.op("Range", g.constant(0, np.int64), window, g.constant(1, np.int64))
    places = g.op("Add", start, g.op("Cast", steps, to=TensorProto.DOUBLE))  # [groups, 1, window]

    distance = g.op("Abs", g.op("Sub", g.op("Add", places, _number(g, 0.5)), centres))
    triangle = g.op("Sub", _number(g, 1), g.op("Div", distance, support))
    inside = g.op("Cast", g.op("Less", places, count), to=TensorProto.DOUBLE)
    shares = g.op("Mul", g.op("Max", triangle, _number(g, 0)), inside)
    shares = g.op("Div", shares, g.op("ReduceSum", shares, _integers(g, 2)))

    powers = g.weight("powers", 2.0 ** np.arange(1, MAX_PRECISION + 1))
    largest = g.op("Mul", g.op("ReduceMax", shares, keepdims=0), powers)
    fits = g.op("Less", g.op("Add", largest, _number(g, 0.5)), _number(g, MAX_WEIGHT))
    precision = g.op("ReduceSum", g.op("Cast", fits, to=TensorProto.DOUBLE), keepdims=0)
    one = g.op("Pow", _number(g, 2), precision)
    weights = g.op("Floor", g.op("Add", g.op("Mul", shares, one), _number(g, 0.5)))
    seen = g.op("Min", places, g.op("Sub", count, _number(g, 1)))
    return (
        g.op("Cast", g.op("Squeeze", seen, _integers(g, 1)), to=TensorProto.INT64),
        g.op("Cast", weights, to=TensorProto.INT32),
        g.op("Cast", one, to=TensorProto.INT32),
    )


def _number(g: Graph, value: float) -> str:
    return g.constant(value, np.float64)


def _integers(g: Graph, *values: int) -> str:
    return g.constant(values, np.int64)
