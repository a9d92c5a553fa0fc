"""Filters before and after an answer, and what a log may say of a text.

    model = guarded(edge_gemma.load("artifacts/e2b"), [KeywordFilter(["attack plan"])])
    for piece in model.stream("…"):  # raises RefusedError where a filter refuses the prompt
        print(piece.text, end="")    # the last piece's finish_reason may be "content_filter"

An answer is judged as it grows, and no text is passed on that a filter may still refuse. The rule: filters
see the text as far as its words are complete; passed on is what they let, but for the last `hold_back` words,
which may be the beginning of something refused. A filter whose `hold_back` is None judges whole answers only:
then nothing is passed on before the end. Words are what white space separates, if it has letters or digits.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import unicodedata
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from edge_gemma.errors import PromptError, RefusedError
from edge_gemma.runtime.answer import Answer, Piece
from edge_gemma.runtime.chat import normalize
from edge_gemma.runtime.engine import Model
from edge_gemma.runtime.prompt import Messages

CONTENT_FILTER = "content_filter"  # the finish_reason of an answer that was refused, as in OpenAI's API
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refusal:
    """A filter's verdict."""

    reason: str  # for people and logs: it names the rule and never quotes the text


class Filter(Protocol):
    """Judges prompts and answers. It may be asked from several threads."""

    @property
    def hold_back(self) -> int | None:
        """Words at the end of a growing answer to keep until more is known; None: all, until its end."""

    def check_prompt(self, messages: Messages) -> Refusal | None:
        """Judge a conversation before it is answered; None lets it pass."""

    def check_answer(self, text: str, messages: Messages) -> Refusal | None:
        """Judge an answer so far, up to a complete word, and once more at its end."""


def check_prompt(messages: Messages, filters: Sequence[Filter]) -> None:
    """Ask every filter about a prompt.

    Raises:
        RefusedError: one refuses it.
        PromptError: the messages are malformed.
    """
    normalize(messages)
    for one in filters:
        if refusal := one.check_prompt(messages):
            raise RefusedError(f"the prompt is refused: {refusal.reason}")


def guard(pieces: Iterable[Piece], messages: Messages, filters: Sequence[Filter]) -> Iterator[Piece]:
    """Pass on an answer's pieces as far as every filter lets them; see the rule above.

    A refused answer is ended, its last piece has no text and the finish_reason "content_filter".
    """
    holds = [one.hold_back for one in filters]
    growing = [one for one in filters if one.hold_back is not None]
    words = None if None in holds else max((hold for hold in holds if hold is not None), default=0)
    text, sent, judged = "", 0, 0
    last: Piece | None = None
    refusal: Refusal | None = None
    try:
        for piece in pieces:
            last = piece
            text += piece.text
            complete = len(text) - _unfinished(text)
            if piece.finish_reason or complete == judged:
                continue  # a last piece is judged below, when the model is free for a filter to ask
            judged = complete
            if refusal := _first_refusal(growing, text[:complete], messages):
                break
            ready = _settled(text[:complete], words)
            if ready > sent:
                yield replace(piece, text=text[sent:ready])
                sent = ready
    finally:
        if isinstance(pieces, Generator):
            pieces.close()
    if last is None:
        return
    if refusal := refusal or _first_refusal(filters, text, messages):
        logger.info("an answer was refused: %s", refusal.reason)
        yield replace(last, text="", finish_reason=CONTENT_FILTER)
    else:
        yield replace(last, text=text[sent:])


@dataclass(frozen=True)
class Guarded:
    """A model whose prompts and answers pass through filters. Make one with `guarded`."""

    model: Model
    filters: Sequence[Filter]

    def stream(self, prompt: Messages, **options: Any) -> Iterator[Piece]:
        """As `Model.stream`.

        Raises:
            RefusedError: a filter refuses the prompt.
        """
        check_prompt(prompt, self.filters)
        return guard(self.model.stream(prompt, **options), prompt, self.filters)

    def generate(self, prompt: Messages, **options: Any) -> Answer:
        """As `Model.generate`; of a refused answer, what was passed on before."""
        return Answer.of(self.stream(prompt, **options))


def guarded(model: Model, filters: Iterable[Filter]) -> Guarded:
    """The model behind filters."""
    return Guarded(model, tuple(filters))


class KeywordFilter:
    """Refuses texts that hold one of some words or phrases: an example of a filter, and no moderation.

    Compared are whole words in any case, in Unicode's form NFKC and without invisible characters; what stands
    between words does not matter. Scripts that put no spaces between words need another filter.

    Raises PromptError for a keyword without letters or digits.
    """

    def __init__(self, keywords: Iterable[str]) -> None:
        self._phrases = []
        for keyword in keywords:
            phrase = _words(keyword)
            if not phrase.strip():
                raise PromptError(
                    f"the keyword {keyword!r} has no letters or digits: expected a word or phrase"
                )
            self._phrases.append(phrase)
        self.hold_back: int | None = max((len(phrase.split()) - 1 for phrase in self._phrases), default=0)

    def check_prompt(self, messages: Messages) -> Refusal | None:
        """Refuses a conversation that has a keyword in any of its messages."""
        return next(filter(None, (self._check(text_of(message)) for message in normalize(messages))), None)

    def check_answer(self, text: str, messages: Messages) -> Refusal | None:
        """Refuses a text that has a keyword."""
        return self._check(text)

    def _check(self, text: str) -> Refusal | None:
        words = _words(text)
        number = next((n for n, phrase in enumerate(self._phrases, 1) if phrase in words), None)
        return Refusal(f"it has keyword {number} of {len(self._phrases)}") if number else None


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message that `chat.normalize` has checked; its media are left out."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


_SALT = secrets.token_bytes(16)


def content_digest(text: str) -> str:
    """What a log may say of a text: "9f86d0818841, 124 characters".

    Equal texts have equal digests while the process runs; the salt is forgotten with it, so that nobody can
    find a text by hashing guesses.
    """
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), key=_SALT, digest_size=6).hexdigest()
    return f"{digest}, {len(text)} characters"


def _unfinished(text: str) -> int:
    """Length of what may yet become a longer word."""
    return len(text.rsplit(None, 1)[-1]) if text and not text[-1].isspace() else 0


class _WordCharacters(dict[int, str | None]):
    """For str.translate: letters, marks and numbers stay, invisible characters go, others become spaces."""

    def __missing__(self, code: int) -> str | None:
        kind = unicodedata.category(chr(code))
        self[code] = None if kind == "Cf" else chr(code) if kind[0] in "LMN" else " "
        return self[code]


_WORD_CHARACTERS = _WordCharacters()


def _words(text: str) -> str:
    """The words of a text for comparison, with one space before, between and after them."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return f" {' '.join(plain.translate(_WORD_CHARACTERS).split())} "


def _settled(text: str, words: int | None) -> int:
    """How much of a text of complete words can be passed on: all but its last `words`; None: nothing."""
    if words is None:
        return 0
    while words and text:
        text = text.rstrip()
        start = len(text) - _unfinished(text)
        words -= bool(_words(text[start:]).strip())
        text = text[:start]
    return len(text)


def _first_refusal(filters: Iterable[Filter], text: str, messages: Messages) -> Refusal | None:
    return next(filter(None, (one.check_answer(text, messages) for one in filters)), None)
