"""The audio encoder at E2B's true shape: memory of its export and of its use, and at true width, parity."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from transformers.models.gemma3n import Gemma3nAudioFeatureExtractor

from edge_gemma.artifact import AUDIO_ENCODER
from edge_gemma.export.audio import export_audio_encoder
from edge_gemma.export.recipes import find_recipe
from edge_gemma.export.synthetic import CONFIGS, SyntheticCheckpoint
from edge_gemma.export.towers import Encoder
from edge_gemma.progress import Silent

MIB = 1 << 20
pytestmark = [pytest.mark.trueshape, pytest.mark.timeout(1200)]
EXPORT = """
import dataclasses, json, sys
from pathlib import Path
from edge_gemma.export.audio import export_audio_encoder
from edge_gemma.export.checkpoint import open_checkpoint
from edge_gemma.export.recipes import find_recipe
from edge_gemma.memory import peak_resident_bytes
from edge_gemma.progress import Silent

folder = Path(sys.argv[1])
spec = export_audio_encoder(open_checkpoint("synthetic:E2B"), find_recipe("int8"), folder, Silent())
print(json.dumps({"spec": dataclasses.asdict(spec), "peak": peak_resident_bytes()}))
"""
RUN = """
import json, sys
from pathlib import Path
import numpy as np
from edge_gemma.memory import peak_resident_bytes
from edge_gemma.runtime.session import open_session

clip = np.random.default_rng(0).standard_normal(480_000, dtype=np.float32) * np.float32(0.1)
before = peak_resident_bytes()
session = open_session(Path(sys.argv[1]))
(tokens,) = session.run(None, {"waveform": clip})
added = peak_resident_bytes() - before
print(json.dumps({"shape": tokens.shape, "finite": bool(np.isfinite(tokens).all()), "added": added}))
"""


def fresh(code: str, *arguments: str) -> dict[str, Any]:
    """What a program prints as JSON, run in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_memory_of_the_export_and_of_thirty_seconds(tmp_path: Path) -> None:
    exported = fresh(EXPORT, str(tmp_path))
    assert exported["peak"] < 1200 * MIB  # 918 MiB with torch 2.13.0; the weights alone are 2.6 GiB
    assert (tmp_path / AUDIO_ENCODER).stat().st_size < MIB // 2
    used = fresh(RUN, str(tmp_path / AUDIO_ENCODER))
    assert used["shape"] == [188, 2048] and used["finite"]
    assert exported["spec"]["memory"] == pytest.approx(used["added"], rel=0.1)


def test_true_width_equals_transformers(tmp_path: Path) -> None:
    config = CONFIGS["E2B"]
    config = config | {"audio_config": config["audio_config"] | {"conf_num_hidden_layers": 2}}
    checkpoint = SyntheticCheckpoint("true width", config, seed=0)
    export_audio_encoder(checkpoint, find_recipe("fp32"), tmp_path, Silent())
    encoder: Any = Encoder(config, "audio")
    for name, parameter in encoder.named_parameters():
        parameter.data.copy_(checkpoint.tensor(name))
    clip = np.random.default_rng(0).standard_normal(480_000, dtype=np.float32) * np.float32(0.1)
    features = Gemma3nAudioFeatureExtractor()([clip], return_tensors="pt")
    with torch.no_grad():
        output = encoder.audio_tower(features["input_features"], ~features["input_features_mask"])
        expected = encoder.embed_audio(inputs_embeds=output.last_hidden_state)[0].numpy()
    session = ort.InferenceSession(str(tmp_path / AUDIO_ENCODER))
    (found,) = session.run(None, {"waveform": clip})
    assert found.shape == expected.shape == (188, 2048)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
