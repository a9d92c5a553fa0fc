"""Does llama.cpp compute the model that edge-gemma computes? Both, in float32, on one narrow checkpoint.

The checkpoint has what llama.cpp takes for granted of Gemma 3n: 20 layers with a KV cache and more without,
sparse activations in the first ten, four streams, 256 values a layer, and 30 as the bound of the logits.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from benchmarks.contestants import run_llamacpp
from benchmarks.gguf_random import filler, metadata, tensors, write
from edge_gemma import artifact as artifacts
from edge_gemma.export.parity import ParityReport, compare
from edge_gemma.export.pipeline import export
from edge_gemma.export.synthetic import SyntheticCheckpoint
from edge_gemma.export.verify import forced_logits
from edge_gemma.models import MODELS
from edge_gemma.recipes import find_recipe
from edge_gemma.runtime.decoder import Decoder
from edge_gemma.runtime.embeddings import EmbeddingStore

NARROW = MODELS["E2B"] | {
    "vocab_size": 2064,
    "vocab_size_per_layer_input": 2048,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "head_dim": 64,
    "sliding_window": 64,
    "intermediate_size": 2048,
    "max_position_embeddings": 1024,
}
PROMPT = 200  # tokens: three windows
CHUNK = 128


def check(python: str, threads: int) -> ParityReport:
    """llama.cpp's logits against those of edge-gemma's fp32 artifact, at every token of a random prompt.

    Most of the difference is two habits of llama.cpp: it looks GELU up in a table of float16, and divides by
    n - 1, not by n, in the standard deviation that sparse activations are cut at.
    """
    checkpoint = SyntheticCheckpoint("narrow", NARROW, seed=0)
    ids = np.random.default_rng(0).integers(0, NARROW["vocab_size_per_layer_input"], PROMPT).tolist()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, out = folder / "narrow.gguf", folder / "logits.npy"
        write(model, metadata(checkpoint), tensors(checkpoint, exact=True), filler(checkpoint))
        arguments = {"model": str(model), "threads": threads, "ids": ids, "out": str(out)}
        run_llamacpp(python, "logits", **arguments)
        export(checkpoint, find_recipe("fp32"), folder / "artifact")
        artifact = artifacts.read(folder / "artifact")
        store = EmbeddingStore(artifact.path(artifact.manifest.embeddings.file), artifact.manifest.embeddings)
        ours = forced_logits(Decoder(artifact, threads=threads), store, ids, ids[:1], chunk=CHUNK)
        store.close()
        return compare(np.load(out), ours)
