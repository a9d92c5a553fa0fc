"""Forms of the same step in onnxruntime's operators: AltUp's mixing, the norms of heads, sums before norms.

    python -m benchmarks.node_forms [--threads 2]

Microseconds of a node or a group of nodes at E2B's width, for one token and for a chunk: the median of a
graph that repeats it, divided by the repetitions. Alone in the caches: in a decoder weights push activations
out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from benchmarks.command import Benchmark
from benchmarks.report import print_report
from edge_gemma.export.graph import IR_VERSION, MICROSOFT, OPSET
from edge_gemma.runtime.session import default_threads

STREAMS, HIDDEN, HEADS, HEAD_DIM = 4, 2048, 12, 256
REPEATS = 20
Arrays = dict[str, NDArray[np.float32] | NDArray[np.int64]]

CONSTANTS: Arrays = {
    "two": np.array([2]),
    "three": np.array([3]),
    "weight": np.ones(HIDDEN, np.float32),
    "head_weight": np.ones(HEAD_DIM, np.float32),
    "head_weights": np.ones((HEADS, HEAD_DIM), np.float32),
    "sizes": np.array([8 * HEAD_DIM, 2 * HEAD_DIM, 2 * HEAD_DIM]),
    "as_8": np.array([0, 0, 8, HEAD_DIM]),
    "as_2": np.array([0, 0, 2, HEAD_DIM]),
    "as_12": np.array([0, 0, HEADS, HEAD_DIM]),
    "flat": np.array([0, 0, -1]),
}
SHAPES: dict[str, tuple[int, ...]] = {  # behind [1, S]
    "streams": (STREAMS, HIDDEN),
    "mix": (STREAMS, STREAMS),
    "gains": (STREAMS,),
    "hidden": (HIDDEN,),
    "skip": (HIDDEN,),
    "qkv": (HEADS * HEAD_DIM,),
}


class Nodes:
    """Nodes of one repetition after the other."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        names = [f"{len(self.nodes)}:{i}" for i in range(outputs)]
        domain = str(attributes.pop("domain", ""))
        self.nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names

    def rms(self, x: str, weight: str) -> str:
        return self.add("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=1e-6, stash_type=1)[0]

    def session(
        self,
        inputs: Sequence[str],
        outputs: Sequence[str],
        constants: Mapping[str, NDArray[Any]],
        threads: int,
    ) -> ort.InferenceSession:
        """The nodes as a graph; inputs and outputs are float32."""
        graph = helper.make_graph(
            self.nodes,
            "forms",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _fused(n: Nodes, x: str) -> str:
    return n.add("HyperConnectionPostMix", x, "hidden", "gains", "mix", domain=MICROSOFT)[0]


def _products(n: Nodes, x: str) -> str:
    row, column = n.add("Unsqueeze", "hidden", "two")[0], n.add("Unsqueeze", "gains", "three")[0]
    return n.add("Add", n.add("MatMul", "mix", x)[0], n.add("MatMul", column, row)[0])[0]


def _three_norms(n: Nodes, x: str) -> str:
    parts = n.add("Split", x, "sizes", outputs=3, axis=2)
    normed = [
        n.add("Reshape", n.rms(n.add("Reshape", part, shape)[0], "head_weight"), "flat")[0]
        for part, shape in zip(parts, ("as_8", "as_2", "as_2"), strict=True)
    ]
    return n.add("Concat", *normed, axis=2)[0]


def _one_norm(n: Nodes, x: str) -> str:
    normed = n.rms(n.add("Reshape", x, "as_12")[0], "head_weight")
    return n.add("Reshape", n.add("Mul", normed, "head_weights")[0], "flat")[0]


def _broadcast_norm(n: Nodes, x: str) -> str:
    return n.add("Reshape", n.rms(n.add("Reshape", x, "as_12")[0], "head_weights"), "flat")[0]


def _branchwise_norm(n: Nodes, x: str) -> str:
    heads = n.add("Reshape", x, "as_12")[0]
    normed = n.add("BranchwiseRMSNorm", heads, "head_weights", epsilon=1e-6, domain=MICROSOFT)[0]
    return n.add("Reshape", normed, "flat")[0]


FORMS: dict[str, tuple[str, Callable[[Nodes, str], str]]] = {
    "mix four streams: HyperConnectionPostMix": ("streams", _fused),
    "mix four streams: two MatMul and Add (used)": ("streams", _products),
    "norm 12 heads: three norms": ("qkv", _three_norms),
    "norm 12 heads: one norm and Mul (used)": ("qkv", _one_norm),
    "norm 12 heads: one norm, a weight for each head": ("qkv", _broadcast_norm),
    "norm 12 heads: BranchwiseRMSNorm": ("qkv", _branchwise_norm),
    "add, then norm: two nodes (used)": ("hidden", lambda n, x: n.rms(n.add("Add", x, "skip")[0], "weight")),
    "add, then norm: SkipSimplifiedLayerNormalization": (
        "hidden",
        lambda n, x: n.add(
            "SkipSimplifiedLayerNormalization", x, "skip", "weight", epsilon=1e-6, domain=MICROSOFT
        )[0],
    ),
}


def microseconds(name: str, tokens: int, threads: int, runs: int) -> float:
    """Of one repetition of a form for so many tokens."""
    start, form = FORMS[name]
    nodes = Nodes()
    current = start
    for _ in range(REPEATS):
        current = form(nodes, current)
    read = {i for node in nodes.nodes for i in node.input}
    rng = np.random.default_rng(0)
    feeds = {
        key: rng.standard_normal((1, tokens, *shape)).astype(np.float32) * 0.1
        for key, shape in SHAPES.items()
        if key in read
    }
    constants = {key: array for key, array in CONSTANTS.items() if key in read}
    session = nodes.session(list(feeds), [current], constants, threads)
    seconds = []
    for _ in range(runs + 1):  # the first one allocates
        began = time.perf_counter()
        session.run(None, feeds)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:]) / REPEATS * 1e6


@click.command(cls=Benchmark)
@click.option("--threads", default=default_threads, show_default="the cores", type=click.IntRange(min=1))
@click.option("--chunk", default=128, show_default=True, type=click.IntRange(min=2), help="Tokens.")
def main(threads: int, chunk: int) -> None:
    """Microseconds of each form, for one token and for a chunk."""
    rows: list[tuple[str, ...]] = []
    data = []
    for name in FORMS:
        one, many = microseconds(name, 1, threads, 40), microseconds(name, chunk, threads, 8)
        rows.append((name, f"{one:.1f}", f"{many:.0f}"))
        data.append({"form": name, "one_token_us": one, "chunk_us": many, "chunk": chunk})
    print_report("benchmarks.node_forms", ("form", "1 token, µs", f"{chunk} tokens, µs"), rows, data)


if __name__ == "__main__":
    main()
