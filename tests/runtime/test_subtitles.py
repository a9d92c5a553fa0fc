"""Subtitles, as the parsers of others read them."""

from __future__ import annotations

import html
import io
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import pytest
import srt
import webvtt
from hypothesis import given
from hypothesis import strategies as st

from edge_gemma.runtime.subtitles import LINE, LINES, to_srt, to_vtt


@dataclass(frozen=True)
class Spoken:
    start: float
    end: float
    text: str


Cue = tuple[int, int, str]  # milliseconds, milliseconds, text


def read_srt(segments: Iterable[Spoken]) -> list[Cue]:
    cues = list(srt.parse("".join(to_srt(segments))))  # raises where there is more than cues
    assert [cue.index for cue in cues] == list(range(1, len(cues) + 1))
    unit = timedelta(milliseconds=1)
    return [(c.start // unit, c.end // unit, c.content) for c in cues]


def read_vtt(segments: Iterable[Spoken]) -> list[Cue]:
    cues = webvtt.from_buffer(io.StringIO("".join(to_vtt(segments)))).captions
    return [
        (c.start_in_seconds * 1000 + int(c.start[-3:]), c.end_in_seconds * 1000 + int(c.end[-3:]), c.text)
        for c in cues
    ]


def words(text: str) -> list[str]:
    return text.split()


def test_the_whole_of_a_small_file() -> None:
    segments = [Spoken(0, 1.5, "Hello."), Spoken(2, 2.25, " "), Spoken(3661.0007, 3662.9996, "a < b &\n\n c")]
    assert "".join(to_srt(segments)) == (
        "1\n00:00:00,000 --> 00:00:01,500\nHello.\n\n2\n01:01:01,001 --> 01:01:03,000\na < b & c\n\n"
    )
    assert "".join(to_vtt(segments)) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nHello.\n\n"
        "01:01:01.001 --> 01:01:03.000\na &lt; b &amp; c\n\n"
    )


def test_nothing_said() -> None:
    assert list(to_srt([])) == []
    assert list(to_vtt([Spoken(0, 1, "\n \x00")])) == ["WEBVTT\n\n"]


@pytest.mark.parametrize("convert", [to_srt, to_vtt])
def test_cues_come_as_soon_as_their_segments(convert: object) -> None:
    def segments() -> Iterable[Spoken]:
        yield Spoken(0, 1, "first")
        raise KeyError("asked for more")

    pieces = (to_srt if convert is to_srt else to_vtt)(segments())
    with pytest.raises(KeyError):
        while "first" not in next(pieces):
            pass
        next(pieces)


def test_beyond_a_hundred_hours() -> None:
    segment = Spoken(400_000, 400_001.0625, "late")
    assert read_srt([segment]) == read_vtt([segment]) == [(400_000_000, 400_001_062, "late")]
    assert "111:06:40.000 --> 111:06:41.062" in "".join(to_vtt([segment]))


def test_a_long_text_shares_its_time_among_cues() -> None:
    text = "one two three four five six seven eight nine ten " * 8
    cues = read_srt([Spoken(10, 30, text)])
    assert len(cues) > 3
    assert words(" ".join(c for _, _, c in cues)) == words(text)
    assert (cues[0][0], cues[-1][1]) == (10_000, 30_000)
    for (_, end, _), (start, _, _) in itertools.pairwise(cues):
        assert end == start
    speeds = [len(content) / (end - start) for start, end, content in cues]
    assert max(speeds) < 1.1 * min(speeds)


def test_what_would_be_markup() -> None:
    text = "x --> y ---> y & <b>z</b> 00:00:01,000 --> 00:00:02,000"
    (start, end, content) = read_vtt([Spoken(0, 1, text)])[0]
    assert "-->" not in content and "<" not in content
    assert words(html.unescape(content)) == words(text)
    assert len(read_srt([Spoken(0, 1, text)])) == 1
    assert "".join(to_srt([Spoken(0, 1, text)])).count("-->") == 1


def test_no_cue_is_without_time() -> None:
    text = " ".join(["a", *["x" * LINE] * 3])  # the first cue has a third of the text and of 2 ms
    assert [cue[:2] for cue in read_srt([Spoken(0, 0.002, text)])] == [(0, 1), (1, 2)]
    assert [cue[:2] for cue in read_srt([Spoken(5, 4, "x"), Spoken(3, 3, "y")])] == [
        (5000, 5001),
        (5001, 5002),
    ]


def test_what_no_file_can_hold() -> None:
    assert read_srt([Spoken(0, 1, "a\ud800b\0\x1bc\u2028d")]) == [(0, 1000, "a\ufffdb c d")]


@pytest.mark.parametrize("time", [float("nan"), float("inf")])
def test_times_that_are_none(time: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        list(to_srt([Spoken(0, time, "x")]))


times = st.floats(-1, 500_000, allow_nan=False)
texts = st.text(st.characters(exclude_characters="&<>"), max_size=300) | st.sampled_from(
    ["-->", "1", "a-->b\n\n2"]
)
segments = st.lists(st.builds(Spoken, times, times, texts), max_size=8)


@given(segments)
def test_any_segments_give_files_that_parse(segments: Sequence[Spoken]) -> None:
    text = "".join(to_srt(segments))
    text.encode()
    cues = read_srt(segments)
    previous = 0
    for start, end, content in cues:
        assert previous <= start < end
        previous = end
        assert len(content.split("\n")) <= LINES or end - start < 10
        assert all(0 < len(line) <= LINE for line in content.split("\n"))
    vtt = read_vtt(segments)
    assert [c[:2] for c in vtt] == [c[:2] for c in cues]
    assert [html.unescape(c[2]).replace("-->", "->") for c in vtt] == [c[2] for c in cues]


@given(st.floats(0, 400_000), st.floats(0.001, 30))
def test_times_are_right_to_the_millisecond(start: float, seconds: float) -> None:
    for read in (read_srt, read_vtt):
        ((begin, end, _),) = read([Spoken(start, start + seconds, "x")])
        assert begin == pytest.approx(start * 1000, abs=0.501)
        assert end == pytest.approx((start + seconds) * 1000, abs=1.001)


@given(st.integers(0, 10**9))
def test_srt_times_are_those_of_the_srt_library(milliseconds: int) -> None:
    (text,) = to_srt([Spoken(milliseconds / 1000, milliseconds / 1000 + 1, "x")])
    begin = srt.timedelta_to_srt_timestamp(timedelta(milliseconds=milliseconds))
    assert text.split("\n")[1].startswith(f"{begin} --> ")
