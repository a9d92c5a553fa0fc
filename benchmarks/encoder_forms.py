"""Forms of the matrix products in an encoder of E2B's true shape: time, size and loss against float32.

    python -m benchmarks.encoder_forms [--encoder vision] [--runs 3]

Random weights; once with ordinary norms, once with log-normal ones of which 1 % are six times as large, as
trained networks have outliers. Time is CPU seconds of one thread, the median of interleaved runs. Loss is the
signal to noise ratio of the soft tokens of one image, or of 5 s of sound.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.command import Benchmark
from benchmarks.report import print_report
from edge_gemma.console import show_progress
from edge_gemma.export.audio import export_audio_encoder
from edge_gemma.export.checkpoint import open_checkpoint
from edge_gemma.export.graph import MICROSOFT
from edge_gemma.export.parity import compare_soft_tokens
from edge_gemma.export.verify_encoders import probe_clip, probe_image
from edge_gemma.export.vision import export_vision_encoder
from edge_gemma.export.weights import WeightedGraph
from edge_gemma.memory import format_bytes
from edge_gemma.progress import Silent
from edge_gemma.recipes import MatrixFormat, find_recipe
from edge_gemma.runtime.session import open_session

EXPORTERS: dict[str, Callable[..., Any]] = {"audio": export_audio_encoder, "vision": export_vision_encoder}
# name → format of MatMulNBits, None for float32, or the bits of DynamicQuantizeMatMul
FORMS: dict[str, MatrixFormat | int | None] = {
    "float32": None,
    "MatMulNBits, 8 bits, block 128": MatrixFormat(bits=8, block=128, zero_points=False),
    "MatMulNBits, 8 bits, block 32": MatrixFormat(bits=8, block=32, zero_points=False),
    "MatMulNBits, 4 bits, block 32": MatrixFormat(bits=4, block=32, zero_points=True),
    "DynamicQuantizeMatMul, 8 bits": 8,
    "DynamicQuantizeMatMul, 7 bits": 7,
}


def dynamic_matmul(bits: int) -> Callable[..., str]:
    """A `WeightedGraph.matmul` with one weight scale for each output and one activation scale for all; the
    decoder's stays as it is."""
    plain = WeightedGraph.matmul

    def matmul(graph: WeightedGraph, x: str, weight: torch.Tensor, name: str, kind: str = "") -> str:
        if kind not in EXPORTERS:
            return plain(graph, x, weight, name, *([kind] if kind else []))
        top = 2 ** (bits - 1) - 1
        scales = weight.abs().amax(1).clamp(min=1e-9) / top
        codes = (weight / scales[:, None]).round().to(torch.int8).T.contiguous()
        parts = (graph.weight(name, codes.numpy()), graph.weight(f"{name}.scales", scales.numpy()))
        return graph.op("DynamicQuantizeMatMul", x, *parts, domain=MICROSOFT)

    return matmul


def with_outliers(tensor: Callable[[str], torch.Tensor]) -> Callable[[str], torch.Tensor]:
    """A checkpoint's `tensor`, norms and scales made log-normal with outliers."""

    def drawn(name: str) -> torch.Tensor:
        found = tensor(name)
        if found.ndim != 1 or not name.endswith("weight"):
            return found
        random = np.random.default_rng(list(name.encode()))
        values = np.exp(0.5 * random.standard_normal(found.shape))
        values[random.random(found.shape) < 0.01] *= 6
        return torch.from_numpy(values.astype(np.float32))

    return drawn


def write(encoder: str, form: MatrixFormat | int | None, outliers: bool, folder: Path) -> Path:
    """Export one encoder in one form; the path of its graph."""
    checkpoint = open_checkpoint("synthetic:E2B")
    if outliers:
        checkpoint.tensor = with_outliers(checkpoint.tensor)  # type: ignore[method-assign]
    recipe = find_recipe("int8")
    if not isinstance(form, int):
        recipe = replace(recipe, matrices=recipe.matrices | {encoder: form})
    folder.mkdir()
    chosen = dynamic_matmul(form) if isinstance(form, int) else WeightedGraph.matmul
    with mock.patch.object(WeightedGraph, "matmul", chosen):
        spec = EXPORTERS[encoder](checkpoint, recipe, folder, Silent())
    return folder / spec.file


@click.command(cls=Benchmark)
@click.option("--encoder", type=click.Choice(list(EXPORTERS)), default="vision", show_default=True)
@click.option("--runs", default=3, show_default=True, help="Timed runs of each form.")
def main(encoder: str, runs: int) -> None:
    """Forms of an encoder's matrix products."""
    data = probe_clip(seconds=5) if encoder == "audio" else probe_image()
    tokens: dict[bool, dict[str, NDArray[np.float32]]] = {False: {}, True: {}}
    seconds: dict[str, list[float]] = {name: [] for name in FORMS}
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder, show_progress() as progress:
        progress.stage("exports", 2 * len(FORMS))
        graphs = {}
        for outliers in (False, True):
            for number, (name, form) in enumerate(FORMS.items()):
                path = write(encoder, form, outliers, Path(folder) / f"{number}{outliers}")
                session = open_session(path, 1)
                (tokens[outliers][name],) = session.run(None, {session.get_inputs()[0].name: data})
                del session
                progress.advance()
                if outliers:  # loss alone
                    path.with_name(path.name + ".data").unlink()
                else:
                    graphs[name] = path
                    sizes[name] = path.with_name(path.name + ".data").stat().st_size
        progress.stage("runs", runs * len(FORMS))
        for _ in range(runs):
            for name, path in graphs.items():
                session = open_session(path, 1)
                began = time.process_time()
                session.run(None, {session.get_inputs()[0].name: data})
                seconds[name].append(time.process_time() - began)
                del session
                progress.advance()
    rows, results = [], []
    for name in FORMS:
        loss = [compare_soft_tokens(tokens[o][name], tokens[o]["float32"]).snr_db for o in (False, True)]
        spent = statistics.median(seconds[name])
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds["float32"], strict=True))
        noise = "exact" if name == "float32" else f"{loss[0]:.1f} / {loss[1]:.1f} dB"
        rows.append((name, f"{spent:.1f} s", f"{ratio:.2f}", noise, format_bytes(sizes[name])))
        results.append(
            {"form": name, "cpu_seconds": spent, "ratio": ratio, "snr_db": loss, "bytes": sizes[name]}
        )
    header = (
        "matrix products",
        "CPU time",
        "against float32",
        "signal to noise, normal / outliers",
        "weights",
    )
    print_report("benchmarks.encoder_forms", header, rows, {"encoder": encoder, "forms": results})


if __name__ == "__main__":
    main()
