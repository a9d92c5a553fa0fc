"""Every error that edge-gemma raises on purpose.

    EdgeGemmaError
    ├── CheckpointError      the source of an export cannot be read, or is not Gemma 3n
    ├── RecipeError          a quantization recipe is unknown or malformed
    ├── DeviceError          a device profile is unknown or malformed
    ├── SubmodelError        a sub-model is unknown or malformed, or is none of the checkpoint's
    ├── ExportError          the export cannot be completed (a full disk, an existing target)
    ├── ArtifactError        an artifact is missing, damaged, or not one this version reads
    │   └── FormatVersionError   it was written by a newer edge-gemma
    ├── PromptError          the messages, the prompt or a sampling option cannot be used
    │   ├── ContextLimitError    prompt and answer do not fit the context
    │   ├── MediaError           a sound or an image cannot be read
    │   └── RefusedError         a content filter does not let it pass
    ├── ToolCallError        what the model wrote is no call that its tools can follow
    ├── BudgetError          a memory budget does not hold what was asked for
    ├── QueueFullError       too much work waits for the model already; `retry_after` says how long to wait
    ├── DeadlineError        the time that a caller gave has passed, or the caller took too long to read
    ├── ClosedError          no more work is taken: this is ending
    ├── SessionError         a session's file cannot be written, or is none that this model goes on from
    ├── CacheError           a prepared model cannot be written
    └── DependencyError      an optional package is missing; the message names the extra

A message says what was found, what was expected, and what to do; the command line prints it
as one line and exits with the class's `exit_code`.
"""

from __future__ import annotations

from numbers import Integral


class EdgeGemmaError(Exception):
    """Base of all errors below; catch this to catch everything edge-gemma raises on purpose."""

    exit_code = 1


class CheckpointError(EdgeGemmaError):
    """The source of an export cannot be read, or is not a Gemma 3n checkpoint."""

    exit_code = 3


class RecipeError(EdgeGemmaError):
    """A quantization recipe is unknown or malformed."""

    exit_code = 2


class DeviceError(EdgeGemmaError):
    """A device profile is unknown or malformed."""

    exit_code = 2


class SubmodelError(EdgeGemmaError):
    """A sub-model is unknown or malformed, or is none of the checkpoint's."""

    exit_code = 2


class ExportError(EdgeGemmaError):
    """The export cannot be completed; nothing half-written was left behind."""

    exit_code = 4


class ArtifactError(EdgeGemmaError):
    """An artifact is missing, damaged, or not an artifact."""

    exit_code = 5


class FormatVersionError(ArtifactError):
    """The artifact was written by a newer edge-gemma than this one."""


class PromptError(EdgeGemmaError):
    """The messages, the prompt or a sampling option cannot be used as given."""

    exit_code = 2


class ContextLimitError(PromptError):
    """The prompt and the answer asked for do not fit the context."""


class MediaError(PromptError):
    """A sound or an image cannot be read, or not as given."""


class RefusedError(PromptError):
    """A content filter does not let the prompt pass."""


class ToolCallError(EdgeGemmaError):
    """What the model wrote is no call that its tools can follow, or it goes on calling."""


class BudgetError(EdgeGemmaError):
    """A memory budget does not hold, or did not hold, what was asked for."""

    exit_code = 8


class QueueFullError(EdgeGemmaError):
    """Too much work waits for the model already.

    `retry_after` is in seconds: an estimate of when there is room again.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(EdgeGemmaError):
    """The time that a caller gave has passed, or the caller took too long to read."""


class ClosedError(EdgeGemmaError):
    """No more work is taken: what was asked is ending."""


class SessionError(EdgeGemmaError):
    """A session's file cannot be written, or is none that this model goes on from."""


class CacheError(EdgeGemmaError):
    """A prepared model cannot be written to the cache."""


class DependencyError(EdgeGemmaError):
    """A package of an optional extra is missing."""

    exit_code = 6


def check_count(name: str, value: object) -> None:
    """Raises PromptError unless `value` is a whole number of at least 1."""
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < 1:
        raise PromptError(f"{name} is {value!r}: expected a whole number of at least 1")
