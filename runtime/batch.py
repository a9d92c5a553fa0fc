"""Several conversations that decode together: one pass of the decoder gives each of them a token.

A decoding step reads all weights, for one token or for eight. Each prompt is computed by itself first, so
prompts need not be equally long: GroupQueryAttention is told how many rows each conversation holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from threading import Event
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from edge_gemma.artifact import DecoderSpec, MemorySpec
from edge_gemma.memory import peak_resident_bytes
from edge_gemma.runtime.answer import Answer, Request
from edge_gemma.runtime.decoder import Decoder
from edge_gemma.runtime.embeddings import EmbeddingStore
from edge_gemma.runtime.kv_cache import KvCache, KvMemory
from edge_gemma.runtime.statistics import Statistics

Begin = Callable[[Request, Statistics], Iterable[int]]
CHUNK = 32  # rows: every so many tokens the windows move to the front of their buffers


class Batch:
    """Places for `size` conversations of up to `context` tokens; those in use are the first `len(batch)`."""

    def __init__(self, decoder: Decoder, store: EmbeddingStore, *, size: int, context: int) -> None:
        self._decoder, self._store = decoder, store
        self.size = size
        spec = decoder.spec
        memory = KvMemory.reserve(spec, KvCache.capacities(spec, context, CHUNK), size)
        self._caches = [
            KvCache(spec, context=context, chunk=CHUNK, memory=memory.part(n, n + 1)) for n in range(size)
        ]
        self._together = [memory.part(0, n) for n in range(size + 1)]  # of the first n conversations
        self._used = 0

    def __len__(self) -> int:
        return self._used

    def add(self, length: int, rows: Iterable[NDArray[np.generic]]) -> None:
        """One more conversation, of `length` tokens and with what `KvCache.rows(length)` gave elsewhere."""
        self._caches[self._used].restore(length, rows)
        self._used += 1

    def drop(self, index: int) -> None:
        """Forget a conversation; the last one takes its place."""
        self._used -= 1
        last = self._caches[self._used]
        if index < self._used:
            self._caches[index].restore(last.length, last.rows(last.length))

    def step(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append a token to each conversation and return the logits behind it, float32 [len(batch), V]."""
        embeds, per_layer = self._store.rows(tokens)  # [1, B, H], [1, B, L, P]
        caches, memory = self._caches[: self._used], self._together[self._used]
        logits = self._decoder.forward_together(embeds[0, :, None], per_layer[0, :, None], caches, memory)
        return logits[:, 0]


def answer_together(
    begin: Begin,
    computed: KvCache,
    batch: Batch,
    requests: Sequence[Request],
    cancel: Event | None,
) -> list[Answer]:
    """Answer requests, as many at a time as the batch has places; a place that is free is taken at once.

    `begin` computes a prompt, in the cache `computed`, and gives the first id of its answer.
    """
    asked = [_Asked(request) for request in requests]
    waiting, decoding = deque(asked), list[_Asked]()
    while waiting or decoding:
        while waiting and len(batch) < batch.size:
            one = waiting.popleft()
            if one.begin(begin, cancel):
                length = len(one.request.prompt.ids)
                batch.add(length, computed.rows(length))
                decoding.append(one)
        if not decoding:
            continue
        logits = batch.step([one.history[-1] for one in decoding])
        for place in reversed(range(len(decoding))):
            if not decoding[place].take(logits[place], cancel):
                batch.drop(place)
                last = decoding.pop()
                if place < len(decoding):
                    decoding[place] = last
    return [one.answer(cancel) for one in asked]


@dataclass
class _Asked:
    """A request and how far its answer is."""

    request: Request
    statistics: Statistics = field(default_factory=Statistics)
    history: list[int] = field(default_factory=list)  # ids of the prompt and the answer so far
    _first_at: float = 0.0

    def begin(self, begin: Begin, cancel: Event | None) -> bool:
        """Compute the prompt and take the first id; whether there is more to say."""
        self.history += self.request.prompt.ids
        more = False
        for token in begin(self.request, self.statistics):
            self._first_at = perf_counter()
            more = self._said(token, cancel)
        return more

    def take(self, logits: NDArray[np.float32], cancel: Event | None) -> bool:
        """Choose the next id by its logits, float32 [V]; whether there is more to say."""
        token = self.request.sampler(logits, self.history)
        self.statistics.generated_tokens += 1
        self.statistics.decode_seconds = perf_counter() - self._first_at
        return self._said(token, cancel)

    def answer(self, cancel: Event | None) -> Answer:
        """The whole answer."""
        reply = self.request.reply
        reply.finish()
        self.statistics.peak_memory_bytes = peak_resident_bytes()
        return Answer(reply.text, self.statistics, reply.reason(cancel))

    def _said(self, token: int, cancel: Event | None) -> bool:
        self.history.append(token)
        self.request.reply.push(token)
        full = self.statistics.generated_tokens >= self.request.limit
        return not (self.request.reply.ended or full or (cancel and cancel.is_set()))


def bytes_of_one(memory: MemorySpec, spec: DecoderSpec, context: int) -> int:
    """What the KV buffers of one more conversation take, when they are full."""
    capacity = KvCache.capacities(spec, context, CHUNK)
    return memory.kv_per_token * capacity["global"] + memory.kv_per_window_row * capacity["sliding"]
