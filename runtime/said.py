"""What the model said, with the ids in which it said it.

A text has many tokenizations, and the one that a model chose while it spoke need not be the one that a
tokenizer makes. Read back as text, an answer could begin to differ from what the KV cache holds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

from edge_gemma.runtime.tokenizer import Tokenizer

REMEMBERED = 256  # answers


class Said(str):
    """An answer's text. In a prompt it stands for its ids, not for those of its text."""

    ids: tuple[int, ...]

    def __new__(cls, text: str, ids: Sequence[int]) -> Said:
        said = super().__new__(cls, text)
        said.ids = tuple(ids)
        return said


class Answers:
    """The latest answers by text, so that callers who send whole conversations, as text, send the ids too."""

    def __init__(self, tokenizer: Tokenizer, count: int = REMEMBERED) -> None:
        self._tokenizer = tokenizer
        self._count = count
        self._ids: OrderedDict[str, tuple[int, ...]] = OrderedDict()  # least recently used first
        self._lock = Lock()  # prompts are built on many threads

    def note(self, text: str, ids: Sequence[int]) -> None:
        """An answer with this text was given in these ids, or in the first of them, where it was cut.

        One that holds control tokens is not remembered: its text does not tell where they are, and whoever
        sends that text should not bring them into a prompt.
        """
        said = self._cut(text, list(ids))
        if not text.strip() or not self._tokenizer.special_ids.isdisjoint(said):
            return
        with self._lock:
            self._ids[text.strip()] = said
            self._ids.move_to_end(text.strip())
            while len(self._ids) > self._count:
                self._ids.popitem(last=False)

    def recall(self, text: str) -> str:
        """The text with the ids in which it was said, if they are known. Space around it does not count."""
        with self._lock:
            ids = self._ids.get(text.strip())
            if ids is None:
                return text
            self._ids.move_to_end(text.strip())
            return Said(text, ids)

    def _cut(self, text: str, ids: list[int]) -> tuple[int, ...]:
        """The ids of a text that ends before they do, inside a token perhaps: a stop string was cut off."""
        while not text.startswith(whole := self._tokenizer.decode(ids)):
            ids.pop()
        return (*ids, *self._tokenizer.encode(text[len(whole) :]))
