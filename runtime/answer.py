"""An answer, whole and in the pieces in which it arrives."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING

from edge_gemma.runtime.statistics import Statistics
from edge_gemma.runtime.stopping import StopStrings
from edge_gemma.runtime.tokenizer import TokenStream

if TYPE_CHECKING:
    from edge_gemma.runtime.prompt import Prompt
    from edge_gemma.runtime.sampling import Sampler
    from edge_gemma.runtime.structured import Constraint

CANCELLED = "cancelled"


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

    @classmethod
    def of(cls, pieces: Iterable[Piece]) -> Answer:
        """All pieces of an answer, joined."""
        whole = list(pieces)
        last = whole[-1]
        return cls("".join(piece.text for piece in whole), last.statistics, last.finish_reason or "stop")


class Reply:
    """An answer in the making: ids go in and text comes out, until something ends it."""

    def __init__(
        self,
        decoded: TokenStream,
        stop_ids: Collection[int],
        stops: StopStrings,
        constraint: Constraint | None = None,
    ) -> None:
        self._decoded = decoded
        self._stop_ids = stop_ids
        self._stops = stops
        self._constraint = constraint
        self.text = ""
        self.ids: list[int] = []  # a stop token is none of them
        self.ended = False

    def push(self, token: int) -> str:
        """Take the next id; what may be shown of the text now. `ended` tells whether it was the last one."""
        if token in self._stop_ids:
            self.ended = True
            return ""
        self.ids.append(token)
        piece, stopped = self._stops.push(self._decoded.push(token))
        self.ended = stopped or (self._constraint is not None and self._constraint.finished)
        self.text += piece
        return piece

    def finish(self) -> str:
        """No id comes any more; the rest of the text. That, too, may hold a stop string."""
        tail, stopped = self._stops.push(self._decoded.flush())
        self.ended = self.ended or stopped
        tail += self._stops.flush()
        self.text += tail
        return tail

    def reason(self, cancel: Event | None) -> str:
        """Why the answer ended where it did."""
        if self.ended:
            return "stop"
        return CANCELLED if cancel and cancel.is_set() else "length"


@dataclass(frozen=True)
class Request:
    """What is asked, checked and ready to be computed."""

    prompt: Prompt
    limit: int  # most tokens of the answer
    sampler: Sampler
    reply: Reply
