"""What requests cost, over a rolling window: percentiles, alerts, JSON, Prometheus' text. Knows no server.

    monitor = Monitor(thresholds=Thresholds(p90_seconds=20.0))
    for piece in monitor.watch(model.stream("Why is the sky blue?")):
        print(piece.text, end="")
    print(monitor.summary().seconds, monitor.alerts())

A record holds counts and times and never any text.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_gemma.errors import DependencyError, PromptError
from edge_gemma.memory import format_bytes
from edge_gemma.runtime.statistics import Statistics

if TYPE_CHECKING:
    from edge_gemma.runtime.answer import Piece

OUTCOMES = ("ok", "cancelled", "refused", "error", "limited")
SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)  # upper bounds of histogram buckets


@dataclass(frozen=True, kw_only=True)
class RequestRecord:
    """One request, without its content."""

    started: float  # seconds since the epoch
    route: str
    outcome: str  # one of OUTCOMES: refused for what it asks, limited for how much is asked
    finish_reason: str | None = None  # the answer's
    seconds: float = 0.0  # from request to the end of the answer, waiting included
    waited_seconds: float = 0.0  # for its turn
    time_to_first_token: float = 0.0  # seconds, once it had its turn; 0: there was none
    prompt_tokens: int = 0
    reused_tokens: int = 0  # of the prompt, already in the KV cache
    generated_tokens: int = 0
    tokens_per_second: float = 0.0  # of decoding
    peak_memory_bytes: int = 0  # of the process, so far
    images: int = 0
    audio_seconds: float = 0.0

    @classmethod
    def of(
        cls,
        statistics: Statistics | None,
        *,
        started: float,
        route: str,
        outcome: str,
        seconds: float,
        finish_reason: str | None = None,
        waited_seconds: float = 0.0,
    ) -> RequestRecord:
        """The record of an answer with these statistics; None where it did not come to one."""
        s = statistics or Statistics()
        return cls(
            started=started,
            route=route,
            outcome=outcome,
            finish_reason=finish_reason,
            seconds=seconds,
            waited_seconds=waited_seconds,
            time_to_first_token=s.time_to_first_token,
            prompt_tokens=s.prompt_tokens,
            reused_tokens=s.reused_tokens,
            generated_tokens=s.generated_tokens,
            tokens_per_second=s.decode_tokens_per_second,
            peak_memory_bytes=s.peak_memory_bytes,
            images=s.images,
            audio_seconds=s.audio_seconds,
        )


@dataclass(frozen=True)
class Percentiles:
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The rolling window. Percentiles are of the requests that have such a figure; None: none has."""

    requests: int
    outcomes: dict[str, int]
    error_rate: float  # share of the requests whose outcome is "error"
    prompt_tokens: int
    generated_tokens: int
    seconds: Percentiles | None  # of the requests that were answered
    time_to_first_token: Percentiles | None
    tokens_per_second: Percentiles | None
    peak_memory_bytes: Percentiles | None


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """When to raise an alert; None: never."""

    p90_seconds: float | None = None
    p90_time_to_first_token: float | None = None
    memory_bytes: int | None = None  # of the latest request
    error_rate: float | None = 0.1
    least_requests: int = 10  # in the window, before percentiles and rates count


@dataclass(frozen=True)
class Alert:
    """A threshold that was passed."""

    name: str  # "slow", "slow_first_token", "memory" or "errors"
    value: float
    threshold: float
    message: str


@dataclass
class Histogram:
    """Counts of seconds by SECONDS, the last of what is longer than all."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    total: float = 0.0  # seconds

    def note(self, seconds: float) -> None:
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bounds and how many were at most that, as Prometheus wants them."""
        bounds = [*map(str, SECONDS), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self.counts)), strict=True))


@dataclass
class Totals:
    """Everything since the monitor was made."""

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)  # by route and outcome
    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    seconds: Histogram = field(default_factory=Histogram)  # of answered requests
    time_to_first_token: Histogram = field(default_factory=Histogram)

    def note(self, record: RequestRecord) -> None:
        self.requests[record.route, record.outcome] += 1
        self.prompt_tokens += record.prompt_tokens
        self.reused_tokens += record.reused_tokens
        self.generated_tokens += record.generated_tokens
        if record.outcome == "ok":
            self.seconds.note(record.seconds)
        if record.time_to_first_token:
            self.time_to_first_token.note(record.time_to_first_token)


class Monitor:
    """Records of the last `window` requests, and totals of all. Threads may share one."""

    def __init__(self, window: int = 1024, thresholds: Thresholds | None = None) -> None:
        self.thresholds = thresholds or Thresholds()
        self._records: deque[RequestRecord] = deque(maxlen=window)
        self._totals = Totals()
        self._lock = Lock()

    def record(self, record: RequestRecord) -> None:
        """Add a request."""
        with self._lock:
            self._records.append(record)
            self._totals.note(record)

    def watch(self, pieces: Iterable[Piece], *, route: str = "stream") -> Iterator[Piece]:
        """Pass on the pieces of `Model.stream`, and record the request when they end, however they end.

        A PromptError on the way counts as refused, any other error as such, and an iterator that is closed
        early as cancelled. What `Model.stream` refuses at once is never seen here.
        """
        started, began = time.time(), time.perf_counter()
        outcome, last = "cancelled", None
        try:
            for piece in pieces:
                last = piece
                if piece.finish_reason:
                    outcome = "cancelled" if piece.finish_reason == "cancelled" else "ok"
                yield piece
        except PromptError:
            outcome = "refused"
            raise
        except Exception:
            outcome = "error"
            raise
        finally:
            if isinstance(pieces, Generator):
                pieces.close()
            self.record(
                RequestRecord.of(
                    last.statistics if last else None,
                    started=started,
                    route=route,
                    outcome=outcome,
                    finish_reason=last.finish_reason if last else None,
                    seconds=time.perf_counter() - began,
                )
            )

    def records(self) -> list[RequestRecord]:
        """Those of the window, oldest first."""
        with self._lock:
            return list(self._records)

    def summary(self) -> Summary:
        """Counts and percentiles of the window."""
        records = self.records()
        outcomes = Counter(r.outcome for r in records)
        return Summary(
            requests=len(records),
            outcomes=dict(outcomes),
            error_rate=outcomes["error"] / len(records) if records else 0.0,
            prompt_tokens=sum(r.prompt_tokens for r in records),
            generated_tokens=sum(r.generated_tokens for r in records),
            seconds=_percentiles(r.seconds for r in records if r.outcome == "ok"),
            time_to_first_token=_percentiles(r.time_to_first_token for r in records),
            tokens_per_second=_percentiles(r.tokens_per_second for r in records),
            peak_memory_bytes=_percentiles(r.peak_memory_bytes for r in records),
        )

    def alerts(self) -> list[Alert]:
        """The thresholds that the window is beyond."""
        limits, records, summary = self.thresholds, self.records(), self.summary()
        found = []

        def check(name: str, value: float, limit: float | None, message: str) -> None:
            if limit is not None and value > limit:
                found.append(Alert(name, value, limit, message))

        def check_p90(name: str, found: Percentiles | None, limit: float | None, what: str) -> None:
            if found and limit is not None:
                check(name, found.p90, limit, f"{what} {found.p90:.2f} s at p90, more than {limit:g} s")

        memory = next((r.peak_memory_bytes for r in reversed(records) if r.peak_memory_bytes), 0)
        check(
            "memory",
            memory,
            limits.memory_bytes,
            f"the process took {format_bytes(memory)}, more than {format_bytes(limits.memory_bytes or 0)}",
        )
        if summary.requests >= limits.least_requests:
            first = summary.time_to_first_token
            check_p90("slow", summary.seconds, limits.p90_seconds, "answers took")
            check_p90("slow_first_token", first, limits.p90_time_to_first_token, "first tokens took")
            check(
                "errors",
                summary.error_rate,
                limits.error_rate,
                f"{summary.error_rate:.1%} of the last {summary.requests} requests failed, "
                f"more than {limits.error_rate or 0:.1%}",
            )
        return found

    def totals(self) -> Totals:
        """A copy of what was counted since the monitor was made."""
        from copy import deepcopy

        with self._lock:
            return deepcopy(self._totals)

    def to_json(self) -> str:
        """Summary, alerts and the records of the window."""
        return json.dumps(
            {
                "summary": asdict(self.summary()),
                "alerts": [asdict(alert) for alert in self.alerts()],
                "records": [asdict(record) for record in self.records()],
            }
        )


def prometheus_text(monitor: Monitor, gauges: Mapping[str, float]) -> bytes:
    """The monitor in Prometheus' text format; `gauges` are figures of now by name, as {"queue_length": 3}.

    Every name gets the prefix edge_gemma_.

    Raises:
        DependencyError: prometheus_client is missing.
    """
    try:
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    except ImportError:
        raise DependencyError("prometheus_client is missing: pip install 'edge-gemma[server]'") from None
    totals = monitor.totals()

    class Collector:
        def collect(self) -> Iterator[Any]:
            requests = CounterMetricFamily(
                "edge_gemma_requests", "Requests by route and outcome", labels=["route", "outcome"]
            )
            for labels, count in totals.requests.items():
                requests.add_metric(labels, count)
            yield requests
            for name in ("prompt_tokens", "reused_tokens", "generated_tokens"):
                what = name.replace("_", " ").capitalize()
                yield CounterMetricFamily(f"edge_gemma_{name}", what, getattr(totals, name))
            for name, what, found in (
                ("request_seconds", "Seconds to a whole answer", totals.seconds),
                ("time_to_first_token_seconds", "Seconds to its first token", totals.time_to_first_token),
            ):
                yield HistogramMetricFamily(f"edge_gemma_{name}", what, found.buckets(), found.total)
            for name, value in gauges.items():
                yield GaugeMetricFamily(f"edge_gemma_{name}", name.replace("_", " ").capitalize(), value)

    registry = CollectorRegistry()
    registry.register(Collector())
    return generate_latest(registry)


def _percentiles(values: Iterable[float]) -> Percentiles | None:
    """Of the values above 0, interpolated."""
    found = [value for value in values if value > 0]
    if not found:
        return None
    p50, p90, p99 = (float(p) for p in np.percentile(found, (50, 90, 99)))
    return Percentiles(p50, p90, p99)
