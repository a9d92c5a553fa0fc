from __future__ import annotations

import json
from pathlib import Path

import pytest

import edge_gemma
from edge_gemma.memory import peak_resident_bytes
from edge_gemma.runtime.statistics import Statistics


@pytest.fixture(scope="module")
def measured(tiny_artifact: Path) -> Statistics:
    with edge_gemma.load(tiny_artifact, context=256, threads=1) as model:
        return model.generate("Why is the sky blue?", max_new_tokens=30).statistics


def test_counts_fit_together(measured: Statistics) -> None:
    assert measured.generated_tokens == 30
    assert measured.reused_tokens == 0
    assert measured.rows == measured.prompt_tokens + measured.generated_tokens - 1
    assert 0 < measured.rows_read <= measured.rows
    assert measured.bytes_read % measured.rows_read == 0


def test_times_and_rates_fit_together(measured: Statistics) -> None:
    assert 0 < measured.prefill_seconds <= measured.time_to_first_token
    assert measured.prefill_tokens_per_second == measured.prompt_tokens / measured.prefill_seconds
    assert measured.decode_tokens_per_second == 29 / measured.decode_seconds


def test_memory_is_that_of_the_process(measured: Statistics) -> None:
    assert 0 < measured.peak_memory_bytes <= peak_resident_bytes()


def test_as_json(measured: Statistics) -> None:
    data = json.loads(json.dumps(measured.to_dict()))
    assert data["prompt_tokens"] == measured.prompt_tokens
    assert data["prefill_tokens_per_second"] == round(measured.prefill_tokens_per_second, 2) > 0
    assert data["decode_tokens_per_second"] == round(measured.decode_tokens_per_second, 2) > 0


def test_only_what_was_computed_counts_for_the_rate() -> None:
    assert Statistics(prompt_tokens=30, reused_tokens=10, prefill_seconds=2.0).prefill_tokens_per_second == 10


def test_nothing_done_is_no_division_by_zero() -> None:
    assert Statistics().prefill_tokens_per_second == Statistics().decode_tokens_per_second == 0
    one = Statistics(generated_tokens=1)  # there is no time between one token and itself
    assert one.decode_tokens_per_second == 0
