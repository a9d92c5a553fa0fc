"""From ids to ids: prefill in chunks, then decode one token at a time. Knows no text."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Event

import numpy as np
from numpy.typing import NDArray

from edge_gemma.runtime.embeddings import EmbeddingStore, RowCounters
from edge_gemma.runtime.kv_cache import KvCache
from edge_gemma.runtime.sampling import Sampler
from edge_gemma.runtime.session import Decoder
from edge_gemma.runtime.statistics import Statistics


@dataclass(frozen=True)
class SoftTokens:
    """Rows that take the place of the embeddings of a prompt's ids from `start` on."""

    start: int
    rows: NDArray[np.float32]  # [tokens, H]


class Generator:
    """One conversation: what it holds, and the KV cache behind it."""

    def __init__(self, decoder: Decoder, store: EmbeddingStore, *, context: int, chunk: int) -> None:
        self._decoder = decoder
        self._store = store
        self._chunk = min(chunk, context)
        self.context = context
        self._cache = KvCache(decoder.spec, context=context, chunk=self._chunk)
        self._held: list[Hashable] = []  # one key for each row of the cache: an id, or a soft token's

    def generate(
        self,
        prompt: Sequence[int],
        sampler: Sampler,
        *,
        max_new_tokens: int,
        statistics: Statistics,
        cancel: Event | None = None,
        keys: Sequence[Hashable] | None = None,
        soft: Sequence[SoftTokens] = (),
    ) -> Iterator[int]:
        """Yield new ids, one for each decoding step, until max_new_tokens or until `cancel` is set.

        The caller decides what ends an answer, by no longer asking. The prompt and the new tokens must
        fit the context. Where the prompt continues what the cache holds, only the rest is computed.
        `keys` says what is at each place of the prompt, where that is not its id; `soft` are the soft tokens
        of all places that `reusable(keys)` leaves.
        """
        began = time.perf_counter()
        history = list(prompt)
        before = replace(self._store.counters)
        keys = list(prompt if keys is None else keys)
        reused = self._reuse(keys)
        statistics.prompt_tokens, statistics.reused_tokens = len(history), reused
        logits = self._prefill(history, keys, soft, reused, cancel)
        statistics.prefill_seconds = time.perf_counter() - began
        self._count_rows(statistics, before)
        decoding = time.perf_counter()
        while logits is not None:
            token = sampler(logits, history)
            history.append(token)
            statistics.generated_tokens += 1
            now = time.perf_counter()
            if statistics.generated_tokens == 1:
                statistics.time_to_first_token = now - began + statistics.encode_seconds
                decoding = now
            statistics.decode_seconds = now - decoding
            yield token
            if statistics.generated_tokens >= max_new_tokens or (cancel and cancel.is_set()):
                return
            logits = self._feed([token], [token])
            self._count_rows(statistics, before)

    def reusable(self, keys: Sequence[Hashable]) -> int:
        """How many places of a prompt with these keys are in the cache already.

        None where the cache has more rows than keys: an error or Ctrl-C came before they were written.
        """
        held = len(self._held)
        whole = held == self._cache.length and held < len(keys) and list(keys[:held]) == self._held
        return held if whole else 0

    def occupy(self, ids: Sequence[int]) -> None:
        """Pretend to hold `ids`, which are not computed: to measure what follows them. See KvCache.occupy."""
        self._cache.occupy(len(ids))
        self._held = list(ids)

    def _reuse(self, keys: list[Hashable]) -> int:
        """`reusable`; an unrelated cache is emptied."""
        reused = self.reusable(keys)
        if not reused:
            self._cache.reset()
            self._held = []
        return reused

    def _prefill(
        self,
        ids: list[int],
        keys: list[Hashable],
        soft: Sequence[SoftTokens],
        first: int,
        cancel: Event | None,
    ) -> NDArray[np.float32] | None:
        """Feed a prompt from place `first` chunk by chunk; logits as `_feed`, or None if cancelled."""
        logits = None
        for start in range(first, len(ids), self._chunk):
            if cancel and cancel.is_set():
                return None
            here = slice(start, start + self._chunk)
            logits = self._feed(ids[here], keys[here], soft)
        return logits

    def _feed(
        self, ids: list[int], keys: list[Hashable], soft: Sequence[SoftTokens] = ()
    ) -> NDArray[np.float32]:
        """Append tokens and return the last one's logits, float32 [V]."""
        embeds, per_layer = self._store.rows(ids)
        begin, end = len(self._held), len(self._held) + len(ids)
        for item in soft:
            low, high = max(begin, item.start), min(end, item.start + len(item.rows))
            if low < high:
                embeds[0, low - begin : high - begin] = item.rows[low - item.start : high - item.start]
        logits = self._decoder.forward(embeds, per_layer, self._cache)
        self._held += keys
        return np.asarray(logits[-1])

    def _count_rows(self, statistics: Statistics, before: RowCounters) -> None:
        counters = self._store.counters
        statistics.rows = counters.rows - before.rows
        statistics.rows_read = counters.rows_read - before.rows_read
        statistics.bytes_read = counters.bytes_read - before.bytes_read
