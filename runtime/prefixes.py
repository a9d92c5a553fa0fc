"""Stored KV states: what several conversations begin with is computed once, and one that was left goes on.

A state serves a prompt that begins with all of its keys: a sliding window's rows before any earlier place are
gone. So it matters where states are taken (generation.py):

- at the end of a conversation, when another one takes its place in the KV cache;
- at the places that a prompt names, where others are likely to part from it (Prompt.partings);
- a little before the place where a prompt turns out to part from another one, for the next that begins so.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

from edge_gemma.errors import BudgetError
from edge_gemma.memory import format_bytes
from edge_gemma.planning import Plan
from edge_gemma.runtime.kv_state import KvState

DEFAULT_BYTES = 256 << 20
Keys = Sequence[Hashable]


class Prefixes:
    """States within a limit of bytes; what was not used for longest makes room.

    The end of a conversation that a longer state goes on from is not asked for again, unless the conversation
    is forked: it goes before all others.
    """

    def __init__(self, limit: int = 0) -> None:
        self._limit = limit
        self._states: OrderedDict[tuple[Hashable, ...], KvState] = OrderedDict()  # least recently used first
        self._ends: set[tuple[Hashable, ...]] = set()  # of them, those of one conversation alone

    @property
    def limit(self) -> int:
        """Bytes that all states together may take; one that is lowered drops states."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = limit
        self._make_room(0)

    @property
    def bytes(self) -> int:
        return sum(state.bytes for state in self._states.values())

    def __len__(self) -> int:
        return len(self._states)

    def best(self, keys: Keys, beyond: int = 0) -> KvState | None:
        """The longest state to go on from with a prompt of these keys, if it has more than `beyond` tokens.

        At least one token of the prompt is left to compute.
        """
        usable = [state for state in self._states.values() if beyond < len(state) < len(keys)]
        usable = [state for state in usable if common(state.keys, keys) == len(state)]
        return max(usable, key=len, default=None)

    def parting(self, keys: Keys) -> int:
        """How many places a prompt has in common with the state that has most of them."""
        return max((common(state.keys, keys) for state in self._states.values()), default=0)

    def touch(self, state: KvState) -> None:
        """Note that a stored state was used."""
        self._states.move_to_end(state.keys)

    def add(self, state: KvState, *, end: bool, spare: KvState | None = None) -> None:
        """Store a copy of a state, if the limit has room for it beside `spare`, which stays.

        `end`: it is of one conversation, as far as is known, and not what several may begin with.
        """
        if state.keys in self._states:
            self._states.move_to_end(state.keys)
            if not end:
                self._ends.discard(state.keys)
            return
        if state.bytes + (spare.bytes if spare else 0) > self._limit:
            return
        for keys in [keys for keys in self._ends if common(keys, state.keys) == len(keys)]:
            self._states.move_to_end(keys, last=False)
        if spare:
            self.touch(spare)
        self._make_room(state.bytes)
        self._states[state.keys] = state.copy()
        if end:
            self._ends.add(state.keys)

    def _make_room(self, size: int) -> None:
        while self._states and self.bytes + size > self._limit:
            keys, _ = self._states.popitem(last=False)
            self._ends.discard(keys)


def common(one: Keys, other: Keys) -> int:
    """How many keys two sequences begin with in common."""
    low, high = 0, min(len(one), len(other))
    one, other = tuple(one[:high]), tuple(other[:high])
    while low < high:  # slices are compared in C
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def room(plan: Plan, asked: int | None = None) -> int:
    """Bytes that stored states may take: those asked for, 256 MiB by default, or what a budget leaves.

    Raises:
        BudgetError: it leaves less than was asked for.
    """
    left = plan.spare
    if left is None:
        return DEFAULT_BYTES if asked is None else asked
    if asked is not None and asked > left:
        raise BudgetError(
            f"session_memory is {format_bytes(asked)} and the budget of {format_bytes(plan.budget or 0)} "
            f"leaves {format_bytes(left)}: ask for less, or load with a larger memory_budget"
        )
    return min(DEFAULT_BYTES, left) if asked is None else asked
