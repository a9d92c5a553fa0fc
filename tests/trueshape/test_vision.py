"""The vision encoder alone, with random weights at E2B's true shape; peaks are of processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MIB = 1 << 20
GIB = 1 << 30
pytestmark = [pytest.mark.trueshape, pytest.mark.timeout(900)]

EXPORT = """
import json, sys
from pathlib import Path
from edge_gemma.export.checkpoint import open_checkpoint
from edge_gemma.export.recipes import find_recipe
from edge_gemma.export.vision import export_vision_encoder
from edge_gemma.memory import peak_resident_bytes
from edge_gemma.progress import Silent

checkpoint, recipe = open_checkpoint("synthetic:E2B"), find_recipe("int4")
spec = export_vision_encoder(checkpoint, recipe, Path(sys.argv[1]), Silent())
print(json.dumps({"peak": peak_resident_bytes(), "memory": spec.memory}))
"""
ENCODE = """
import json, sys
from pathlib import Path
import numpy as np
from edge_gemma.memory import peak_resident_bytes
from edge_gemma.runtime.session import open_session

before = peak_resident_bytes()
session = open_session(Path(sys.argv[1]) / "vision_encoder.onnx")
image = np.random.default_rng(0).integers(0, 256, (600, 1024, 3), dtype=np.uint8)
(tokens,) = session.run(["soft_tokens"], {"image": image})
report = {"added": peak_resident_bytes() - before, "shape": tokens.shape, "type": str(tokens.dtype)}
print(json.dumps(report | {"finite": bool(np.isfinite(tokens).all()), "spread": float(tokens.std(0).mean())}))
"""


def in_a_process(program: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-c", program, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return report


def test_exports_in_little_memory_and_encodes_within_the_estimate(tmp_path: Path) -> None:
    exported = in_a_process(EXPORT, tmp_path)
    assert exported["peak"] < 1.5 * GIB
    encoded = in_a_process(ENCODE, tmp_path)
    assert (encoded["shape"], encoded["type"]) == ([256, 2048], "float32")
    assert encoded["finite"]
    assert encoded["spread"] > 0.1  # soft tokens differ from one another
    assert exported["memory"] == pytest.approx(encoded["added"], rel=0.1)
