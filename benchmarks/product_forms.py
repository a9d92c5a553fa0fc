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

from benchmarks.command import Benchmark
from benchmarks.node_forms import Nodes
from benchmarks.report import print_report
from edge_gemma.export.graph import MICROSOFT
from edge_gemma.runtime.session import default_threads

LAYERS, HIDDEN, WIDTH, BLOCK = 16, 2048, 8192, 128
RUNS = 8  # in a turn
LEFT = WIDTH * 5 // 100  # rows that the gate of a sparse layer leaves


class Graph(Nodes):
    """Nodes and weights of one layer after the other; `x` float32 [1, HIDDEN] is the input."""

    def __init__(self, form: Callable[[Graph, str], str]) -> None:
        super().__init__()
        self.weights: dict[str, NDArray[Any]] = {}
        self._random = np.random.default_rng(0)
        self.outputs = [form(self, "x") for _ in range(LAYERS)]

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


def opened(form: Callable[[Graph, str], str], threads: int) -> ort.InferenceSession:
    graph = Graph(form)
    return graph.session(["x"], graph.outputs, graph.weights, threads)


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
        sessions = {name: opened(form, threads) for name, form in forms.items()}
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
