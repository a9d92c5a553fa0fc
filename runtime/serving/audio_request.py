"""Reads requests to transcribe or translate: the fields of the form, and the sound in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Event
from typing import IO, TYPE_CHECKING, Any

from starlette.datastructures import FormData, UploadFile

from edge_gemma.errors import MediaError, RefusedError
from edge_gemma.runtime import audio, tasks
from edge_gemma.runtime.safety import Filter, check_prompt
from edge_gemma.runtime.sampling import SamplingOptions
from edge_gemma.runtime.serving.models import find_level
from edge_gemma.runtime.serving.problems import Problem
from edge_gemma.runtime.serving.service import Service
from edge_gemma.runtime.speech import SpeechSegment
from edge_gemma.runtime.statistics import Statistics

if TYPE_CHECKING:
    from edge_gemma.runtime.engine import Model

LAYOUTS = ("json", "text", "verbose_json", "srt", "vtt")
STREAMED = ("json", "text")  # who asks for another wants times, which the events of a stream have not


@dataclass(frozen=True, kw_only=True)
class AudioRequest:
    """What a form asks for, its file aside."""

    level: str | None  # of an elastic artifact
    language: str | None  # spoken, by its English name; None: the model finds out
    target: str | None  # the language of a translation; None: a transcription
    hint: str | None
    layout: str  # one of LAYOUTS
    temperature: float
    stream: bool

    @classmethod
    def read(cls, service: Service, form: FormData, *, translation: bool) -> AudioRequest:
        """Raises Problem or PromptError where a field cannot be used."""
        fields = _Fields(form)
        level = find_level(service, fields.take("model") or service.model_id)
        language = fields.take("language")
        target = (fields.take("target_language") or "English") if translation else None
        layout = fields.choice("response_format", LAYOUTS)
        stream = fields.choice("stream", ("false", "true")) == "true"
        if stream and layout not in STREAMED:
            raise Problem(
                400, f"response_format is {layout}: a stream has json or text", param="response_format"
            )
        for granularity in fields.take_all("timestamp_granularities"):
            if granularity != "segment":
                raise Problem(
                    400,
                    f"timestamp_granularities has {granularity[:100]!r}: expected 'segment', the times of "
                    "words are not known",
                    param="timestamp_granularities",
                )
        asked = cls(
            level=level,
            language=language and tasks.language_name(language),
            target=target and tasks.language_name(target),
            hint=fields.take("prompt"),
            layout=layout,
            temperature=SamplingOptions(temperature=fields.number("temperature", 0.0)).temperature,
            stream=stream,
        )
        fields.check_empty()
        return asked

    @property
    def instruction(self) -> str:
        """What the model is asked to do, in words."""
        if self.target is None:
            return tasks.with_hint(tasks.transcription_prompt(self.language), self.hint)
        return tasks.with_hint(tasks.translation_prompt(self.target, self.language), self.hint)

    def work(
        self,
        sound: IO[bytes],
        filters: Sequence[Filter],
        statistics: Statistics,
        model: Model,
        cancel: Event,
    ) -> Iterator[SpeechSegment]:
        """For the scheduler: the segments of a sound; `statistics` get what they cost.

        Raises:
            RefusedError: a filter refuses the instruction, or what was said.
        """
        asked = [{"role": "user", "content": self.instruction}]
        check_prompt(asked, filters)
        options: dict[str, Any] = {
            "temperature": self.temperature,
            "level": self.level,
            "cancel": cancel,
            "hint": self.hint,
            "statistics": statistics,
        }
        if self.target is None:
            segments = model.transcribe_stream(sound, self.language, **options)
        else:
            segments = model.translate_stream(sound, self.target, self.language, **options)
        for segment in segments:
            if cancel.is_set():  # it may lack the end of what was said
                return
            for one in filters:
                if refusal := one.check_answer(segment.text, asked):
                    raise RefusedError(f"what was said is refused: {refusal.reason}")
            yield segment


class _Fields:
    """The fields of a form but its file, taken one after another; what is left at the end is unknown."""

    def __init__(self, form: FormData) -> None:
        self._left: dict[str, list[str]] = {}
        for name, value in form.multi_items():
            if isinstance(value, str):
                self._left.setdefault(name.removesuffix("[]"), []).append(value)

    def take_all(self, name: str) -> list[str]:
        return self._left.pop(name, [])

    def take(self, name: str) -> str | None:
        """None where it is missing or empty."""
        values = self.take_all(name)
        if len(values) > 1:
            raise Problem(400, f"{name} is given {len(values)} times: give it once", param=name)
        return values[0].strip() or None if values else None

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        """The first choice where it is missing."""
        value = self.take(name) or choices[0]
        if value not in choices:
            raise Problem(400, f"{name} is {value[:100]!r}: expected one of {', '.join(choices)}", param=name)
        return value

    def number(self, name: str, default: float) -> float:
        value = self.take(name)
        try:
            return default if value is None else float(value)
        except ValueError:
            raise Problem(400, f"{name} is {value!r:.100}: expected a number", param=name) from None

    def check_empty(self) -> None:
        for name in self._left:
            raise Problem(
                400, f"there is no field {name[:100]!r}", param=name[:100], code="unknown_parameter"
            )


def open_upload(form: FormData) -> IO[bytes]:
    """The file in a form, open for reading and independent of the form, which may be closed.

    Raises:
        Problem: there is none.
    """
    upload = form.get("file")
    if not isinstance(upload, UploadFile):
        raise Problem(
            400, "there is no file: send multipart/form-data with the recording as its file", param="file"
        )
    return os.fdopen(os.dup(upload.file.fileno()), "rb")


def check_sound(sound: IO[bytes], limit: float) -> float:
    """Seconds of a sound, which is decoded to its end.

    Raises:
        MediaError: it is none, it is not whole, or it is longer than `limit` seconds.
    """
    too_long = MediaError(f"the sound is longer than {limit:g} s: send it in pieces")
    count = 0
    with audio.open_audio(sound) as stream:
        if stream.duration is not None and stream.duration > limit:
            raise too_long
        for block in stream:
            count += len(block)
            if count > limit * stream.rate:  # its header said less
                raise too_long
    seconds = count / stream.rate
    if stream.damage:
        raise MediaError(
            f"the sound ends after {seconds:.2f} s ({stream.damage}): expected a whole file, send it again"
        )
    return seconds
