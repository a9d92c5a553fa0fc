"""The check's conversation in a process of its own: following it, and saying how it ended."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edge_gemma import errors
from edge_gemma.artifact import Artifact
from edge_gemma.errors import EdgeGemmaError
from edge_gemma.memory import format_bytes
from edge_gemma.runtime import hard_limit
from edge_gemma.runtime.control_groups import Support
from edge_gemma.runtime.hard_limit import Result


@dataclass(kw_only=True)
class Conversation:
    """What the process of `runtime.check` printed, and how it ended."""

    expected: tuple[str, ...]  # names of its phases
    phases: list[dict[str, Any]] = field(default_factory=list)  # fields of check.Phase
    plan: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)  # mapped at its end
    error: dict[str, str] | None = None
    seconds: float = 0.0
    result: Result = Result(returncode=0)

    @property
    def reported_peak(self) -> int:
        """VmHWM in bytes, as the process read it after its last phase."""
        return int(self.phases[-1]["peak"])

    @property
    def peak(self) -> int:
        """The higher of VmHWM and of what wait4 says when all is over, in bytes."""
        return max(self.reported_peak, self.result.maxrss)

    @property
    def decode_seconds(self) -> float:
        return float(sum(p["statistics"]["decode_seconds"] for p in self.phases if p["statistics"]))

    @property
    def place(self) -> str:
        """Where it was when it ended."""
        done = len(self.phases)
        return f"in the phase {self.expected[done]!r}" if done < len(self.expected) else "at its end"

    def raise_failure(self) -> None:
        """Say in one line why it did not come to its end, if it did not.

        Raises:
            EdgeGemmaError: of the class that the process raised.
        """
        if self.error:
            raise getattr(errors, self.error["error"], EdgeGemmaError)(self.error["message"])
        code = self.result.returncode
        if code == 0:
            return
        said = (self.result.stderr.strip().splitlines() or ["it said nothing"])[-1]
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        why = f" ({said})" if code > 0 else ""
        if code == -signal.SIGKILL:
            why = " (the system does so when memory runs out)"
        raise EdgeGemmaError(
            f"the conversation's process {how} {self.place}{why}, before its time: free memory, or find the "
            "cause with `edge-gemma run` and the same options"
        )


def hold(
    artifact: Artifact,
    model: dict[str, Any],
    *,
    media: bool,
    advance: Callable[[], None],
    limit: int | None = None,
    support: Support | None = None,
    timeout: float | None = None,
) -> Conversation:
    """Hold the conversation, under a hard limit where one is given: see `hard_limit.run`.

    Args:
        artifact: an opened artifact.
        model: options of `load`.
        media: show an image and a clip, as far as the artifact has encoders.
        advance: called after each phase.
    """
    found = Conversation(expected=phases(artifact, media))

    def on_line(line: str) -> None:
        said = json.loads(line)
        if "plan" in said:
            found.plan = said["plan"]
        elif "files" in said:
            found.files = said["files"]
        elif "error" in said:
            found.error = said
        else:
            found.phases.append(said)
            advance()

    job = json.dumps({"artifact": str(artifact.folder), "model": model, "media": media}, default=str)
    command = [sys.executable, "-m", "edge_gemma.runtime.check", job]
    began = time.monotonic()
    found.result = hard_limit.run(command, limit, support=support, on_line=on_line, timeout=timeout)
    found.seconds = time.monotonic() - began
    return found


def phases(artifact: Artifact, media: bool) -> tuple[str, ...]:
    """The names of the conversation's phases, in order."""
    encoders = {"image": artifact.manifest.vision, "audio": artifact.manifest.audio}
    shown = [name for name, spec in encoders.items() if media and spec]
    return ("start", "load", "text", *shown, "second text")


def problems(measured: Conversation, limited: Conversation | None, budget: int) -> list[str]:
    """What exceeded the budget, in bytes.

    Raises:
        EdgeGemmaError: the conversation under the limit failed for another reason.
    """
    found = []
    if measured.peak > budget:
        where = next((phase["name"] for phase in measured.phases if phase["peak"] > budget), "end")
        found.append(
            f"peak memory is {format_bytes(measured.peak)} and the budget {format_bytes(budget)}, "
            f"exceeded first in the phase {where!r}"
        )
    if limited is None:
        return found
    if limited.result.oom_kills:
        found.append(f"a hard limit of {format_bytes(budget)} killed it {limited.place}")
    elif limited.result.timed_out:
        found.append(
            f"under a hard limit of {format_bytes(budget)} it was not done after {limited.seconds:.0f} s, "
            f"{limited.place} (without the limit: {measured.seconds:.0f} s)"
        )
    else:
        limited.raise_failure()
    return found
