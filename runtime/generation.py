"""From ids to ids: prefill in chunks, then decode a token at a time, or as many as drafts get right. Knows no
text.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Event

import numpy as np
from numpy.typing import NDArray

from edge_gemma.runtime.decoder import Decoder
from edge_gemma.runtime.embeddings import EmbeddingStore, RowCounters
from edge_gemma.runtime.kv_cache import KvCache
from edge_gemma.runtime.kv_state import KvState
from edge_gemma.runtime.prefixes import Prefixes, common
from edge_gemma.runtime.sampling import Sampler
from edge_gemma.runtime.speculation import Speculation
from edge_gemma.runtime.statistics import Statistics

WORTH = 32  # tokens: prefill that a stored state must save
ALIKE = 16  # tokens with which questions about one thing may begin by chance: a state is taken before them


@dataclass(frozen=True)
class SoftTokens:
    """Rows that take the place of the embeddings of a prompt's ids from `start` on."""

    start: int
    rows: NDArray[np.float32]  # [tokens, H]


class Generator:
    """One conversation: what it holds, and the KV cache behind it. Others wait in `prefixes`."""

    def __init__(
        self,
        decoder: Decoder,
        store: EmbeddingStore,
        *,
        context: int,
        chunk: int,
        prefixes: Prefixes | None = None,
    ) -> None:
        self.decoder = decoder
        self._store = store
        self._chunk = min(chunk, context)
        self.context = context
        self.cache = KvCache(decoder.spec, context=context, chunk=self._chunk)
        self._held: list[Hashable] = []  # one key for each row of the cache: an id, or a soft token's
        self._settled = 0  # of them, those of the conversation: the rest are drafts that nobody said
        self._asked = 0  # of these, the last prompt: what follows was said
        self._passing = False  # whether nobody goes on from here
        self.prefixes = Prefixes() if prefixes is None else prefixes

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
        partings: Sequence[int] = (),
        passing: bool = False,
        speculation: Speculation | None = None,
    ) -> Iterator[int]:
        """Yield new ids, one at a time, until max_new_tokens or until `cancel` is set.

        The caller decides what ends an answer, by no longer asking. The prompt and the new tokens must
        fit the context. Where the prompt continues what the cache or a stored state holds, only the rest is
        computed. `keys` says what is at each place of the prompt, where that is not its id; `soft` are the
        soft tokens of all places that `reusable(keys)` leaves; at `partings` other prompts are likely to go
        on otherwise, so that states are stored there; the end of what is `passing` is not. `speculation`
        drafts what one decoding step may confirm; the ids are the same without it, but for what rounding
        does to the logits of several tokens at once.
        """
        began = time.perf_counter()
        history = list(prompt)
        before = replace(self._store.counters)
        keys = list(prompt if keys is None else keys)
        parted = max(common(keys, self._held), self.prefixes.parting(keys))
        partings = sorted([*partings, parted - ALIKE])
        reused = self._reuse(keys)
        self._passing = passing
        statistics.prompt_tokens, statistics.reused_tokens = len(history), reused
        logits = self._prefill(history, keys, soft, reused, partings, cancel)
        statistics.prefill_seconds = time.perf_counter() - began
        self._count_rows(statistics, before)
        decoding = time.perf_counter()
        if speculation:
            speculation.begin()
        drafts: list[int] = []
        while logits is not None:
            for row, draft in zip(logits, [*drafts, None], strict=True):
                self._settled = len(history)  # fed and said: `row` [V] tells what comes next
                token = sampler(row, history)
                history.append(token)
                statistics.generated_tokens += 1
                statistics.accepted_tokens += token == draft
                now = time.perf_counter()
                if statistics.generated_tokens == 1:
                    statistics.time_to_first_token = now - began + statistics.encode_seconds
                    decoding = now
                statistics.decode_seconds = now - decoding
                yield token
                left = max_new_tokens - statistics.generated_tokens
                if left <= 0 or (cancel and cancel.is_set()):
                    return
                if token != draft:
                    break
            self._take_back(self._settled)
            drafts, logits = self._step(history, left, speculation)
            statistics.drafted_tokens += len(drafts)
            self._count_rows(statistics, before)

    def reusable(self, keys: Sequence[Hashable]) -> int:
        """How many places of a prompt with these keys need not be computed."""
        live = self._live(keys)
        stored = self.prefixes.best(keys, beyond=live)
        return len(stored) if stored else live

    def state(self, keys: Sequence[Hashable]) -> KvState | None:
        """The longest state that a prompt with these keys can go on from: views of the cache's, or stored."""
        live = self._live(keys)
        return self.prefixes.best(keys, beyond=live) or (self._view(live) if live else None)

    def keep(self, *, end: bool, spare: KvState | None = None) -> None:
        """Store what the cache holds, where that is worth it and there is room; see Prefixes.add."""
        if self._settled >= WORTH and self._whole() and not self._passing:
            self.prefixes.add(self._view(self._settled), end=end, spare=spare)

    def restore(self, keys: Sequence[Hashable], rows: Iterable[NDArray[np.generic]]) -> None:
        """Hold a state instead of what the cache holds, which is stored. See KvCache.restore for `rows`."""
        self.keep(end=True)
        self._forget()
        self.cache.restore(len(keys), rows)
        self._hold(keys)

    def occupy(self, ids: Sequence[int]) -> None:
        """Pretend to hold `ids`, which are not computed: to measure what follows them. See KvCache.occupy."""
        self.cache.occupy(len(ids))
        self._hold(ids)

    def _live(self, keys: Sequence[Hashable]) -> int:
        """How many places of a prompt with these keys the cache holds, if it can go on from there.

        It can if that is all it holds, or all but the end of what was said last: a stop string was cut off.
        None where the cache has more rows than keys: an error or Ctrl-C came before they were written.
        """
        held = min(common(keys, self._held[: self._settled]), len(keys) - 1)
        cut = max(self._asked, self.cache.least)
        return held if self._whole() and (held == self._settled or held >= cut) else 0

    def _whole(self) -> bool:
        return len(self._held) == self.cache.length

    def _view(self, length: int) -> KvState:
        return KvState(tuple(self._held[:length]), tuple(self.cache.rows(length)))

    def _reuse(self, keys: list[Hashable]) -> int:
        """Make the cache hold as much as there is of a prompt with these keys; how many tokens that is."""
        live = self._live(keys)
        stored = self.prefixes.best(keys, beyond=live)
        if live and not stored:
            self._take_back(live)
        else:
            self.keep(end=True, spare=stored)
            self._forget()
        if stored:
            self.prefixes.touch(stored)
            self.cache.restore(len(stored), stored.rows)
            self._hold(stored.keys)
        self._asked = len(keys)
        return len(self._held)

    def _hold(self, keys: Sequence[Hashable]) -> None:
        self._held = list(keys)
        self._settled = self._asked = len(keys)
        self._passing = False

    def _forget(self) -> None:
        self.cache.reset()
        self._hold(())

    def _take_back(self, length: int) -> None:
        """Drop what is behind the first `length` tokens: drafts, or the end of an answer."""
        self.cache.truncate(length)
        del self._held[length:]
        self._settled = length

    def _prefill(
        self,
        ids: list[int],
        keys: list[Hashable],
        soft: Sequence[SoftTokens],
        first: int,
        partings: Sequence[int],
        cancel: Event | None,
    ) -> NDArray[np.float32] | None:
        """Feed a prompt from place `first` chunk by chunk; its last token's logits [1, V], or None.

        States of `partings`, ascending, are stored on the way, where each saves enough.
        """
        logits, stored = None, first
        for start in range(first, len(ids), self._chunk):
            if cancel and cancel.is_set():
                return None
            here = slice(start, start + self._chunk)
            last = here.stop >= len(ids)
            logits = self._feed(ids[here], keys[here], soft, num_logits=int(last))
            for place in partings:
                if start < place <= len(self._held) and stored + WORTH <= place < len(ids):
                    self.prefixes.add(self._view(place), end=False)
                    stored = place
        return logits

    def _step(
        self, history: list[int], left: int, speculation: Speculation | None
    ) -> tuple[list[int], NDArray[np.float32]]:
        """Feed the last token, and behind it what is drafted for the `left` tokens to come.

        Returns the draft, d tokens, and the logits behind each token fed, float32 [1 + d, V].
        """
        if speculation is None:
            return [], self._feed(history[-1:], history[-1:])
        room = min(left - 1, self.context - len(history), self.cache.margin)
        drafts = speculation.draft(history, max(room, 0))
        tokens = [history[-1], *drafts]
        logits = self._feed(tokens, tokens, num_logits=len(tokens))
        speculation.fed()
        return drafts, logits

    def _feed(
        self,
        ids: Sequence[int],
        keys: Sequence[Hashable],
        soft: Sequence[SoftTokens] = (),
        *,
        num_logits: int = 1,
    ) -> NDArray[np.float32]:
        """Append tokens and return the logits of the last ones, float32 [num_logits, V]."""
        embeds, per_layer = self._store.rows(ids)
        begin, end = len(self._held), len(self._held) + len(ids)
        for item in soft:
            low, high = max(begin, item.start), min(end, item.start + len(item.rows))
            if low < high:
                embeds[0, low - begin : high - begin] = item.rows[low - item.start : high - item.start]
        logits = self.decoder.forward(embeds, per_layer, self.cache, num_logits=num_logits)
        self._held += keys
        self._settled = len(self._held)
        return logits

    def _count_rows(self, statistics: Statistics, before: RowCounters) -> None:
        counters = self._store.counters
        statistics.rows = counters.rows - before.rows
        statistics.rows_read = counters.rows_read - before.rows_read
        statistics.bytes_read = counters.bytes_read - before.bytes_read
