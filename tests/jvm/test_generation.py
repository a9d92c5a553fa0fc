"""Sampling filters and stop strings on the JVM equal those in Python."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from jvm.bridge import EngineError, Jvm

from edge_gemma.runtime.sampling import SamplingOptions, probabilities
from edge_gemma.runtime.stopping import StopStrings

RNG = np.random.default_rng(0)
LOGITS = {
    "plain": RNG.normal(0, 3, 1000).astype(np.float32),
    "ties": RNG.integers(-3, 4, 500).astype(np.float32),
    "zeros": np.array([0.0, -0.0, 0.0, -1.0], np.float32),
    "one": np.array([-5.0], np.float32),
    "masked": np.where(RNG.random(300) < 0.9, -np.inf, RNG.normal(0, 1, 300)).astype(np.float32),
    "sharp": np.array([100.0, 99.0, -100.0, -1e30], np.float32),
}
OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0},
    {},
    {"temperature": 0.7, "top_k": 5, "top_p": 0.9},
    {"temperature": 3.0, "top_k": 0, "top_p": 1},
    {"temperature": 1.0, "top_k": 3, "top_p": 1},
    {"temperature": 1.0, "top_k": 0, "top_p": 0.3},
    {"temperature": 1e-50},
    {"top_p": 0},
]


def candidates(jvm: Jvm, logits: np.ndarray, draws: int = 0, **options: Any) -> dict[str, Any]:
    defaults = {"temperature": 1.0, "top_k": 64, "top_p": 0.95}
    encoded = base64.b64encode(logits.astype("<f4").tobytes()).decode()
    return jvm.ask("candidates", logits=encoded, draws=draws, settings=defaults | options)


@pytest.mark.parametrize("name", LOGITS)
def test_filters(jvm: Jvm, name: str) -> None:
    for options in OPTIONS:
        ids, expected = probabilities(LOGITS[name], (), SamplingOptions(**options))
        found = candidates(jvm, LOGITS[name], **options)
        assert found["ids"] == ids.tolist(), options
        np.testing.assert_allclose(found["probabilities"], expected, rtol=1e-12)


def test_draws_follow_the_probabilities(jvm: Jvm) -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    drawn = candidates(jvm, logits, 20_000, top_p=1, seed=7)["drawn"]
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(shares, [0.5, 0.3, 0.15, 0.05], atol=0.015)
    assert drawn == candidates(jvm, logits, 20_000, top_p=1, seed=7)["drawn"]
    assert drawn != candidates(jvm, logits, 20_000, top_p=1, seed=8)["drawn"]
    assert set(candidates(jvm, logits, 100, temperature=0)["drawn"]) == {0}


@pytest.mark.parametrize("bad", [[np.nan, 1.0], [1.0, np.inf], [-np.inf, -np.inf]])
def test_logits_that_are_none(jvm: Jvm, bad: list[float]) -> None:
    with pytest.raises(EngineError, match="EngineException: the model produced .* expected a finite one"):
        candidates(jvm, np.array(bad, np.float32))


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_k": -1}, {"top_p": 1.5}, {"top_p": -0.1}])
def test_options_out_of_range(jvm: Jvm, wrong: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="PromptException: .* expected"):
        candidates(jvm, LOGITS["plain"], **wrong)


def test_stop_strings(jvm: Jvm) -> None:
    rng = np.random.default_rng(1)
    cases = [
        (["abcd", "bc"], ["ab", "cd"]),
        (["###"], ["a#", "#", "b##", "#c"]),
        ([], ["x"]),
        (["é😀"], ["é", "😀"]),
    ]
    for _ in range(300):
        stops = ["".join(rng.choice(list("ab"), rng.integers(1, 4))) for _ in range(rng.integers(0, 3))]
        pieces = ["".join(rng.choice(list("abc"), rng.integers(0, 4))) for _ in range(rng.integers(0, 6))]
        cases.append((stops, pieces))
    for stops, pieces in cases:
        reference = StopStrings(stops)
        expected = [reference.push(piece) for piece in pieces]
        found = jvm.ask("stop", stops=stops, pieces=pieces)
        assert found["pieces"] == [text for text, _ in expected] + [reference.flush()], (stops, pieces)
        assert found["stopped"] == any(stopped for _, stopped in expected)
    with pytest.raises(EngineError, match="PromptException: a stop string is empty"):
        jvm.ask("stop", stops=[""], pieces=[])
