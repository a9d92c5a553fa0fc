from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_gemma.errors import PromptError
from edge_gemma.runtime.stopping import StopStrings

texts = st.text(alphabet="ab", max_size=40)
stop_lists = st.lists(st.text(alphabet="ab", min_size=1, max_size=5), max_size=3)


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in zip(edges, edges[1:], strict=False)]


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """The definition: the first character that ends a stop string, the longest that ends there."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@given(texts, stop_lists, st.lists(st.integers(0, 100), max_size=10))
@example("abcd", ["abcd", "bc"], [])
@example("abcd", ["abcd", "bc"], [1, 2, 3])
@example("abcd", ["d", "bcd", "cd"], [])
@example("aaab", ["aab"], [1, 2, 3])
def test_what_is_emitted_depends_only_on_the_text(text: str, stops: list[str], places: list[int]) -> None:
    stream = StopStrings(tuple(stops))
    emitted, stopped = "", False
    for piece in cut(text, places):
        safe, hit = stream.push(piece)
        assert not (stopped and (safe or not hit))
        emitted, stopped = emitted + safe, hit
    emitted += stream.flush()
    assert (emitted, stopped) == expected(text, stops)


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    stream = StopStrings(("<end>", "###"))
    assert stream.push("hello <e") == ("hello ", False)
    assert stream.push("a ##") == ("<ea ", False)
    assert stream.push("x") == ("##x", False)
    assert stream.push("y#") == ("y", False)
    assert stream.flush() == "#"
    assert stream.flush() == ""


def test_nothing_comes_after_a_stop() -> None:
    stream = StopStrings(("END",))
    assert stream.push("a END b") == ("a ", True)
    assert stream.push("c") == ("", True)
    assert stream.flush() == ""


def test_without_stop_strings_everything_passes() -> None:
    assert StopStrings(()).push("abc") == ("abc", False)


@pytest.mark.parametrize("stops", ["abc", ("a", ""), (3,), None, 7])
def test_unusable_stop_strings_are_a_prompt_error(stops: object) -> None:
    with pytest.raises(PromptError, match="expected a"):
        StopStrings(stops)  # type: ignore[arg-type]
