"""Sounds in: files, bytes and arrays, as mono float32 at the rate of the audio encoder.

`open_audio` gives blocks of about a second, so that memory stays flat however long a recording is;
`read_clip` gives a short one whole. Channels are mixed by their mean and resampled by soxr at quality HQ,
in one stream from the first sample to the last: the result is librosa.load's, in values and length. Values
a little beyond ±1, as float and lossy files have, stay as they are; ±2 is where they are clipped.

A damaged or cut off file gives what can be decoded, a warning in the log and `AudioStream.damage`;
MediaError if that is nothing. Everything else that is wrong with a sound is a MediaError.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_gemma.errors import DependencyError, MediaError
from edge_gemma.runtime.sound_source import Source, open_source

if TYPE_CHECKING:
    from edge_gemma.runtime.sound_source import AudioSource, Samples

RATE = 16_000  # Hz
PEAK = 2.0  # +6 dB: overs stay below it; float sources with values beyond it are not meant for [-1, 1]

logger = logging.getLogger(__name__)


def open_audio(source: AudioSource, rate: int = RATE) -> AudioStream:
    """A sound as a stream of blocks at `rate` Hz; close it, or use it as a context manager.

    Args:
        source: a path; the bytes of a sound file; a binary file object, read from its start and left open;
            or an array [samples] or [samples, channels], alone (then at `rate`) or as (array, its rate):
            floats in [-1, 1], or int8, uint8, int16, int32, which are scaled. A pipe is read as it comes and
            should carry WAV.
        rate: Hz, of the blocks.

    Raises:
        MediaError: it cannot be opened, is no sound, or its shape, type or rate is none that a sound has.
        DependencyError: soundfile (needed for files) or soxr (needed for other rates) is missing.
    """
    resources = ExitStack()
    try:
        return AudioStream(open_source(source, rate, resources), rate, resources)
    except BaseException:
        resources.close()
        raise


def read_clip(source: AudioSource, max_seconds: float | None = None, rate: int = RATE) -> Samples:
    """A whole sound, float32 [n] mono at `rate` Hz. Takes and raises what `open_audio` does.

    A sound longer than `max_seconds` is a MediaError, too, before much more than that is in memory.
    """
    blocks: list[Samples] = []
    count = 0
    with open_audio(source, rate) as stream:
        for block in stream:
            blocks.append(block)
            count += len(block)
            if max_seconds is not None and count > math.ceil(max_seconds * rate):
                length = "too long" if stream.duration is None else f"{stream.duration:.2f} s long"
                raise MediaError(
                    f"{stream.name} is {length}; expected at most {max_seconds:g} s: "
                    "cut it, or use `edge-gemma transcribe`, which takes any length"
                )
    return np.concatenate(blocks)


def fingerprint(samples: Samples) -> bytes:
    """16 bytes that tell this sound, float32 [n], from every other one."""
    return hashlib.blake2b(
        np.asarray(samples, np.float32).tobytes(), digest_size=16, person=b"audio"
    ).digest()


class AudioStream:
    """Blocks of a sound, float32 [n] mono at `rate`, about a second each, for one pass.

    Made by `open_audio`. Iterating raises MediaError where samples cannot be used, or if there are none.
    """

    def __init__(self, source: Source, rate: int, resources: ExitStack) -> None:
        self.name = source.name  # for messages
        self.rate = rate  # Hz
        self.duration = None if source.frames is None else source.frames / source.rate  # seconds
        self._source = source
        self._resources = resources
        self._resampler = None if source.rate == rate else _resampler(source.rate, rate)
        self._blocks = self._convert()

    @property
    def damage(self) -> str | None:
        """After the last block: why the sound ends before its file should, or None."""
        return self._source.damage

    def close(self) -> None:
        """Close what `open_audio` opened."""
        self._resources.close()

    def __iter__(self) -> Iterator[Samples]:
        return self

    def __next__(self) -> Samples:
        return next(self._blocks)

    def __enter__(self) -> AudioStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _convert(self) -> Iterator[Samples]:
        source, resampler = self._source, self._resampler
        taken = given = 0
        for block in source.blocks:
            _check(block, taken, source)
            taken += len(block)
            mono: Samples = block.mean(axis=1, dtype=np.float32)
            if resampler:
                mono = resampler.resample_chunk(mono)
            given += len(mono)
            if len(mono):
                yield mono.clip(-PEAK, PEAK)
        if source.frames is not None and taken < source.frames - source.slack and not source.damage:
            source.damage = f"its header promises {self.duration:.2f} s"
        reason = f" ({source.damage})" if source.damage else ""
        if taken == 0:
            raise MediaError(f"{self.name} holds no samples{reason}; expected a sound: record it again")
        if resampler:
            rest = resampler.resample_chunk(np.empty(0, np.float32), last=True)
            missing = math.ceil(taken * self.rate / source.rate) - given - len(rest)  # one, of rounding
            if missing > 0 or len(rest):
                yield np.pad(rest, (0, max(missing, 0))).clip(-PEAK, PEAK)
        if reason:
            logger.warning("%s ends after %.2f s%s", self.name, taken / source.rate, reason)


def _resampler(source_rate: float, rate: int) -> Any:
    try:
        import soxr
    except ImportError:
        raise DependencyError("resampling needs soxr: pip install 'edge-gemma[audio]'") from None
    return soxr.ResampleStream(source_rate, rate, 1, dtype="float32", quality="HQ")


def _check(block: Samples, first: int, source: Source) -> None:
    """MediaError if a block holds what is no sample; `first` is its place in the sound, in frames."""
    finite = np.isfinite(block)
    if not finite.all():
        at = first + int(np.argmin(finite.all(axis=1)))
        count = sum(int(np.sum(~np.isfinite(other))) for other in chain([block], source.blocks))
        raise MediaError(
            f"{source.name} has {count:,} samples that are not finite numbers, the first at "
            f"{at / source.rate:.3f} s (sample {at}); expected none: make the recording again"
        )
    if source.is_float and len(block) and (peak := np.abs(block).max()) > PEAK:
        raise MediaError(
            f"{source.name} has values up to {peak:g} near {first / source.rate:.0f} s; expected floats in "
            "[-1, 1]: divide by the full scale, such as 32768 for 16-bit samples"
        )
