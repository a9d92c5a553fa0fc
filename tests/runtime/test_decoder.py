"""The decoder: what it refuses to open, and what one call returns."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edge_gemma import artifact as artifacts
from edge_gemma.artifact import Artifact
from edge_gemma.errors import ArtifactError
from edge_gemma.runtime.decoder import Decoder
from edge_gemma.runtime.embeddings import EmbeddingStore
from edge_gemma.runtime.kv_cache import KvCache


@pytest.fixture(scope="module")
def artifact(tiny_artifact: Path) -> Artifact:
    return artifacts.read(tiny_artifact)


@pytest.fixture
def store(artifact: Artifact) -> EmbeddingStore:
    return EmbeddingStore(artifact.path("embeddings.bin"), artifact.manifest.embeddings)


def test_logits_are_a_copy(artifact: Artifact, store: EmbeddingStore) -> None:
    """A later call does not change what an earlier one returned."""
    decoder = Decoder(artifact, threads=1)
    cache = KvCache(decoder.spec, context=20, chunk=4)
    first = decoder.forward(*store.rows([10, 11, 12]), cache, num_logits=2)
    assert first.shape == (2, artifact.manifest.vocab_size) and first.dtype == np.float32
    kept = first.copy()
    assert decoder.forward(*store.rows([13]), cache).shape == (1, artifact.manifest.vocab_size)
    assert np.array_equal(first, kept)
    assert cache.length == 4
    store.close()


def test_without_logits_only_keys_and_values_are_computed(
    artifact: Artifact, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(artifact, threads=1)
    found = []
    for count in (1, 0):
        cache = KvCache(decoder.spec, context=20, chunk=4)
        with monkeypatch.context() as patch:
            if not count:
                patch.delattr(decoder._graphs[1], "_session")  # would fail if it ran
            logits = decoder.forward(*store.rows([10, 11, 12]), cache, num_logits=count)
            assert logits.shape == (count, artifact.manifest.vocab_size)
            decoder.forward(*store.rows([13]), cache, num_logits=count)
        found.append(decoder.forward(*store.rows([14]), cache))
    assert np.array_equal(*found)
    store.close()


def test_the_last_graph_that_does_not_load(tiny_artifact: Path, tmp_path: Path) -> None:
    """What was loaded beside it does not stay."""
    folder = shutil.copytree(tiny_artifact, tmp_path / "copy")
    opened = artifacts.read(folder)
    last = opened.path(opened.manifest.decoder.graphs[-1].file)
    decoder = Decoder(opened, threads=1)
    decoder.give_way()
    last.write_bytes(b"no graph".ljust(last.stat().st_size))
    cache = KvCache(decoder.spec, context=20, chunk=4)
    embeds = np.zeros((1, 1, opened.manifest.embeddings.hidden_size), np.float32)
    shape = opened.manifest.embeddings.layers, opened.manifest.embeddings.per_layer_width
    with pytest.raises(ArtifactError, match=last.name):
        decoder.forward(embeds, np.zeros((1, 1, *shape), np.float32), cache)
    assert decoder._graphs == [] and cache.length == 0


def test_two_conversations_take_turns(artifact: Artifact, store: EmbeddingStore) -> None:
    """One decoder serves several caches: none sees the other's tokens."""
    decoder = Decoder(artifact, threads=1)
    conversations = {tuple(range(10, 30)): [], tuple(range(50, 70)): []}  # type: ignore[var-annotated]
    caches = [KvCache(decoder.spec, context=20, chunk=1) for _ in conversations]
    for i in range(20):
        for cache, (ids, logits) in zip(caches, conversations.items(), strict=True):
            logits.append(decoder.forward(*store.rows([ids[i]]), cache))
    for ids, logits in conversations.items():
        alone = KvCache(decoder.spec, context=20, chunk=1)
        for token, expected in zip(ids, logits, strict=True):
            assert np.array_equal(decoder.forward(*store.rows([token]), alone), expected)
    store.close()


TOO_OLD = f"onnxruntime {onnxruntime.__version__} is too old for this artifact, which needs "


@pytest.mark.parametrize(
    ("minimum", "message"),
    [
        ("99.1", TOO_OLD + "99.1: pip install 'onnxruntime>=99.1'"),
        ("1.1000.2", TOO_OLD + "1.1000.2: pip install 'onnxruntime>=1.1000.2'"),
        ("new", "the manifest asks for onnxruntime 'new': expected a version; export the artifact again"),
    ],
)
def test_an_onnxruntime_that_is_too_old(minimum: str, message: str, artifact: Artifact) -> None:
    manifest = dataclasses.replace(artifact.manifest, minimum_onnxruntime=minimum)
    with pytest.raises(ArtifactError) as error:
        Decoder(dataclasses.replace(artifact, manifest=manifest))
    assert str(error.value) == message


@pytest.mark.parametrize("minimum", ["1.9", "1", onnxruntime.__version__])
def test_an_onnxruntime_that_is_new_enough(minimum: str, artifact: Artifact) -> None:
    manifest = dataclasses.replace(artifact.manifest, minimum_onnxruntime=minimum)
    Decoder(dataclasses.replace(artifact, manifest=manifest), threads=1)


@pytest.mark.parametrize("filling", [b"\x00", b"\xff", b"onnx"], ids=["zeros", "ones", "text"])
def test_a_damaged_graph(
    filling: bytes, tiny_artifact: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_artifact, tmp_path / "copy")
    graph = folder / "decoder_logits.onnx"
    size = graph.stat().st_size
    graph.write_bytes((filling * size)[:size])
    with pytest.raises(ArtifactError, match="edge-gemma inspect --verify") as error:
        Decoder(artifacts.read(folder))
    assert str(graph) in str(error.value) and "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")  # onnxruntime does not speak for itself
