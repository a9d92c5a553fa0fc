"""/v1/audio/transcriptions and /v1/audio/translations in OpenAI's form, for recordings of any length.

An upload lies in a temporary file, which is gone when it is answered. It is decoded once before it waits for
the model, so that what is no sound, cut off or too long is refused at once and costs nobody a turn.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from functools import partial
from typing import Any

from anyio import CapacityLimiter, to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from edge_gemma.errors import DeadlineError
from edge_gemma.runtime import subtitles
from edge_gemma.runtime.scheduler import Job
from edge_gemma.runtime.serving.audio_request import AudioRequest, check_sound, open_upload
from edge_gemma.runtime.serving.problems import Problem
from edge_gemma.runtime.serving.service import Service, server_sent_event, watching
from edge_gemma.runtime.speech import SpeechSegment, Transcript
from edge_gemma.runtime.statistics import Statistics

MOST_FIELDS = 32
FIELD_BYTES = 1 << 16
CHECKS = CapacityLimiter(2)  # uploads that are decoded at one time


async def transcribe(request: Request) -> Response:
    """POST a form: file; model, language, prompt, response_format, temperature, stream."""
    return await _answer(request, translation=False)


async def translate(request: Request) -> Response:
    """As `transcribe`, and target_language: as at OpenAI's it is English where it is not given."""
    return await _answer(request, translation=True)


async def _answer(request: Request, *, translation: bool) -> Response:
    service: Service = request.app.state.service
    settings = service.settings
    with ExitStack() as resources:
        try:
            form = await request.form(max_files=1, max_fields=MOST_FIELDS, max_part_size=FIELD_BYTES)
        except HTTPException as error:
            raise Problem(400, f"the form cannot be read: {error.detail}") from None
        try:
            sound = resources.enter_context(open_upload(form))
            asked = AudioRequest.read(service, form, translation=translation)
        finally:
            await form.close()
        seconds = await to_thread.run_sync(check_sound, sound, settings.max_clip_seconds, limiter=CHECKS)
        request.state.entry.statistics = statistics = Statistics(audio_seconds=seconds)
        job = service.submit(request, partial(asked.work, sound, settings.filters, statistics))
        rest = aiter(job)
        async with watching(request, job):
            first = await anext(rest, None)  # what is wrong until here has a status, in a stream, too
            segments = _segments(job, first, rest)
            if not asked.stream:
                transcript = Transcript(tuple([segment async for segment in segments]))
                _log(request, transcript.text)
                return _response(asked, transcript, seconds)
        return StreamingResponse(
            _events(request, segments, resources.pop_all()),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache"},
        )


async def _segments(
    job: Job[SpeechSegment], first: SpeechSegment | None, rest: AsyncGenerator[SpeechSegment, None]
) -> AsyncGenerator[SpeechSegment, None]:
    """All segments. Raises DeadlineError at the end of time: half a transcript is none."""
    async with aclosing(rest):
        if first:
            yield first
        async for segment in rest:
            yield segment
    if job.expired:
        raise DeadlineError("this took longer than a request may: send the recording in pieces")


def _response(asked: AudioRequest, transcript: Transcript, seconds: float) -> Response:
    if asked.layout == "verbose_json":
        return JSONResponse(_verbose(asked, transcript, seconds))
    if asked.layout == "srt":
        return Response("".join(subtitles.to_srt(transcript.segments)), media_type="application/x-subrip")
    if asked.layout == "vtt":
        return Response("".join(subtitles.to_vtt(transcript.segments)), media_type="text/vtt")
    if asked.layout == "text":
        return Response(transcript.text + "\n", media_type="text/plain")
    return JSONResponse({"text": transcript.text, "usage": _usage(seconds)})


def _verbose(asked: AudioRequest, transcript: Transcript, seconds: float) -> dict[str, Any]:
    """Whisper's form. Nothing is made up: what Whisper tells and this model does not is null."""
    unknown = dict.fromkeys(("avg_logprob", "compression_ratio", "no_speech_prob", "seek", "tokens"))
    segments = []
    for number, segment in enumerate(transcript.segments):
        found = {"id": number, "start": segment.start, "end": segment.end, "text": segment.text}
        if segment.transcription is not None:
            found["transcription"] = segment.transcription
        segments.append(found | {"temperature": asked.temperature} | unknown)
    return {
        "task": "translate" if asked.target else "transcribe",
        "language": (asked.target or asked.language or "unknown").lower(),
        "duration": seconds,
        "text": transcript.text,
        "segments": segments,
        "usage": _usage(seconds),
    }


def _usage(seconds: float) -> dict[str, Any]:
    return {"type": "duration", "seconds": seconds}


async def _events(
    request: Request, segments: AsyncGenerator[SpeechSegment, None], resources: ExitStack
) -> AsyncGenerator[str, None]:
    """Server-sent events: a delta for each segment, then the whole text; or an error, which ends them."""
    text = ""
    with resources:
        try:
            async with aclosing(segments):
                async for segment in segments:
                    if segment.text:
                        delta = f" {segment.text}" if text else segment.text
                        text += delta
                        yield server_sent_event({"type": "transcript.text.delta", "delta": delta})
        except Exception as error:
            yield server_sent_event(Problem.of(error).body())
        else:
            _log(request, text)
            yield server_sent_event({"type": "transcript.text.done", "text": text})


def _log(request: Request, text: str) -> None:
    service: Service = request.app.state.service
    if service.settings.log_content:
        request.state.entry.content = {"transcript": text}


routes = [
    Route("/v1/audio/transcriptions", transcribe, methods=["POST"]),
    Route("/v1/audio/translations", translate, methods=["POST"]),
]
