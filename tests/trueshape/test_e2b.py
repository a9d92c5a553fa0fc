"""Random weights at E2B's true shape: what the export and the runtime need in memory.

Peaks are those of a process of its own (VmHWM), read from the commands' own reports.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from processes import edge_gemma, program

from edge_gemma import artifact as artifacts

GIB = 1 << 30
pytestmark = [pytest.mark.trueshape, pytest.mark.timeout(2400)]
ENCODE = """
import json, sys
from pathlib import Path
import numpy as np
from edge_gemma.memory import peak_resident_bytes
from edge_gemma.runtime.session import open_session

random = np.random.default_rng(0)
inputs = {
    "waveform": random.standard_normal(480_000, dtype=np.float32) * np.float32(0.1),
    "image": random.integers(0, 256, (600, 1024, 3), dtype=np.uint8),
}
before = peak_resident_bytes()
session = open_session(Path(sys.argv[1]))
name = session.get_inputs()[0].name
(tokens,) = session.run(["soft_tokens"], {name: inputs[name]})
report = {"added": peak_resident_bytes() - before, "shape": tokens.shape, "type": str(tokens.dtype)}
print(json.dumps(report | {"finite": bool(np.isfinite(tokens).all()), "spread": float(tokens.std(0).mean())}))
"""


@pytest.fixture(scope="module")
def exported(scratch: Path) -> dict[str, Any]:
    """The report of an int4 export with both encoders; "output" is its folder."""
    return edge_gemma("export", "synthetic:E2B", "-o", str(scratch / "int4"))


@pytest.fixture(scope="module")
def cache(scratch: Path) -> Path:
    return scratch / "cache"


def test_export_never_holds_the_model(exported: dict[str, Any]) -> None:
    assert exported["text_parameters"] == 4_456_156_768
    assert exported["effective_parameters"] == 1_905_495_648
    assert exported["peak_memory_bytes"] < 2 * GIB


def test_preparing_stays_within_two_gib(exported: dict[str, Any], cache: Path) -> None:
    report = edge_gemma("prepare", exported["output"], "--cache-dir", str(cache))
    assert report["peak_memory_bytes"] <= 2 * GIB
    decoder = artifacts.read(exported["output"]).path("decoder.data").stat().st_size
    assert 1.5 * decoder < report["bytes"] < 2.5 * decoder


@pytest.mark.parametrize(("cached", "context"), [(True, 4096), (False, 1024)])
def test_a_conversation_within_two_gib(
    exported: dict[str, Any], cache: Path, cached: bool, context: int
) -> None:
    """Text, an image, 30 s of sound and text again; from the cache under a hard limit too."""
    options = ["--cache-dir", str(cache)] if cached else ["--no-cache", "--no-hard"]
    report = edge_gemma("check", exported["output"], "--budget", "2GiB", "--context", str(context), *options)
    assert report["within_budget"] and report["left_out"] == {}
    assert report["plan"]["prepared"] == cached and report["plan"]["encoders"] == "turns"
    statistics = {phase["name"]: phase["statistics"] for phase in report["phases"]}
    last = statistics["second text"]
    assert last["prompt_tokens"] + last["generated_tokens"] == context
    assert (statistics["image"]["images"], statistics["audio"]["audio_seconds"]) == (1, 30.0)
    promised = artifacts.read(exported["output"]).manifest.memory_estimate[str(context)]
    assert promised == pytest.approx(report["peak_memory_bytes"], rel=0.1)
    if cached and report["hard_limit"]["kind"]:
        assert report["hard_limit"]["finished"] and report["hard_limit"]["oom_kills"] == 0


@pytest.mark.parametrize("kind", ["audio", "vision"])
def test_encodes_within_the_estimate(exported: dict[str, Any], kind: str) -> None:
    """30 seconds of sound, and an image."""
    spec = getattr(artifacts.read(exported["output"]).manifest, kind)
    encoded = program(ENCODE, str(Path(exported["output"]) / spec.file))
    assert (encoded["shape"], encoded["type"]) == ([spec.soft_tokens, 2048], "float32")
    assert encoded["finite"]
    assert encoded["spread"] > 0.1  # soft tokens differ from one another
    assert spec.memory == pytest.approx(encoded["added"], rel=0.1)
