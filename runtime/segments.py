"""Long sound in, segments of speech out: each short enough for the audio encoder, cut where nobody speaks.

The sound is read in frames of 20 ms. A frame's level is its standard deviation in dB, so that a DC offset
counts for nothing. Compared with the floor and the peak of the last minute and of what lies ahead, a frame
is quiet or not, and runs of quiet frames are where segments end:

- a silence of `silence` seconds ends any segment, one of `long_pause` a segment that has `enough` seconds;
- a segment that would get too long ends in the middle of the longest pause within `reach` of the limit or,
  if none there lasts `pause` seconds, at the quietest place;
- silence is dropped but for `margin` around the sound, so that the times of subtitles are honest.

What is louder than `loud` is never silence, so music without pauses is cut and not lost; steady noise below
that is silence. Memory is bounded by `max_seconds`. The result does not depend on how the input was cut
into blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edge_gemma.errors import PromptError

if TYPE_CHECKING:
    from numpy.typing import NDArray

FRAME = 0.02  # seconds
FULL_CLIP = 30.0  # seconds that the encoder of Google's models takes
HISTORY = 3000  # frames of the past that count for floor and peak: a minute
SMOOTH = 5  # frames over which the quietest place is sought
SILENT = -100.0  # dB; below are digital zeros, which say nothing of the noise in a recording


@dataclass(frozen=True, kw_only=True)
class Splitting:
    """How `split` decides. Times are seconds; levels are dB, where 0 is a full-scale square wave."""

    margin: float = 0.15  # kept on both sides of the sound
    pause: float = 0.25  # the shortest pause that is preferred to the quietest place
    long_pause: float = 1.0  # ends a segment that has `enough`
    enough: float = 6.0
    silence: float = 2.5  # ends any segment
    reach: float = 10.0  # how far before its limit a segment may be cut; never more than half of it
    least: float = 0.1  # less sound than this between silences is a click, and dropped
    above_floor: float = 6.0  # frames are quiet up to so much over the floor (10th percentile of levels) …
    below_peak: float = 35.0  # … or so much under the peak (98th percentile), whichever is higher
    loud: float = -30.0  # but from here on they are never silence
    faint: float = -80.0  # and down here always

    def within(self, max_seconds: float) -> Splitting:
        """For an encoder that takes clips of so many seconds: the times above are meant for 30."""
        share = min(1.0, max_seconds / FULL_CLIP)
        return replace(
            self,
            long_pause=max(self.pause, share * self.long_pause),
            enough=share * self.enough,
            silence=max(self.pause, share * self.silence),
            reach=share * self.reach,
        )


@dataclass(frozen=True)
class Segment:
    """A stretch of sound: `samples`, float32 [n], from `start` to `end` in seconds."""

    start: float
    end: float
    samples: NDArray[np.float32]


def split(
    blocks: Iterable[NDArray[np.float32]],
    *,
    max_seconds: float,
    rate: int = 16_000,
    options: Splitting = Splitting(),  # noqa: B008 (it is frozen)
) -> Iterator[Segment]:
    """Segments in order, apart or touching; none of a sound in which nothing is heard.

    A segment is given as soon as about `max_seconds` from its start have been read.

    Args:
        blocks: float32 [n] mono samples, cut anywhere.
        max_seconds: no segment is longer; at least 1.
        rate: Hz.
        options: how it is decided.

    Raises:
        PromptError: max_seconds is less than 1.
    """
    if not max_seconds >= 1:
        raise PromptError(f"max_seconds is {max_seconds!r}: expected at least 1")
    window = _Window(blocks, rate)
    limit = int(max_seconds * rate) // window.size
    margin, least = window.frames(options.margin), window.frames(options.least)
    touching = False  # whether the segment before ends where the window begins
    while window.fill(limit):
        quiet, silence = _thresholds(window, options)
        sound = np.flatnonzero(window.levels > silence)
        lead = max(0, int(sound[0] if len(sound) else len(window.levels)) - margin)
        if lead or not len(sound):
            window.drop(lead if len(sound) or not window.ended else len(window.levels))
            touching = False
            continue
        end, used = _end(window, limit, sound, quiet, options)
        if touching or np.searchsorted(sound, end) >= least:
            samples = window.samples[: end * window.size].copy()
            yield Segment(window.start / rate, (window.start + len(samples)) / rate, samples)
        touching = end == used
        window.drop(used)


class _Window:
    """What is known of the sound from some frame on; read in whole seconds, however the blocks are cut."""

    def __init__(self, blocks: Iterable[NDArray[np.float32]], rate: int) -> None:
        self.size = round(FRAME * rate)  # samples of a frame
        self.start = 0  # samples before the window
        self.samples: NDArray[np.float32] = np.empty(0, np.float32)
        self.levels: NDArray[np.float64] = np.empty(0)  # dB, of each frame of the window
        self.past: NDArray[np.float64] = np.empty(0)  # dB, of those before it
        self.ended = False
        self._per_second = rate / self.size
        self._seconds = _rejoin(blocks, round(self._per_second) * self.size)

    def frames(self, seconds: float) -> int:
        return round(seconds * self._per_second)

    def fill(self, frames: int) -> bool:
        """Read until there are more frames than this, or all that is left; False if that is nothing."""
        while len(self.levels) <= frames and not self.ended:
            second = next(self._seconds, None)
            if second is None:
                self.ended = True
                break
            self.samples = np.concatenate((self.samples, second))
            whole = len(second) // self.size * self.size
            levels = [_levels(second[:whole].reshape(-1, self.size))]
            if whole < len(second):  # the last frame of all
                levels.append(_levels(second[None, whole:]))
            self.levels = np.concatenate((self.levels, *levels))
        return len(self.levels) > 0

    def drop(self, frames: int) -> None:
        """Move the start of the window onwards."""
        self.start += frames * self.size
        self.samples = self.samples[frames * self.size :]
        self.past = np.concatenate((self.past, self.levels[:frames]))[-HISTORY:]
        self.levels = self.levels[frames:]


def _rejoin(blocks: Iterable[NDArray[np.float32]], size: int) -> Iterator[NDArray[np.float32]]:
    """The same samples in blocks of one size, the last one shorter."""
    held: list[NDArray[np.float32]] = []
    count = 0
    for block in blocks:
        held.append(np.array(block, np.float32))  # a copy: the caller may reuse it
        count += len(block)
        if count < size:
            continue
        joined = np.concatenate(held)
        whole = count // size * size
        for at in range(0, whole, size):
            yield joined[at : at + size]
        held, count = [joined[whole:]], count - whole
    if count:
        yield np.concatenate(held)


def _levels(frames: NDArray[np.float32]) -> NDArray[np.float64]:
    """dB of frames [n, samples]: float64 [n]."""
    deviation: NDArray[np.float64] = frames.astype(np.float64).std(axis=1)
    return 20 * np.log10(np.maximum(deviation, 1e-6))


def _thresholds(window: _Window, options: Splitting) -> tuple[float, float]:
    """dB up to which a frame is quiet, so that one may cut there, and up to which it is silence."""
    levels = np.concatenate((window.past, window.levels))
    heard = levels[levels > SILENT]
    if not len(heard):
        return options.faint, options.faint
    floor, peak = np.percentile(heard, (10, 98))
    quiet = max(floor + options.above_floor, peak - options.below_peak, options.faint)
    return quiet, max(min(quiet, options.loud), options.faint)


def _end(
    window: _Window, limit: int, sound: NDArray[np.intp], quiet: float, options: Splitting
) -> tuple[int, int]:
    """The frame a segment from the window's start ends at, and the one from which to go on.

    `sound` are the frames that are not silence, `limit` the most that a segment may have.
    """
    margin = window.frames(options.margin)
    known = min(len(window.levels), limit)
    sound = sound[sound < known]
    gaps = np.append(sound[1:], known) - sound - 1  # frames of silence after each
    long = gaps >= window.frames(options.long_pause)
    ends = (gaps >= window.frames(options.silence)) | (long & (sound + 1 >= window.frames(options.enough)))
    if ends.any():
        at = int(np.argmax(ends))
        end = int(sound[at]) + 1 + min(margin, int(gaps[at]))
        return end, end
    cut = known if len(window.levels) <= limit else _best_cut(window, limit, quiet, options)
    last = int(sound[np.searchsorted(sound, cut) - 1])
    return min(cut, last + 1 + margin), cut


def _best_cut(window: _Window, limit: int, quiet: float, options: Splitting) -> int:
    """The frame to cut at: the middle of the longest pause in reach, or else the quietest."""
    levels = window.levels[:limit]
    earliest = limit - min(window.frames(options.reach), limit // 2)
    edges = np.diff(np.concatenate(([0], levels <= quiet, [0])))
    starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    middles, lengths = (starts + stops) // 2, stops - starts
    usable = (middles >= earliest) & (lengths >= window.frames(options.pause))
    if usable.any():
        return int(middles[usable][np.argmax(lengths[usable])])
    power = np.convolve(10 ** (levels / 10), np.ones(SMOOTH), "same")
    return earliest + int(np.argmin(power[earliest : limit - SMOOTH]))
