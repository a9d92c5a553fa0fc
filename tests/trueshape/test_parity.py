"""The decoder at E2B's true width, with a prompt longer than the true window, against transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_gemma import artifact as artifacts
from edge_gemma.export.parity import compare
from edge_gemma.export.pipeline import export
from edge_gemma.export.synthetic import CONFIGS, SyntheticCheckpoint
from edge_gemma.export.verify import forced_logits, greedy_reference, load_reference
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


def test_true_width_equals_transformers(tmp_path: Path) -> None:
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
