"""Forms of the feed-forward's products in onnxruntime's operators: gate and up as one, rows of a sparse one.

    python -m benchmarks.product_forms [--threads 2] [--rounds 40]

Each graph repeats a layer's step with weights of its own, so that they come from memory as in a decoder:
random int4 in blocks of 128 at E2B's width, for one token. The forms of a step take turns of several runs, of
which the first waits for the other form's threads to sleep. A figure is the median of the rounds, a ratio is
taken within a round.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
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

LAYERS, HIDDEN, WIDTH, BLOCK = 16, 2048, 8192, 128
RUNS = 8  # in a turn
LEFT = WIDTH * 5 // 100  # rows that the gate of a sparse layer leaves


class Graph:
    """Nodes and weights of one layer after the other; `x` float32 [1, HIDDEN] is the input."""

    def __init__(self, form: Callable[[Graph, str], str]) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, NDArray[Any]] = {}
        self._random = np.random.default_rng(0)
        self.outputs = [form(self, "x") for _ in range(LAYERS)]

    def add(
        self, kind: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any
    ) -> list[str]:
        names = [f"{len(self.nodes)}:{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names

    def constant(self, value: NDArray[Any]) -> str:
        name = f"weight {len(self.weights)}"
        self.weights[name] = value
        return name

    def codes(self, *shape: int) -> str:
        return self.constant(self._random.integers(0, 256, shape, dtype=np.uint8))

    def scales(self, *shape: int) -> str:
        return self.constant(self._random.random(shape, dtype=np.float32) / 1000)

    def product(self, x: str, rows: int) -> str:
        """x [1, HIDDEN] by a matrix of so many rows: [1, rows]."""
        blocks = HIDDEN // BLOCK
        weights = self.codes(rows, blocks, BLOCK // 2), self.scales(rows * blocks)
        sizes = {"K": HIDDEN, "N": rows, "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
        return self.add("MatMulNBits", x, *weights, domain=MICROSOFT, **sizes)[0]

    def session(self, threads: int) -> ort.InferenceSession:
        graph = helper.make_graph(
            self.nodes,
            "forms",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, HIDDEN])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in self.outputs],
            [numpy_helper.from_array(value, name) for name, value in self.weights.items()],
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _two_products(g: Graph, x: str) -> str:
    return g.add("Mul", g.product(x, WIDTH), g.product(x, WIDTH))[0]


def _one_product(g: Graph, x: str) -> str:
    return g.add("Mul", *g.add("Split", g.product(x, 2 * WIDTH), outputs=2, axis=1, num_outputs=2))[0]


def _all_rows(g: Graph, x: str) -> str:
    return g.product(x, WIDTH)


def _rows_left(g: Graph, x: str) -> str:
    rows = g.constant(np.arange(LEFT) * (WIDTH // LEFT))
    stored = g.codes(WIDTH, HIDDEN // 2), rows, g.scales(WIDTH, HIDDEN // BLOCK)
    layout = {"bits": 4, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
    matrix = g.add("GatherBlockQuantized", *stored, domain=MICROSOFT, **layout)[0]
    return g.add("MatMul", x, g.add("Transpose", matrix, perm=[1, 0])[0])[0]


# step → form → one layer of it; the first form is the one that is used
STEPS: dict[str, dict[str, Callable[[Graph, str], str]]] = {
    "gate and up": {"two products": _two_products, "one product and Split": _one_product},
    "up in a sparse layer": {
        "all rows": _all_rows,
        f"the {LEFT} rows that count, by GatherBlockQuantized": _rows_left,
    },
}


@click.command(cls=Benchmark)
@click.option("--threads", default=default_threads, show_default="the cores", type=click.IntRange(min=1))
@click.option("--rounds", default=40, show_default=True, type=click.IntRange(min=1))
def main(threads: int, rounds: int) -> None:
    """Milliseconds of a layer's step for one token, by its form."""
    x = {"x": np.random.default_rng(1).standard_normal((1, HIDDEN), dtype=np.float32)}
    rows, data = [], []
    for step, forms in STEPS.items():
        sessions = {name: Graph(form).session(threads) for name, form in forms.items()}
        taken: dict[str, list[float]] = {name: [] for name in forms}
        for _ in range(rounds + 1):
            for name, session in sessions.items():
                session.run(None, x)
                began = time.perf_counter()
                for _ in range(RUNS):
                    session.run(None, x)
                taken[name].append((time.perf_counter() - began) / RUNS / LAYERS * 1000)
        used, *_ = each = {name: seconds[1:] for name, seconds in taken.items()}  # the first one allocates
        for name, times in each.items():
            gains = [old / new for old, new in zip(each[used], times, strict=True)]
            gain = f"{median(gains):.2f} ({min(gains):.2f} – {max(gains):.2f})" if name != used else "used"
            rows.append((f"{step}: {name}", f"{median(times):.2f}", gain))
            data.append({"step": step, "form": name, "milliseconds": times})
    print_report("benchmarks.product_forms", ("form", "ms a layer", "speed, to the one used"), rows, data)


if __name__ == "__main__":
    main()
