"""At E2B's true width against transformers: the decoder, with a prompt longer than the true window, and the
audio tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from transformers.models.gemma3n import Gemma3nAudioFeatureExtractor

from edge_gemma import artifact as artifacts
from edge_gemma.artifact import AUDIO_ENCODER
from edge_gemma.export.audio import export_audio_encoder
from edge_gemma.export.parity import compare
from edge_gemma.export.pipeline import export
from edge_gemma.export.synthetic import CONFIGS, SyntheticCheckpoint
from edge_gemma.export.towers import Encoder
from edge_gemma.export.verify import forced_logits, greedy_reference, load_reference
from edge_gemma.progress import Silent
from edge_gemma.recipes import find_recipe
from edge_gemma.runtime.decoder import Decoder
from edge_gemma.runtime.embeddings import EmbeddingStore

pytestmark = [pytest.mark.trueshape, pytest.mark.timeout(1200)]
CONFIG = CONFIGS["E2B"]["text_config"] | {
    "num_hidden_layers": 10,
    "num_kv_shared_layers": 3,
    "activation_sparsity_pattern": [0.95] * 3 + [0.0] * 7,
    "vocab_size": 8256,
    "vocab_size_per_layer_input": 8000,
}


def test_the_decoder_equals_transformers(tmp_path: Path) -> None:
    checkpoint = SyntheticCheckpoint("true width", CONFIG, seed=0)
    export(checkpoint, find_recipe("fp32"), tmp_path / "artifact")
    artifact = artifacts.read(tmp_path / "artifact")
    prompt = np.random.default_rng(0).integers(0, 8256, 600).tolist()
    answer, expected = greedy_reference(load_reference(checkpoint), prompt, 8)
    decoder = Decoder(artifact)
    store = EmbeddingStore(artifact.path("embeddings.bin"), artifact.manifest.embeddings)
    report = compare(forced_logits(decoder, store, prompt, answer, chunk=128), expected)
    assert report.max_relative_error <= 1e-4
    assert report.argmax_agreement == 1.0


def test_the_audio_tower_equals_transformers(tmp_path: Path) -> None:
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
