"""The public class, and the story of an answer: messages → prompt → soft tokens → ids → text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from threading import Event, Lock
from time import perf_counter
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_gemma.artifact import Manifest
from edge_gemma.errors import ContextLimitError, EdgeGemmaError, PromptError, check_count
from edge_gemma.memory import peak_resident_bytes
from edge_gemma.planning import Plan
from edge_gemma.runtime import speech, tasks
from edge_gemma.runtime.answer import Answer as Answer
from edge_gemma.runtime.answer import Piece as Piece
from edge_gemma.runtime.answer import Reply, Request
from edge_gemma.runtime.batch import Batch, answer_together, bytes_of_one
from edge_gemma.runtime.conversation import Session
from edge_gemma.runtime.embeddings import EmbeddingStore
from edge_gemma.runtime.encoders import Encoders
from edge_gemma.runtime.generation import Generator, SoftTokens
from edge_gemma.runtime.levels import LevelDrafter, Levels
from edge_gemma.runtime.prefixes import room
from edge_gemma.runtime.prompt import Messages, Prompt, PromptBuilder
from edge_gemma.runtime.sampling import Sampler, SamplingOptions, make_sampler
from edge_gemma.runtime.speculation import PromptLookup, Speculation
from edge_gemma.runtime.speech import SpeechSegment, Transcript
from edge_gemma.runtime.statistics import Statistics
from edge_gemma.runtime.stopping import StopStrings
from edge_gemma.runtime.structured import Grammars, ResponseFormat
from edge_gemma.runtime.tokenizer import Tokenizer

AUTO = "auto"
SAMPLING = tuple(field.name for field in fields(SamplingOptions))
OPTIONS = ("max_new_tokens", "stop", "cancel", "level", "response_format", *SAMPLING)


class Model:
    """A loaded artifact. Make one with `edge_gemma.load`; close it, or use it as a context manager.

    It answers one prompt at a time. A prompt that continues a conversation, or begins as another one did,
    costs only its new tokens (docs/sessions.md).
    """

    def __init__(
        self,
        manifest: Manifest,
        tokenizer: Tokenizer,
        prompts: PromptBuilder,
        encoders: Encoders,
        store: EmbeddingStore,
        generator: Generator,
        plan: Plan,
        session_memory: int | None = None,
    ) -> None:
        self.manifest = manifest
        self.tokenizer = tokenizer
        self._prompts = prompts
        self._encoders = encoders
        self._store = store
        self._generator: Generator | None = generator
        self._speculations = {"lookup": Speculation(PromptLookup())}
        if manifest.levels:
            self._speculations["level"] = Speculation(LevelDrafter(generator.decoder, store, generator.cache))
        self._levels = Levels(manifest.levels, generator.decoder, plan)
        self._session_memory = session_memory
        self._grammars = Grammars(tokenizer, manifest.vocab_size, manifest.tokens)
        self._busy = Lock()

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._open().context

    @property
    def plan(self) -> Plan:
        """The settings, and the memory they are expected to take."""
        return self._levels.plan

    @property
    def level(self) -> str | None:
        """The level of an elastic artifact that answers; None where the artifact has none."""
        self._open()
        return self._levels.name

    def set_level(self, level: str) -> None:
        """Let another level of an elastic artifact answer from now on. The conversation goes on as it is.

        A narrower one takes less memory: what it does not read leaves, where weights are mapped.

        Raises:
            PromptError: there is no such level.
            BudgetError: it does not fit the budget that the model was loaded with.
            EdgeGemmaError: the model is answering.
        """
        index = self.manifest.level(level)
        with self._answering():
            self._prepare(index)

    def choose_level(self, *, memory: int | str | None = None, tokens_per_second: float | None = None) -> str:
        """Name of the widest level that suits, for `set_level`; the narrowest where none does.

        Args:
            memory: what this process may take, as "2GiB" or in bytes; by default what it takes and what the
                system has free.
            tokens_per_second: least speed of decoding, by the answers so far. Before the first one only
                memory counts.

        Raises:
            PromptError: the artifact is not elastic.
        """
        return self._levels.choose(memory, tokens_per_second)

    def encode(self, prompt: Messages) -> list[int]:
        """The ids of a prompt: a text as one user turn, or messages in transformers' form.

        Control tokens inside a message's text are encoded as text: they cannot end the user's turn.

        Raises:
            PromptError: the messages are malformed or empty.
            MediaError: an image or a clip cannot be read.
        """
        return self._prompts.build(prompt).ids

    def stream(
        self,
        prompt: Messages | Prompt,
        *,
        max_new_tokens: int | None = None,
        stop: Sequence[str] = (),
        cancel: Event | None = None,
        speculate: str | None = None,
        level: str | None = None,
        response_format: ResponseFormat | None = None,
        **sampling: Any,
    ) -> Iterator[Piece]:
        """Answer a prompt, piece by piece. Closing the iterator, or setting `cancel`, ends the answer.

        Args:
            prompt: a text, or messages such as [{"role": "user", "content": "…"}]; content may be a list of
                parts: {"type": "text", "text": "…"}, {"type": "image", "image": …}, {"type": "audio",
                "audio": …}, the last two with a path, bytes, an open file or a numpy array.
            max_new_tokens: most tokens of the answer; what the context has room for by default.
            stop: strings that end the answer; they are not part of it.
            cancel: an event that another thread may set.
            speculate: draft tokens and verify several at once, where that is faster: "lookup" drafts what
                the text so far repeats, "level" lets an elastic artifact's narrowest level draft. The answer
                is the same, but for what rounding does where tokens are almost equally likely.
            level: as `set_level`, before answering; "auto" is what `choose_level` says.
            response_format: the form that the whole answer has, as `structured.read_format` reads it: a JSON
                Schema, a regular expression or a choice.
            sampling: fields of SamplingOptions: temperature, top_k, top_p, min_p, repetition_penalty, seed.

        Raises:
            PromptError: the prompt or an option cannot be used.
            MediaError: an image or a clip cannot be read.
            ContextLimitError: the prompt leaves no room for an answer.
        """
        if speculate is not None and speculate not in self._speculations:
            known = " or ".join(repr(name) for name in self._speculations)
            raise PromptError(f"speculate is {speculate!r}: this artifact can have {known}")
        request = self._request(prompt, max_new_tokens, stop, response_format, sampling)
        speculation = self._speculations[speculate] if speculate else None
        return self._pieces(request, cancel, speculation, self._level_index(level))

    def generate(self, prompt: Messages | Prompt, **options: Any) -> Answer:
        """Answer a prompt in one piece; takes what `stream` takes."""
        return Answer.of(self.stream(prompt, **options))

    def generate_batch(
        self,
        prompts: Sequence[Messages],
        *,
        size: int = 8,
        max_new_tokens: int | None = None,
        stop: Sequence[str] = (),
        cancel: Event | None = None,
        level: str | None = None,
        response_format: ResponseFormat | None = None,
        **sampling: Any,
    ) -> list[Answer]:
        """Answer many prompts, decoding up to `size` of them together; the answers come in their order.

        Together they are faster than one by one, since a pass of the decoder reads its weights once for all
        of them. Each has KV buffers of its own; fewer are decoded at once where a memory budget asks for it.
        Every answer is what `generate` gives with the same options (with a `seed`, for that seed), but for
        what rounding does where tokens are almost equally likely.

        Takes the options of `stream` but `speculate`, and raises as it does, before anything is computed.
        """
        if isinstance(prompts, str):
            raise PromptError("the prompts are a str; expected a list of prompts")
        check_count("size", size)
        requests = [
            self._request(prompt, max_new_tokens, stop, response_format, sampling) for prompt in prompts
        ]
        generator, index = self._open(), self._level_index(level)
        with self._answering():
            self._prepare(index)
            context = max((len(request.prompt.ids) + request.limit for request in requests), default=1)
            one = bytes_of_one(self.manifest.memory, generator.decoder.spec, context)
            spare = self.plan.spare
            fitting = size if spare is None else (spare - self._grammars.taken) // one
            size = max(min(size, len(requests), fitting), 1)
            self._share(size * one)
            try:
                batch = Batch(generator.decoder, self._store, size=size, context=context)

                def begin(request: Request, statistics: Statistics) -> Iterator[int]:
                    # its place in the batch is where it goes on
                    prompt = replace(request.prompt, passing=True)
                    return self._ids(prompt, request.sampler, statistics, limit=1, cancel=cancel)

                answers = answer_together(begin, generator.cache, batch, requests, cancel)
            finally:
                generator.decoder.bind(generator.cache.memory)  # lets go of the batch's
                self._share()
        for request in requests:
            self._prompts.answers.note(request.reply.text, request.reply.ids)
        return answers

    def session(self, system: str | None = None, messages: Sequence[Mapping[str, Any]] = ()) -> Session:
        """A conversation that goes on from turn to turn.

        Args:
            system: an instruction for all of it.
            messages: what was said before, ending with an answer.

        Raises:
            PromptError: the messages are malformed, or do not end with an answer.
        """
        begun = [{"role": "system", "content": system}] if system else []
        return Session(self, [*begun, *messages])

    def load_session(self, path: str | Path) -> Session:
        """The conversation that `Session.save` wrote to a file, of this artifact.

        Its keys and values are taken from there where they are of the dtype that this model has; otherwise
        they are computed anew with the next turn.

        Raises:
            SessionError: the file is missing, damaged, no session, another artifact's or a newer version's.
            ContextLimitError: the conversation fills the context.
            EdgeGemmaError: the model is answering.
        """
        return Session.load(self, path)

    def transcribe(self, audio: Any, language: str | None = None, **options: Any) -> Transcript:
        """Write down what is said in a recording of any length.

        Args:
            audio: a path, bytes, an open file, a numpy array at 16 kHz or a pair of array and rate.
            language: the language spoken, as "es" or "Spanish"; by default the model finds out.
            options: those of `stream`, greedy by default, `progress`, and `hint`: words that help to
                understand it, such as names or what was said before.

        Raises:
            PromptError: a language or an option cannot be used, or the artifact has no audio encoder.
            MediaError: the recording cannot be read.
        """
        return Transcript(tuple(self.transcribe_stream(audio, language, **options)))

    def transcribe_stream(
        self, audio: Any, language: str | None = None, **options: Any
    ) -> Iterator[SpeechSegment]:
        """`transcribe`, segment by segment, each as soon as it is known."""
        return speech.transcribe(self, audio, language, **options)

    def translate(
        self, audio: Any, target: str = "English", source: str | None = None, **options: Any
    ) -> Transcript:
        """Write down in the language `target` what is said in `source`; otherwise as `transcribe`."""
        return Transcript(tuple(self.translate_stream(audio, target, source, **options)))

    def translate_stream(
        self, audio: Any, target: str = "English", source: str | None = None, **options: Any
    ) -> Iterator[SpeechSegment]:
        """`translate`, segment by segment, each as soon as it is known."""
        return speech.translate(self, audio, target, source, **options)

    def describe(self, image: Any, prompt: str = tasks.DESCRIBE_PROMPT, **options: Any) -> Answer:
        """Answer a question about an image: a path, bytes, an open file, a PIL image or a numpy array.

        `options` are those of `stream`.

        Raises:
            PromptError: an option cannot be used, or the artifact has no vision encoder.
            MediaError: the image cannot be read.
        """
        parts = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
        return self.generate([{"role": "user", "content": parts}], **options)

    def first_logits(self, prompt: Messages) -> NDArray[np.float32]:
        """The logits of an answer's first token, float32 [V]: for a choice that one token tells.

        Raises as `stream` does.
        """
        built, _ = self._build(prompt)
        found: list[NDArray[np.float32]] = []

        def keep(logits: NDArray[np.float32], history: Sequence[int]) -> int:
            found.append(logits.copy())
            return int(logits.argmax())

        with self._answering():
            for _ in self._ids(built, keep, Statistics(), limit=1):
                pass
        return found[0]

    def encode_ahead(self, prompts: Sequence[Messages | Prompt]) -> None:
        """Encode the images and clips of prompts that will be answered next, loading each encoder once."""
        media = [item for prompt in prompts for item in self._prompts.build(prompt).media]
        with self._answering():  # an encoder may have the decoder's memory
            self._encoders.encode([item for item in media if item.rows is None])

    def close(self) -> None:
        """Release the memory and the files; the model cannot be used afterwards."""
        if self._generator:
            self._generator.decoder.close()
        self._generator = None
        self._speculations = {}
        self._encoders.release()
        self._store.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> Generator:
        if self._generator is None:
            raise EdgeGemmaError("this model is closed: load the artifact again")
        return self._generator

    def _build(self, prompt: Messages | Prompt) -> tuple[Prompt, int]:
        """A prompt, and how many tokens the context has left for its answer."""
        built = self._prompts.build(prompt)
        length, context = len(built.ids), self.context
        if length >= context:
            raise ContextLimitError(
                f"the prompt has {length} tokens and the context {context}: shorten the prompt, "
                f"or load with a larger context (this model takes up to {self.manifest.max_context})"
            )
        return built, context - length

    def _request(
        self,
        prompt: Messages | Prompt,
        max_new_tokens: int | None,
        stop: Sequence[str],
        response_format: ResponseFormat | None,
        sampling: Mapping[str, Any],
    ) -> Request:
        """What is asked, checked and ready to be computed."""
        if unknown := sorted(sampling.keys() - SAMPLING):
            raise PromptError(f"{unknown[0]!r} is not an option: expected one of {', '.join(OPTIONS)}")
        if max_new_tokens is not None:
            check_count("max_new_tokens", max_new_tokens)
        options = SamplingOptions(**sampling)
        stops = StopStrings(stop)
        constraint = None
        if response_format is not None:
            constraint = self._grammars.constraint(response_format, self.plan.spare)
        built, left = self._build(prompt)
        stop_ids = frozenset(self.manifest.tokens.stop)
        reply = Reply(self.tokenizer.stream(), stop_ids, stops, constraint)
        return Request(built, min(left, max_new_tokens or left), make_sampler(options, constraint), reply)

    def _level_index(self, level: str | None) -> int | None:
        if level is None:
            return None
        return self.manifest.level(self.choose_level() if level == AUTO else level)

    def _pieces(
        self,
        request: Request,
        cancel: Event | None,
        speculation: Speculation | None,
        level: int | None,
    ) -> Iterator[Piece]:
        with self._answering():
            self._prepare(level)
            statistics = Statistics()
            reply = request.reply
            try:
                for token in self._ids(
                    request.prompt,
                    request.sampler,
                    statistics,
                    limit=request.limit,
                    cancel=cancel,
                    speculation=speculation,
                ):
                    if piece := reply.push(token):
                        yield Piece(piece, statistics)
                    if reply.ended:
                        break
                tail = reply.finish()
            finally:
                self._prompts.answers.note(reply.text, reply.ids)
            statistics.peak_memory_bytes = peak_resident_bytes()
            self._levels.note(statistics)
            yield Piece(tail, statistics, reply.reason(cancel))

    def _ids(
        self,
        prompt: Prompt,
        sampler: Sampler,
        statistics: Statistics,
        *,
        limit: int,
        cancel: Event | None = None,
        speculation: Speculation | None = None,
    ) -> Iterator[int]:
        """The ids of an answer, at most `limit`: see Generator.generate."""
        return self._open().generate(
            prompt.ids,
            sampler,
            max_new_tokens=limit,
            statistics=statistics,
            cancel=cancel,
            keys=prompt.keys,
            soft=self._soft_tokens(prompt, statistics),
            partings=prompt.partings,
            passing=prompt.passing,
            speculation=speculation,
        )

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """One answer at a time."""
        if not self._busy.acquire(blocking=False):
            raise EdgeGemmaError("the model is answering another prompt: finish or close that answer first")
        try:
            yield
        finally:
            self._busy.release()

    def _prepare(self, level: int | None) -> None:
        """Let a level answer, and give stored states the memory that is left for them."""
        if level is not None:
            planned = self._levels.planned(level)
            room(planned, self._session_memory)  # refuses
            self._levels.run(level, planned)
        self._share()

    def _share(self, batch: int = 0) -> None:
        """Limit the stored states to what the budget leaves beside grammars and the buffers of a batch."""
        limit, spare = room(self.plan, self._session_memory), self.plan.spare
        if spare is not None:
            limit = min(limit, max(spare - self._grammars.taken - batch, 0))
        self._open().prefixes.limit = limit

    def _soft_tokens(self, prompt: Prompt, statistics: Statistics) -> list[SoftTokens]:
        """The soft tokens that the generator needs, encoded where they are not yet."""
        reused = self._open().reusable(prompt.keys)
        needed = [item for item in prompt.media if item.end > reused]
        media = [item for item in (prompt.media if prompt.keep_media else needed) if item.rows is None]
        if media:
            began = perf_counter()
            for item, rows in zip(media, self._encoders.encode(media), strict=True):
                item.rows = rows
            statistics.encode_seconds = perf_counter() - began
            statistics.images = sum(item.kind == "image" for item in media)
            statistics.audio_seconds = sum(
                len(item.data) / self.manifest.audio.sample_rate
                for item in media
                if item.data is not None and item.kind == "audio" and self.manifest.audio
            )
        return [SoftTokens(item.start, item.rows) for item in needed if item.rows is not None]
