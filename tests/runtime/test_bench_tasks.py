"""What the tasks of a benchmark really compute, in counts of tokens."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest

from edge_gemma import artifact as artifacts
from edge_gemma.errors import ContextLimitError
from edge_gemma.runtime import bench_tasks
from edge_gemma.runtime.bench_tasks import Answered
from edge_gemma.runtime.decoder import Decoder

MODEL = {"threads": 1, "context": 96, "chunk": 16}


def no_step() -> None:
    pass


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """(tokens held before, tokens computed) of each call of the decoder, and "read" where memory was read."""
    seen: list[Any] = []
    forward = Decoder.forward

    def watched(self: Decoder, embeds: Any, per_layer: Any, cache: Any, **options: Any) -> Any:
        seen.append((cache.length, embeds.shape[1]))
        return forward(self, embeds, per_layer, cache, **options)

    def read(threads: int, size: int) -> float:
        assert (threads, size) == (1, 4096)
        seen.append("read")
        return 1e9 * seen.count("read")

    monkeypatch.setattr(Decoder, "forward", watched)
    monkeypatch.setattr(bench_tasks, "read_bandwidth", read)
    return seen


def test_prefill_and_decode_compute_the_tokens_they_tell(tiny_artifact: Path, fed: list[Any]) -> None:
    steps: list[int] = []
    found = bench_tasks.speeds(
        lambda: steps.append(len(fed)), tiny_artifact, MODEL, [16, 40], [0, 3, 60], 5, 1, 4096
    )
    end = fed.index((0, 16), 1 + fed.index((95, 1)))  # behind the warm-up
    assert sum(tokens for _, tokens in fed[:end]) == 95 + 1
    assert fed[end:] == [
        (0, 16),  # a prompt of 16
        *[(0, 16), (16, 16), (32, 8)],  # one of 40, in chunks
        "read",
        *[(n, 1) for n in range(6)],  # one token, then 5 that are timed
        "read",
        *[(n, 1) for n in range(6)],  # a context of 3 has no room for them
        "read",
        *[(n, 1) for n in range(54, 60)],
        "read",
    ]
    assert list(found.prefill) == [16, 40] and list(found.decode) == [0, 3, 60]
    assert [d.bytes_per_second for d in found.decode.values()] == [1.5e9, 2.5e9, 3.5e9]
    assert len(steps) == 5


def test_speed_is_tokens_by_time(
    tiny_artifact: Path, fed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that goes on by a second for each token computed."""
    seconds = lambda: float(sum(item[1] for item in fed if item != "read"))  # noqa: E731
    monkeypatch.setattr(time, "perf_counter", seconds)
    found = bench_tasks.speeds(no_step, tiny_artifact, MODEL, [40], [60], 5, 1, 4096)
    assert found.prefill == {40: pytest.approx(1)}
    assert found.decode[60].tokens_per_second == pytest.approx(1)


def test_a_context_of_one_token(tiny_artifact: Path, fed: list[Any]) -> None:
    bench_tasks.speeds(no_step, tiny_artifact, MODEL | {"context": 1}, [1], [], 5, 1, 4096)
    assert fed == [(0, 1), (0, 1)]


def test_prompts_hold_what_they_are_named_for(media_artifact: Path, fed: list[Any]) -> None:
    manifest = artifacts.read(media_artifact).manifest
    assert manifest.audio and manifest.vision
    model = {"threads": 1, "context": 2048}
    counts = {}
    for kind in bench_tasks.QUESTIONS:
        fed.clear()
        found = bench_tasks.answer(no_step, media_artifact, model, kind, 2)
        assert isinstance(found, Answered)
        assert sum(tokens for _, tokens in fed) in (found.prompt_tokens, found.prompt_tokens + 1)
        assert (found.encode_seconds > 0) == (kind != "text")
        assert 0 < found.encode_seconds + found.prefill_seconds <= found.seconds
        counts[kind] = found.prompt_tokens
    assert counts["text"] < manifest.vision.soft_tokens < counts["image"]
    assert counts["audio"] > manifest.audio.soft_tokens


def test_the_clip_is_as_long_as_it_may_be(media_artifact: Path) -> None:
    manifest = artifacts.read(media_artifact).manifest
    assert manifest.audio

    def samples(longest: int) -> int:
        audio = dataclasses.replace(manifest.audio, max_samples=longest)  # type: ignore[type-var]
        return bench_tasks.clip_samples(dataclasses.replace(manifest, audio=audio))

    assert samples(5 * manifest.audio.sample_rate) == 5 * manifest.audio.sample_rate
    assert samples(60 * manifest.audio.sample_rate) == 30 * manifest.audio.sample_rate
    assert bench_tasks.clip_samples(dataclasses.replace(manifest, audio=None)) == 0


def test_a_prompt_that_does_not_fit_is_told(media_artifact: Path) -> None:
    model = {"threads": 1, "context": 4}
    for kind in bench_tasks.QUESTIONS:
        found = bench_tasks.answer(no_step, media_artifact, model, kind, 5)
        assert isinstance(found, ContextLimitError)
