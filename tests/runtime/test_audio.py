"""Sounds of every kind, against librosa's reading of them."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
import threading
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from made import needs
from numpy.typing import NDArray

from edge_gemma.errors import MediaError
from edge_gemma.runtime.audio import PEAK, RATE, fingerprint, open_audio, read_clip

Samples = NDArray[np.float32]


def sound(seconds: float = 3.3, rate: int = 44_100, channels: int = 2) -> Samples:
    """A rising tone and some noise, another in every channel: float32 [n, channels]."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(0).standard_normal((len(time), channels)) * 0.02
    tone = [0.5 * np.sin(2 * np.pi * (200 + 100 * c + 300 * time) * time) for c in range(channels)]
    return (np.stack(tone, axis=1) + noise).astype(np.float32)


def encoded(samples: Samples, rate: int = 44_100, kind: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def by_librosa(data: bytes) -> Samples:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # audioread imports what Python 3.13 lacks
        samples, _ = needs("librosa").load(io.BytesIO(data), sr=RATE)
    return samples


def assert_equal(samples: Samples, expected: Samples) -> None:
    assert samples.dtype == np.float32 and samples.ndim == 1
    np.testing.assert_allclose(samples, expected, atol=2e-6, strict=True)


def refusal(source: Any) -> str:
    with pytest.raises(MediaError) as caught:
        read_clip(source)
    text = str(caught.value)
    assert "\n" not in text and "expected" in text and len(text) < 400
    return text


@contextmanager
def pipe(data: bytes) -> Iterator[IO[bytes]]:
    """The reading end of a pipe that someone writes data into."""
    reader, writer = os.pipe()

    def write() -> None:
        with os.fdopen(writer, "wb") as sink, suppress(BrokenPipeError):
            sink.write(data)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        with os.fdopen(reader, "rb") as source:
            yield source
    finally:
        thread.join()


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_any_rate_is_resampled_as_librosa_does(rate: int, channels: int) -> None:
    data = encoded(sound(3.3, rate, channels), rate)
    assert_equal(read_clip(data), by_librosa(data))


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        ("WAV", "PCM_U8"),
        ("WAV", "PCM_16"),
        ("WAV", "PCM_24"),
        ("WAV", "PCM_32"),
        ("WAV", "FLOAT"),
        ("WAV", "DOUBLE"),
        ("WAV", "ULAW"),
        ("WAV", "IMA_ADPCM"),
        ("FLAC", "PCM_16"),
        ("FLAC", "PCM_24"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", "MPEG_LAYER_III"),
        ("AIFF", "PCM_16"),
        ("AU", "PCM_16"),
        ("CAF", "PCM_16"),
        ("W64", "PCM_16"),
        ("RF64", "PCM_16"),
    ],
)
def test_any_format_is_read_as_librosa_does(kind: str, subtype: str) -> None:
    if not soundfile.check_format(kind, subtype):
        pytest.skip("not of this libsndfile")
    original = sound(3.3, 48_000)
    data = encoded(original, 48_000, kind, subtype)
    samples = read_clip(data)
    assert_equal(samples, by_librosa(data))
    expected = needs("librosa").resample(original.mean(axis=1), orig_sr=48_000, target_sr=RATE)
    if kind != "MP3":  # is delayed; ADPCM comes in whole blocks
        assert np.sqrt(np.mean((samples[: len(expected)] - expected) ** 2)) < 0.05


def test_every_kind_of_source(tmp_path: Path) -> None:
    samples = sound()
    data = encoded(samples, subtype="FLOAT")
    path = tmp_path / "ein Ton ü"
    path.write_bytes(data)
    file = io.BytesIO(data)
    file.read(1000)  # read from its start
    expected = by_librosa(data)
    with path.open("rb") as opened, pipe(data) as piped:
        for source in (
            path,
            str(path),
            data,
            file,
            opened,
            piped,
            (samples, 44_100),
            (samples, np.float64(44_100)),
        ):
            assert_equal(read_clip(source), expected)
        assert not opened.closed and not piped.closed and not file.closed


def test_blocks_of_a_second_and_the_length_in_advance() -> None:
    data = encoded(sound(12.34))
    with open_audio(data) as stream:
        assert stream.duration == pytest.approx(12.34)
        assert (stream.name, stream.rate, stream.damage) == ("the sound", RATE, None)
        blocks = list(stream)
    assert len(blocks) > 11 and max(map(len, blocks)) < 1.1 * RATE
    assert_equal(np.concatenate(blocks), by_librosa(data))
    assert list(stream) == []  # one pass


def test_the_length_of_what_comes_through_a_pipe_is_not_known() -> None:
    with pipe(encoded(sound())) as source, open_audio(source) as stream:
        assert stream.duration is None
        assert sum(map(len, stream)) == 52_800


def test_ffmpeg_does_not_know_the_length_of_what_it_pipes() -> None:
    data = bytearray(encoded(sound()))
    size = data.index(b"data") + 4
    data[4:8] = data[size : size + 4] = b"\xff" * 4
    with pipe(bytes(data)) as source:
        assert_equal(read_clip(source), by_librosa(encoded(sound())))


@pytest.mark.parametrize("frames", [1, 12_000, 30_263, 100_001])
def test_a_flac_file_that_does_not_tell_its_length_is_whole(frames: int) -> None:
    """Its writer could not go back to the header: the 36 bits of the length are zeros."""
    samples = sound(4, RATE, 1)[:frames]
    data = bytearray(encoded(samples, RATE, "FLAC", "PCM_16"))
    expected = read_clip(bytes(data))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    with open_audio(bytes(data), RATE) as stream:
        assert stream.duration is None
        found = np.concatenate(list(stream))
        assert stream.damage is None
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["FLAC", "MP3", "CAF"])
def test_what_no_pipe_can_carry(kind: str) -> None:
    with pipe(encoded(sound(1), kind=kind)) as source:
        assert "expected WAV in a pipe" in refusal(source)


def test_what_comes_as_it_is_recorded() -> None:
    """The first block is there while the writer still writes."""
    data = encoded(sound(2, RATE, 1), RATE)  # less than a pipe holds
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as source, os.fdopen(writer, "wb") as sink:
        sink.write(data[: 44 + 2 * RATE])
        sink.flush()
        with open_audio(source) as stream:
            assert len(next(stream)) == RATE
            sink.write(data[44 + 2 * RATE :])
            sink.close()
            assert sum(map(len, stream)) == RATE


def test_another_rate() -> None:
    samples = sound(2, 8_000, 1)[:, 0]
    expected = needs("librosa").resample(samples, orig_sr=16_000, target_sr=8_000)
    assert_equal(read_clip((samples, 16_000), rate=8_000), expected)
    assert_equal(read_clip(samples, rate=8_000), samples)


@settings(max_examples=60)
@given(st.integers(1, 40_000), st.integers(1_000, 60_000), st.integers(1, 3))
def test_any_length_is_kept(frames: int, rate: int, channels: int) -> None:
    if channels > 1 and frames <= channels:
        return
    samples = np.full((frames, channels), 0.25, np.float32)
    clip = read_clip((samples, rate))
    assert abs(len(clip) - frames * RATE / rate) <= 1
    expected = needs("librosa").resample(samples.mean(axis=1), orig_sr=rate, target_sr=RATE)
    assert abs(len(clip) - len(expected)) <= 1  # of rounding, which librosa fills with silence
    assert_equal(clip[: len(expected)], expected[: len(clip)])


def test_no_drift_and_no_gaps_in_ten_minutes() -> None:
    """Clicks stay where they are, at block borders as well."""
    rate, seconds = 44_100, 600
    samples = np.zeros(rate * seconds, np.int16)
    places = np.arange(rate // 2, len(samples), rate // 2)  # at and between the borders
    samples[places] = 30_000
    clip = read_clip((samples, rate))
    assert len(clip) == seconds * RATE
    found = np.abs(clip).reshape(-1, RATE // 2)
    shifted = np.abs(np.roll(clip, RATE // 4)).reshape(-1, RATE // 2)
    assert (shifted[1:].argmax(axis=1) == RATE // 4).all()
    assert np.ptp(shifted[1:].max(axis=1)) < 1e-3
    assert found.max() > 0.2


def test_silence_and_the_shortest_sounds() -> None:
    assert not read_clip(encoded(np.zeros((44_100, 2), np.float32))).any()
    assert len(read_clip(encoded(sound(0.01)))) == 160
    assert len(read_clip((np.ones(1, np.float32), 48_000))) == 1


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (np.int8, [-128, 0, 64]),
        (np.uint8, [0, 128, 192]),
        (np.int16, [-(1 << 15), 0, 1 << 14]),
        (">i2", [-(1 << 15), 0, 1 << 14]),
        (np.int32, [-(1 << 31), 0, 1 << 30]),
        (np.float16, [-1, 0, 0.5]),
        (np.float64, [-1, 0, 0.5]),
    ],
)
def test_arrays_of_every_type(dtype: Any, values: list[float]) -> None:
    array = np.array(values, dtype)
    assert_equal(read_clip(array), np.array([-1, 0, 0.5], np.float32))
    assert_equal(read_clip(np.stack([array] * 2, axis=1)), np.array([-1, 0, 0.5], np.float32))
    assert (array == np.array(values, dtype)).all()


def test_overs_are_kept_and_can_be_read_again() -> None:
    samples = np.array([1.2, -1.9, 0.1], np.float32)
    assert_equal(read_clip(samples), samples)
    square = np.sign(np.sin(np.arange(48_000) / 9)).astype(np.float32) * 1.9
    clip = read_clip((square, 48_000))
    assert np.abs(clip).max() == PEAK  # resampling goes beyond
    assert_equal(read_clip(clip), clip)


nan, inf = np.nan, np.inf
ZEROS = np.zeros(50, np.float32)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros(0), "holds no samples"),
        (np.zeros((0, 2)), "holds no samples"),
        (
            np.zeros((2, 16_000)),
            r"shape \(2, 16000\); expected \[samples\] or \[samples, channels\]: transpose",
        ),
        (np.zeros((1, 16_000)), r"\(1, 16000\).*squeeze"),
        (np.zeros((3, 3)), r"\(3, 3\)"),
        (np.zeros((9, 0)), r"\(9, 0\)"),
        (np.zeros((9, 2, 2)), r"\(9, 2, 2\)"),
        (np.float32([[[1]]])[0, 0, 0], "float32; expected a path"),
        (np.array(1.0), r"shape \(\)"),
        (np.zeros(9, complex), "array of complex128; expected floats"),
        (np.zeros(9, bool), "array of bool"),
        (np.zeros(9, np.int64), "array of int64; expected .*int16"),
        (np.zeros(9, np.uint16), "array of uint16"),
        (np.array([None] * 9), "array of object"),
        (np.array(["a"] * 9), "array of <U1"),
        (np.array([0, 300, -32_000.0]), "values up to 32000 .* divide"),
        (np.array([0, 2.1]), "values up to 2.1 "),
        (np.array([1e300]), "1 samples that are not finite"),
        ((ZEROS, 0), "rate of 0 Hz; expected 1,000 to 768,000"),
        ((ZEROS, 999), "rate of 999 Hz"),
        ((ZEROS, 768_001), "rate of 768001 Hz"),
        ((ZEROS, -16_000), "rate of -16000 Hz"),
        ((ZEROS, nan), "rate of nan Hz"),
        ((ZEROS, inf), "rate of inf Hz"),
        ((ZEROS, "16000"), "tuple.*expected .*tuple \\(array, sample rate\\)"),
        ((ZEROS, True), "tuple"),
        ((16_000, ZEROS), "tuple"),
        ((ZEROS,), "tuple"),
        ([0.0, 0.1], "list"),
        (None, "NoneType"),
        (io.StringIO("x"), "StringIO"),
        (b"", "an empty file"),
        (b"RIFF", "expected WAV, FLAC, OGG"),
        (b"hello world " * 99, "not recognised.*ffmpeg"),
        (encoded(np.zeros((0, 1), np.float32)), "holds no samples"),
        (encoded(ZEROS, 500), "rate of 500 Hz"),
        (encoded(ZEROS, 800_000), "rate of 800000 Hz"),
        (encoded(ZEROS + 300, subtype="FLOAT"), "values up to 300 "),
        ("no/such.wav", "no/such.wav cannot be opened: No such file.*check the path"),
        ("https://example.org/a.wav", "download it first"),
        ("a\0b", "null"),
        ("x" * 5000, "xxx… cannot be opened"),
    ],
)
def test_refusals(source: Any, message: str) -> None:
    text = refusal(source)
    assert re.search(message, text), text


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Is a directory" in refusal(tmp_path)
    text = tmp_path / "text.wav"
    text.write_text("not a sound at all " * 99)
    assert "text.wav cannot be read as a sound (Format not recognised)" in refusal(text)
    with text.open() as opened:
        assert "TextIOWrapper" in refusal(opened)
    empty = tmp_path / "empty.flac"
    empty.touch()
    assert "an empty file" in refusal(empty)
    raw = tmp_path / "samples.raw"
    raw.write_bytes(b"12" * 999)
    assert "not recognised" in refusal(raw)  # by its name, soundfile would ask for a rate

    def deny(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)  # root may read everything
    assert "text.wav cannot be opened: Permission denied" in refusal(text)


def test_a_stream_that_cannot_seek() -> None:
    class Socket(io.RawIOBase):
        def readable(self) -> bool:
            return True

    assert "cannot seek and is no pipe; expected a file: pass the bytes" in refusal(Socket())


def test_a_member_of_a_zip() -> None:
    data, packed = encoded(sound()), io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.wav", data)
    with zipfile.ZipFile(packed) as archive, archive.open("a.wav") as member:
        assert_equal(read_clip(member), by_librosa(data))


@pytest.mark.parametrize("as_file", [False, True])
def test_samples_that_are_no_numbers_are_counted_and_located(as_file: bool) -> None:
    samples = np.zeros((50_000, 2), np.float32)
    samples[20_000, 1] = nan
    samples[40_000] = inf, -inf
    source = encoded(samples, RATE, subtype="FLOAT") if as_file else samples
    assert "3 samples that are not finite numbers, the first at 1.250 s (sample 20000)" in refusal(source)
    with open_audio(source) as stream:
        assert len(next(stream)) == RATE  # what comes before is good
        with pytest.raises(MediaError):
            next(stream)


def test_what_is_decoded_before_a_failure_is_all_given() -> None:
    data = encoded(sound(5.5, RATE, 1), RATE, "FLAC")
    data = data[: len(data) // 2]
    frames = 0
    with soundfile.SoundFile(io.BytesIO(data)) as file, pytest.raises(soundfile.LibsndfileError):
        while len(file.read(10)):
            frames += 10
    assert frames % RATE > 1000  # not at the border of a block
    assert len(read_clip(data)) == pytest.approx(frames, abs=10)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "AU"])
def test_a_truncated_file_gives_what_is_there(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    data = encoded(sound(20), kind=kind)
    whole = read_clip(data)
    with caplog.at_level(logging.WARNING), open_audio(data[: len(data) // 2]) as stream:
        part = np.concatenate(list(stream))
    assert 6 * RATE < len(part) < 14 * RATE
    # soxr looks a little ahead; the last frame of an MP3 is damaged
    same = len(part) - 4000
    np.testing.assert_allclose(part[:same], whole[:same], atol=2e-6)
    if kind != "OGG":  # its end is not told by its beginning
        assert stream.damage is not None
        assert f"the sound ends after {len(part) / RATE:.2f} s ({stream.damage})" in caplog.text
    else:
        assert stream.damage is None and not caplog.text


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "AU"])
def test_a_tenth_of_a_second_that_is_missing_is_told(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Of files whose header says exactly how long they are."""
    data = encoded(sound(1.5, RATE, 1), RATE, kind)
    for missing, told in ((RATE // 10, True), (RATE // 100, False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert len(read_clip(data[: len(data) - 2 * missing])) == len(sound(1.5, RATE, 1)) - missing
        assert ("its header promises 1.50 s" in caplog.text) == told


@pytest.mark.parametrize("size", [0x7FFF_FFFF, 0xFFFF_FFFF])
def test_a_wav_file_whose_writer_could_not_say_its_length_is_whole(size: int) -> None:
    data = bytearray(encoded(sound(3, RATE, 1), RATE))
    at = data.index(b"data") + 4
    data[at : at + 4] = size.to_bytes(4, "little")
    with open_audio(bytes(data)) as stream:
        assert sum(map(len, stream)) == 3 * RATE
    assert (stream.duration, stream.damage) == (3.0, None)


def test_a_file_damaged_from_the_start_is_refused() -> None:
    data = bytearray(encoded(sound(3), kind="FLAC"))
    data[2000:] = bytes(len(data) - 2000)
    with pytest.raises(MediaError, match="holds no samples|cannot be read"):
        read_clip(bytes(data[:3000]))


@settings(max_examples=80)
@given(st.sampled_from(["WAV", "FLAC", "OGG", "AIFF"]), st.data())
def test_damaged_files_are_read_or_refused(kind: str, data: st.DataObject) -> None:
    content = bytearray(encoded(sound(0.5, 16_000, 1), 16_000, kind))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, min(len(content) - 1, 200)))] = data.draw(st.integers(0, 255))
    try:
        clip = read_clip(bytes(content))
    except MediaError as error:
        assert "\n" not in str(error)
    else:
        assert len(clip) and np.isfinite(clip).all()


def test_the_longest_clip() -> None:
    samples = sound(2, 44_100)
    assert len(read_clip((samples, 44_100), 2)) == 2 * RATE
    with pytest.raises(MediaError, match="the sound is 2.00 s long; expected at most 1.9 s: cut it"):
        read_clip((samples, 44_100), 1.9)
    with pipe(encoded(samples)) as source, pytest.raises(MediaError, match="too long; expected at most 1 s"):
        read_clip(source, 1)


def test_fingerprints() -> None:
    clip = read_clip(encoded(sound()))
    assert fingerprint(clip) == fingerprint(clip.copy()) and len(fingerprint(clip)) == 16
    changed = clip.copy()
    changed[100] += 1e-6
    assert fingerprint(changed) != fingerprint(clip)
    assert fingerprint(clip[:-1]) != fingerprint(clip)
    assert fingerprint(clip[::2]) == fingerprint(clip[::2].copy())


def test_closing_leaves_no_file_open(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(encoded(sound()))
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    stream = open_audio(path)
    next(stream)
    stream.close()
    (tmp_path / "b.wav").write_bytes(encoded(ZEROS, 500))
    refusal(tmp_path / "b.wav")
    assert (os.listdir("/proc/self/fd") if before else []) == before


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_the_packages() -> None:
    code = """
import sys; sys.modules["soundfile"] = sys.modules["soxr"] = None
import numpy as np
from edge_gemma.errors import DependencyError
from edge_gemma.runtime.audio import read_clip
print(len(read_clip(np.zeros(9))))
for source in (b"x", (np.zeros(9), 8000)):
    try: read_clip(source)
    except DependencyError as error: print(error)
"""
    assert python(code).splitlines() == [
        "9",
        "sound files need soundfile: pip install 'edge-gemma[audio]'",
        "resampling needs soxr: pip install 'edge-gemma[audio]'",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_long_file_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    minute = (sound(60) * 0.5 * (1 << 15)).astype(np.int16)
    with soundfile.SoundFile(path, "w", 44_100, 2, "PCM_16") as file:
        for _ in range(10):
            file.write(minute)
    code = f"""
from edge_gemma.memory import peak_resident_bytes as peak
from edge_gemma.runtime.audio import open_audio
with open_audio({str(path)!r}) as stream:
    count = sum(len(next(stream)) for _ in range(20))
    before = peak()
    count += sum(map(len, stream))
    print(count, stream.duration, peak() - before)
"""
    count, duration, grown = python(code).split()
    assert (int(count), float(duration)) == (600 * RATE, 600)
    assert int(grown) < 4 << 20
