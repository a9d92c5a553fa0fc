"""The exported decoder computes what transformers computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
import torch

from edge_gemma import artifact as artifacts
from edge_gemma.artifact import Artifact
from edge_gemma.export.checkpoint import open_checkpoint
from edge_gemma.export.parity import agrees, compare
from edge_gemma.export.pipeline import export
from edge_gemma.export.verify import forced_logits, greedy_reference
from edge_gemma.recipes import Recipe, find_recipe
from edge_gemma.runtime.decoder import Decoder
from edge_gemma.runtime.embeddings import EmbeddingStore
from edge_gemma.runtime.kv_cache import KvCache

TOLERANCE = 1e-4
PROMPT = 70  # longer than the windows and than the chunks
ANSWER = 64


class Runner:
    """An artifact ready to compute logits."""

    def __init__(self, artifact: Artifact, global_kv: str | None = None) -> None:
        self.decoder = Decoder(artifact, global_kv=global_kv, threads=1)
        self.store = EmbeddingStore(artifact.path("embeddings.bin"), artifact.manifest.embeddings)

    def logits(self, ids: list[int], *, chunk: int, num_logits: int | None = None) -> np.ndarray:
        """All logits [S, V], or with num_logits those of the last call only."""
        cache = KvCache(self.decoder.spec, context=len(ids), chunk=chunk)
        outputs = []
        for first in range(0, len(ids), chunk):
            part = ids[first : first + chunk]
            outputs.append(
                self.decoder.forward(*self.store.rows(part), cache, num_logits=num_logits or len(part))
            )
        return outputs[-1] if num_logits else np.concatenate(outputs)


def run_export(checkpoint: tiny.Tiny, target: Path, recipe: Recipe | str = "fp32") -> Runner:
    chosen = find_recipe(recipe) if isinstance(recipe, str) else recipe
    export(open_checkpoint(str(checkpoint.folder)), chosen, target)
    return Runner(artifacts.read(target))


def with_global_kv(recipe: Recipe, dtype: str) -> Recipe:
    return replace(recipe, kv_cache=recipe.kv_cache | {"global": dtype})


def random_ids(count: int, vocabulary: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocabulary, count).tolist()


@pytest.mark.parametrize("shape", tiny.SHAPES)
def test_equals_transformers(shape: str, tmp_path: Path) -> None:
    """Every position of a prompt in chunks and of a greedy answer decoded token by token.

    Logits are compared with float64's: those in float32 are off by up to 7e-5 themselves.
    """
    checkpoint = tiny.make(tmp_path / "checkpoint", **tiny.SHAPES[shape])
    runner = run_export(checkpoint, tmp_path / "artifact")
    # ids behind the per-layer vocabulary too: they have the per-layer rows of id 0
    ids = random_ids(PROMPT, checkpoint.model.config.vocab_size)
    answer, _ = greedy_reference(checkpoint.model, ids, ANSWER)
    with torch.no_grad():
        expected = checkpoint.model.double()(input_ids=torch.tensor([ids + answer[:-1]])).logits[0].numpy()
    found = forced_logits(runner.decoder, runner.store, ids, answer, chunk=16)
    report = compare(found, expected)
    assert report.positions == PROMPT + ANSWER - 1
    assert report.max_relative_error <= TOLERANCE
    assert report.argmax_agreement == 1.0


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 200])
def test_does_not_depend_on_the_chunk(chunk: int, tmp_path: Path) -> None:
    checkpoint = tiny.make(tmp_path / "checkpoint", sliding_window=9)
    runner = run_export(checkpoint, tmp_path / "artifact")
    ids = random_ids(PROMPT, 400)
    with torch.no_grad():
        expected = checkpoint.model(input_ids=torch.tensor([ids])).logits[0].numpy()
    assert compare(runner.logits(ids, chunk=chunk), expected).max_relative_error <= TOLERANCE


def test_rows_without_logits_skip_nothing_that_matters(tmp_path: Path) -> None:
    """Sharing layers run only for rows with logits; the last row's logits are the same for it."""
    checkpoint = tiny.make(tmp_path / "checkpoint")
    runner = run_export(checkpoint, tmp_path / "artifact")
    ids = random_ids(PROMPT, 400)
    every = runner.logits(ids, chunk=16)
    for count in (1, 3):
        last = runner.logits(ids, chunk=16, num_logits=count)
        assert last.shape == (count, 400)
        assert compare(last, every[-count:]).max_relative_error <= TOLERANCE


@pytest.mark.parametrize("shape", ["as-google", "no-sharing"])
def test_no_weight_is_in_two_graphs(shape: str, tmp_path: Path) -> None:
    """The first graph has the layers with KV of their own, the second everything that only logits need."""
    checkpoint = tiny.make(tmp_path / "checkpoint", **tiny.SHAPES[shape])
    spec = run_export(checkpoint, tmp_path / "artifact").decoder.spec
    files = [tmp_path / "artifact" / graph.file for graph in spec.graphs]
    first, second = (
        {tensor.name for tensor in onnx.load(file, load_external_data=False).graph.initializer}
        for file in files
    )
    assert all("constant" in name or "inverse_frequency" in name for name in first & second)
    layers = {int(name.split("/")[0].split(".")[1]) for name in first if name.startswith("layers.")}
    assert layers == {buffer.layer for buffer in spec.kv}
    assert any(name.startswith("lm_head/") for name in second)


def test_a_head_in_shards_is_the_same_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tiny.make(tmp_path / "checkpoint")
    ids = random_ids(20, 400)
    whole = run_export(checkpoint, tmp_path / "whole").logits(ids, chunk=16)
    monkeypatch.setattr("edge_gemma.shapes.HEAD_SHARD_ROWS", 90)  # 400 rows: the last is smaller
    sharded = run_export(checkpoint, tmp_path / "sharded").logits(ids, chunk=16)
    np.testing.assert_allclose(sharded, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kv_cache", "snr_db"),
    [
        ({"sliding": "float16", "global": "float16"}, 30),
        ({"sliding": "float32", "global": "int8"}, 15),
        ({"sliding": "float16", "global": "int8"}, 15),
    ],
)
def test_smaller_caches_are_close(kv_cache: dict[str, str], snr_db: float, tmp_path: Path) -> None:
    """The KV dtype alone costs little: float32 weights with smaller buffers."""
    checkpoint = tiny.make(tmp_path / "checkpoint")
    recipe = replace(find_recipe("fp32"), kv_cache=kv_cache)
    ids = random_ids(PROMPT, 400)
    exact = run_export(checkpoint, tmp_path / "exact").logits(ids, chunk=16)
    found = run_export(checkpoint, tmp_path / "smaller", recipe).logits(ids, chunk=16)
    assert compare(found, exact).snr_db > snr_db


@pytest.mark.parametrize("shape", ["as-google", "no-sharing", "alternating", "only-full", "multi-query"])
def test_one_artifact_has_both_global_kv(shape: str, tmp_path: Path) -> None:
    """Over the same weights: each graph answers to the bit as that of an export with nothing else."""
    checkpoint = tiny.make(tmp_path / "checkpoint", **tiny.SHAPES[shape])
    recipe = replace(find_recipe("int4"), rows=find_recipe("fp32").rows)
    run_export(checkpoint, tmp_path / "both", recipe)
    run_export(checkpoint, tmp_path / "int8", with_global_kv(recipe, "int8"))
    both, int8 = (artifacts.read(tmp_path / name) for name in ("both", "int8"))
    assert list(both.manifest.decoders) == ["float16", "int8"] and list(int8.manifest.decoders) == ["int8"]
    assert both.manifest.files["decoder.data"] == int8.manifest.files["decoder.data"]
    ids = random_ids(PROMPT, 400)
    found = Runner(both, "int8").logits(ids, chunk=16)
    assert np.array_equal(found, Runner(int8).logits(ids, chunk=16))
    assert not np.array_equal(found, Runner(both).logits(ids, chunk=16))
    specs = both.manifest.decoder, both.manifest.decoder_int8_kv
    for spec, dtype in zip(specs, ("float16", "int8"), strict=True):
        assert spec and {b.dtype for b in spec.kv if b.kind == "global"} == {dtype}
        tensors = [tensor for graph in spec.graphs for tensor in (*graph.inputs, *graph.outputs)]
        declared = {tensor.name: tensor.dtype for tensor in tensors}
        for buffer in spec.kv:
            names = (buffer.past_key, buffer.past_value, *buffer.present_key, *buffer.present_value)
            assert {declared[name] for name in names} == {buffer.dtype}


@pytest.mark.parametrize(
    ("shape", "global_kv"), [("as-google", "float32"), ("as-google", "int8"), ("only-sliding", "float16")]
)
def test_where_there_is_no_choice_there_is_one_graph(shape: str, global_kv: str, tmp_path: Path) -> None:
    checkpoint = tiny.make(tmp_path / "checkpoint", **tiny.SHAPES[shape])
    recipe = replace(find_recipe("fp32"), kv_cache={"sliding": "float16", "global": global_kv})
    run_export(checkpoint, tmp_path / "artifact", recipe)
    manifest = artifacts.read(tmp_path / "artifact").manifest
    assert manifest.decoder_int8_kv is None and list(manifest.decoders) == [global_kv]
    assert not any((tmp_path / "artifact" / name).exists() for name in artifacts.DECODER_INT8_KV)


def test_near_ties_are_told_apart() -> None:
    reference = np.array([1.0, 3.0, 2.9995, 0.0], np.float32)
    assert agrees(1, reference) == (True, False)
    assert agrees(2, reference) == (True, True)
    assert agrees(0, reference) == (False, False)
