from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made import needs

from edge_gemma.errors import EdgeGemmaError, PromptError
from edge_gemma.runtime.sampling import SamplingOptions, make_sampler, probabilities

OFF: dict[str, Any] = {"top_k": 0, "top_p": 1.0}
INF = float("inf")


def by_transformers(logits: np.ndarray, history: list[int], options: SamplingOptions) -> np.ndarray:
    """transformers' probabilities, float64 [V]: its processors in the order of its generate()."""
    torch, process = needs("torch"), needs("transformers.generation.logits_process")
    steps: list[Any] = []
    if options.repetition_penalty != 1.0:
        steps.append(process.RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    if options.temperature != 1.0:
        steps.append(process.TemperatureLogitsWarper(options.temperature))
    if options.top_k:
        steps.append(process.TopKLogitsWarper(options.top_k))
    if options.top_p < 1.0:
        steps.append(process.TopPLogitsWarper(options.top_p))
    steps.append(process.MinPLogitsWarper(options.min_p))
    ids, scores = torch.tensor([history], dtype=torch.long), torch.from_numpy(logits.copy())[None]
    for step in steps:
        scores = step(ids, scores)
    return scores.double().softmax(-1)[0].numpy()


def dense(logits: np.ndarray, history: list[int], options: SamplingOptions) -> np.ndarray:
    ids, probs = probabilities(logits, history, options)
    result = np.zeros(logits.size)
    result[ids] = probs
    return result


def near_an_edge(logits: np.ndarray, history: list[int], options: SamplingOptions) -> bool:
    """Whether float32 and float64 may disagree on what top-p and min-p keep, or a tie is at the edge."""
    loose = SamplingOptions(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=1.0,
        repetition_penalty=options.repetition_penalty,
    )
    probs = probabilities(logits, history, loose)[1]
    tail = np.cumsum(probs[::-1])[::-1]
    if np.any(np.abs(tail - (1 - options.top_p)) < 1e-5) or np.any(
        np.abs(probs / probs[0] - options.min_p) < 1e-5
    ):
        return True
    kept = int((tail > 1 - options.top_p).sum())
    return options.top_p < 1 and 0 < kept < probs.size and probs[kept - 1] == probs[kept]


@settings(max_examples=300)
@given(
    logits=arrays(
        np.float32, st.integers(1, 40), elements=st.sampled_from([*range(-9, 10), -INF, 0.3, 0.7, 2.4])
    )
    | arrays(np.float32, st.integers(1, 40), elements=st.floats(-30, 30, width=32)),
    history=st.lists(st.integers(0, 60), min_size=1, max_size=8),
    temperature=st.sampled_from([0.3, 0.8, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 3, 10, 64]),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.3]),
    penalty=st.sampled_from([0.8, 1.0, 1.3]),
)
def test_the_filters_are_those_of_transformers(
    logits: np.ndarray,
    history: list[int],
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    penalty: float,
) -> None:
    options = SamplingOptions(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty
    )
    assume(np.isfinite(logits.max()) and not near_an_edge(logits, history, options))
    expected = by_transformers(logits, history, options)
    actual = dense(logits, history, options)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)
    assert set(np.flatnonzero(actual > 1e-30)) == set(np.flatnonzero(expected > 1e-30))


def test_the_filters_at_the_real_size() -> None:
    logits = np.random.default_rng(0).normal(0, 4, 262400).astype(np.float32)
    history = [int(i) for i in np.argsort(-logits)[:20:2]]
    options = SamplingOptions(temperature=0.9, min_p=0.01, repetition_penalty=1.2)
    before = logits.copy()
    actual, expected = dense(logits, history, options), by_transformers(logits, history, options)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)
    assert np.count_nonzero(actual) == np.count_nonzero(expected) > 5
    np.testing.assert_array_equal(logits, before)


def test_probabilities_come_best_first_and_sum_to_one() -> None:
    ids, probs = probabilities(np.array([1, 3, 2, 3, -INF], np.float32), [], SamplingOptions(**OFF))
    assert ids.tolist() == [1, 3, 2, 0]
    assert (ids.dtype, probs.dtype) == (np.int64, np.float64)
    assert probs.sum() == pytest.approx(1)
    assert probs[0] == probs[1] > probs[2] > probs[3]


def test_tokens_that_tie_with_the_kth_stay() -> None:
    logits = np.array([1, 2, 2, 5, 2, 0], np.float32)
    ids, _ = probabilities(logits, [], SamplingOptions(top_k=2, top_p=1.0))
    assert ids.tolist() == [3, 1, 2, 4]


def test_top_p_drops_the_higher_id_of_a_tie() -> None:
    ids, _ = probabilities(np.zeros(4, np.float32), [], SamplingOptions(top_p=0.5))
    assert ids.tolist() == [0, 1]
    ids, _ = probabilities(np.zeros(4, np.float32), [], SamplingOptions(top_p=0.0))
    assert ids.tolist() == [0]


def test_ids_beyond_the_logits_are_not_penalized() -> None:
    options = SamplingOptions(temperature=0, repetition_penalty=10.0)
    ids, probs = probabilities(np.array([5, 4, 3], np.float32), [0, 0, 900], options)
    assert (ids.tolist(), probs.tolist()) == ([1], [1.0])


@pytest.mark.parametrize("temperature", [0, 1e-42, 1e-300])
def test_temperature_zero_is_greedy(temperature: float) -> None:
    sample = make_sampler(SamplingOptions(temperature=temperature))
    assert sample(np.array([-1, 3, 3, 2], np.float32), []) == 1
    assert sample(np.array([-3, -1, -2], np.float32), []) == 1


def test_a_huge_temperature_makes_all_alike() -> None:
    _, probs = probabilities(np.array([9, -9], np.float32), [], SamplingOptions(temperature=1e300, **OFF))
    assert probs.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("values", [[1, math.nan, 2], [1, INF], [-INF, -INF], [math.nan, INF]])
@pytest.mark.parametrize("temperature", [0, 1])
def test_broken_logits_are_an_error_of_the_model(values: list[float], temperature: float) -> None:
    with pytest.raises(EdgeGemmaError, match="the model produced (nan|inf|-inf)") as caught:
        make_sampler(SamplingOptions(temperature=temperature))(np.array(values, np.float32), [])
    assert not isinstance(caught.value, PromptError)


def test_the_same_seed_gives_the_same_ids() -> None:
    rows = np.random.default_rng(1).normal(size=(60, 50)).astype(np.float32)

    def draw(seed: int | None) -> list[int]:
        sample = make_sampler(SamplingOptions(seed=seed))
        return [sample(row, []) for row in rows]

    assert draw(7) == draw(7) != draw(8)
    assert draw(None) != draw(None)


def test_ids_are_drawn_with_their_probabilities() -> None:
    logits = np.log(np.array([0.1, 0.6, 0.3], np.float32))
    sample = make_sampler(SamplingOptions(seed=0, **OFF))
    counts = np.bincount([sample(logits, []) for _ in range(20000)], minlength=3)
    np.testing.assert_allclose(counts / 20000, [0.1, 0.6, 0.3], atol=0.015)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", INF),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_p", 1.01),
        ("top_p", -0.5),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("repetition_penalty", None),
        ("seed", -1),
        ("seed", "x"),
    ],
)
def test_an_option_out_of_range_is_a_prompt_error(name: str, value: Any) -> None:
    with pytest.raises(PromptError, match=f"{name} is .*; expected a"):
        SamplingOptions(**{name: value})


def test_numpy_scalars_are_numbers() -> None:
    options = SamplingOptions(temperature=np.float32(0.5), top_k=np.int64(3))  # type: ignore[arg-type]
    assert probabilities(np.arange(5, dtype=np.float32), [], options)[0].tolist() == [4, 3]


class OnlyAfter:
    """A constraint that allows two tokens, and remembers what it was told."""

    finished = False

    def __init__(self, *allowed: int) -> None:
        self._allowed = list(allowed)
        self.advanced: list[int] = []

    def mask(self, logits: np.ndarray) -> np.ndarray:
        masked = np.full_like(logits, -np.inf)
        masked[self._allowed] = logits[self._allowed]
        return masked

    def advance(self, token: int) -> None:
        self.advanced.append(token)


@pytest.mark.parametrize(
    "options",
    [{}, OFF, {"temperature": 0}, {"top_k": 1}, {"top_p": 0.1}, {"min_p": 1.0}, {"repetition_penalty": 9.0}],
    ids=str,
)
def test_a_constraint_comes_before_everything(options: dict[str, Any]) -> None:
    """What it rules out takes no part in any filter, however likely it is."""
    logits = np.array([90, -5, 80, -4, 70], np.float32)
    constraint: Any = OnlyAfter(1, 3)
    sampler = make_sampler(SamplingOptions(seed=0, **options), constraint)
    history: list[int] = [0, 3]
    for _ in range(20):
        history.append(sampler(logits, history))
    assert set(history[2:]) <= {1, 3}
    assert constraint.advanced == history[2:]
    assert logits.tolist() == [90, -5, 80, -4, 70]
    if options == OFF:
        assert set(history[2:]) == {1, 3}
