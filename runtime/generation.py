"""From ids to ids: prefill in chunks, then decode one token at a time. Knows no text."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from threading import Event

import numpy as np
from numpy.typing import NDArray

from edge_gemma.runtime.embeddings import EmbeddingStore, RowCounters
from edge_gemma.runtime.kv_cache import KvCache
from edge_gemma.runtime.sampling import Sampler
from edge_gemma.runtime.session import Decoder
from edge_gemma.runtime.statistics import Statistics


class Generator:
    """One conversation: the ids it holds, and the KV cache behind them."""

    def __init__(self, decoder: Decoder, store: EmbeddingStore, *, context: int, chunk: int) -> None:
        self._decoder = decoder
        self._store = store
        self._chunk = min(chunk, context)
        self.context = context
        self._cache = KvCache(decoder.spec, context=context, chunk=self._chunk)
        self._ids: list[int] = []  # the ids whose keys and values are in the cache

    def generate(
        self,
        prompt: Sequence[int],
        sampler: Sampler,
        *,
        max_new_tokens: int,
        statistics: Statistics,
        cancel: Event | None = None,
    ) -> Iterator[int]:
        """Yield new ids, one for each decoding step, until max_new_tokens or until `cancel` is set.

        The caller decides what ends an answer, by no longer asking. The prompt and the new tokens must
        fit the context. Where the prompt continues what the cache holds, only the rest is computed.
        """
        began = time.perf_counter()
        history = list(prompt)
        before = replace(self._store.counters)
        reused = self._reuse(history)
        statistics.prompt_tokens, statistics.reused_tokens = len(history), reused
        logits = self._prefill(history[reused:], cancel)
        statistics.prefill_seconds = time.perf_counter() - began
        self._count_rows(statistics, before)
        decoding = time.perf_counter()
        while logits is not None:
            token = sampler(logits, history)
            history.append(token)
            statistics.generated_tokens += 1
            now = time.perf_counter()
            if statistics.generated_tokens == 1:
                statistics.time_to_first_token = now - began
                decoding = now
            statistics.decode_seconds = now - decoding
            yield token
            if statistics.generated_tokens >= max_new_tokens or (cancel and cancel.is_set()):
                return
            logits = self._feed([token])
            self._count_rows(statistics, before)

    def _reuse(self, prompt: list[int]) -> int:
        """How many tokens of the prompt the cache already holds; an unrelated cache is emptied.

        So is one with more tokens than `_ids` says: an error or Ctrl-C came before their rows were written.
        """
        held = len(self._ids)
        if held == self._cache.length and held < len(prompt) and prompt[:held] == self._ids:
            return held
        self._cache.reset()
        self._ids = []
        return 0

    def _prefill(self, ids: list[int], cancel: Event | None) -> NDArray[np.float32] | None:
        """Feed a prompt chunk by chunk; the last token's logits float32 [V], or None if cancelled."""
        logits = None
        for first in range(0, len(ids), self._chunk):
            if cancel and cancel.is_set():
                return None
            logits = self._feed(ids[first : first + self._chunk])
        return logits

    def _feed(self, ids: list[int]) -> NDArray[np.float32]:
        """Append tokens and return the last one's logits, float32 [V]."""
        embeds, per_layer = self._store.rows(ids)
        logits = self._decoder.forward(embeds, per_layer, self._cache)
        self._ids += ids
        return np.asarray(logits[-1])

    def _count_rows(self, statistics: Statistics, before: RowCounters) -> None:
        counters = self._store.counters
        statistics.rows = counters.rows - before.rows
        statistics.rows_read = counters.rows_read - before.rows_read
        statistics.bytes_read = counters.bytes_read - before.bytes_read
