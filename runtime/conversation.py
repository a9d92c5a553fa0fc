"""A conversation that goes on from turn to turn, in memory or from a file.

A session holds no keys and values. It holds messages in a form that leads back to them: answers in the ids in
which they were given, images and clips as the soft tokens that their encoder made. So its prompts begin with
what the model's cache or a stored state holds, whoever took turns with it meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_gemma.errors import ContextLimitError, EdgeGemmaError
from edge_gemma.runtime import session_file
from edge_gemma.runtime.answer import CANCELLED, Answer, Piece
from edge_gemma.runtime.chat import Message, normalize
from edge_gemma.runtime.prompt import KINDS, Encoded, Prompt
from edge_gemma.runtime.statistics import Statistics

if TYPE_CHECKING:
    from edge_gemma.runtime.engine import Model


class Session:
    """A conversation with a model. Make one with `Model.session`, or `Model.load_session` from a file.

    Sessions of one model take turns: it answers one prompt at a time.
    """

    def __init__(self, model: Model, messages: Sequence[Mapping[str, Any]] = ()) -> None:
        """Raises PromptError unless a user's message may follow `messages`."""
        *said, _ = normalize([*messages, {"role": "user", "content": "?"}])
        self._model = model
        self._messages = tuple(_plain(message) for message in said)

    @property
    def messages(self) -> list[Message]:
        """What was said so far. Images and clips are there as they were given, or encoded (`Encoded`)."""
        return [
            {**m, "content": str(c) if isinstance(c := m["content"], str) else [dict(p) for p in c]}
            for m in self._messages
        ]

    def stream(self, content: str | Sequence[Any], **options: Any) -> Iterator[Piece]:
        """Say something and have it answered, piece by piece; `options` are those of `Model.stream`.

        An answer that is interrupted (the iterator is closed, `cancel` is set, Ctrl-C) becomes part of the
        conversation as far as it came, if that is anywhere. After an error the conversation is as before.

        Args:
            content: a text, or parts as in a message of `Model.stream`.

        Raises:
            PromptError, MediaError, ContextLimitError: as `Model.stream` does.
            EdgeGemmaError: the session went on before the iterator was asked for its first piece.
        """
        before = self._messages
        message = normalize([*before, {"role": "user", "content": content}])[-1]
        asked = [*before, _plain(message)]
        prompt = self._model._prompts.build(asked, keep_media=True)
        return self._answered(before, asked, prompt, self._model.stream(prompt, **options))

    def generate(self, content: str | Sequence[Any], **options: Any) -> Answer:
        """Say something and have it answered in one piece; otherwise as `stream`."""
        return Answer.of(self.stream(content, **options))

    def fork(self) -> Session:
        """Another session that begins as this one; each goes on by itself."""
        with contextlib.suppress(EdgeGemmaError), self._model._answering():
            generator = self._model._open()
            if state := generator.state(self._follow_up().keys):
                generator.prefixes.add(state, end=False)
        return Session(self._model, self._messages)

    def save(self, path: str | Path) -> None:
        """Write the conversation to a file, with its keys and values as far as they are kept.

        The file appears whole or not at all; one of this name is replaced.

        Raises:
            SessionError: it cannot be written.
            EdgeGemmaError: the model is answering.
        """
        model = self._model
        with model._answering():
            generator, prompt = model._open(), self._follow_up()
            model._soft_tokens(prompt, Statistics())  # encodes what was not yet
            state = generator.state(prompt.keys)
            layout = generator.cache.layout(len(state)) if state else {}
            messages = _settled(self._messages, prompt)
            session_file.write(Path(path), model.manifest, messages, layout, state)

    @classmethod
    def load(cls, model: Model, path: str | Path) -> Session:
        """See Model.load_session."""
        with session_file.opened(Path(path), model.manifest) as stored, model._answering():
            session = cls(model, stored.messages)
            generator, keys = model._open(), session._follow_up().keys
            if len(keys) > generator.context:
                raise ContextLimitError(
                    f"the conversation in {path} has {len(keys)} tokens and the context {generator.context}: "
                    "load the artifact with a larger context"
                )
            if stored.fits(keys, generator.cache.layout(stored.tokens)):
                generator.restore(keys[: stored.tokens], stored.rows())
        return session

    def _follow_up(self) -> Prompt:
        """A prompt of a next turn: it begins with the keys of this conversation."""
        return self._model._prompts.build(
            [*self._messages, {"role": "user", "content": "?"}], keep_media=True
        )

    def _answered(
        self, before: tuple[Message, ...], asked: list[Message], prompt: Prompt, pieces: Iterator[Piece]
    ) -> Iterator[Piece]:
        if self._messages is not before:
            raise EdgeGemmaError("the session went on since this was asked: ask again")
        text, done = "", False
        try:
            for piece in pieces:
                text += piece.text
                done = piece.finish_reason is not None
                if done and (text.strip() or piece.finish_reason != CANCELLED):
                    self._go_on(asked, prompt, text)
                yield piece
        except (GeneratorExit, KeyboardInterrupt):
            pieces.close()  # type: ignore[attr-defined]  # a generator: now it has noted the answer's ids
            if text.strip() and not done:
                self._go_on(asked, prompt, text)
            raise

    def _go_on(self, asked: list[Message], prompt: Prompt, text: str) -> None:
        answer = {"role": "assistant", "content": self._model._prompts.answers.recall(text)}
        self._messages = (*_settled(asked, prompt), answer)


def _plain(message: Message) -> Message:
    """A message with what the template and the encoders read, and nothing else."""
    content = message["content"]
    if not isinstance(content, str):
        content = [
            {"type": kind, kind: part.get(kind, part.get("path")) if kind in KINDS else part["text"]}
            for part in content
            for kind in [part["type"]]
        ]
    return {"role": message["role"], "content": content}


def _settled(messages: Sequence[Message], prompt: Prompt) -> list[Message]:
    """Messages with encoded media in place of their sources; `prompt` was built of them, and encoded."""
    media = iter(prompt.media)

    def settle(part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] not in KINDS:
            return part
        item = next(media)
        assert item.rows is not None
        return {"type": item.kind, item.kind: Encoded(item.kind, item.fingerprint, item.rows)}

    return [
        m if isinstance(m["content"], str) else {**m, "content": [settle(part) for part in m["content"]]}
        for m in messages
    ]
