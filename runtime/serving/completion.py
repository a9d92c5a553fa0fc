"""A chat completion in OpenAI's forms, as it grows: the whole object, or chunks of a stream."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from edge_gemma.errors import DeadlineError, ToolCallError
from edge_gemma.runtime.serving.chat_request import ChatRequest
from edge_gemma.runtime.statistics import Statistics
from edge_gemma.runtime.tools import parse_calls

if TYPE_CHECKING:
    from edge_gemma.runtime.engine import Piece
    from edge_gemma.runtime.scheduler import Job


class Completion:
    """Filled with `add`, then settled with `end`."""

    def __init__(self, asked: ChatRequest) -> None:
        self._asked = asked
        self._common = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": asked.model,
        }
        self.text = ""
        self.refusal: str | None = None  # why a content filter refused the prompt
        self.statistics = Statistics()
        self.finish_reason = "content_filter"  # until a piece has another one
        self._calls: list[dict[str, Any]] = []

    def add(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """The chunks that can be sent now. With tools there are none before `end`: it may become a call."""
        self.text += piece.text
        self.statistics = piece.statistics
        if piece.finish_reason:
            self.finish_reason = piece.finish_reason
        if piece.text and not self._asked.tools:
            yield self.chunk({"content": piece.text})

    def end(self, job: Job[Piece]) -> Iterator[dict[str, Any]]:
        """Settle why it ended, and what it calls; the last chunks.

        Raises:
            DeadlineError: time was up before anything was said.
        """
        if self.finish_reason == "cancelled":
            if job.expired and not self.text:
                raise DeadlineError("time was up before the answer began: ask for less, or try later")
            self.finish_reason = "length"
        self._calls = self._read_calls()
        if self._calls:
            self.finish_reason = "tool_calls"
            yield self.chunk({"tool_calls": [{"index": n, **call} for n, call in enumerate(self._calls)]})
        elif self._asked.tools and self.text:
            yield self.chunk({"content": self.text})
        if self.refusal:
            yield self.chunk({"refusal": self.refusal})
        yield self.chunk({}, self.finish_reason)
        if self._asked.include_usage:
            yield self.chunk(None) | {"usage": self._usage()}

    def whole(self) -> dict[str, Any]:
        """The chat.completion object."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text, "refusal": self.refusal}
        if self._calls:
            message |= {"content": None, "tool_calls": self._calls}
        elif self.refusal:
            message["content"] = None
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish_reason}
        return self._common | {"object": "chat.completion", "choices": [choice], "usage": self._usage()}

    def chunk(self, delta: dict[str, Any] | None, finish_reason: str | None = None) -> dict[str, Any]:
        """A chat.completion.chunk; without a delta it has no choice."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._common | {
            "object": "chat.completion.chunk",
            "choices": [] if delta is None else [choice],
            **({"usage": None} if self._asked.include_usage else {}),
        }

    def _read_calls(self) -> list[dict[str, Any]]:
        if not self._asked.tools:
            return []
        try:
            calls = parse_calls(self.text, self._asked.tools)
        except ToolCallError:  # it calls what there is not: for the client that is a text
            return []
        return [
            {
                "id": f"call_{secrets.token_hex(8)}",
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
            }
            for call in (calls if self._asked.parallel_calls else calls[:1])
        ]

    def _usage(self) -> dict[str, Any]:
        s = self.statistics
        return {
            "prompt_tokens": s.prompt_tokens,
            "completion_tokens": s.generated_tokens,
            "total_tokens": s.prompt_tokens + s.generated_tokens,
            "prompt_tokens_details": {"cached_tokens": s.reused_tokens},
        }
