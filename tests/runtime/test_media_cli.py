"""transcribe, translate, describe, and media of run and chat: what is written, and what an error leaves."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import soundfile
import srt
import webvtt
from PIL import Image

from edge_gemma.cli import run
from edge_gemma.errors import EdgeGemmaError, MediaError
from edge_gemma.runtime import segments, speech
from edge_gemma.runtime.loading import load
from edge_gemma.runtime.speech import SpeechSegment, Transcript

RATE = 16_000
FAST = ("--threads", "1", "--context", "512", "--max-new-tokens", "4")


def words(*spans: tuple[float, float], seconds: float) -> np.ndarray:
    """Loud noise in each span, near silence between: float32 [samples]."""
    rng = np.random.default_rng(0)
    samples = 1e-5 * rng.standard_normal(round(seconds * RATE))
    for start, end in spans:
        here = slice(round(start * RATE), round(end * RATE))
        samples[here] = 0.2 * rng.standard_normal(here.stop - here.start)
    return samples.astype(np.float32)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Three stretches of sound, far apart."""
    path = tmp_path / "three.wav"
    soundfile.write(path, words((1, 3), (7, 9), (13, 16), seconds=18), RATE)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def pipe(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8"))

    return pipe


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes every segment's answer a word; the random model's are seldom text."""
    answers = ["one", "two", "three", "four", "five", "six"]
    real = speech._ask

    def ask(model: Any, source: Any, prompt: str, read: Any, *rest: Any) -> Iterator[SpeechSegment]:
        left = iter(answers)
        return real(model, source, prompt, lambda _, start, end: read(next(left), start, end), *rest)

    monkeypatch.setattr(speech, "_ask", ask)
    return answers


def test_text(media_artifact: Path, recording: Path, spoken: list[str], capsys: Any) -> None:
    assert run(["transcribe", str(media_artifact), str(recording), *FAST]) == 0
    assert capsys.readouterr() == ("one\ntwo\nthree\n", "")


def test_json(media_artifact: Path, recording: Path, spoken: list[str], capsys: Any) -> None:
    assert run(["transcribe", str(media_artifact), str(recording), "--format", "json", *FAST]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["file"] == str(recording) and found["complete"] is True and found["text"] == "one two three"
    assert [segment["text"] for segment in found["segments"]] == ["one", "two", "three"]
    for segment, (start, end) in zip(found["segments"], ((1, 3), (7, 9), (13, 16)), strict=True):
        assert abs(segment["start"] - start) < 0.3 and abs(segment["end"] - end) < 0.3


def test_srt_and_vtt(media_artifact: Path, recording: Path, spoken: list[str], tmp_path: Path) -> None:
    for layout in ("srt", "vtt"):
        arguments = ["--format", layout, "--output", str(tmp_path / f"out.{layout}")]
        assert run(["transcribe", str(media_artifact), str(recording), *arguments, *FAST]) == 0
    cues = list(srt.parse((tmp_path / "out.srt").read_text(), ignore_errors=False))
    assert [cue.content for cue in cues] == ["one", "two", "three"]
    assert [cue.index for cue in cues] == [1, 2, 3]
    captions = webvtt.read(str(tmp_path / "out.vtt")).captions
    assert [caption.text for caption in captions] == ["one", "two", "three"]
    assert [round(cue.start.total_seconds(), 2) for cue in cues] == [
        round(caption.start_in_seconds + caption.start_time.milliseconds / 1000, 2) for caption in captions
    ]


def test_translation(
    media_artifact: Path, recording: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    asked = []
    real = speech._ask

    def ask(model: Any, source: Any, prompt: str, read: Any, *rest: Any) -> Iterator[SpeechSegment]:
        asked.append(prompt)
        answer = "uno\nGerman: eins"
        return real(model, source, prompt, lambda _, start, end: read(answer, start, end), *rest)

    monkeypatch.setattr(speech, "_ask", ask)
    arguments = ["--to", "de", "--from", "es", "--format", "json"]
    assert run(["translate", str(media_artifact), str(recording), *arguments, *FAST]) == 0
    first = json.loads(capsys.readouterr().out)["segments"][0]
    assert (first["text"], first["transcription"]) == ("eins", "uno")
    assert "Spanish, then translate it into German" in asked[0]


def test_several_files_and_a_bad_one(
    media_artifact: Path, recording: Path, spoken: list[str], tmp_path: Path, capsys: Any
) -> None:
    """The bad one is reported; the others have their turn; the exit status is that of the error."""
    (tmp_path / "bad.wav").write_text("not a sound")
    files = [str(recording), str(tmp_path / "bad.wav"), str(recording)]
    assert run(["transcribe", str(media_artifact), *files, *FAST]) == 2
    out, err = capsys.readouterr()
    assert out.count("one\ntwo\nthree\n") == 2 and out.count("==> ") == 3
    assert err.startswith("error: ") and "bad.wav" in err and err.count("\n") == 1


def test_a_folder_of_subtitles(
    media_artifact: Path, recording: Path, spoken: list[str], tmp_path: Path, capsys: Any
) -> None:
    other = tmp_path / "other.wav"
    other.write_bytes(recording.read_bytes())
    pattern = str(tmp_path / "*.wav")  # as a quoted glob comes
    assert run(["transcribe", str(media_artifact), pattern, "--format", "srt", *FAST]) == 2
    assert "give --output a folder" in capsys.readouterr().err
    output = ["--output", f"{tmp_path / 'out'}/"]
    assert run(["transcribe", str(media_artifact), pattern, "--format", "srt", *output, *FAST]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["other.srt", "three.srt"]


def test_nothing_is_overwritten_that_was_not_meant(
    media_artifact: Path, recording: Path, spoken: list[str], tmp_path: Path, capsys: Any
) -> None:
    command = ["transcribe", str(media_artifact), *FAST, "--output"]
    sound = recording.read_bytes()
    (tmp_path / "first.wav").write_bytes(sound)
    # the second as the shell expands `-o *.wav`, a forgotten name behind -o
    for files in ([recording, recording], [recording, tmp_path / "first.wav"]):
        assert run([*command, *map(str, files)]) == 2
        assert "is a recording: name another file to write to" in capsys.readouterr().err
        assert recording.read_bytes() == sound
    assert run([*command, str(tmp_path / "none" / "said.txt"), str(recording)]) == 2
    assert f"there is no folder {tmp_path / 'none'}" in capsys.readouterr().err

    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / "three.mp3"
    assert run([*command, str(out), str(recording), str(twin)]) == 2
    assert f"{recording} and {twin} would both be written to {out / 'three.txt'}" in capsys.readouterr().err
    assert not list(out.iterdir())


@pytest.mark.parametrize("layout", ["text", "srt", "vtt"])
def test_what_cannot_be_read_costs_no_file(
    media_artifact: Path, recording: Path, spoken: list[str], tmp_path: Path, layout: str
) -> None:
    target, command = tmp_path / "said", ["transcribe", str(media_artifact), *FAST, "--format", layout, "-o"]
    assert run([*command, str(target), str(tmp_path / "missing.wav")]) == 2
    assert not target.exists()
    target.write_text("what was said " * 100)
    assert run([*command, str(target), str(tmp_path / "missing.wav")]) == 2
    assert target.read_text() == "what was said " * 100
    assert run([*command, str(target), str(recording)]) == 0
    assert "one" in target.read_text() and "what was said" not in target.read_text()


def test_standard_input(
    media_artifact: Path, recording: Path, spoken: list[str], stdin: Callable[[bytes], None], capsys: Any
) -> None:
    stdin(recording.read_bytes())
    assert run(["transcribe", str(media_artifact), "-", *FAST]) == 0
    assert capsys.readouterr().out == "one\ntwo\nthree\n"


@pytest.mark.parametrize("layout", ["text", "json", "srt"])
def test_an_error_in_the_middle_loses_nothing(
    media_artifact: Path,
    recording: Path,
    spoken: list[str],
    layout: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    real = segments.split

    def split(*arguments: Any, **options: Any) -> Iterator[segments.Segment]:
        cut = real(*arguments, **options)
        yield next(cut)
        yield next(cut)
        raise MediaError("the rest cannot be read")

    monkeypatch.setattr(speech, "AHEAD", 1)
    monkeypatch.setattr(segments, "split", split)
    assert run(["transcribe", str(media_artifact), str(recording), "--format", layout, *FAST]) == 2
    out, err = capsys.readouterr()
    assert err == "error: the rest cannot be read\n"
    if layout == "json":
        found = json.loads(out)
        assert found["complete"] is False and found["text"] == "one two"
    else:
        assert "one" in out and "two" in out and "three" not in out


@pytest.mark.parametrize("layout", ["text", "json"])
def test_interrupted(
    media_artifact: Path,
    recording: Path,
    spoken: list[str],
    layout: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    spoken[:] = ["one"]  # the second segment finds no answer
    monkeypatch.setattr(speech, "AHEAD", 1)
    real = speech._ask

    def ask(*arguments: Any) -> Iterator[SpeechSegment]:
        yield next(found := real(*arguments))
        found.close()  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(speech, "_ask", ask)
    assert run(["transcribe", str(media_artifact), str(recording), "--format", layout, *FAST]) == 130
    out, err = capsys.readouterr()
    assert err.strip() == "interrupted" and "one" in out
    assert layout == "text" or json.loads(out)["complete"] is False


def test_silence_has_no_text(media_artifact: Path, tmp_path: Path, capsys: Any) -> None:
    soundfile.write(tmp_path / "silence.wav", np.zeros(3 * RATE, np.float32), RATE)
    assert run(["transcribe", str(media_artifact), str(tmp_path / "silence.wav"), *FAST]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_wrong_language_is_refused_before_loading(recording: Path, capsys: Any) -> None:
    assert run(["transcribe", "nowhere", str(recording), "--language", "xx"]) == 2
    assert "'xx' is not a known language code" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["transcribe", "translate", "describe"])
def test_missing_files(media_artifact: Path, command: str, capsys: Any) -> None:
    for name in ("nothing.xyz", "nothing*.xyz"):
        assert run([command, str(media_artifact), name, *FAST]) == 2
        out, err = capsys.readouterr()
        assert out == "" and name in err and err.count("\n") == 1


def test_the_library_gives_transcripts(media_artifact: Path, recording: Path, spoken: list[str]) -> None:
    with load(media_artifact, threads=1, context=512) as model:
        found = model.transcribe(str(recording), "en", max_new_tokens=4)
        assert isinstance(found, Transcript) and found.text == "one two three"
        first = next(model.translate_stream((words((1, 2), seconds=3), RATE), max_new_tokens=4))
        assert first.text == "one"


def test_a_transcription_can_be_cancelled(
    media_artifact: Path,
    recording: Path,
    spoken: list[str],
    encoded: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(speech, "AHEAD", 1)
    cancel = Event()
    with load(media_artifact, threads=1, context=512) as model:
        heard = model.transcribe_stream(recording, cancel=cancel, max_new_tokens=4)
        assert next(heard).text == "one"
        cancel.set()
        assert list(heard) == [] and encoded == ["audio"]
        assert model.transcribe(recording, cancel=cancel).segments == () and encoded == ["audio"]


def test_a_model_that_is_answering_encodes_nothing(
    media_artifact: Path, recording: Path, encoded: list[str]
) -> None:
    """An encoder may have the memory of the decoder, which is at work."""
    with load(media_artifact, threads=1, context=512) as model:
        pieces = model.stream("hello")
        next(pieces)
        with pytest.raises(EdgeGemmaError, match="answering another prompt"):
            model.transcribe(recording)
        assert not encoded


def test_describing(media_artifact: Path, picture: Path, capsys: Any) -> None:
    greedy = ("--temperature", "0")
    assert run(["describe", str(media_artifact), str(picture), str(picture), *greedy, *FAST]) == 0
    out = capsys.readouterr().out
    _, first, second = out.split(f"==> {picture} <==\n")
    assert first == second
    assert run(["describe", str(media_artifact), str(picture), "--json", *greedy, *FAST]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == first[:-1] and found["statistics"]["images"] == 1
    assert found["file"] == str(picture)


def test_run_with_media(
    media_artifact: Path, picture: Path, recording: Path, stdin: Callable[[bytes], None], capsys: Any
) -> None:
    media = ["--image", str(picture), "--audio", "-", "--image", str(picture), "--context", "1024"]
    stdin(recording.read_bytes())
    assert (
        run(["run", str(media_artifact), "what?", *media, "--json", *FAST[:2], "--max-new-tokens", "2"]) == 0
    )
    found = json.loads(capsys.readouterr().out)["statistics"]
    assert (found["images"], found["audio_seconds"]) == (2, 18.0)
    assert found["prompt_tokens"] > 2 * 256 + 188
    assert run(["run", str(media_artifact), "--audio", "-", *FAST]) == 2
    assert "standard input can be one thing only" in capsys.readouterr().err


def test_chat_with_media(
    media_artifact: Path, picture: Path, stdin: Callable[[bytes], None], capsys: Any
) -> None:
    stdin(f"/image {picture}\nwhat?\n/image nothing.png\nand?\n/image\n".encode())
    options = ["--threads", "1", "--context", "1024", "--max-new-tokens", "2", "--temperature", "0"]
    assert run(["chat", str(media_artifact), "--stats", *options]) == 0
    err = capsys.readouterr().err
    assert "1 image encoded" in err and "nothing.png" in err


def test_an_error_in_a_chat_keeps_what_was_added(
    media_artifact: Path, picture: Path, stdin: Callable[[bytes], None], capsys: Any
) -> None:
    """And a package that is missing does not end it."""
    stdin(f"/image {picture}\n{'word ' * 3000}\nwhat?\n/save a\0b\nand?\n".encode())
    options = ["--threads", "1", "--context", "1024", "--max-new-tokens", "2", "--temperature", "0"]
    assert run(["chat", str(media_artifact), "--stats", *options]) == 0
    err = capsys.readouterr().err
    assert "and the context 1024" in err and err.count("1 image encoded") == 1
    assert "cannot be written: embedded null byte" in err and err.count("[") == 2


def test_a_missing_package_does_not_end_a_chat(
    media_artifact: Path,
    picture: Path,
    stdin: Callable[[bytes], None],
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    stdin(f"/image {picture}\nhello\n".encode())
    assert run(["chat", str(media_artifact), "--stats", *FAST]) == 0
    err = capsys.readouterr().err
    assert "Pillow" in err and err.count("tokens") >= 1
