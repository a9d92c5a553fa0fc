"""Recordings longer than a clip: order, times, progress, and memory that does not grow with them."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import srt

from edge_gemma.runtime.loading import load

RATE = 16_000
PEAK = """
import sys
from edge_gemma.cli import run
from edge_gemma.memory import peak_resident_bytes
status = run(sys.argv[1:])
print(peak_resident_bytes(), file=sys.stderr)
sys.exit(status)
"""


def write_recording(path: Path, minutes: int) -> None:
    """Bursts of noise of a second with pauses between; about five a sentence, a longer pause behind each."""
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", 44_100, 2) as file:
        for number in range(minutes * 60 // 6 * 4):
            loud = 0.2 * rng.standard_normal((44_100, 2))
            pause = 1e-5 * rng.standard_normal((44_100 // 4 if number % 4 < 3 else int(44_100 * 1.25), 2))
            file.write(np.concatenate([loud, pause]))


def transcribe(artifact: Path, recording: Path, output: Path) -> int:
    """Run the command in a process of its own; its peak resident memory in bytes."""
    options = ["--format", "srt", "--output", str(output), "--threads", "1", "--context", "512"]
    command = [sys.executable, "-c", PEAK, "transcribe", str(artifact), str(recording), *options]
    done = subprocess.run([*command, "--max-new-tokens", "3"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stderr.splitlines()[-1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs VmHWM")
def test_memory_is_flat(media_artifact: Path, tmp_path: Path) -> None:
    peaks = {}
    for minutes in (5, 20):  # the first few bring the C library's slack to what it comes to
        write_recording(tmp_path / "long.flac", minutes)
        peaks[minutes] = transcribe(media_artifact, tmp_path / "long.flac", tmp_path / f"{minutes}.srt")
    assert peaks[20] <= 1.05 * peaks[5]


class Record:
    """Adds up what is reported."""

    def __init__(self) -> None:
        self.totals: list[int] = []
        self.done: list[int] = []

    def stage(self, name: str, total: int) -> None:
        assert "long.wav" in name
        self.totals.append(total)
        self.done.append(0)

    def advance(self, amount: int = 1) -> None:
        assert amount >= 0
        self.done[-1] += amount


def test_segments_are_in_order_and_progress_adds_up(media_artifact: Path, tmp_path: Path) -> None:
    write_recording(tmp_path / "long.wav", 2)
    progress = Record()
    with load(media_artifact, threads=1, context=512) as model:
        options = {"max_new_tokens": 3, "progress": progress}
        found = model.transcribe(tmp_path / "long.wav", **options).segments
        assert len(found) > 8
        assert all(segment.start < segment.end <= segment.start + 30 for segment in found)
        assert all(a.end <= b.start for a, b in pairwise(found))
        assert found[-1].end == pytest.approx(120 - 1.25, abs=0.5)
        assert progress.totals == progress.done == [120]
        progress.done[-1] = 0
        next(model.transcribe_stream(tmp_path / "long.wav", **options))
        assert 0 < progress.done[-1] < 120


def test_what_is_not_asked_for_is_not_read(media_artifact: Path) -> None:
    """Segments come as they are known: an endless sound has a first one."""

    class Endless:
        def __iter__(self):  # type: ignore[no-untyped-def]
            rng = np.random.default_rng(0)
            while True:
                yield np.concatenate([0.2 * rng.standard_normal(2 * RATE), np.zeros(3 * RATE)]).astype("f")

    from edge_gemma.runtime.segments import split

    first = next(split(Endless(), max_seconds=30))
    assert first.end - first.start < 3


def test_srt_of_an_empty_recording_is_empty(media_artifact: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silence.wav", np.zeros(RATE, np.float32), RATE)
    transcribe(media_artifact, tmp_path / "silence.wav", tmp_path / "out.srt")
    assert list(srt.parse((tmp_path / "out.srt").read_text())) == []
