from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

import edge_gemma
from edge_gemma import EdgeGemmaError, Model, Monitor
from edge_gemma.errors import DependencyError, MediaError
from edge_gemma.runtime.answer import Piece
from edge_gemma.runtime.monitoring import (
    OUTCOMES,
    SECONDS,
    RequestRecord,
    Thresholds,
    prometheus_text,
)
from edge_gemma.runtime.statistics import Statistics


def record(outcome: str = "ok", seconds: float = 1.0, **fields: Any) -> RequestRecord:
    return RequestRecord(started=0.0, route="/chat", outcome=outcome, seconds=seconds, **fields)


@pytest.fixture(scope="module")
def model(tiny_artifact: Path) -> Iterator[Model]:
    with edge_gemma.load(tiny_artifact, context=128, threads=1) as model:
        yield model


def test_a_watched_answer_is_a_record(model: Model) -> None:
    monitor = Monitor()
    pieces = list(monitor.watch(model.stream("hello", max_new_tokens=8), route="chat"))
    (found,) = monitor.records()
    statistics = pieces[-1].statistics
    assert (found.route, found.outcome, found.finish_reason) == ("chat", "ok", "length")
    assert found.generated_tokens == 8 and found.prompt_tokens == statistics.prompt_tokens
    assert found.tokens_per_second == statistics.decode_tokens_per_second > 0
    assert found.seconds >= found.time_to_first_token == statistics.time_to_first_token > 0
    assert found.peak_memory_bytes == statistics.peak_memory_bytes > 0


def test_closing_a_watched_answer_closes_the_answer(model: Model) -> None:
    monitor = Monitor()
    stream = model.stream("hello", max_new_tokens=50)
    watched = monitor.watch(stream)
    next(watched)
    watched.close()  # type: ignore[attr-defined]
    assert [r.outcome for r in monitor.records()] == ["cancelled"]
    assert next(stream, None) is None
    assert model.generate("hello", max_new_tokens=1).statistics.generated_tokens == 1  # it is not busy


def test_a_cancelled_answer(model: Model) -> None:
    monitor, cancel = Monitor(), Event()
    for _ in monitor.watch(model.stream("hello", max_new_tokens=50, cancel=cancel)):
        cancel.set()
    assert [(r.outcome, r.finish_reason) for r in monitor.records()] == [("cancelled", "cancelled")]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (MediaError("no image"), "refused"),
        (EdgeGemmaError("busy"), "error"),
        (OSError("disk"), "error"),
        (KeyboardInterrupt(), "cancelled"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_how_a_failure_counts(error: BaseException, outcome: str) -> None:
    def pieces() -> Iterator[Piece]:
        yield Piece("a", Statistics(prompt_tokens=3))
        raise error

    monitor = Monitor()
    with pytest.raises(type(error)):
        list(monitor.watch(pieces()))
    assert [(r.outcome, r.prompt_tokens) for r in monitor.records()] == [(outcome, 3)]


def test_the_window_rolls_and_totals_do_not() -> None:
    monitor = Monitor(window=100)
    for seconds in range(1, 201):
        monitor.record(record(seconds=seconds, generated_tokens=2))
    summary = monitor.summary()
    assert summary.requests == 100 and summary.generated_tokens == 200
    assert summary.seconds is not None
    assert summary.seconds.p50 == 150.5
    assert summary.seconds.p90 == pytest.approx(190.1) and summary.seconds.p99 == pytest.approx(199.01)
    assert monitor.totals().requests["/chat", "ok"] == 200
    assert monitor.totals().generated_tokens == 400


def test_percentiles_are_of_what_has_the_figure() -> None:
    monitor = Monitor()
    assert monitor.summary().seconds is None and monitor.summary().error_rate == 0
    monitor.record(record("limited", seconds=0.001))
    monitor.record(record("error", seconds=500.0))
    assert monitor.summary().seconds is None
    monitor.record(record(seconds=2.0, time_to_first_token=0.5))
    summary = monitor.summary()
    assert summary.seconds is not None and summary.time_to_first_token is not None
    assert (summary.seconds.p99, summary.time_to_first_token.p50) == (2.0, 0.5)
    assert summary.outcomes == {"limited": 1, "error": 1, "ok": 1}
    assert summary.error_rate == 1 / 3


def test_alerts() -> None:
    limits = Thresholds(
        p90_seconds=5.0,
        p90_time_to_first_token=1.0,
        memory_bytes=2 << 30,
        error_rate=0.25,
        least_requests=4,
    )
    monitor = Monitor(window=8, thresholds=limits)
    for _ in range(3):
        monitor.record(record("error", seconds=9.0, time_to_first_token=2.0, peak_memory_bytes=3 << 30))
    (memory,) = monitor.alerts()  # too few requests for the others
    assert (memory.name, memory.value, memory.threshold) == ("memory", 3 << 30, 2 << 30)
    assert memory.message == "the process took 3.00 GiB, more than 2.00 GiB"
    monitor.record(record(seconds=9.0, time_to_first_token=2.0, peak_memory_bytes=1 << 30))
    assert [a.message for a in monitor.alerts()] == [
        "answers took 9.00 s at p90, more than 5 s",
        "first tokens took 2.00 s at p90, more than 1 s",
        "75.0% of the last 4 requests failed, more than 25.0%",
    ]
    for _ in range(8):
        monitor.record(record(seconds=1.0, time_to_first_token=0.5))
    assert monitor.alerts() == []


def test_without_thresholds_only_errors_are_told() -> None:
    monitor = Monitor()
    for _ in range(20):
        monitor.record(record("error", seconds=1e6, peak_memory_bytes=1 << 50))
    assert [alert.name for alert in monitor.alerts()] == ["errors"]


def test_as_json() -> None:
    monitor = Monitor(thresholds=Thresholds(memory_bytes=1))
    monitor.record(record(peak_memory_bytes=10))
    data = json.loads(monitor.to_json())
    assert data["summary"]["seconds"] == {"p50": 1.0, "p90": 1.0, "p99": 1.0}
    assert data["summary"]["tokens_per_second"] is None
    assert [alert["name"] for alert in data["alerts"]] == ["memory"]
    assert data["records"][0]["route"] == "/chat"


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_lose_nothing(switching: None) -> None:
    monitor = Monitor(window=10)

    def work() -> None:
        for _ in range(500):
            monitor.record(record(seconds=0.01))
            monitor.summary()

    threads = [Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert monitor.totals().requests["/chat", "ok"] == 2000
    assert sum(monitor.totals().seconds.counts) == 2000


def test_prometheus() -> None:
    parser = pytest.importorskip("prometheus_client.parser")

    monitor = Monitor(window=2)
    for outcome in OUTCOMES:
        monitor.record(record(outcome, seconds=3.0, time_to_first_token=0.1, prompt_tokens=7))
    monitor.record(record(seconds=1000.0))
    text = prometheus_text(monitor, {"queue_length": 3, "memory_bytes": 1e9}).decode()
    samples = {
        (s.name, *(v for _, v in sorted(s.labels.items(), reverse=True))): s.value
        for family in parser.text_string_to_metric_families(text)
        for s in family.samples
    }
    requests = {key[1:]: n for key, n in samples.items() if key[0] == "edge_gemma_requests_total"}
    assert requests == {("/chat", outcome): 2 if outcome == "ok" else 1 for outcome in OUTCOMES}
    assert samples["edge_gemma_prompt_tokens_total",] == 35
    assert samples["edge_gemma_queue_length",] == 3 and samples["edge_gemma_memory_bytes",] == 1e9
    name = "edge_gemma_request_seconds"
    assert [samples[f"{name}_bucket", str(bound)] for bound in SECONDS] == [0.0] * 6 + [1.0] * 5
    assert samples[f"{name}_bucket", "+Inf"] == samples[f"{name}_count",] == 2
    assert samples[f"{name}_sum",] == 1003
    first = "edge_gemma_time_to_first_token_seconds"
    assert samples[f"{first}_bucket", "0.05"] == 0 and samples[f"{first}_bucket", "0.1"] == 5


def test_prometheus_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(DependencyError, match=r"edge-gemma\[server\]"):
        prometheus_text(Monitor(), {})
