"""Time and memory of an artifact's encoders: the longest clip, and an image.

    python -m benchmarks.encoders ARTIFACT [--runs 5] [--threads 2] [--provider CUDAExecutionProvider]

Each encoder works in a process of its own. Time is the median of the runs after a first one; memory is what
loading and encoding add to the process (a card's own is not in it); then the operators that most of the time
goes to, and how many nodes ran on the processor. With --provider each works there too, and its soft tokens
are compared with the processor's.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime as ort

from benchmarks.command import Benchmark
from benchmarks.report import print_report
from edge_gemma import artifact as artifacts
from edge_gemma.export.parity import compare_soft_tokens
from edge_gemma.machine import CPU
from edge_gemma.memory import format_bytes, peak_resident_bytes
from edge_gemma.runtime.session import open_session

HEIGHT, WIDTH = 1080, 1920


def probe(spec: artifacts.AudioSpec | artifacts.VisionSpec) -> np.ndarray:
    """Noise: the time does not depend on what is heard or seen."""
    random = np.random.default_rng(0)
    if isinstance(spec, artifacts.AudioSpec):
        return (0.1 * random.standard_normal(spec.max_samples)).astype(np.float32)
    return random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def measure(folder: Path, kind: str, runs: int, threads: int, provider: str) -> dict[str, Any]:
    """Load an encoder and run it."""
    artifact = artifacts.read(folder)
    spec = getattr(artifact.manifest, kind)
    data = probe(spec)
    providers = list(dict.fromkeys([provider, CPU]))
    before, began = peak_resident_bytes(), time.perf_counter()
    session = open_session(artifact.path(spec.file), threads, providers=providers)
    load_seconds = time.perf_counter() - began
    seconds = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        (soft_tokens,) = session.run(None, {spec.input.name: data})
        seconds.append(time.perf_counter() - began)
    added = peak_resident_bytes() - before
    del session
    return {
        "encoder": kind,
        "provider": provider,
        "file_bytes": sum(artifact.manifest.files[name].bytes for name in (spec.file, spec.data)),
        "load_seconds": load_seconds,
        "first_seconds": seconds[0],
        "seconds": statistics.median(seconds[1:]),
        "fastest": min(seconds[1:]),
        "added_bytes": added,
        "soft_tokens": soft_tokens,
    } | profile(artifact.path(spec.file), spec.input.name, data, threads, providers)


def profile(path: Path, name: str, data: np.ndarray, threads: int, providers: list[str]) -> dict[str, Any]:
    """Share of the time by operator, the largest first, and how many nodes ran on the processor."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(path), options, providers=providers)
        session.run(None, {name: data})
        events = json.loads(Path(session.end_profiling()).read_text())
    spent: Counter[str] = Counter()
    nodes: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
            nodes[event["args"]["provider"]] += 1
    total = sum(spent.values())
    return {
        "operators": {name: duration / total for name, duration in spent.most_common(4)},
        "nodes": nodes.total(),
        "nodes_on_processor": nodes[CPU],
    }


@click.command(cls=Benchmark)
@click.argument("artifact", type=click.Path(exists=True, path_type=Path))
@click.option("--runs", default=5, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--provider", help="An execution provider of onnxruntime, to compare with the processor.")
def main(artifact: Path, runs: int, threads: int, provider: str | None) -> None:
    """Time and memory of the encoders of ARTIFACT."""
    offered = ort.get_available_providers()
    if provider and provider not in offered:
        raise click.BadParameter(
            f"this onnxruntime has no {provider}, but {', '.join(offered)}", param_hint="--provider"
        )
    manifest = artifacts.read(artifact).manifest
    results = []
    for kind in ("audio", "vision"):
        if getattr(manifest, kind):
            for where in [CPU, provider] if provider else [CPU]:
                with multiprocessing.get_context("spawn").Pool(1) as process:
                    results.append(process.apply(measure, (artifact, kind, runs, threads, where)))
    rows: list[tuple[str, ...]] = []
    expected: np.ndarray = np.empty(0)
    for result in results:
        soft_tokens = result.pop("soft_tokens")
        if result["provider"] == CPU:
            expected, same = soft_tokens, "-"
        else:
            result["snr_db"] = compare_soft_tokens(soft_tokens, expected).snr_db
            same = f"{result['snr_db']:.0f} dB"
        rows.append(
            (
                result["encoder"],
                result["provider"].removesuffix("ExecutionProvider"),
                format_bytes(result["file_bytes"]),
                f"{result['load_seconds']:.1f} s",
                f"{result['first_seconds']:.2f} s",
                f"{result['seconds']:.2f} s",
                f"{result['fastest']:.2f} s",
                format_bytes(result["added_bytes"]),
                ", ".join(f"{name} {share:.0%}" for name, share in result["operators"].items()),
                f"{result['nodes_on_processor']} of {result['nodes']}",
                same,
            )
        )
    header = (
        *("encoder", "on", "files", "load", "first", "encode", "fastest", "memory added", "spent on"),
        *("nodes on the processor", "signal to error"),
    )
    print_report("benchmarks.encoders", header, rows, {"recipe": manifest.recipe, "encoders": results})


if __name__ == "__main__":
    main()
