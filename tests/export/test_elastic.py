"""One graph with nested levels computes what separate exports of them compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from numpy.typing import NDArray

import edge_gemma
from demo.data import held_out
from edge_gemma import Statistics
from edge_gemma import artifact as artifacts
from edge_gemma.artifact import Artifact
from edge_gemma.config import parse_config
from edge_gemma.errors import ExportError
from edge_gemma.export.checkpoint import open_checkpoint
from edge_gemma.export.elastic import Levels, Segment, open_levels, within
from edge_gemma.export.matformer import SlicedCheckpoint
from edge_gemma.export.parity import compare
from edge_gemma.export.pipeline import export
from edge_gemma.export.synthetic import CONFIGS
from edge_gemma.recipes import find_recipe
from edge_gemma.runtime.decoder import Decoder
from edge_gemma.runtime.embeddings import EmbeddingStore
from edge_gemma.runtime.kv_cache import KvCache
from edge_gemma.submodels import Submodel

# ten layers of width 256, of which the last five share KV; the first three are sparse
SMALL = Submodel("small", (0, 1, 2, 3, 4, 5, 7, 9), (128,) * 8)
MEDIUM = Submodel("medium", (0, 1, 2, 3, 4, 5, 7, 8, 9), (128, 256, 128, 256, 128, 256, 128, 128, 256))
LARGE = Submodel("large", tuple(range(10)), (256,) * 10)
LEVELS = (SMALL, MEDIUM, LARGE)
IDS = np.random.default_rng(0).integers(0, 400, 50).tolist()
CONFIG = replace(parse_config(CONFIGS["tiny"]).text, intermediate_size=(256,) * 10)


@dataclass(frozen=True)
class Exports:
    """One elastic artifact, and an artifact of each level alone."""

    elastic: Artifact
    alone: dict[str, Artifact]


@pytest.fixture(scope="module", params=["fp32", "int8", "int4"])
def exports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    folder = tmp_path_factory.mktemp("elastic")
    tiny.make(folder / "checkpoint", intermediate_size=256, hidden_size_per_layer_input=32)
    source = open_checkpoint(str(folder / "checkpoint"))
    recipe = find_recipe(request.param)
    export(source, recipe, folder / "elastic", levels=LEVELS)
    for level in LEVELS:
        export(SlicedCheckpoint(source, level), recipe, folder / level.name)
    alone = {level.name: artifacts.read(folder / level.name) for level in LEVELS}
    return Exports(artifacts.read(folder / "elastic"), alone)


def logits(artifact: Artifact, levels: Sequence[int] = ()) -> NDArray[np.float32]:
    """Logits of IDS, [S, V], in chunks of 16; `levels` are those of the chunks, one for all if it is one."""
    decoder = Decoder(artifact, threads=1)
    store = EmbeddingStore(artifact.path("embeddings.bin"), artifact.manifest.embeddings)
    cache = KvCache(decoder.spec, context=len(IDS), chunk=16)
    found = []
    for i, first in enumerate(range(0, len(IDS), 16)):
        ids = IDS[first : first + 16]
        if levels:
            decoder.level = levels[i % len(levels)]
        found.append(decoder.forward(*store.rows(ids), cache, num_logits=len(ids)))
    return np.concatenate(found)


def test_narrowest_level_is_its_own_export_to_the_bit(exports: Exports) -> None:
    np.testing.assert_array_equal(logits(exports.elastic, [0]), logits(exports.alone["small"]))


def test_wider_levels_differ_by_the_order_of_sums(exports: Exports) -> None:
    """Rounded to int8, activations that differ by an ulp may differ by a step: quantized, only few do."""
    exact = exports.elastic.manifest.recipe == "fp32"
    for level in (1, 2):
        expected = logits(exports.alone[LEVELS[level].name])
        report = compare(logits(exports.elastic, [level]), expected)
        assert report.max_relative_error < 1e-5 if exact else report.snr_db > 30
        assert report.argmax_agreement >= (1.0 if exact else 0.95)


def test_levels_are_different_models(exports: Exports) -> None:
    small, medium, large = (logits(exports.elastic, [level]) for level in range(3))
    assert np.abs(small - medium).max() > 0.1 and np.abs(medium - large).max() > 0.1


def test_a_switch_goes_on_with_the_same_cache(exports: Exports) -> None:
    """The first chunk at one level, the others at another: as with a cache that a separate export filled."""
    mixed = logits(exports.elastic, [0, 2, 2, 2])
    np.testing.assert_array_equal(mixed[:16], logits(exports.elastic, [0])[:16])
    assert np.abs(mixed[16:] - logits(exports.elastic, [2])[16:]).max() > 1e-3


def test_one_set_of_weights(exports: Exports) -> None:
    """Of the size of the largest level's."""
    elastic, largest = (
        a.manifest.files[a.manifest.decoder.data].bytes for a in (exports.elastic, exports.alone["large"])
    )
    # each matrix begins at a page of its own: of this tiny model's, that is most
    assert elastic <= largest + 4096 * 3 * 3 * 20
    for level, spec in zip(LEVELS, exports.elastic.manifest.levels, strict=True):
        manifest = exports.alone[level.name].manifest
        assert (spec.name, spec.layers, spec.weights) == (
            level.name,
            manifest.embeddings.layers,
            manifest.memory.weights,
        )


def test_the_manifest_names_levels(exports: Exports) -> None:
    manifest = exports.elastic.manifest
    counts = [level.effective_parameters for level in manifest.levels]
    assert counts == sorted(set(counts))
    assert [manifest.level(name) for name in ("small", "medium", "large")] == [0, 1, 2]
    assert manifest.levels[0].widths == (128, 128, 128, 128, 128, 128, 0, 128, 0, 128)
    assert exports.alone["small"].manifest.levels == ()


def test_int8_global_kv(tmp_path: Path) -> None:
    """A cache in int8 comes out of every node that reads it: no such layer may be left out."""
    tiny.make(tmp_path / "checkpoint", intermediate_size=256)
    source, recipe = open_checkpoint(str(tmp_path / "checkpoint")), find_recipe("int4")
    manifest = export(source, recipe, tmp_path / "sliding", levels=LEVELS)
    assert list(manifest.decoders) == ["float16", "int8"]
    fewer = Submodel("fewer", (0, 1, 2, 3, 4, 5, 6, 7, 8), (256,) * 9)
    manifest = export(source, recipe, tmp_path / "full", levels=(fewer, LARGE))
    assert list(manifest.decoders) == ["float16"]
    logits(artifacts.read(tmp_path / "full"), [0, 1])
    small = replace(recipe, kv_cache=recipe.kv_cache | {"global": "int8"})
    with pytest.raises(ExportError, match="choose --global-kv float16"):
        export(source, small, tmp_path / "refused", levels=(fewer, LARGE))


@pytest.mark.parametrize("recipe", ["fp32", "int4"])
def test_levels_of_the_demo(recipe: str, demo_checkpoint: Path, tmp_path: Path) -> None:
    """Logits and greedy tokens of the trained model: held-out sums and commands, at each level."""
    source, chosen = open_checkpoint(str(demo_checkpoint)), find_recipe(recipe)
    names = [str(demo_checkpoint.parent / "levels" / f"{name}.yaml") for name in ("half", "mixed", "whole")]
    widest, levels = open_levels(source, names)
    text_only = {"audio": False, "vision": False}
    export(widest, chosen, tmp_path / "elastic", levels=levels, **text_only)
    for level in levels:
        export(SlicedCheckpoint(source, level), chosen, tmp_path / level.name, **text_only)
    questions = [list(item.messages) for task in ("sums", "commands") for item in held_out(task, 10)]
    for number, level in enumerate(levels):
        answers, rows = zip(
            *(
                answer(tmp_path / name, questions, level=at)
                for name, at in (("elastic", level.name), (level.name, None))
            ),
            strict=True,
        )
        if number == 0:
            assert answers[0] == answers[1]
            np.testing.assert_array_equal(*rows)
        elif recipe == "fp32":
            assert answers[0] == answers[1]
            assert compare(*rows).max_relative_error < 1e-5
        else:
            assert sum(a == b for a, b in zip(*answers, strict=True)) >= 0.9 * len(questions)


def answer(artifact: Path, prompts: Any, level: str | None) -> tuple[list[list[int]], NDArray[np.float32]]:
    """Greedy ids of each prompt, and the logits [tokens of all answers, V] that they were chosen from."""
    found, rows = [], []

    def best(row: NDArray[np.float32], history: Sequence[int]) -> int:
        rows.append(row)
        return int(row.argmax())

    with edge_gemma.load(artifact, context=256, threads=1, cache=False, level=level) as model:
        generator = model._open()
        for prompt in prompts:
            ids = model.encode(prompt)
            said = generator.generate(ids, best, max_new_tokens=32, statistics=Statistics())
            found.append(list(takewhile(lambda token: token not in model.manifest.tokens.stop, said)))
    return found, np.stack(rows)


def test_segments() -> None:
    levels = Levels(CONFIG, LEVELS)
    assert levels.segments(0) == [Segment(0, 128, 0), Segment(128, 256, 2)]
    assert levels.segments(1) == [Segment(0, 128, 0), Segment(128, 256, 1)]
    assert levels.segments(8) == [Segment(0, 128, 1), Segment(128, 256, 2)]
    assert [levels.first_level(layer) for layer in (0, 6, 8)] == [0, 2, 1]
    assert Levels(CONFIG).segments(3) == [Segment(0, 256, 0)]


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ((MEDIUM, SMALL, LARGE), "medium is no part of small"),
        ((SMALL, MEDIUM), "medium is not the whole model"),
        ((replace(SMALL, layers=(0, 1, 3, 4, 5, 6, 7, 9)), LARGE), "leaves out layer 2, which has keys and"),
    ],
)
def test_refused(levels: tuple[Submodel, ...], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        Levels(CONFIG, levels)


def test_levels_of_a_sub_model() -> None:
    """Layers of a level are numbered as in the widest, which need not be the source."""
    assert within(SMALL, MEDIUM).layers == (0, 1, 2, 3, 4, 5, 6, 8)
    with pytest.raises(ExportError, match="medium has layer 8 and small has not"):
        within(MEDIUM, SMALL)
