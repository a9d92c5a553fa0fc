"""The decoder's session: what it refuses to open, and what one call returns."""

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
from edge_gemma.runtime.embeddings import EmbeddingStore
from edge_gemma.runtime.kv_cache import KvCache
from edge_gemma.runtime.session import Decoder, default_threads


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
    graph = folder / "decoder.onnx"
    size = graph.stat().st_size
    graph.write_bytes((filling * size)[:size])
    with pytest.raises(ArtifactError, match="edge-gemma inspect --verify") as error:
        Decoder(artifacts.read(folder))
    assert str(graph) in str(error.value) and "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")  # onnxruntime does not speak for itself


def test_default_threads_are_the_cores_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 5, 7})
    assert default_threads() == 3
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert default_threads() == 1
