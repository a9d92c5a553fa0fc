"""Speech recognition and translation of sounds of any length: cut at pauses, one prompt for every segment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from edge_gemma.errors import PromptError
from edge_gemma.progress import Progress, Silent
from edge_gemma.runtime import audio, segments, tasks
from edge_gemma.runtime.answer import CANCELLED
from edge_gemma.runtime.statistics import Statistics

if TYPE_CHECKING:
    from edge_gemma.runtime.engine import Model

AHEAD = 4  # segments encoded at once, so that the encoder is loaded for each four
GREEDY: dict[str, Any] = {"temperature": 0.0}


@dataclass(frozen=True)
class SpeechSegment:
    """What was said between two moments."""

    start: float  # seconds
    end: float
    text: str  # in the language asked for
    transcription: str | None = None  # of a translation: in the language spoken, where the model gave it


@dataclass(frozen=True)
class Transcript:
    """What was said in a recording."""

    segments: tuple[SpeechSegment, ...]

    @property
    def text(self) -> str:
        """The text of all segments."""
        return " ".join(segment.text for segment in self.segments if segment.text)


def transcribe(
    model: Model,
    source: Any,
    language: str | None = None,
    *,
    hint: str | None = None,
    progress: Progress | None = None,
    statistics: Statistics | None = None,
    **options: Any,
) -> Iterator[SpeechSegment]:
    """Segments in order, each as soon as it is written down.

    `hint` are words that help to understand it, in `statistics` is counted what all answers cost, `options`
    are those of `Model.stream`.
    """
    prompt = tasks.with_hint(tasks.transcription_prompt(language), hint)

    def read(answer: str, start: float, end: float) -> SpeechSegment:
        return SpeechSegment(start, end, answer.strip())

    return _ask(model, source, prompt, read, progress or Silent(), statistics or Statistics(), options)


def translate(
    model: Model,
    source: Any,
    target: str = "English",
    language: str | None = None,
    *,
    hint: str | None = None,
    progress: Progress | None = None,
    statistics: Statistics | None = None,
    **options: Any,
) -> Iterator[SpeechSegment]:
    """As `transcribe`, in the language `target`; `language` is the one spoken, where it is known."""
    prompt = tasks.with_hint(tasks.translation_prompt(target, language), hint)

    def read(answer: str, start: float, end: float) -> SpeechSegment:
        transcription, translation = tasks.read_translation(answer, target)
        return SpeechSegment(start, end, translation, transcription or None)

    return _ask(model, source, prompt, read, progress or Silent(), statistics or Statistics(), options)


def _ask(
    model: Model,
    source: Any,
    prompt: str,
    read: Callable[[str, float, float], SpeechSegment],
    progress: Progress,
    statistics: Statistics,
    options: dict[str, Any],
) -> Iterator[SpeechSegment]:
    spec = model.manifest.audio
    if spec is None:
        raise PromptError("this artifact has no audio encoder: export a checkpoint that has an audio tower")
    longest = spec.max_samples / spec.sample_rate
    with audio.open_audio(source, spec.sample_rate) as stream:
        total = round(stream.duration or 0)
        progress.stage(f"listening to {stream.name}", total)
        cut = segments.split(stream, max_seconds=longest, options=segments.Splitting().within(longest))
        done = 0
        more = True
        while more:
            more = False
            for segment in _answers(model, cut, prompt, read, statistics, options):
                progress.advance(round(segment.end) - done)
                done = round(segment.end)
                more = True
                yield segment
        progress.advance(max(0, total - done))


def _answers(
    model: Model,
    cut: Iterator[segments.Segment],
    prompt: str,
    read: Callable[[str, float, float], SpeechSegment],
    statistics: Statistics,
    options: dict[str, Any],
) -> Iterator[SpeechSegment]:
    """Encode the next AHEAD segments, then ask about each; they are gone before more are cut."""
    cancel = options.get("cancel")
    batch = [] if cancel and cancel.is_set() else list(islice(cut, AHEAD))
    built = [model._prompts.build([_message(segment, prompt)]) for segment in batch]
    asked = [replace(one, passing=True, partings=()) for one in built]
    model.encode_ahead(asked)
    for one, segment in zip(asked, batch, strict=True):
        answer = model.generate(one, **{**GREEDY, **options})
        statistics.add(answer.statistics)
        if answer.finish_reason == CANCELLED:  # in the middle of what was said
            return
        yield read(answer.text, segment.start, segment.end)


def _message(segment: segments.Segment, prompt: str) -> dict[str, Any]:
    parts = [{"type": "audio", "audio": segment.samples}, {"type": "text", "text": prompt}]
    return {"role": "user", "content": parts}
