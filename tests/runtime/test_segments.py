"""The splitter: where segments begin and end, in sounds whose words and pauses are known."""

from __future__ import annotations

import dataclasses
import itertools
import tracemalloc
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_gemma.errors import PromptError
from edge_gemma.runtime.segments import Segment, Splitting, split

RATE = 16_000
MARGIN = Splitting().margin
TOLERANCE = 0.06  # seconds; the first and last moments of a word may be as quiet as a pause
Samples = NDArray[np.float32]


def decibels(level: float) -> float:
    return float(10 ** (level / 20))


def speech(seconds: float, level: float = -20, seed: int = 0) -> Samples:
    """Something like words: a buzz whose loudness rises and falls by 12 dB four times a second."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    buzz = np.sign(np.sin(2 * np.pi * 120 * time)) + 0.3 * rng.standard_normal(len(time))
    envelope = decibels(level - 6) * 10 ** (0.3 * np.cos(2 * np.pi * 4 * time + rng.uniform(0, 6)))
    return (buzz * envelope).astype(np.float32)


def silence(seconds: float) -> Samples:
    return np.zeros(round(seconds * RATE), np.float32)


def noise(samples: Samples, level: float, seed: int = 1) -> Samples:
    """The same with steady noise added."""
    rng = np.random.default_rng(seed)
    return (samples + decibels(level) * rng.standard_normal(len(samples))).astype(np.float32)


def script(*seconds: float, level: float = -20) -> tuple[Samples, list[tuple[float, float]]]:
    """Words and pauses in turn, beginning with a pause; and where the words are, in seconds."""
    pieces, words, time = [], [], 0.0
    for number, length in enumerate(seconds):
        pieces.append(speech(length, level, number) if number % 2 else silence(length))
        end = time + len(pieces[-1]) / RATE
        if number % 2:
            words.append((time, end))
        time = end
    return np.concatenate(pieces), words


def run(samples: Samples, max_seconds: float = 30, options: Splitting | None = None) -> list[Segment]:
    """The segments, after checking what is true of all."""
    blocks = (samples[at : at + RATE] for at in range(0, len(samples), RATE))
    segments = list(split(blocks, max_seconds=max_seconds, options=options or Splitting()))
    previous = 0.0
    for segment in segments:
        assert type(segment.start) is type(segment.end) is float
        assert previous <= segment.start < segment.end <= len(samples) / RATE + 1e-9
        assert segment.end - segment.start <= max_seconds + 1e-9
        first = round(segment.start * RATE)
        np.testing.assert_array_equal(segment.samples, samples[first : round(segment.end * RATE)])
        assert segment.samples.dtype == np.float32
        previous = segment.end
    return segments


def spans(segments: Sequence[Segment]) -> list[tuple[float, float]]:
    return [(segment.start, segment.end) for segment in segments]


def covered(word: tuple[float, float], segments: Sequence[Segment]) -> bool:
    """Whether touching segments hold the word from its first sample to its last."""
    at = word[0]
    for segment in segments:
        if segment.start <= at + 1e-6:
            at = max(at, segment.end)
    return at >= word[1] - 1e-6


def cut_inside(word: tuple[float, float], segments: Sequence[Segment]) -> bool:
    return any(
        word[0] + 1e-6 < edge < word[1] - 1e-6
        for segment in segments
        for edge in (segment.start, segment.end)
    )


def test_one_sentence_in_silence() -> None:
    samples, _ = script(5, 3, 5)
    (segment,) = run(samples)
    assert segment.start == pytest.approx(5 - MARGIN, abs=TOLERANCE)
    assert segment.end == pytest.approx(8 + MARGIN, abs=TOLERANCE)


@pytest.mark.parametrize("seconds", [0, 0.01, 1, 29, 31, 200])
@pytest.mark.parametrize("level", [None, -95, -60, -40])
def test_silence_and_steady_noise_give_nothing(seconds: float, level: float | None) -> None:
    samples = silence(seconds)
    assert run(samples if level is None else noise(samples, level)) == []


def test_no_blocks_at_all() -> None:
    assert list(split([], max_seconds=30)) == []
    assert list(split([silence(0)] * 3, max_seconds=30)) == []


def test_a_short_sound_is_one_segment() -> None:
    for seconds in (0.2, 1, 29.9):
        (segment,) = run(speech(seconds))
        assert (segment.start, segment.end) == (0, pytest.approx(seconds))


def test_long_silences_are_dropped_and_short_ones_kept() -> None:
    samples, words = script(0.5, 2, 0.8, 2, 3.0, 2, 20, 1, 0.5)
    segments = run(samples)
    assert len(segments) == 3
    expected = [(words[0][0], words[1][1]), words[2], words[3]]
    for segment, (start, end) in zip(segments, expected, strict=True):
        assert segment.start == pytest.approx(start - MARGIN, abs=TOLERANCE)
        assert segment.end == pytest.approx(end + MARGIN, abs=TOLERANCE)


def test_a_long_pause_ends_a_segment_that_is_long_enough() -> None:
    samples, words = script(0, 3, 1.5, 4, 1.5, 3, 1.5, 2, 1)
    assert [s.end for s in run(samples)] == pytest.approx(
        [words[1][1] + MARGIN, words[3][1] + MARGIN], abs=TOLERANCE
    )
    everything = run(samples, options=Splitting(enough=60))
    assert len(everything) == 1


def test_the_longest_pause_in_reach_is_where_a_long_segment_is_cut() -> None:
    # pauses at 15 (out of reach), 21, 24 and 27 s; the one at 24 is the longest in reach
    samples, words = script(0, 15, 0.8, 5.2, 0.3, 2.7, 0.6, 2.4, 0.3, 20)
    first, second = run(samples)[:2]
    middle = (words[2][1] + words[3][0]) / 2
    assert first.end == pytest.approx(words[2][1] + MARGIN, abs=TOLERANCE)
    assert second.start == pytest.approx(words[3][0] - MARGIN, abs=TOLERANCE)
    assert first.end <= middle <= second.start


def test_without_a_pause_the_quietest_place_is_where_it_is_cut() -> None:
    samples = speech(70)
    dip = slice(25 * RATE, 25 * RATE + RATE // 10)  # 0.1 s, no pause
    samples[dip] *= decibels(-12)
    segments = run(samples)
    assert segments[0].end == pytest.approx(25.05, abs=0.06)
    assert segments[1].start == segments[0].end
    assert sum(len(s.samples) for s in segments) == len(samples)


def test_music_without_pauses_is_all_there() -> None:
    time = np.arange(100 * RATE) / RATE
    music = (0.3 * np.sin(2 * np.pi * 220 * time) + 0.2 * np.sin(2 * np.pi * 331 * time)).astype(np.float32)
    segments = run(music)
    assert sum(len(s.samples) for s in segments) == len(music)
    assert min(s.end - s.start for s in segments[:-1]) >= 20


@pytest.mark.parametrize("level", [-20, -40, -55, -65])
@pytest.mark.parametrize("distance", [None, 20, 30, 45])
@pytest.mark.parametrize("offset", [0, 0.1])
def test_loudness_noise_and_offset_change_nothing(
    level: float, distance: float | None, offset: float
) -> None:
    """Words `distance` dB above the noise are found where they are, and cut between."""
    samples, words = script(4, 6, 0.5, 8, 0.6, 9, 0.4, 7, 0.7, 3, 6, 5, 4, level=level)
    if distance is not None:
        samples = noise(samples, level - distance)
    segments = run((samples + offset).astype(np.float32))
    assert all(covered(word, segments) and not cut_inside(word, segments) for word in words)
    assert segments[0].start == pytest.approx(4 - MARGIN, abs=0.1)
    assert sum(s.end - s.start for s in segments) < 48


def test_noise_that_sets_in_later() -> None:
    samples, words = script(2, 5, 1, 5, 40, 5, 1, 5, 3)
    samples[30 * RATE :] = noise(samples[30 * RATE :], -50)
    segments = run(samples)
    assert all(covered(word, segments) for word in words)


def test_the_last_minute_decides_what_noise_is() -> None:
    """What is louder than it was is kept at first; a minute later it is how the recording sounds."""
    samples, _ = script(*[5, 5] * 6)
    samples = np.concatenate((noise(samples, -70), noise(silence(300), -45)))
    kept = [segment for segment in run(samples) if segment.start > 60]
    assert 20 < sum(s.end - s.start for s in kept) < 90
    assert max(s.end for s in kept) < 60 + 90


def test_digital_silence_does_not_hide_the_noise_between_words() -> None:
    """A muted start, then words in noise."""
    samples, words = script(0, 6, 3, 6, 3, 6, 3)
    samples = np.concatenate((silence(20), noise(samples, -50)))
    segments = run(samples)
    assert spans(segments) == [
        (pytest.approx(20 + start - MARGIN, abs=0.1), pytest.approx(20 + end + MARGIN, abs=0.1))
        if start
        else (pytest.approx(20, abs=MARGIN + TOLERANCE), pytest.approx(20 + end + MARGIN, abs=0.1))
        for start, end in words
    ]


def test_clicks_are_no_segments() -> None:
    samples = silence(60)
    for second in (5, 20, 50):
        samples[second * RATE : second * RATE + 300] = 0.5
    assert run(samples) == []
    assert len(run(samples, options=Splitting(least=0))) == 3


def test_the_end_of_a_word_is_not_taken_for_a_click() -> None:
    """The rest of a word that had to be cut is short and stays."""
    samples = np.concatenate((speech(30.06), silence(5)))
    dip = slice(round(29.85 * RATE), round(29.95 * RATE))
    samples[dip] *= decibels(-15)
    segments = run(samples, options=Splitting(least=0.3))
    assert len(segments) == 2 and covered((0, 30.06), segments)


@pytest.mark.parametrize("max_seconds", [1, 2.5, 10, 30])
def test_any_limit_is_kept(max_seconds: float) -> None:
    samples, words = script(1, 40, 0.3, 5, 0.5, 2, 3, 20)
    segments = run(noise(samples, -60), max_seconds)
    assert all(covered(word, segments) for word in words)


@pytest.mark.parametrize("max_seconds", [0, -1, 0.5, float("nan")])
def test_a_limit_that_is_none(max_seconds: float) -> None:
    with pytest.raises(PromptError, match="expected at least 1"):
        list(split([silence(1)], max_seconds=max_seconds))


def test_another_rate() -> None:
    samples = speech(50)
    at_8k = list(split([samples], max_seconds=60, rate=8_000))
    assert at_8k[-1].end == pytest.approx(100)
    assert all(len(s.samples) == round((s.end - s.start) * 8_000) for s in at_8k)


LONG, _ = script(3, 12, 0.5, 9, 1.2, 14, 0.3, 8, 5, 0.05, 4, 3, 0.7, 31, 2)
LONG = noise(LONG, -55)[:-77]  # not a whole number of frames
WHOLE = run(LONG)


@settings(max_examples=25)
@given(st.lists(st.integers(0, 50_000), min_size=1, max_size=60), st.integers(400, 100_000))
def test_blocks_may_be_cut_anywhere(sizes: Sequence[int], rest: int) -> None:
    def blocks() -> Iterator[Samples]:
        at = 0
        for size in itertools.chain(sizes, itertools.repeat(rest)):
            buffer = LONG[at : at + size].copy()
            yield buffer
            buffer[:] = np.nan  # the caller may use it again
            at += size
            if at >= len(LONG):
                return

    assert spans(list(split(blocks(), max_seconds=30))) == spans(WHOLE)


lengths = st.lists(
    st.floats(0.3, 12) | st.sampled_from([0.3, 0.5, 1, 2.5, 29, 31, 45]), min_size=2, max_size=10
)


@settings(max_examples=40)
@given(lengths, st.sampled_from([10.0, 30.0]), st.sampled_from([-70.0, -45.0]))
def test_whatever_is_said_is_in_a_segment(seconds: Sequence[float], limit: float, level: float) -> None:
    """And `run` checks the order, the limits and the samples of the segments."""
    samples, words = script(*seconds)
    segments = run(noise(samples, level), limit)
    assert all(covered(word, segments) for word in words)
    for word in words:  # with a pause in reach, no word is cut
        if word[1] - word[0] < min(10, limit / 2) - 1:
            assert not cut_inside(word, segments), (word, spans(segments))


def test_segments_come_while_the_sound_is_read() -> None:
    taken = 0

    def blocks() -> Iterator[Samples]:
        nonlocal taken
        for number in range(200):
            taken = number
            yield speech(1, seed=number)

    segments = split(blocks(), max_seconds=30)
    next(segments)
    assert taken <= 31
    next(segments)
    assert taken <= 62


def test_memory_is_bounded_by_the_limit() -> None:
    second = speech(1)

    def peak(seconds: int) -> int:
        tracemalloc.start()
        for _ in split(itertools.repeat(second, seconds), max_seconds=30):
            pass
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    assert peak(400) < 1.05 * peak(100) < 4 * 30 * RATE * 5


def test_options_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Splitting().margin = 1  # type: ignore[misc]


def test_shorter_clips_end_at_shorter_silences() -> None:
    """An encoder that takes a quarter of 30 s waits for a quarter of the silence."""
    assert Splitting().within(30) == Splitting().within(100) == Splitting()
    short = Splitting().within(7.5)
    assert (short.long_pause, short.enough, short.silence, short.reach) == (0.25, 1.5, 0.625, 2.5)
    assert Splitting().within(1).silence == Splitting().pause
