"""Levels of an elastic artifact at work: which one answers, how fast each is, and one that drafts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edge_gemma.artifact import LevelSpec
from edge_gemma.errors import BudgetError, PromptError
from edge_gemma.memory import format_bytes, parse_bytes, reachable_bytes
from edge_gemma.planning import Plan
from edge_gemma.runtime.decoder import Decoder
from edge_gemma.runtime.embeddings import EmbeddingStore
from edge_gemma.runtime.kv_cache import KvCache
from edge_gemma.runtime.statistics import Statistics


class Levels:
    """The levels of an artifact, narrowest first, and which of them answers; none where it is not elastic."""

    def __init__(self, specs: Sequence[LevelSpec], decoder: Decoder, plan: Plan) -> None:
        self._specs = specs
        self._decoder = decoder
        self._speed = DecodingSpeed()
        self.plan = plan

    @property
    def name(self) -> str | None:
        """The level that answers."""
        return self._specs[self._decoder.level].name if self._specs else None

    def choose(self, memory: int | str | None, tokens_per_second: float | None) -> str:
        """See Model.choose_level."""
        if not self._specs:
            raise PromptError("this artifact is not elastic and has no levels: export it with --elastic")
        budget = parse_bytes(memory) if isinstance(memory, str) else memory or reachable_bytes()
        if self.plan.budget:
            budget = min(budget, self.plan.budget)

        def suits(level: LevelSpec) -> bool:
            speed = self._speed.of(level)
            fast = tokens_per_second is None or speed is None or speed >= tokens_per_second
            return fast and self.plan.at_weights(level.weights).answering <= budget

        return widest(self._specs, suits).name

    def planned(self, index: int) -> Plan:
        """The plan with another level.

        Raises:
            BudgetError: it does not keep to the budget.
        """
        level = self._specs[index]
        planned = self.plan.at_weights(level.weights)
        if planned.budget and planned.answering > planned.budget:
            raise BudgetError(
                f"the level {level.name} needs {format_bytes(planned.answering)} and the budget is "
                f"{format_bytes(planned.budget)}: load with a larger memory_budget or stay with {self.name}"
            )
        return planned

    def run(self, index: int, planned: Plan) -> None:
        """Let another level answer, as `planned`."""
        if index < self._decoder.level:
            self._decoder.drop_weights()
        self._decoder.level, self.plan = index, planned

    def note(self, statistics: Statistics) -> None:
        """Learn from an answer how fast the level is."""
        if self._specs:
            level = self._specs[self._decoder.level]
            self._speed.note(level, statistics.generated_tokens - 1, statistics.decode_seconds)


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
