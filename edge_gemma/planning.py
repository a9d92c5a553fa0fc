"""What a memory budget allows: chunk size, and whether the encoders stay or take turns with the decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge_gemma.memory import DEFAULT_CHUNK, estimate

if TYPE_CHECKING:
    from edge_gemma.artifact import AudioSpec, Manifest, MemorySpec, VisionSpec

CHUNKS = (DEFAULT_CHUNK, 64, 32, 16)
# What of a decoder stays when its weights are elsewhere: the graph, the session's tables.
AWAY_BYTES = 24 << 20
# How the encoders and the decoder share memory, the fastest first.
KEPT = "kept"  # encoders stay loaded
BESIDE = "beside"  # an encoder is loaded beside the decoder when needed, and released
TURNS = "turns"  # before that the decoder leaves memory
ENCODERS = (KEPT, BESIDE, TURNS)


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a model needs, whatever the settings."""

    decoder: MemorySpec
    encoders: dict[str, int] = field(default_factory=dict)  # "audio", "image" → bytes added while it works

    @classmethod
    def of(cls, manifest: Manifest) -> Needs:
        """Those of an artifact."""
        return cls.of_parts(manifest.memory, manifest.audio, manifest.vision)

    @classmethod
    def of_parts(cls, decoder: MemorySpec, audio: AudioSpec | None, vision: VisionSpec | None) -> Needs:
        """Those of a decoder and its encoders."""
        specs = (("audio", audio), ("image", vision))
        return cls(decoder=decoder, encoders={kind: spec.memory for kind, spec in specs if spec})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings, and the memory they are expected to take."""

    context: int  # tokens
    chunk: int  # prompt tokens computed at once
    encoders: str  # one of ENCODERS
    prepared: bool  # the decoder's packed weights are mapped from a cache
    budget: int | None  # bytes; None is no limit
    phases: dict[str, dict[str, int]]  # "load", "text", "audio", "image" → part → bytes

    @property
    def peak(self) -> int:
        """Highest resident memory, in bytes."""
        return max(sum(parts.values()) for parts in self.phases.values())

    @property
    def fits(self) -> bool:
        return self.budget is None or self.peak <= self.budget


def settle(
    needs: Needs,
    *,
    context: int,
    chunk: int = DEFAULT_CHUNK,
    encoders: str = BESIDE,
    prepared: bool = True,
    budget: int | None = None,
) -> Plan:
    """The memory that given settings take."""
    parts = estimate(needs.decoder, context, chunk)
    loading = parts.pop("loading")
    working = {name: parts.pop(name) for name in ("kv", "scratch")}
    # A packed matrix from the cache is compared with one packed from the original, which is mapped for it.
    phases = {"load": parts | {"loading": loading * 2 if prepared else loading}}
    kept = {kind: size for kind, size in needs.encoders.items() if encoders == KEPT}
    phases["text"] = parts | working | kept
    for kind, size in needs.encoders.items():
        weights = AWAY_BYTES if encoders == TURNS else parts["weights"]
        phases[kind] = parts | {"weights": weights} | working | kept | {kind: size}
    return Plan(
        context=context, chunk=chunk, encoders=encoders, prepared=prepared, budget=budget, phases=phases
    )


def plan(
    needs: Needs,
    *,
    context: int,
    budget: int | None = None,
    chunk: int | None = None,
    keep_encoders: bool = False,
    prepared: bool = True,
) -> Plan:
    """The fastest settings within a budget, in bytes; where none fit, those that take least.

    A chunk that is given stays. Without a budget the encoders come and go beside the decoder, which leaves
    memory for them where that costs nothing (where it is mapped from the cache).
    """
    ways: tuple[str, ...]
    if budget is None:
        ways = (KEPT if keep_encoders else TURNS if prepared else BESIDE,)
    else:
        ways = (KEPT,) if keep_encoders else ENCODERS
    for size in (chunk,) if chunk else CHUNKS:
        for way in ways:
            found = settle(needs, context=context, chunk=size, encoders=way, prepared=prepared, budget=budget)
            if found.fits:
                return found
    return found


def longest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number up to `limit` that fits, as all smaller ones do; 0 if none does."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
