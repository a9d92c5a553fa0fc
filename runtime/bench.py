"""Measures an artifact on this machine: speed, loading, first token, memory, and what memory reads allow.

Every task of every round runs in a fresh process, and the rounds repeat the same tasks in the same order, so
that what changes on the machine meanwhile meets all of them.
"""

from __future__ import annotations

import os
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_gemma import artifact as artifacts
from edge_gemma.artifact import Artifact
from edge_gemma.errors import PromptError
from edge_gemma.memory import format_bytes
from edge_gemma.progress import Progress, Silent
from edge_gemma.runtime import bandwidth, bench_tasks
from edge_gemma.runtime.bench_tasks import Answered, Loaded, Speeds
from edge_gemma.runtime.fresh_process import call
from edge_gemma.runtime.loading import profile_of
from edge_gemma.runtime.page_cache import evict
from edge_gemma.runtime.session import default_threads

RUNS = 3
PREFILL = (128, 512, 2048)
DECODE_AT = (0, 1024, 4096)
TOKENS = 32
STAYED = 0.1  # more of the files than this still in memory: loading them would not be cold
BUSY = 0.5  # of the machine's threads already in use: figures suffer


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One quantity, measured once in each round."""

    median: float
    min: float
    max: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        return cls(median=statistics.median(values), min=min(values), max=max(values), values=tuple(values))


@dataclass(frozen=True, kw_only=True)
class FirstToken:
    prompt_tokens: int
    seconds: Figure
    encode_seconds: Figure  # of them
    prefill_seconds: Figure


@dataclass(frozen=True, kw_only=True)
class Decode:
    tokens_per_second: Figure
    share: Figure  # of what the read bandwidth of the same moment allows, 0 to 1


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `measure` found; what was left out is missing, and `notes` says why."""

    source: str  # of the artifact
    recipe: str
    options: dict[str, Any]  # of `load`
    runs: int
    tokens: int  # decoded
    threads: int
    context: int  # tokens, of the model as loaded
    global_kv: str  # dtype of its global layers' KV cache
    prefill: dict[int, Figure]  # tokens of the prompt → tokens a second
    decode: dict[int, Decode]  # context at the end
    first_token: dict[str, FirstToken]  # "text", "image", "audio"
    load: dict[str, Figure]  # "cold", "warm" → seconds
    memory: dict[str, Figure]  # "load", "text", "image", "audio" → bytes of peak memory
    bandwidth: Figure | None  # bytes a second
    bandwidth_method: str
    bandwidth_array: int  # bytes
    weights_per_token: int  # bytes
    notes: tuple[str, ...]

    @property
    def bound(self) -> float | None:
        """Tokens a second if a token took as long as reading its weights."""
        return self.bandwidth.median / self.weights_per_token if self.bandwidth else None


def measure(
    artifact: str | Path,
    *,
    runs: int = RUNS,
    prefill: Sequence[int] = PREFILL,
    decode_at: Sequence[int] = DECODE_AT,
    tokens: int = TOKENS,
    media: bool = True,
    model: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Measure an artifact; docs/performance.md says what each figure means.

    Args:
        artifact: a folder made by `edge-gemma export`.
        runs: rounds; a figure is the median of as many values, with the least and the greatest.
        prefill: lengths of prompts.
        decode_at: contexts that the decoded tokens lead to.
        tokens: how many are decoded each time.
        media: measure an image and a clip where the artifact has the encoders.
        model: options of `load`.
        progress: is told of each part.

    Raises:
        ArtifactError: the artifact is missing or damaged.
        PromptError: a count or an option is out of range.
        EdgeGemmaError: a process that measured ended early, most likely for want of memory.
    """
    _check(runs=[runs], tokens=[tokens], prefill=prefill, decode_at=[end + 1 for end in decode_at])
    bench = _Bench(artifacts.read(artifact), dict(model or {}), progress or Silent())
    bench.note_load()
    first = bench.first_load()
    kinds = bench.kinds(media)
    prefill = bench.within(first.context, "prefill of {} tokens", {n: n for n in prefill})
    needed = {end: max(end, tokens + 1) for end in decode_at}
    decode_at = bench.within(first.context, "decoding to a context of {} tokens", needed)
    speeds = {"prefill": prefill, "decode_at": decode_at, "tokens": tokens}
    bench.progress.stage("measuring", runs * (2 + len(kinds) + len(prefill) + len(decode_at)))
    for _ in range(runs):
        bench.round(kinds, speeds)
    return bench.report(runs, tokens, first)


def _check(**counts: Sequence[int]) -> None:
    for name, values in counts.items():
        if any(value < 1 for value in values):
            raise PromptError(
                f"{name} has a number that is too small: expected whole numbers of tokens or runs"
            )


@dataclass
class _Bench:
    """Runs the tasks and collects their values."""

    artifact: Artifact
    model: dict[str, Any]
    progress: Progress
    notes: list[str] = field(default_factory=list)
    files: set[Path] = field(default_factory=set)  # to evict before a cold load
    loads: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    memory: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    answers: dict[str, list[Answered]] = field(default_factory=lambda: defaultdict(list))
    speeds: list[Speeds] = field(default_factory=list)
    array_bytes: int = field(default_factory=bandwidth.array_bytes)

    @property
    def threads(self) -> int:
        profile = profile_of(self.model.get("device"))
        return self.model.get("threads") or (profile.cores if profile else default_threads())

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def note_load(self) -> None:
        """Say so if the machine is busy, or the arrays that measure the bandwidth fit its caches."""
        busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        if busy > BUSY * default_threads():
            self.note(f"the machine was busy before the first run (load average {busy:.1f}): figures suffer")
        cache = bandwidth.last_level_cache()
        if cache and self.array_bytes < 2 * cache:
            self.note(
                f"the read bandwidth was measured over {format_bytes(self.array_bytes)}, less than twice the "
                f"caches ({format_bytes(cache)}): it is too high"
            )

    def kinds(self, media: bool) -> list[str]:
        """What is put into prompts."""
        manifest, found = self.artifact.manifest, ["text"]
        for kind, spec in (("image", manifest.vision), ("audio", manifest.audio)):
            if media and spec:
                found.append(kind)
            elif media:
                self.note(f"no {kind} was measured: this artifact has no encoder for it")
        return found

    def within(self, context: int, what: str, needed: Mapping[int, int]) -> list[int]:
        """Those that the context has room for, each once."""
        limit = self.artifact.manifest.max_context
        for name, count in needed.items():
            if count > context:
                why = f"the context is {context}, raise --context" if count <= limit else ""
                why = why or f"this model's longest context is {limit}"
                self.note(f"{what.format(name)} was left out: {why}")
        return [name for name, count in needed.items() if count <= context]

    def first_load(self) -> Loaded:
        """Load once before anything is timed: whatever is made at first use is there afterwards."""
        self.progress.stage("first load", 1)
        first: Loaded = self._call(bench_tasks.load_model)
        own = [self.artifact.path(name) for name in self.artifact.manifest.files]
        self.files = {*own, *(path for path in first.files if path.is_file())}
        return first

    def round(self, kinds: Sequence[str], speeds: Mapping[str, Any]) -> None:
        """Every task once."""
        if self._evict():
            self.loads["cold"].append(self._call(bench_tasks.load_model).seconds)
        else:
            self.progress.advance()
        warm: Loaded = self._call(bench_tasks.load_model)
        self.loads["warm"].append(warm.seconds)
        self.memory["load"].append(warm.peak_bytes)
        for kind in kinds:
            answered = self._call(bench_tasks.answer, kind=kind, tokens=speeds["tokens"])
            if isinstance(answered, Answered):
                self.answers[kind].append(answered)
                self.memory[kind].append(answered.peak_bytes)
            else:
                self.note(f"no {kind} was measured: {answered}")
        if speeds["prefill"] or speeds["decode_at"]:
            sizes = {"threads": self.threads, "array_bytes": self.array_bytes}
            self.speeds.append(self._call(bench_tasks.speeds, **speeds, **sizes))

    def report(self, runs: int, tokens: int, first: Loaded) -> Report:
        manifest = self.artifact.manifest
        bandwidths = [d.bytes_per_second for found in self.speeds for d in found.decode.values()]
        return Report(
            source=manifest.source.name,
            recipe=manifest.recipe,
            options=self.model,
            runs=runs,
            tokens=tokens,
            threads=self.threads,
            context=first.context,
            global_kv=first.global_kv,
            prefill={n: Figure.of([s.prefill[n] for s in self.speeds]) for n in self._measured("prefill")},
            decode={end: self._decode(end, first.weights) for end in self._measured("decode")},
            first_token={kind: _first_token(answers) for kind, answers in self.answers.items()},
            load={name: Figure.of(values) for name, values in self.loads.items()},
            memory={name: Figure.of(values) for name, values in self.memory.items()},
            bandwidth=Figure.of(bandwidths) if bandwidths else None,
            bandwidth_method=bandwidth.METHOD,
            bandwidth_array=self.array_bytes,
            weights_per_token=first.weights,
            notes=tuple(self.notes),
        )

    def _measured(self, name: str) -> Iterator[int]:
        yield from getattr(self.speeds[0], name) if self.speeds else ()

    def _decode(self, end: int, weights: int) -> Decode:
        found = [speeds.decode[end] for speeds in self.speeds]
        shares = [d.tokens_per_second * weights / d.bytes_per_second for d in found]
        return Decode(
            tokens_per_second=Figure.of([d.tokens_per_second for d in found]), share=Figure.of(shares)
        )

    def _evict(self) -> bool:
        """Make the next load a cold one; False, and a note, where that is not possible."""
        stayed = evict(self.files)
        if stayed is None or stayed > STAYED:
            found = "the system cannot tell" if stayed is None else f"{stayed:.0%} stayed"
            self.note(
                f"no cold load was measured: the files could not be evicted from memory ({found}); they must "
                "be this user's own, on a disk, and in use by nothing else"
            )
            return False
        return True

    def _call(self, task: Any, **arguments: Any) -> Any:
        folder = self.artifact.folder
        return call(
            task, step=self.progress.advance, warn=self.note, artifact=folder, model=self.model, **arguments
        )


def _first_token(answers: Sequence[Answered]) -> FirstToken:
    return FirstToken(
        prompt_tokens=answers[0].prompt_tokens,
        seconds=Figure.of([a.seconds for a in answers]),
        encode_seconds=Figure.of([a.encode_seconds for a in answers]),
        prefill_seconds=Figure.of([a.prefill_seconds for a in answers]),
    )
