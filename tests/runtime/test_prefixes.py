"""Stored states: which one serves a prompt, which ones go, and what memory they take."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Hashable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_gemma.runtime.kv_state import KvState
from edge_gemma.runtime.prefixes import Prefixes, common

SIZE = 64  # bytes of a state for each token


def state(*keys: Hashable) -> KvState:
    return KvState(keys, (np.full((1, len(keys), SIZE), len(keys), np.int8),))


def held(prefixes: Prefixes) -> list[tuple[Hashable, ...]]:
    return list(prefixes._states)


def add(prefixes: Prefixes, *keys: Hashable, end: bool = True, spare: KvState | None = None) -> None:
    prefixes.add(state(*keys), end=end, spare=spare)


@given(one=st.lists(st.integers(0, 1)), other=st.lists(st.integers(0, 1)))
def test_common(one: list[int], other: list[int]) -> None:
    expected = 0
    while expected < min(len(one), len(other)) and one[expected] == other[expected]:
        expected += 1
    assert common(one, tuple(other)) == expected


def test_the_longest_that_leaves_a_token() -> None:
    prefixes = Prefixes(1 << 20)
    for keys in ((1,), (1, 2), (1, 2, 3), (1, 2, 4), (9, 9)):
        add(prefixes, *keys)

    def best(*keys: int, beyond: int = 0) -> Sequence[Hashable] | None:
        found = prefixes.best(keys, beyond)
        return found.keys if found else None

    assert best(1, 2, 3, 4) == (1, 2, 3)
    assert best(1, 2, 3) == (1, 2)
    assert best(1, 2, 5) == (1, 2)
    assert best(1, 2, 5, beyond=2) is best(1) is best(5, 6) is None
    assert [prefixes.parting(keys) for keys in ((1, 2, 3, 4), (1, 5), (5,), ())] == [3, 1, 0, 0]


def test_what_was_not_used_for_longest_goes() -> None:
    prefixes = Prefixes(3 * SIZE * 2)
    for key in (1, 2, 3):
        add(prefixes, key, key, end=False)
    found = prefixes.best((1, 1, 0))
    assert found
    prefixes.touch(found)
    add(prefixes, 2, 2)
    add(prefixes, 4, 4)
    assert held(prefixes) == [(1, 1), (2, 2), (4, 4)]
    assert prefixes.bytes == prefixes.limit
    prefixes.limit = SIZE * 2
    assert held(prefixes) == [(4, 4)]


def test_the_end_of_a_conversation_that_went_on_goes_first() -> None:
    prefixes = Prefixes(6 * SIZE)
    add(prefixes, 5)
    add(prefixes, 1, end=False)
    add(prefixes, 1, 2)
    add(prefixes, 1, 2, 3, end=False)  # 7 tokens: (1, 2) makes room, and not what is older
    assert held(prefixes) == [(5,), (1,), (1, 2, 3)]


def test_an_end_that_is_forked_stays() -> None:
    prefixes = Prefixes(6 * SIZE)
    add(prefixes, 5)
    add(prefixes, 1, 2)
    add(prefixes, 1, 2, end=False)
    add(prefixes, 1, 2, 3, 4)
    assert held(prefixes) == [(1, 2), (1, 2, 3, 4)]


def test_what_is_about_to_be_used_stays() -> None:
    prefixes = Prefixes(4 * SIZE)
    for key in (1, 2):
        add(prefixes, key, key)
    spare = prefixes.best((1, 1, 1))
    add(prefixes, 3, 3, spare=spare)
    assert held(prefixes) == [(1, 1), (3, 3)]
    add(prefixes, 4, 4, 4, spare=spare)  # no room beside it
    assert held(prefixes) == [(1, 1), (3, 3)]


@given(
    limit=st.integers(0, 12),
    calls=st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=6), st.booleans())),
)
def test_the_limit_holds(limit: int, calls: list[tuple[list[int], bool]]) -> None:
    prefixes = Prefixes(limit * SIZE)
    for keys, end in calls:
        add(prefixes, *keys, end=end)
        assert prefixes.bytes <= prefixes.limit
        assert (tuple(keys) in held(prefixes)) == (len(keys) <= limit)
        assert prefixes._ends <= set(held(prefixes))


def test_a_copy_is_its_own() -> None:
    rows = np.arange(2 * 5 * 3, dtype=np.float16).reshape(2, 5, 3)
    views = KvState((7, 8), (rows[:, 1:3], rows[:, :0], rows.astype(np.int8)[:1]))
    copy = views.copy()
    rows[:] = -1
    assert [a.tolist() for a in copy.rows] == [
        [[[3, 4, 5], [6, 7, 8]], [[18, 19, 20], [21, 22, 23]]],
        [[], []],
        [[[i, i + 1, i + 2] for i in range(0, 15, 3)]],
    ]
    assert copy.bytes == views.bytes == 128 and len(copy) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory as Linux counts it")
def test_memory_goes_back() -> None:
    """Of states of all sizes, many times what the limit allows: in a process of its own."""
    code = """
import numpy as np
from edge_gemma.memory import resident_bytes
from edge_gemma.runtime.kv_state import KvState
from edge_gemma.runtime.prefixes import Prefixes

MIB = 1 << 20
prefixes = Prefixes(64 * MIB)
rows = np.ones((1, 16 * MIB), np.int8)
before = resident_bytes()
for number in range(200):
    size = (number * 7919 % 15 + 1) * MIB
    prefixes.add(KvState((number,), (rows[:, :size, None],)), end=True)
    assert resident_bytes() < before + 66 * MIB, number
assert resident_bytes() > before + 40 * MIB
prefixes.limit = 0
assert resident_bytes() < before + 2 * MIB
"""
    subprocess.run([sys.executable, "-c", code], check=True)
