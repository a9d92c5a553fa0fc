"""Speculative decoding: somebody drafts the next tokens, and one pass of the decoder verifies all of them.

A drafter proposes, the generator feeds the last token and the draft together and lets the sampler choose at
every place as it would without; a draft is right where it is what the sampler chose. So the answer is the
sampler's own, whatever is drafted, and a seed gives the same ids for the same logits. (The rule of Leviathan
et al., 2023, accepts more where drafts are sampled; here they are not, and the two rules are one.) What is
decided here is how many tokens to draft, by what passes have cost and how often drafts were right: that
changes the speed and nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median
from time import perf_counter
from typing import Protocol

MAX_DRAFT = 8  # tokens; each costs a row of logits, 1 MB for Gemma's vocabulary
PRIOR = 0.5  # how often the first drafts are expected to be right
LEARNING = 0.2  # weight of the latest observation in a moving average
UNTRIED = 0.1  # of a plain step: guess of what one more drafted token costs
RECENT = 3  # plain steps whose median counts; so many come before the first draft
PROBE = 32  # steps with a draft before a plain one, and the other way round, to learn what it costs now


class Drafter(Protocol):
    """Guesses what comes next. The same history must give the same draft: nothing may be drawn.

    It may extend the generator's KV cache by up to `limit` tokens if it truncates it again; after an error it
    leaves the cache as it is, and the next prompt starts afresh.
    """

    costly: bool
    """Whether a draft takes time worth counting. One that is not is drafted at each step, to learn from."""

    def begin(self) -> None:
        """A new answer: its history need not continue the last one's."""

    def draft(self, history: Sequence[int], limit: int) -> list[int]:
        """At most `limit` tokens that may follow `history`, the ids of the prompt and the answer so far.

        Within an answer each history continues the one before. `limit` is at least 1 and at most the cache's
        margin; the last id of the history is not in the cache yet.
        """


class PromptLookup:
    """Drafts what followed the latest earlier occurrence of the last few tokens.

    Right where an answer repeats its prompt or itself: quoting, correcting, filling in forms.
    """

    costly = False

    def __init__(self, *, longest: int = 3, shortest: int = 2) -> None:
        self._sizes = range(longest, shortest - 1, -1)  # tokens that must occur again; most first
        self.begin()

    def begin(self) -> None:
        self._behind: dict[tuple[int, ...], int] = {}  # tokens → the place behind their latest occurrence
        self._indexed = 0  # tokens of the history whose place is known

    def draft(self, history: Sequence[int], limit: int) -> list[int]:
        """As `Drafter.draft`; takes microseconds, after a first call that reads the whole history."""
        for end in range(self._indexed + 1, len(history)):  # all but the last tokens, which are looked up
            for size in self._sizes:
                if size <= end:
                    self._behind[tuple(history[end - size : end])] = end
        self._indexed = max(len(history) - 1, 0)
        for size in self._sizes:
            place = self._behind.get(tuple(history[-size:]))
            if place is not None:
                period = len(history) - place  # what is repeated already may go on repeating
                return [history[place + i % period] for i in range(limit)]
        return []


class Pace:
    """What drafts have cost and how often they were right; from it, how many to draft."""

    def __init__(self) -> None:
        self.acceptance = PRIOR  # share of drafted tokens that were right after right ones
        self._plain: deque[float] = deque(maxlen=RECENT)  # seconds of the last plain steps
        self._costs: dict[int, float] = {}  # drafted tokens → drafting and verifying, in plain steps

    def best(self, limit: int) -> int:
        """The number of drafted tokens, up to `limit`, that promises most tokens a second; 0 is a plain step.

        k tokens with acceptance a yield 1 + a + … + a^k tokens in one pass. A number that was never tried is
        expected to cost little more than the one below it.
        """
        if len(self._plain) < RECENT:
            return 0
        best, most = 0, 1.0
        expected = right = cost = 1.0
        for count in range(1, limit + 1):
            right *= self.acceptance
            expected += right
            cost = self._costs.get(count, cost + UNTRIED)
            if expected / cost > most:
                best, most = count, expected / cost
        return best

    def passed(self, drafted: int, seconds: float) -> None:
        """Learn what a pass cost, drafting included."""
        if not drafted:
            self._plain.append(seconds)
        elif self._plain:
            # Between one step and as many as it has tokens: what seems to be outside was measured unevenly.
            cost = min(max(seconds / median(self._plain), 1.0), drafted + 1.0)
            self._costs[drafted] = _moved(self._costs.get(drafted, cost), cost)

    def judged(self, right: bool) -> None:
        """Learn whether a drafted token was right."""
        self.acceptance = _moved(self.acceptance, float(right))


class Speculation:
    """A drafter with its pace; lives as long as the model, since what it learns of speed stays true."""

    def __init__(self, drafter: Drafter, pace: Pace | None = None) -> None:
        self._drafter = drafter
        self._pace = pace or Pace()
        self.begin()

    def begin(self) -> None:
        """A new answer begins."""
        self._drafter.begin()
        self._guesses: list[int] = []  # what was expected from place `_at` on
        self._at = 0
        self._drafted = 0
        self._alike = 0  # steps since the last one of the other kind: with a draft, or plain
        self._began = 0.0

    def draft(self, history: Sequence[int], limit: int) -> list[int]:
        """At most `limit` tokens to verify behind `history`; none where a plain step promises to be faster.

        Called before every step of an answer: how the last draft did is seen by how the history goes on.
        """
        self._judge(history)
        self._began = perf_counter()
        limit = min(limit, MAX_DRAFT)
        count = self._pace.best(limit)
        if self._alike >= PROBE:
            count = 0 if self._drafted else max(count, min(1, limit))
        tries = count if self._drafter.costly else max(count, min(1, limit))
        self._guesses = self._drafter.draft(history, tries)[:tries] if tries else []
        self._at = len(history)
        draft = self._guesses[:count]
        self._alike = self._alike + 1 if bool(draft) == bool(self._drafted) else 1
        self._drafted = len(draft)
        return draft

    def fed(self) -> None:
        """The decoder has passed over the last token and the draft."""
        self._pace.passed(self._drafted, perf_counter() - self._began)

    def _judge(self, history: Sequence[int]) -> None:
        for guess, token in zip(self._guesses, history[self._at :], strict=False):
            self._pace.judged(guess == token)
            if guess != token:
                break


def _moved(average: float, value: float) -> float:
    return average + LEARNING * (value - average)
