"""The public class, and the story of an answer: messages → prompt → soft tokens → ids → text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from numbers import Integral
from threading import Event, Lock
from time import perf_counter
from types import TracebackType
from typing import Any

from edge_gemma.artifact import LevelSpec, Manifest
from edge_gemma.errors import BudgetError, ContextLimitError, EdgeGemmaError, PromptError
from edge_gemma.memory import format_bytes, parse_bytes, peak_resident_bytes, reachable_bytes
from edge_gemma.planning import Plan
from edge_gemma.runtime import speech, tasks
from edge_gemma.runtime.embeddings import EmbeddingStore
from edge_gemma.runtime.encoders import Encoders
from edge_gemma.runtime.generation import Generator, SoftTokens
from edge_gemma.runtime.levels import DecodingSpeed, LevelDrafter, widest
from edge_gemma.runtime.prompt import Messages, Prompt, PromptBuilder
from edge_gemma.runtime.sampling import SamplingOptions, make_sampler
from edge_gemma.runtime.speculation import PromptLookup, Speculation
from edge_gemma.runtime.speech import SpeechSegment, Transcript
from edge_gemma.runtime.statistics import Statistics
from edge_gemma.runtime.stopping import StopStrings
from edge_gemma.runtime.tokenizer import Tokenizer

AUTO = "auto"
SAMPLING = tuple(field.name for field in fields(SamplingOptions))


@dataclass(frozen=True)
class Piece:
    """Part of an answer as it arrives. The last piece has a finish_reason."""

    text: str
    statistics: Statistics
    finish_reason: str | None = None  # "stop", "length" or "cancelled"


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    text: str
    statistics: Statistics
    finish_reason: str


def check_count(name: str, value: object) -> None:
    """Raises PromptError unless `value` is a whole number of at least 1."""
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < 1:
        raise PromptError(f"{name} is {value!r}: expected a whole number of at least 1")


class Model:
    """A loaded artifact. Make one with `edge_gemma.load`; close it, or use it as a context manager.

    It answers one prompt at a time. A prompt that continues the conversation before it, as in a chat,
    costs only its new tokens.
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
    ) -> None:
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.plan = plan
        self._prompts = prompts
        self._encoders = encoders
        self._store = store
        self._generator: Generator | None = generator
        self._speculations = {"lookup": Speculation(PromptLookup())}
        if manifest.levels:
            self._speculations["level"] = Speculation(LevelDrafter(generator.decoder, store, generator.cache))
        self._speed = DecodingSpeed()
        self._busy = Lock()

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._open().context

    @property
    def level(self) -> str | None:
        """The level of an elastic artifact that answers; None where the artifact has none."""
        levels = self.manifest.levels
        return levels[self._open().decoder.level].name if levels else None

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
            self._run_level(self._open(), index)

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
        levels = self.manifest.levels
        if not levels:
            raise PromptError("this artifact is not elastic and has no levels: export it with --elastic")
        budget = parse_bytes(memory) if isinstance(memory, str) else memory or reachable_bytes()
        if self.plan.budget:
            budget = min(budget, self.plan.budget)

        def suits(level: LevelSpec) -> bool:
            speed = self._speed.of(level)
            fast = tokens_per_second is None or speed is None or speed >= tokens_per_second
            return fast and self.plan.at_weights(level.weights).answering <= budget

        return widest(levels, suits).name

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
        prompt: Messages,
        *,
        max_new_tokens: int | None = None,
        stop: Sequence[str] = (),
        cancel: Event | None = None,
        speculate: str | None = None,
        level: str | None = None,
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
            sampling: fields of SamplingOptions: temperature, top_k, top_p, min_p, repetition_penalty, seed.

        Raises:
            PromptError: the prompt or an option cannot be used.
            MediaError: an image or a clip cannot be read.
            ContextLimitError: the prompt leaves no room for an answer.
        """
        if unknown := sorted(sampling.keys() - SAMPLING):
            raise PromptError(f"{unknown[0]!r} is not an option: expected one of {', '.join(SAMPLING)}")
        if max_new_tokens is not None:
            check_count("max_new_tokens", max_new_tokens)
        if speculate is not None and speculate not in self._speculations:
            known = " or ".join(repr(name) for name in self._speculations)
            raise PromptError(f"speculate is {speculate!r}: this artifact can have {known}")
        index = None
        if level is not None:
            index = self.manifest.level(self.choose_level() if level == AUTO else level)
        options = SamplingOptions(**sampling)
        stops = StopStrings(stop)
        generator = self._open()
        built = self._prompts.build(prompt)
        length = len(built.ids)
        room = generator.context - length
        if room < 1:
            raise ContextLimitError(
                f"the prompt has {length} tokens and the context {generator.context}: shorten the prompt, "
                f"or load with a larger context (this model takes up to {self.manifest.max_context})"
            )
        limit = min(room, max_new_tokens or room)
        speculation = self._speculations[speculate] if speculate else None
        return self._pieces(generator, built, options, stops, limit, cancel, speculation, index)

    def generate(self, prompt: Messages, **options: Any) -> Answer:
        """Answer a prompt in one piece; takes what `stream` takes."""
        pieces = list(self.stream(prompt, **options))
        last = pieces[-1]
        return Answer("".join(p.text for p in pieces), last.statistics, last.finish_reason or "stop")

    def transcribe(self, audio: Any, language: str | None = None, **options: Any) -> Transcript:
        """Write down what is said in a recording of any length.

        Args:
            audio: a path, bytes, an open file, a numpy array at 16 kHz or a pair of array and rate.
            language: the language spoken, as "es" or "Spanish"; by default the model finds out.
            options: those of `stream`, greedy by default, and `progress`.

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

    def encode_ahead(self, prompts: Sequence[Messages]) -> None:
        """Encode the images and clips of prompts that will be answered next, loading each encoder once."""
        media = [item for prompt in prompts for item in self._prompts.build(prompt).media]
        self._encoders.encode(media)

    def close(self) -> None:
        """Release the memory and the files; the model cannot be used afterwards."""
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

    def _pieces(
        self,
        generator: Generator,
        prompt: Prompt,
        options: SamplingOptions,
        stops: StopStrings,
        limit: int,
        cancel: Event | None,
        speculation: Speculation | None,
        level: int | None,
    ) -> Iterator[Piece]:
        with self._answering():
            if level is not None:
                self._run_level(generator, level)
            statistics = Statistics()
            text = self.tokenizer.stream()
            stop_ids = frozenset(self.manifest.tokens.stop)
            reason = "length"
            for token in generator.generate(
                prompt.ids,
                make_sampler(options),
                max_new_tokens=limit,
                statistics=statistics,
                cancel=cancel,
                keys=prompt.keys,
                soft=self._soft_tokens(generator, prompt, statistics),
                speculation=speculation,
            ):
                if token in stop_ids:
                    reason = "stop"
                    break
                piece, stopped = stops.push(text.push(token))
                if piece:
                    yield Piece(piece, statistics)
                if stopped:
                    reason = "stop"
                    break
            if reason == "length" and cancel and cancel.is_set():
                reason = "cancelled"
            tail, stopped = stops.push(text.flush())
            if stopped:
                reason = "stop"
            statistics.peak_memory_bytes = peak_resident_bytes()
            if self.manifest.levels:
                answered = self.manifest.levels[generator.decoder.level]
                self._speed.note(answered, statistics.generated_tokens - 1, statistics.decode_seconds)
            yield Piece(tail + stops.flush(), statistics, reason)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """One answer at a time."""
        if not self._busy.acquire(blocking=False):
            raise EdgeGemmaError("the model is answering another prompt: finish or close that answer first")
        try:
            yield
        finally:
            self._busy.release()

    def _run_level(self, generator: Generator, index: int) -> None:
        level, decoder = self.manifest.levels[index], generator.decoder
        planned = self.plan.at_weights(level.weights)
        if planned.budget and planned.answering > planned.budget:
            raise BudgetError(
                f"the level {level.name} needs {format_bytes(planned.answering)} and the budget is "
                f"{format_bytes(planned.budget)}: load with a larger memory_budget or stay with {self.level}"
            )
        if index < decoder.level:
            decoder.drop_weights()
        decoder.level, self.plan = index, planned

    def _soft_tokens(self, generator: Generator, prompt: Prompt, statistics: Statistics) -> list[SoftTokens]:
        """Encode the images and clips that the KV cache does not hold."""
        reused = generator.reusable(prompt.keys)
        media = [item for item in prompt.media if item.end > reused]
        if not media:
            return []
        began = perf_counter()
        rows = self._encoders.encode(media)
        statistics.encode_seconds = perf_counter() - began
        statistics.images = sum(item.kind == "image" for item in media)
        statistics.audio_seconds = sum(
            len(item.data) / self.manifest.audio.sample_rate
            for item in media
            if item.kind == "audio" and self.manifest.audio
        )
        return [SoftTokens(item.start, found) for item, found in zip(media, rows, strict=True)]
