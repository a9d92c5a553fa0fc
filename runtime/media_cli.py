"""`edge-gemma transcribe`, `translate` and `describe`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from edge_gemma.console import show_progress
from edge_gemma.errors import EdgeGemmaError, PromptError
from edge_gemma.progress import Progress
from edge_gemma.runtime import speech, subtitles, tasks
from edge_gemma.runtime.cli import answer
from edge_gemma.runtime.loading import load
from edge_gemma.runtime.options import expand, generation_options, media_parts, model_options
from edge_gemma.runtime.speech import SpeechSegment

Listen = Callable[[Any, Progress], Iterator[SpeechSegment]]


def _text(segments: Iterable[SpeechSegment], name: str) -> Iterator[str]:
    for segment in segments:
        if segment.text:
            yield segment.text + "\n"


def _json(segments: Iterable[SpeechSegment], name: str) -> Iterator[str]:
    """One line for a recording. What was found before an error is still written, as not complete."""
    found: list[SpeechSegment] = []

    def line(*, complete: bool) -> str:
        text = speech.Transcript(tuple(found)).text
        fields = {"file": name, "complete": complete, "text": text, "segments": [asdict(s) for s in found]}
        return json.dumps(fields, ensure_ascii=False) + "\n"

    try:
        for segment in segments:  # one by one: extend would lose those before an error
            found.append(segment)
    except BaseException:
        yield line(complete=False)
        raise
    yield line(complete=True)


FORMATS: dict[str, Callable[[Iterable[SpeechSegment], str], Iterator[str]]] = {
    "text": _text,
    "json": _json,
    "srt": lambda segments, name: subtitles.to_srt(segments),
    "vtt": lambda segments, name: subtitles.to_vtt(segments),
}
SOUNDS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aif", ".aiff")
SUFFIXES = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt"}

format_option = click.option(
    "--format", "layout", type=click.Choice(list(FORMATS)), default="text", show_default=True
)
output_option = click.option(
    "-o",
    "--output",
    metavar="PATH",
    help="File to write to; or a folder, one that exists or NAME/, with a file for each recording. "
    "[standard output]",
)


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--language", help="Language spoken, such as es or Spanish. [the model finds out]")
@format_option
@output_option
@generation_options(temperature=0.0)
@model_options
def transcribe_command(
    artifact: Path,
    files: tuple[str, ...],
    language: str | None,
    layout: str,
    output: str | None,
    model: dict[str, Any],
    **generation: Any,
) -> int:
    """Write down what is said in each FILE, of any length; - is standard input."""
    tasks.transcription_prompt(language)  # refuses a wrong language before loading
    with load(artifact, **model, session_memory=0) as loaded:  # nothing comes back to what was asked

        def listen(source: Any, progress: Progress) -> Iterator[SpeechSegment]:
            return speech.transcribe(loaded, source, language, progress=progress, **generation)

        return _write_all(files, listen, layout, output)


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--to", "target", default="English", show_default=True, help="Language to write.")
@click.option("--from", "source", help="Language spoken, such as es or Spanish. [the model finds out]")
@format_option
@output_option
@generation_options(temperature=0.0)
@model_options
def translate_command(
    artifact: Path,
    files: tuple[str, ...],
    target: str,
    source: str | None,
    layout: str,
    output: str | None,
    model: dict[str, Any],
    **generation: Any,
) -> int:
    """Translate what is said in each FILE, of any length; - is standard input."""
    tasks.translation_prompt(target, source)  # refuses a wrong language before loading
    with load(artifact, **model, session_memory=0) as loaded:  # nothing comes back to what was asked

        def listen(sound: Any, progress: Progress) -> Iterator[SpeechSegment]:
            return speech.translate(loaded, sound, target, source, progress=progress, **generation)

        return _write_all(files, listen, layout, output)


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--prompt", default=tasks.DESCRIBE_PROMPT, show_default=True, help="What to ask.")
@generation_options()
@model_options
@click.option("--stats/--no-stats", default=None, help="Report speed and memory. [on a terminal]")
@click.option("--json", "as_json", is_flag=True, help="Print each answer and its statistics as JSON.")
def describe_command(
    artifact: Path,
    files: tuple[str, ...],
    prompt: str,
    model: dict[str, Any],
    stats: bool | None,
    as_json: bool,
    **generation: Any,
) -> int:
    """Answer the same question about each image FILE; - is standard input."""
    status = 0
    with load(artifact, **model, session_memory=0) as loaded:  # nothing comes back to what was asked
        paths = expand(files)
        for path in paths:
            if len(paths) > 1 and not as_json:
                click.echo(f"==> {path} <==")
            parts = [*media_parts([str(path)], []), {"type": "text", "text": prompt}]
            with _one_of(paths) as outcome:
                answer(
                    loaded,
                    [{"role": "user", "content": parts}],
                    generation,
                    stats=stats,
                    as_json=as_json,
                    file=str(path),
                )
            status = status or outcome.status
    return status


class _Outcome:
    status = 0


@contextmanager
def _one_of(paths: list[Path]) -> Iterator[_Outcome]:
    """Work on one of several files: its error is reported and does not keep the others from their turn."""
    outcome = _Outcome()
    try:
        yield outcome
    except EdgeGemmaError as error:
        if len(paths) == 1:
            raise
        click.echo(f"error: {error}", err=True)
        outcome.status = error.exit_code


def _write_all(files: tuple[str, ...], listen: Listen, layout: str, output: str | None) -> int:
    """Listen to each file and write what is heard as it is heard; the exit status."""
    paths = expand(files)
    folder = _folder(output)
    if len(paths) > 1 and layout in ("srt", "vtt") and folder is None:
        raise PromptError(
            f"{len(paths)} recordings cannot share one {layout} file: give --output a folder, NAME/"
        )
    whole = Path(output) if output and not folder else None
    targets = [folder / (path.stem + SUFFIXES[layout]) if folder else whole for path in paths]
    _refuse_overwriting(paths, targets, shared=folder is None)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    status = 0
    with show_progress() as progress, _Output(whole) as shared:
        for path, target in zip(paths, targets, strict=True):
            name = "standard input" if str(path) == "-" else str(path)
            source = sys.stdin.buffer if str(path) == "-" else path
            if len(paths) > 1 and layout == "text" and not folder:
                shared.write(f"==> {name} <==\n")
            with _one_of(paths) as outcome, _Output(target) if folder else nullcontext(shared) as file:
                for piece in FORMATS[layout](listen(source, progress), name):
                    file.write(piece)
                file.write("")  # where nothing was said there is a file, too
            status = status or outcome.status
    return status


def _folder(output: str | None) -> Path | None:
    """The folder that --output names; None where it is a file, or not given."""
    is_folder = output and (output.endswith(("/", os.sep)) or Path(output).is_dir())
    return Path(output) if output and is_folder else None


def _refuse_overwriting(paths: list[Path], targets: list[Path | None], *, shared: bool) -> None:
    """PromptError where what is written would replace a recording, or what was heard in another one."""
    recordings = {path.resolve() for path in paths}
    heard: dict[Path, Path] = {}
    for path, target in zip(paths, targets, strict=True):
        if target is None:
            continue
        if target.resolve() in recordings or target.suffix.lower() in SOUNDS and target.exists():
            raise PromptError(f"{target} is a recording: name another file to write to, such as talk.txt")
        if shared and not target.parent.is_dir():
            raise PromptError(f"{target} cannot be written: there is no folder {target.parent}")
        if not shared and (other := heard.setdefault(target, path)) is not path:
            raise PromptError(
                f"{other} and {path} would both be written to {target}: give each its own folder"
            )


class _Output:
    """A file, or standard output; what is written can be read at once.

    What was in the file stays until there is something to write: a sound that cannot be read costs nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._new = path is not None and not path.exists()
        self._file = path.open("a", encoding="utf-8", newline="\n") if path else sys.stdout
        self._begun = False

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, *_: object) -> None:
        if self._path:
            self._file.close()
            if self._new and not self._begun:
                self._path.unlink()

    def write(self, text: str) -> None:
        if self._path and not self._begun and self._path.is_file():  # a pipe has nothing before
            self._file.truncate(0)
        self._begun = True
        self._file.write(text)
        self._file.flush()
