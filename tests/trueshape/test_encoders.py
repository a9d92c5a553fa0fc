"""The encoders at E2B's true shape: what they need in memory; and at true width, the audio tower's parity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from processes import program
from transformers.models.gemma3n import Gemma3nAudioFeatureExtractor

from edge_gemma.artifact import AUDIO_ENCODER, read
from edge_gemma.export.audio import export_audio_encoder
from edge_gemma.export.synthetic import CONFIGS, SyntheticCheckpoint
from edge_gemma.export.towers import Encoder
from edge_gemma.progress import Silent
from edge_gemma.recipes import find_recipe

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


@pytest.mark.parametrize("kind", ["audio", "vision"])
def test_encodes_within_the_estimate(exported: dict[str, Any], kind: str) -> None:
    """30 seconds of sound, and an image."""
    spec = getattr(read(exported["output"]).manifest, kind)
    encoded = program(ENCODE, str(Path(exported["output"]) / spec.file))
    assert (encoded["shape"], encoded["type"]) == ([spec.soft_tokens, 2048], "float32")
    assert encoded["finite"]
    assert encoded["spread"] > 0.1  # soft tokens differ from one another
    assert spec.memory == pytest.approx(encoded["added"], rel=0.1)


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
