"""How fast decoding could be at most: a decoder's quantized matrix products alone, beside the whole.

    python -m benchmarks.decode_bound ARTIFACT [--rounds 15] [--tokens 16] [--threads 2]

The products are those of the artifact's graphs, over the same weights and in the same order, with nothing in
between: as if norms, attention, AltUp and the running of nodes cost nothing. Both are in one process and take
turns; ratios are taken within a round. The products' weights are packed in memory of their own here.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import click
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from benchmarks.command import Benchmark
from benchmarks.report import print_report
from edge_gemma import artifact as artifacts
from edge_gemma.runtime import prepared
from edge_gemma.runtime.bandwidth import array_bytes, read_bandwidth
from edge_gemma.runtime.kv_cache import KvCache
from edge_gemma.runtime.session import default_threads, open_session

PRODUCT = "MatMulNBits"
GB = 1e9


def products_alone(graphs: Sequence[Path], folder: Path) -> tuple[Path, dict[str, int]]:
    """Write a model of the products of a decoder; its inputs' names and widths."""
    models = [onnx.load(graph, load_external_data=False) for graph in graphs]
    nodes = [node for model in models for node in model.graph.node if node.op_type == PRODUCT]
    widths: dict[str, int] = {}
    for node in nodes:
        columns = next(a.i for a in node.attribute if a.name == "K")
        node.input[0] = f"x{columns}"
        widths[node.input[0]] = columns
    read = {name for node in nodes for name in node.input}
    alone = helper.make_graph(
        nodes,
        "products",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 1, width))
            for name, width in widths.items()
        ],
        [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None) for node in nodes],
        [tensor for model in models for tensor in model.graph.initializer if tensor.name in read],
    )
    path = folder / "products.onnx"
    first = models[0]
    made = helper.make_model(alone, opset_imports=first.opset_import, ir_version=first.ir_version)
    path.write_bytes(made.SerializeToString())
    for name in {e.value for t in alone.initializer for e in t.external_data if e.key == "location"}:
        # a hard link: onnxruntime follows no others out of a model's folder
        os.link(graphs[0].with_name(name), folder / name)
    return path, widths


def bind(session: ort.InferenceSession, widths: dict[str, int]) -> ort.IOBinding:
    """Normal random inputs, and memory for the outputs."""
    random = np.random.default_rng(0)
    binding = session.io_binding()
    for name, width in widths.items():
        binding.bind_cpu_input(name, random.standard_normal((1, 1, width), np.float32))
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return binding


@click.command(cls=Benchmark)
@click.argument("folder", metavar="ARTIFACT", type=click.Path(exists=True, path_type=Path))
@click.option("--rounds", default=15, show_default=True)
@click.option("--tokens", default=16, show_default=True, help="Decoded in each turn.")
@click.option("--threads", default=default_threads, show_default="the cores", type=click.IntRange(min=1))
def main(folder: Path, rounds: int, tokens: int, threads: int) -> None:
    """Decoding with ARTIFACT, and its matrix products alone."""
    artifact = artifacts.read(folder)
    manifest = artifact.manifest
    if manifest.levels:
        raise click.UsageError(f"{folder} is elastic: products in branches are not counted")
    decoder = prepared.open_decoder(artifact, prepared.default_folder(), threads=threads)
    cache = KvCache(decoder.spec, context=rounds * tokens + 1, chunk=1)
    rows = manifest.embeddings
    embeds = np.zeros((1, 1, rows.hidden_size), np.float32)
    per_layer = np.zeros((1, 1, rows.layers, rows.per_layer_width), np.float32)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        graphs = [artifact.path(graph.file) for graph in decoder.spec.graphs]
        path, widths = products_alone(graphs, Path(scratch))
        session = open_session(path, threads)
        binding = bind(session, widths)
        turns: dict[str, Callable[[], object]] = {
            "whole": lambda: decoder.forward(embeds, per_layer, cache),
            "products": lambda: session.run_with_iobinding(binding),
        }
        seconds: dict[str, list[float]] = {name: [] for name in turns}
        bandwidth = []
        turns["products"]()
        turns["whole"]()
        for _ in range(rounds):
            bandwidth.append(read_bandwidth(threads, array_bytes()))
            for name, turn in turns.items():
                began = time.perf_counter()
                for _ in range(tokens):
                    turn()
                seconds[name].append((time.perf_counter() - began) / tokens)
    shares = [alone / whole for alone, whole in zip(seconds["products"], seconds["whole"], strict=True)]
    read = manifest.memory.weights
    whole, products = median(seconds["whole"]), median(seconds["products"])
    table: list[tuple[str, ...]] = [
        ("a token", f"{1e3 * whole:.1f} ms", f"{1 / whole:.1f} tokens/s"),
        ("its products alone", f"{1e3 * products:.1f} ms", f"{median(shares):.0%}"),
        ("which read", f"{read / GB / products:.1f} GB/s", f"of {median(bandwidth) / GB:.1f} GB/s"),
    ]
    results = {"seconds": seconds, "bandwidth": bandwidth, "weights": read, "share": median(shares)}
    print_report("benchmarks.decode_bound", ("", "median", ""), table, results)


if __name__ == "__main__":
    main()
