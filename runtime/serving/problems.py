"""What is wrong with a request, as an answer in the form of OpenAI's errors."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from math import ceil
from types import MappingProxyType
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from edge_gemma.errors import (
    BudgetError,
    ClosedError,
    ContextLimitError,
    DeadlineError,
    PromptError,
    QueueFullError,
)

logger = logging.getLogger(__name__)
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class Problem(Exception):
    """A request that is answered with an error. `param` names the field, `code` is for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers

    @classmethod
    def of(cls, error: Exception) -> Problem:
        """The problem that an error is. One that is not meant for callers is logged, and told as a 500."""
        if isinstance(error, Problem):
            return error
        if isinstance(error, QueueFullError):
            headers = {"retry-after": str(ceil(error.retry_after))}
            return cls(503, str(error), code="queue_full", headers=headers)
        if isinstance(error, ClosedError):
            return cls(503, str(error), code="shutting_down", headers={"retry-after": "10"})
        if isinstance(error, DeadlineError):
            return cls(504, str(error), code="timeout")
        if isinstance(error, ContextLimitError):
            return cls(400, str(error), param="messages", code="context_length_exceeded")
        if isinstance(error, (PromptError, BudgetError)):
            return cls(400, str(error))
        logger.error("a request failed", exc_info=error)
        return cls(500, "the server failed: its log tells more")

    def body(self) -> dict[str, Any]:
        """{"error": …} as OpenAI's clients read it."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """In ASCII: the message may quote half a character of the request."""
        return Response(
            json.dumps(self.body()), self.status, headers=self.headers, media_type="application/json"
        )


async def answer_error(request: Request, error: Exception) -> Response:
    """For Starlette's exception_handlers."""
    return Problem.of(error).response()
