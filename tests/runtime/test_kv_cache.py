"""The KV buffers: what slides, what is refused, what takes memory."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_gemma.artifact import DecoderSpec, KvBuffer
from edge_gemma.memory import resident_bytes
from edge_gemma.runtime.kv_cache import KvCache

MIB = 1 << 20


def make_buffer(layer: int, kind: str, dtype: str = "float32", heads: int = 2, head_dim: int = 3) -> KvBuffer:
    return KvBuffer(
        layer=layer,
        kind=kind,
        dtype=dtype,
        heads=heads,
        head_dim=head_dim,
        past_key=f"past_key_{layer}",
        past_value=f"past_value_{layer}",
        present_key=(f"present_key_{layer}",),
        present_value=(f"present_value_{layer}",),
    )


def make_spec(window: int, *buffers: KvBuffer) -> DecoderSpec:
    kv = buffers or (
        make_buffer(0, "sliding"),
        make_buffer(1, "global"),
        make_buffer(2, "sliding", "float16"),
    )
    return DecoderSpec(graphs=(), data="w", kv=kv, sliding_window=window)


def held(array: np.ndarray[Any, Any], rows: int) -> list[int]:
    """The positions written to the first `rows` rows of [1, heads, capacity, head_dim]."""
    part = array[0, :, :rows].astype(int)
    assert (part == part[:1, :, :1]).all()
    return part[0, :, 0].tolist()


@given(
    window=st.integers(1, 12),
    context=st.integers(1, 60),
    chunk=st.integers(1, 9),
    sizes=st.lists(st.integers(1, 9), max_size=40),
)
def test_the_window_slides(window: int, context: int, chunk: int, sizes: list[int]) -> None:
    """Sliding buffers hold the latest tokens in order, window - 1 old ones at least; global ones hold all."""
    cache = KvCache(make_spec(window), context=context, chunk=chunk)
    total = 0
    for tokens in sizes:
        if tokens > chunk or total + tokens > context:
            with pytest.raises(ValueError, match=f"{tokens} tokens"):
                cache.extend(tokens)
            assert cache.length == total
            continue
        rows = cache.extend(tokens)
        assert cache.length == total + tokens == rows["global"]
        for buffer, key, value in cache.arrays():
            old = rows[buffer.kind] - tokens
            assert min(window - 1, total) <= old <= total
            for array in (key, value):
                assert held(array, old) == list(range(total - old, total))
                array[0, :, old : old + tokens] = np.arange(total, total + tokens)[:, None]
        total += tokens


@given(
    window=st.integers(1, 12),
    chunk=st.integers(1, 20),
    calls=st.lists(
        st.tuples(st.sampled_from([1, 1, 1, 1, 1, 2, 5, 20]), st.sampled_from([0, 0, 0, 0, 1, 3, 8, 30])),
        max_size=60,
    ),
)
def test_tokens_are_taken_back(window: int, chunk: int, calls: list[tuple[int, int]]) -> None:
    """Against a plain list of what was written: after any cut the window before the new end is there, and
    what is refused changes nothing. Never refused: back to before the last call, and by the margin over
    calls of one token since the last cut."""
    cache = KvCache(make_spec(window), context=100, chunk=chunk)
    expected: list[int] = []
    written = ones = 0  # `ones`: tokens at the end that were fed one by one
    for tokens, back in calls:
        tokens = min(tokens, chunk, 100 - len(expected))
        if tokens:
            rows = cache.extend(tokens)
            values = range(written, written + tokens)
            for buffer, key, _ in cache.arrays():
                key[0, :, rows[buffer.kind] - tokens : rows[buffer.kind]] = np.array(values)[:, None]
            expected += values
            written += tokens
            ones = ones + 1 if tokens == 1 else 0
        length = max(len(expected) - back, 0)
        try:
            cache.truncate(length)
        except ValueError:
            assert back > tokens and back > min(ones, cache.margin)
        else:
            ones = 0 if back else ones
            del expected[length:]
        assert cache.length == len(expected)
        if len(expected) < 100:
            rows = cache.extend(1)
            for buffer, key, _ in cache.arrays():
                found = held(key, rows[buffer.kind] - 1)
                assert len(found) >= min(window - 1, len(expected))
                assert found == expected[len(expected) - len(found) :]
            cache.truncate(len(expected))


@pytest.mark.parametrize("window", [1, 4, 9])
@pytest.mark.parametrize("chunk", [1, 2, 5, 8, 30])
def test_the_margin_is_taken_back_over_calls_of_one_token(window: int, chunk: int) -> None:
    """As a drafter does it, again and again: wherever the window slides meanwhile."""
    cache = KvCache(make_spec(window), context=200, chunk=chunk)
    for length in range(100):
        for _ in range(cache.margin):
            cache.extend(1)
        cache.truncate(length)
        rows = cache.extend(1)
        assert rows["sliding"] - 1 >= min(window - 1, length)


def test_the_margin_leaves_room_for_a_call() -> None:
    margins = [KvCache(make_spec(4), context=10, chunk=chunk).margin for chunk in (1, 2, 3, 8, 16, 128)]
    assert margins == [0, 1, 1, 4, 8, 8]


@pytest.mark.parametrize("length", [-1, 7, 13])
def test_a_cut_that_is_not_possible(length: int) -> None:
    cache = KvCache(make_spec(8), context=40, chunk=4)
    for _ in range(3):
        cache.extend(4)
    with pytest.raises(ValueError, match=f"12 tokens cannot be cut to {length}: .* from 8 to 12") as error:
        cache.truncate(length)
    assert "\n" not in str(error.value)
    assert cache.length == 12


def write(cache: KvCache, first: int, tokens: int) -> None:
    """Feed tokens that are known by the numbers from `first` on."""
    rows = cache.extend(tokens)
    for buffer, key, value in cache.arrays():
        for array in (key, value):
            here = slice(rows[buffer.kind] - tokens, rows[buffer.kind])
            array[0, :, here] = np.arange(first, first + tokens)[:, None]


@given(
    window=st.integers(1, 12),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    back=st.integers(0, 12),
    other=st.integers(1, 20),
)
def test_rows_are_restored(window: int, sizes: list[int], back: int, other: int) -> None:
    """From any length that can be gone back to, into a cache that held something else, of another size."""
    cache = KvCache(make_spec(window), context=120, chunk=9)
    for number, tokens in enumerate(sizes):
        write(cache, sum(sizes[:number]), tokens)
    length = max(cache.length - back, 0)
    if length < cache.least:
        with pytest.raises(ValueError, match=f"cannot be cut to {length}: expected a length from"):
            cache.rows(length)
        return
    found = [array.copy() for array in cache.rows(length)]
    layout = cache.layout(length)
    assert [(a.dtype, a.shape) for a in found] == list(layout.values())
    assert list(layout) == [f"{n}.{kind}" for n in range(3) for kind in ("key", "value")]
    again = KvCache(make_spec(window), context=115, chunk=4)
    for _ in range(other):
        write(again, 1000, 4)
    again.restore(length, iter(found))
    assert again.length == again.least == length or length < window
    rows = again.extend(1)
    for buffer, key, value in again.arrays():
        for array in (key, value):
            seen = held(array, rows[buffer.kind] - 1)
            assert seen == list(range(length - len(seen), length))
            assert len(seen) == (length if buffer.kind == "global" else min(window - 1, length))


def test_what_is_restored_in_part_is_not_there() -> None:
    cache = KvCache(make_spec(4), context=10, chunk=4)
    write(cache, 0, 4)
    found = [array.copy() for array in cache.rows(4)]

    def broken() -> Iterator[np.ndarray[Any, Any]]:
        yield found[0]
        raise OSError

    with pytest.raises(OSError):
        cache.restore(4, broken())
    assert cache.length == 0 and cache.extend(2) == {"global": 2, "sliding": 2}


@pytest.mark.parametrize("tokens", [5, 100])
def test_what_does_not_fit_changes_nothing(tokens: int) -> None:
    cache = KvCache(make_spec(4), context=10, chunk=4)
    for _ in range(2):
        cache.extend(4)
    with pytest.raises(ValueError, match="do not fit"):
        cache.extend(tokens)
    assert cache.extend(2) == {"global": 10, "sliding": 3 + 2 + 2}  # the window, a margin, the new ones
    with pytest.raises(ValueError, match="do not fit"):
        cache.extend(1)


def test_reset_forgets_the_conversation_and_keeps_the_memory() -> None:
    cache = KvCache(make_spec(4), context=10, chunk=4)
    before = [key.ctypes.data for _, key, _ in cache.arrays()]
    for _ in range(2):
        cache.extend(4)
    cache.reset()
    assert cache.length == 0
    assert cache.extend(3) == {"global": 3, "sliding": 3}
    assert [key.ctypes.data for _, key, _ in cache.arrays()] == before


def test_shapes_and_types_follow_the_manifest() -> None:
    buffers = (make_buffer(0, "sliding", "int8", 1, 8), make_buffer(4, "global", "float16", 2, 16))
    cache = KvCache(make_spec(16, *buffers), context=100, chunk=10)
    found = [(b.layer, a.shape, a.dtype.name) for b, key, value in cache.arrays() for a in (key, value)]
    assert found == [(0, (1, 1, 25, 8), "int8")] * 2 + [(4, (1, 2, 100, 16), "float16")] * 2


def test_a_window_beyond_the_context_takes_no_more_than_the_context() -> None:
    cache = KvCache(make_spec(1000), context=10, chunk=4)
    assert cache.capacity == {"global": 10, "sliding": 14}


def test_memory_grows_by_need() -> None:
    """Of a buffer for 32,768 tokens only the rows that were written are resident; in a process of its own,
    since others come and go in this one's memory."""
    work = multiprocessing.get_context("spawn")
    with work.Pool(1) as pool:
        reserved, some, full = pool.apply(_grow)
    assert reserved < 16 * MIB
    assert some < 24 * MIB
    assert full > 100 * MIB  # the measure sees what is written


def _grow() -> tuple[int, int, int]:
    """Resident bytes that a buffer of 128 MiB adds: reserved, with 512 of its rows written, and in full."""
    before = resident_bytes()
    cache = KvCache(
        make_spec(512, make_buffer(0, "global", heads=2, head_dim=256)), context=32_768, chunk=512
    )
    arrays = [array for _, key, value in cache.arrays() for array in (key, value)]
    assert sum(array.nbytes for array in arrays) == 128 * MIB
    found = [resident_bytes() - before]
    rows = cache.extend(512)["global"]
    for array in arrays:
        array[:, :, :rows] = 1
    found.append(resident_bytes() - before)
    for array in arrays:
        array[:] = 1
    return found[0], found[1], resident_bytes() - before


@pytest.mark.parametrize("tokens", [0, 1, 7, 20, 33])
def test_rows_that_were_never_computed(tokens: int) -> None:
    """An occupied cache goes on as one that was fed, and memory backs its rows."""
    spec = make_spec(8)
    occupied, fed = (KvCache(spec, context=40, chunk=4) for _ in range(2))
    occupied.extend(3)
    occupied.occupy(tokens)
    for first in range(0, tokens, 4):
        rows = fed.extend(min(4, tokens - first))
    for buffer, key, value in occupied.arrays():
        for array in (key, value):
            assert (array[:, :, : rows[buffer.kind] if tokens else 0] == 1).all()
    assert occupied.length == fed.length
    assert occupied.extend(2) == fed.extend(2)


def test_occupying_beyond_the_context() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        KvCache(make_spec(8), context=40, chunk=4).occupy(41)
