"""Levels of an elastic artifact at work: how fast each is, and a narrow one that drafts for a wide one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edge_gemma.artifact import LevelSpec
from edge_gemma.runtime.embeddings import EmbeddingStore
from edge_gemma.runtime.kv_cache import KvCache
from edge_gemma.runtime.session import Decoder


class DecodingSpeed:
    """How fast this machine decodes at a level: what a token takes grows with the weights it reads."""

    def __init__(self) -> None:
        self._bytes_per_second = 0.0  # mean of the answers so far, each half as much as the next; 0: none yet

    def note(self, level: LevelSpec, tokens: int, seconds: float) -> None:
        """An answer had `tokens` decoded at a level in `seconds`."""
        if tokens > 0 and seconds > 0:
            found = level.weights * tokens / seconds
            self._bytes_per_second = (found + self._bytes_per_second) / 2 if self._bytes_per_second else found

    def of(self, level: LevelSpec) -> float | None:
        """Tokens a second to expect; None before the first answer."""
        return self._bytes_per_second / level.weights if self._bytes_per_second else None


def widest(levels: Sequence[LevelSpec], suits: Callable[[LevelSpec], bool]) -> LevelSpec:
    """The widest level that suits; the narrowest if none does."""
    return next((level for level in reversed(levels) if suits(level)), levels[0])


class LevelDrafter:
    """A drafter for speculation: a narrow level of the same decoder, greedy, in the same KV cache.

    What it writes there is taken back, and computed anew by the level that verifies.
    """

    costly = True

    def __init__(self, decoder: Decoder, store: EmbeddingStore, cache: KvCache, level: int = 0) -> None:
        self._decoder = decoder
        self._store = store
        self._cache = cache
        self._level = level

    def begin(self) -> None:
        """Nothing is learned from answers."""

    def draft(self, history: Sequence[int], limit: int) -> list[int]:
        """As `speculation.Drafter.draft`; none where the level itself is what answers."""
        answering, start = self._decoder.level, self._cache.length
        if self._level >= answering:
            return []
        drafts = [history[-1]]
        self._decoder.level = self._level
        try:
            while len(drafts) <= limit:
                logits = self._decoder.forward(*self._store.rows(drafts[-1:]), self._cache)  # [1, V]
                drafts.append(int(logits[0].argmax()))
        finally:
            self._decoder.level = answering
        self._cache.truncate(start)
        return drafts[1:]
