"""The rounds of a benchmark: what is measured in which order, the figures made of it, what is left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_gemma.errors import PromptError
from edge_gemma.runtime import bench, bench_tasks
from edge_gemma.runtime.bench import Figure
from edge_gemma.runtime.bench_report import to_json
from edge_gemma.runtime.bench_tasks import Answered, Decoded, Loaded, Speeds

WEIGHTS = 1000  # bytes that a token reads
FIGURE = {"median", "min", "max", "values"}


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tasks run here instead of in a process of their own; their names."""
    names: list[str] = []

    def call(task: Callable[..., Any], *, step: Any, warn: Any, **arguments: Any) -> Any:
        names.append(task.__name__)
        return task(step, **arguments)

    monkeypatch.setattr(bench, "call", call)
    monkeypatch.setattr(bench_tasks, "read_bandwidth", lambda threads, size: 1e9)
    return names


class Faked:
    """Tasks that measure nothing and report round numbers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tasks: list[str] = []
        self.warnings: list[str] = []
        self.stayed: float | None = 0.0
        self.evicted: list[set[Path]] = []
        self.loads = iter(range(1, 100))
        self.speeds: list[Speeds] = []
        monkeypatch.setattr(bench, "call", self.call)
        monkeypatch.setattr(bench, "evict", self.evict)

    def evict(self, paths: set[Path]) -> float | None:
        self.tasks.append("evict")
        self.evicted.append(set(paths))
        return self.stayed

    def call(self, task: Any, *, step: Any, warn: Any, **arguments: Any) -> Any:
        self.tasks.append(task.__name__)
        for warning in self.warnings:
            warn(warning)
        if task is bench_tasks.load_model:
            number = next(self.loads)
            here = (Path(__file__),)
            return Loaded(
                seconds=number,
                peak_bytes=100 * number,
                context=64,
                global_kv="int8",
                weights=WEIGHTS,
                files=here,
            )
        if task is bench_tasks.speeds:
            return self.speeds.pop(0)
        return Answered(
            prompt_tokens=7, encode_seconds=1.0, prefill_seconds=2.0, seconds=3.0, peak_bytes=5000
        )


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> Faked:
    return Faked(monkeypatch)


def test_everything_is_measured_in_every_round(media_artifact: Path, in_process: list[str]) -> None:
    found = bench.measure(
        media_artifact, runs=2, prefill=[8, 20], decode_at=[0, 30], tokens=3, model={"threads": 1}
    )
    one = ["load_model", "load_model", "answer", "answer", "answer", "speeds"]
    if "cold" not in found.load:  # a file system that is memory itself
        one = one[1:]
    assert in_process == ["load_model", *one, *one]
    results = json.loads(to_json(found, "edge-gemma bench", {"machine": "this"}))["results"]
    assert results["prefill"].keys() == {"8", "20"} and results["decode"].keys() == {"0", "30"}
    assert results["first_token"].keys() == {"text", "image", "audio"}
    assert results["memory"].keys() == {"load", "text", "image", "audio"}
    figures = [*results["prefill"].values(), *results["load"].values(), results["memory"]["image"]]
    figures += [figure for decode in results["decode"].values() for figure in decode.values()]
    for figure in figures:
        assert figure.keys() == FIGURE and len(figure["values"]) == 2
        assert 0 < figure["min"] <= figure["median"] <= figure["max"]


def test_the_order_of_a_round(tiny_artifact: Path, faked: Faked) -> None:
    faked.speeds = [Speeds(prefill={9: speed}, decode={}) for speed in (4.0, 1.0, 2.0)]
    found = bench.measure(tiny_artifact, runs=3, prefill=[9], decode_at=[])
    assert faked.tasks == [
        "load_model",  # once before all
        *["evict", "load_model", "load_model", "answer", "speeds"] * 3,
    ]
    assert found.prefill[9] == Figure(median=2.0, min=1.0, max=4.0, values=(4.0, 1.0, 2.0))
    assert found.load["cold"].values == (2, 4, 6) and found.load["warm"].values == (3, 5, 7)
    assert found.memory["load"].values == (300, 500, 700)
    assert found.first_token["text"].seconds.values == (3.0, 3.0, 3.0)
    assert found.bandwidth is None and found.bound is None
    assert (found.context, found.global_kv) == (64, "int8")
    own = {path for path in tiny_artifact.iterdir() if path.name != "manifest.json"}
    assert faked.evicted == [own | {Path(__file__)}] * 3  # the artifact's, and what loading mapped


def test_a_share_is_of_the_bandwidth_of_its_moment(tiny_artifact: Path, faked: Faked) -> None:
    faked.speeds = [
        Speeds(prefill={}, decode={0: Decoded(tokens_per_second=speed, bytes_per_second=WEIGHTS * bound)})
        for speed, bound in ((8.0, 10.0), (4.0, 5.0), (9.0, 20.0))
    ]
    found = bench.measure(tiny_artifact, runs=3, prefill=[], decode_at=[0])
    assert found.decode[0].share.values == (0.8, 0.8, 0.45)
    assert found.bandwidth == Figure.of([WEIGHTS * 10.0, WEIGHTS * 5.0, WEIGHTS * 20.0])
    assert found.bound == 10.0 and found.weights_per_token == WEIGHTS


@pytest.mark.parametrize(("stayed", "cold"), [(0.05, True), (0.5, False), (None, False)])
def test_a_load_that_cannot_be_cold_is_none(
    stayed: float | None, cold: bool, tiny_artifact: Path, faked: Faked
) -> None:
    faked.stayed = stayed
    found = bench.measure(tiny_artifact, runs=2, prefill=[], decode_at=[])
    assert ("cold" in found.load) == cold
    assert any("no cold load" in note for note in found.notes) != cold
    assert len(found.load["warm"].values) == 2


def test_warnings_become_notes(tiny_artifact: Path, faked: Faked) -> None:
    faked.warnings = ["the cache cannot be written"]
    found = bench.measure(tiny_artifact, runs=2, prefill=[], decode_at=[])
    assert found.notes.count("the cache cannot be written") == 1


def test_what_the_context_has_no_room_for(tiny_artifact: Path, faked: Faked) -> None:
    """The faked context is 64, the model's longest 2048."""
    faked.speeds = [Speeds(prefill={64: 1.0}, decode={})]
    found = bench.measure(tiny_artifact, runs=1, prefill=[64, 65, 3000], decode_at=[0, 65], tokens=64)
    notes = [note for note in found.notes if "left out" in note]
    assert notes == [
        "prefill of 65 tokens was left out: the context is 64, raise --context",
        "prefill of 3000 tokens was left out: this model's longest context is 2048",
        "decoding to a context of 0 tokens was left out: the context is 64, raise --context",
        "decoding to a context of 65 tokens was left out: the context is 64, raise --context",
    ]
    assert list(found.prefill) == [64] and not found.decode


def test_an_artifact_without_encoders(tiny_artifact: Path, faked: Faked) -> None:
    found = bench.measure(tiny_artifact, runs=1, prefill=[], decode_at=[])
    assert found.memory.keys() == {"load", "text"}
    assert {note for note in found.notes if "encoder" in note} == {
        "no image was measured: this artifact has no encoder for it",
        "no audio was measured: this artifact has no encoder for it",
    }


def test_media_can_be_skipped(media_artifact: Path, faked: Faked) -> None:
    found = bench.measure(media_artifact, runs=1, prefill=[], decode_at=[], media=False)
    assert found.first_token.keys() == {"text"}
    assert not [note for note in found.notes if "encoder" in note]
    assert faked.tasks.count("answer") == 1


@pytest.mark.parametrize("wrong", [{"runs": 0}, {"tokens": 0}, {"prefill": [0]}, {"decode_at": [-1]}])
def test_counts_that_are_too_small(wrong: dict[str, Any], tiny_artifact: Path, faked: Faked) -> None:
    with pytest.raises(PromptError, match=next(iter(wrong))):
        bench.measure(tiny_artifact, **wrong)
    assert not faked.tasks
