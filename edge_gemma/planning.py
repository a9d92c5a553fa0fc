"""What a memory budget allows: precision of the global layers' KV cache, chunk size, and whether the encoders
stay or take turns with the decoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING

from edge_gemma.memory import DEFAULT_CHUNK, KV_BYTES, estimate

if TYPE_CHECKING:
    from edge_gemma.artifact import AudioSpec, Manifest, MemorySpec, VisionSpec

DEFAULT_CONTEXT = 4096  # tokens
CHUNKS = (DEFAULT_CHUNK, 64, 32, 16)
# What of a decoder stays when its weights are elsewhere: the graph, the session's tables.
AWAY_BYTES = 24 << 20
# What of an elastic decoder is in memory at once while it loads: its pages are dropped (runtime.residency).
LOADED_BYTES = 1 << 30
# How the encoders and the decoder share memory, the fastest first.
KEPT = "kept"  # encoders stay loaded
BESIDE = "beside"  # an encoder is loaded beside the decoder when needed, and released
TURNS = "turns"  # before that the decoder leaves memory
ENCODERS = (KEPT, BESIDE, TURNS)
ESTIMATE_ERROR = 0.05  # of a plan's bytes: what the measured peak may be above (docs/memory.md)


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a model needs, whatever the settings."""

    decoder: MemorySpec
    # dtypes of the global layers' KV cache to choose from; `decoder` has the first
    global_kv: tuple[str, ...] = ("float16",)
    encoders: dict[str, int] = field(default_factory=dict)  # "audio", "image" → bytes added while it works
    # of an elastic artifact: bytes of the widest level's weights, where `decoder` has those of a level
    widest: int | None = None

    @classmethod
    def of(cls, manifest: Manifest, level: int | None = None) -> Needs:
        """Those of an artifact; of an elastic one, at the level of this index, the widest by default."""
        decoder = manifest.memory
        levels = manifest.levels
        if levels:
            decoder = replace(decoder, weights=levels[-1 if level is None else level].weights)
        parts = cls.of_parts(decoder, manifest.audio, manifest.vision)
        widest = manifest.memory.weights if levels else None
        return replace(parts, global_kv=tuple(manifest.decoders), widest=widest)

    @classmethod
    def of_parts(cls, decoder: MemorySpec, audio: AudioSpec | None, vision: VisionSpec | None) -> Needs:
        """Those of a decoder and its encoders, without a choice of KV caches."""
        specs = (("audio", audio), ("image", vision))
        return cls(decoder=decoder, encoders={kind: spec.memory for kind, spec in specs if spec})

    def decoder_with(self, global_kv: str) -> MemorySpec:
        """What the decoder needs with this dtype of the global layers' KV cache."""
        own = self.global_kv[0]
        if global_kv == own:
            return self.decoder
        kv = self.decoder.kv_per_token // KV_BYTES[own] * KV_BYTES[global_kv]
        return replace(self.decoder, kv_per_token=kv, scores_per_pair=0, keys_per_token=0)  # int8's kernel


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings, and the memory they are expected to take."""

    context: int  # tokens
    global_kv: str  # dtype of the global layers' KV cache
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
    def answering(self) -> int:
        """Highest resident memory once the model is loaded, in bytes."""
        return max(sum(parts.values()) for name, parts in self.phases.items() if name != "load")

    @property
    def spare(self) -> int | None:
        """Bytes that the budget leaves beside answering; None without a budget."""
        if self.budget is None:
            return None
        return max(self.budget - int(self.answering * (1 + ESTIMATE_ERROR)), 0)

    @property
    def fits(self) -> bool:
        return self.budget is None or self.peak <= self.budget

    def at_weights(self, weights: int) -> Plan:
        """The same settings with another level of an elastic artifact, whose weights take so many bytes.

        Packed in memory of their own, the weights of all levels are there whichever runs.
        """
        if not self.prepared:
            return self
        before = self.phases["text"]["weights"]
        phases = {
            name: parts | {"weights": weights} if name != "load" and parts["weights"] == before else parts
            for name, parts in self.phases.items()
        }
        return replace(self, phases=phases)


def settle(
    needs: Needs,
    *,
    context: int,
    global_kv: str | None = None,
    chunk: int = DEFAULT_CHUNK,
    encoders: str = BESIDE,
    prepared: bool = True,
    budget: int | None = None,
) -> Plan:
    """The memory that given settings take; by default the KV cache is the recipe's own."""
    global_kv = global_kv or needs.global_kv[0]
    parts = estimate(needs.decoder_with(global_kv), context, chunk)
    if not prepared:  # packed in memory of their own, all levels' weights stay
        parts["weights"] = needs.widest or parts["weights"]
    loading = parts.pop("loading")
    working = {name: parts.pop(name) for name in ("kv", "scratch")}
    # A packed matrix from the cache is compared with one packed from the original, which is mapped for it.
    again = needs.decoder.largest_matrix if prepared else 0
    phases = {"load": parts | {"loading": loading + again}}
    if needs.widest and prepared:
        phases["load"]["weights"] = min(parts["weights"], LOADED_BYTES)
    kept = {kind: size for kind, size in needs.encoders.items() if encoders == KEPT}
    phases["text"] = parts | working | kept
    for kind, size in needs.encoders.items():
        weights = AWAY_BYTES if encoders == TURNS else parts["weights"]
        phases[kind] = parts | {"weights": weights} | working | kept | {kind: size}
    return Plan(
        context=context,
        global_kv=global_kv,
        chunk=chunk,
        encoders=encoders,
        prepared=prepared,
        budget=budget,
        phases=phases,
    )


def plan(
    needs: Needs,
    *,
    context: int,
    budget: int | None = None,
    global_kv: str | None = None,
    chunk: int | None = None,
    keep_encoders: bool = False,
    prepared: bool = True,
) -> Plan:
    """The fastest settings within a budget, in bytes; where none fit, those that take least.

    Quality comes before speed: the KV cache is the recipe's own if that fits in any way. A precision or a
    chunk that is given stays. Without a budget the encoders come and go beside the decoder, which leaves
    memory for them where that costs nothing (where it is mapped from the cache).
    """
    ways: tuple[str, ...]
    if budget is None:
        ways = (KEPT if keep_encoders else TURNS if prepared else BESIDE,)
    else:
        ways = (KEPT,) if keep_encoders else ENCODERS
    kvs = (global_kv,) if global_kv else needs.global_kv
    for kv, size, way in product(kvs, (chunk,) if chunk else CHUNKS, ways):
        found = settle(
            needs,
            context=context,
            global_kv=kv,
            chunk=size,
            encoders=way,
            prepared=prepared,
            budget=budget,
        )
        if found.fits:
            break
    return found


def longest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest number up to `limit` that fits, as all smaller ones do; 0 if none does."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
