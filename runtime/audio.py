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
import io
import logging
import math
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np

from edge_gemma.errors import DependencyError, MediaError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Samples: TypeAlias = NDArray[np.float32]
    # A path; the bytes of a file; a file open for reading; samples; samples and their rate.
    AudioSource: TypeAlias = str | Path | bytes | IO[bytes] | NDArray[Any] | tuple[NDArray[Any], float]

RATE = 16_000  # Hz
LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000  # Hz, of a source
PEAK = 2.0  # +6 dB: overs stay below it; float sources with values beyond it are not meant for [-1, 1]
BLOCK_VALUES = 1 << 20  # most values in a block, all channels
FORMATS = ("WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "W64")  # those of libsndfile worth naming
NO_PIPE = ("MP3", "CAF")  # libsndfile opens them on a pipe, and loses samples
FULL_SCALE = {"i1": 1 << 7, "u1": 1 << 7, "i2": 1 << 15, "i4": 1 << 31}

logger = logging.getLogger(__name__)


@dataclass
class _Source:
    """Where samples come from; `blocks` gives float32 [frames, channels] as they are stored."""

    name: str
    rate: float  # Hz
    channels: int
    frames: int | None  # None where only the end will tell
    is_float: bool  # stored as floats, so that they may have any scale
    blocks: Iterator[Samples] = iter(())
    damage: str | None = None

    def __post_init__(self) -> None:
        if not LOWEST_RATE <= self.rate <= HIGHEST_RATE:  # so for NaN, too
            raise MediaError(
                f"{self.name} has a sample rate of {self.rate:g} Hz; expected {LOWEST_RATE:,} to "
                f"{HIGHEST_RATE:,}: state the rate it was recorded at"
            )
        self.block_frames = max(1, min(int(self.rate), BLOCK_VALUES // self.channels))


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
        return AudioStream(_open_source(source, rate, resources), rate, resources)
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

    def __init__(self, source: _Source, rate: int, resources: ExitStack) -> None:
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
        if source.frames is not None and taken < source.frames - source.rate and not source.damage:
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


def _check(block: Samples, first: int, source: _Source) -> None:
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


def _open_source(source: object, rate: float, resources: ExitStack) -> _Source:
    if isinstance(source, np.ndarray):
        return _open_array(source, rate)
    if isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], np.ndarray):
        own_rate = source[1]
        if isinstance(own_rate, (int, float, np.number)) and not isinstance(own_rate, bool):
            return _open_array(source[0], float(own_rate))
    if isinstance(source, (str, Path)):
        return _open_path(source, resources)
    if isinstance(source, bytes) or hasattr(source, "read") and not isinstance(source, io.TextIOBase):
        name = getattr(source, "name", None)
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        return _open_stream(file, name if isinstance(name, str) else "the sound", resources)
    raise MediaError(
        f"the sound is a {type(source).__name__}; expected a path, bytes, a binary file, a numpy array, "
        "or a tuple (array, sample rate)"
    )


def _open_array(array: NDArray[Any], rate: float) -> _Source:
    name, kind = "the sound", f"{array.dtype.kind}{array.dtype.itemsize}"
    scale = FULL_SCALE.get(kind)
    if scale is None and array.dtype.kind != "f":
        raise MediaError(
            f"{name} is an array of {array.dtype}; expected floats in [-1, 1], or int8, uint8, int16, int32"
        )
    frames, channels = (*array.shape, 1)[:2] if array.ndim in (1, 2) else (0, 0)
    if channels == 0 or 1 <= frames <= channels > 1:
        raise MediaError(
            f"{name} is an array of shape {array.shape}; expected [samples] or [samples, channels]: "
            "transpose or squeeze it"
        )
    source = _Source(name, rate, channels, frames, scale is None)

    def blocks() -> Iterator[Samples]:
        for start in range(0, frames, source.block_frames):
            with np.errstate(over="ignore"):  # becomes infinite, and is found
                block = array[start : start + source.block_frames].astype(np.float32).reshape(-1, channels)
            if kind == "u1":
                block -= 128
            yield block / np.float32(scale) if scale else block

    source.blocks = blocks()
    return source


def _open_path(path: str | Path, resources: ExitStack) -> _Source:
    name = str(path) if len(str(path)) <= 200 else f"{str(path)[:60]}…"
    try:
        file = resources.enter_context(Path(path).open("rb"))  # noqa: SIM115
    except (OSError, ValueError) as error:  # ValueError: a null character
        hint = "download it first" if "://" in name else "check the path"
        raise MediaError(
            f"{name} cannot be opened: {getattr(error, 'strerror', error)}; expected a sound file: {hint}"
        ) from None
    return _open_stream(file, name, resources)


def _open_stream(file: Any, name: str, resources: ExitStack) -> _Source:
    """A binary file object; a pipe is left to libsndfile, by its descriptor."""
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: no libsndfile
        raise DependencyError("sound files need soundfile: pip install 'edge-gemma[audio]'") from None
    pipe = not file.seekable()
    if pipe and not _is_pipe(file):
        raise MediaError(f"{name} cannot seek and is no pipe; expected a file: pass the bytes it gives")
    try:
        readable = file.fileno() if pipe else _Quiet(file)
        sound = resources.enter_context(soundfile.SoundFile(readable, closefd=False))
        problem = f"{sound.format} in a pipe" if pipe and sound.format in NO_PIPE else None
    except soundfile.LibsndfileError as error:
        problem = "an empty file" if not pipe and file.seek(0, os.SEEK_END) == 0 else _reason(error)
    if problem:
        known = ", ".join(kind for kind in FORMATS if kind in soundfile.available_formats())
        raise MediaError(
            f"{name} cannot be read as a sound ({problem}); expected {'WAV in a pipe' if pipe else known}: "
            f"convert it with `ffmpeg -i INPUT -ac 1 -ar 16000 {'-f wav - |' if pipe else 'sound.wav'}`"
        )
    frames = None if pipe else sound.frames
    is_float = sound.subtype in ("FLOAT", "DOUBLE")
    source = _Source(name, sound.samplerate, sound.channels, frames, is_float)
    source.blocks = _file_blocks(sound, source)
    return source


class _Quiet:
    """A file that never raises: soundfile calls it from C, where exceptions are printed and lost."""

    def __init__(self, file: IO[bytes]) -> None:
        file.seek(0)
        self._file = file
        self.tell = file.tell

    def seek(self, offset: int, whence: int) -> None:
        with suppress(OSError, ValueError):  # damaged files send it anywhere
            self._file.seek(offset, whence)

    def read(self, size: int) -> bytes:
        with suppress(OSError, ValueError):
            return self._file.read(size)
        return b""


def _is_pipe(file: Any) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(file.fileno()).st_mode)
    except (OSError, AttributeError):
        return False


def _file_blocks(sound: Any, source: _Source) -> Iterator[Samples]:
    """float32 [frames, channels], a second each; where the decoder fails they end, and damage is set."""
    import soundfile

    taken, size = 0, source.block_frames
    while not source.damage:
        block = np.empty((size, sound.channels), np.float32)
        try:
            got = len(sound.read(out=block))
        except soundfile.LibsndfileError as error:
            source.damage = _reason(error)
            got = 0
            with suppress(soundfile.LibsndfileError):
                got = min(max(sound.tell() - taken, 0), size)  # of this block, before the failure
        if got == 0:
            return
        taken += got
        yield block[:got]


def _reason(error: Exception) -> str:
    """libsndfile's words: "Error : flac decoder lost sync." → "flac decoder lost sync"."""
    return getattr(error, "error_string", str(error)).removeprefix("Error : ").strip(" .")
