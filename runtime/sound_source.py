"""Where sounds come from: paths, bytes, open files and arrays, in blocks as they are stored."""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np

from edge_gemma.errors import DependencyError, MediaError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Samples: TypeAlias = NDArray[np.float32]
    # A path; the bytes of a file; a file open for reading; samples; samples and their rate.
    AudioSource: TypeAlias = str | Path | bytes | IO[bytes] | NDArray[Any] | tuple[NDArray[Any], float]

LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000  # Hz, of a source
BLOCK_VALUES = 1 << 20  # most values in a block, all channels
FORMATS = ("WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "W64")  # those of libsndfile worth naming
UNKNOWN = 0x7FFF_0000  # bytes; from here on headers of WAV mean that their writer could not go back to them
EXACT, ESTIMATED = 0.05, 1.0  # seconds: by how much the length in a header may be wrong
UNTOLD = 1 << 62  # frames; of a FLAC file whose writer could not go back to its header
TELLING = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU")  # exactly how long they are
CUT_OFF = r"^ *(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)"
NO_PIPE = ("MP3", "CAF")  # libsndfile opens them on a pipe, and loses samples
FULL_SCALE = {"i1": 1 << 7, "u1": 1 << 7, "i2": 1 << 15, "i4": 1 << 31}


@dataclass
class Source:
    """Where samples come from; `blocks` gives float32 [frames, channels] as they are stored."""

    name: str
    rate: float  # Hz
    channels: int
    frames: int | None  # None where only the end will tell
    is_float: bool  # stored as floats, so that they may have any scale
    blocks: Iterator[Samples] = iter(())
    damage: str | None = None
    slack: float = 0.0  # frames that may be missing at the end, where `frames` is an estimate

    def __post_init__(self) -> None:
        if not LOWEST_RATE <= self.rate <= HIGHEST_RATE:  # so for NaN, too
            raise MediaError(
                f"{self.name} has a sample rate of {self.rate:g} Hz; expected {LOWEST_RATE:,} to "
                f"{HIGHEST_RATE:,}: state the rate it was recorded at"
            )
        self.block_frames = max(1, min(int(self.rate), BLOCK_VALUES // self.channels))


def open_source(source: object, rate: float, resources: ExitStack) -> Source:
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


def _open_array(array: NDArray[Any], rate: float) -> Source:
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
    source = Source(name, rate, channels, frames, scale is None)

    def blocks() -> Iterator[Samples]:
        for start in range(0, frames, source.block_frames):
            with np.errstate(over="ignore"):  # becomes infinite, and is found
                block = array[start : start + source.block_frames].astype(np.float32).reshape(-1, channels)
            if kind == "u1":
                block -= 128
            yield block / np.float32(scale) if scale else block

    source.blocks = blocks()
    return source


def _open_path(path: str | Path, resources: ExitStack) -> Source:
    name = str(path) if len(str(path)) <= 200 else f"{str(path)[:60]}…"
    try:
        file = resources.enter_context(Path(path).open("rb"))  # noqa: SIM115
    except (OSError, ValueError) as error:  # ValueError: a null character
        hint = "download it first" if "://" in name else "check the path"
        raise MediaError(
            f"{name} cannot be opened: {getattr(error, 'strerror', error)}; expected a sound file: {hint}"
        ) from None
    return _open_stream(file, name, resources)


def _open_stream(file: Any, name: str, resources: ExitStack) -> Source:
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
    frames = None if pipe else max(sound.frames, _promised(sound))
    if sound.frames >= UNTOLD:  # soundfile would seek behind each block, which fails at the end
        frames, sound.seekable = None, lambda: False
    is_float = sound.subtype in ("FLOAT", "DOUBLE")
    source = Source(name, sound.samplerate, sound.channels, frames, is_float)
    source.slack = source.rate * (EXACT if sound.format in TELLING else ESTIMATED)
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


def _promised(sound: Any) -> int:
    """Frames of a cut-off file, by its header where that tells; otherwise 0. libsndfile only logs it."""
    found = re.search(CUT_OFF, sound.extra_info, re.MULTILINE)
    promised, there = map(int, found.groups()) if found else (0, 0)
    if there < 1 or promised >= UNKNOWN:
        return 0
    frames: int = sound.frames
    return round(frames * promised / there)


def _file_blocks(sound: Any, source: Source) -> Iterator[Samples]:
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
