"""Calls a function in a Python process of its own: nothing there is warm, and its peak memory is its alone.

The child does not see the parent's Ctrl-C; it ends when the parent kills it or is gone.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

from edge_gemma.errors import EdgeGemmaError

T = TypeVar("T")
Step = Callable[[], None]


def call(function: Callable[..., T], /, *, step: Step, warn: Callable[[str], None], **arguments: Any) -> T:
    """What `function(step, **arguments)` returns; function, arguments and result are pickled.

    Args:
        function: of a module, called with something to call whenever part of its work is done.
        step: called here each time the function calls its own.
        warn: called with each warning that the function logs.

    Raises:
        EdgeGemmaError: the process ended before its work.
        Exception: what the function raised, where that is an EdgeGemmaError or an OSError.
    """
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve()"
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes, start_new_session=True) as child:
        assert child.stdin and child.stdout
        try:
            pickle.dump((function, arguments), child.stdin)
            child.stdin.flush()
            while True:
                kind, value = pickle.load(child.stdout)
                if kind == "step":
                    step()
                elif kind == "warning":
                    warn(value)
                elif kind == "error":
                    raise value
                else:
                    result: T = value
                    return result
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            raise EdgeGemmaError(_epitaph(child.wait())) from None
        finally:
            child.kill()


def serve() -> None:
    """The child's side: what to call comes through standard input, what comes of it leaves through output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    function, arguments = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever else writes to standard output must not come between
    logging.getLogger().addHandler(_Forward(answers))
    try:
        result = function(lambda: _send(answers, "step"), **arguments)
    except (EdgeGemmaError, OSError) as error:
        _send(answers, "error", error)
    else:
        _send(answers, "result", result)


class _Forward(logging.Handler):
    """Sends warnings to the parent."""

    def __init__(self, answers: BinaryIO) -> None:
        super().__init__(logging.WARNING)
        self._answers = answers

    def emit(self, record: logging.LogRecord) -> None:
        _send(self._answers, "warning", record.getMessage())


def _send(answers: BinaryIO, kind: str, value: Any = None) -> None:
    answers.write(pickle.dumps((kind, value)))


def _end_with_parent() -> None:
    os.read(0, 1)  # nothing is ever written: returns when the parent's end closes
    os._exit(1)


def _epitaph(status: int) -> str:
    found = f"the process that measured ended with status {status} before its work was done"
    if status == -9:  # SIGKILL, which Windows has no name for
        found = "the process that measured was killed, as the system does when memory runs out"
    return f"{found}: free memory, or lower --context and --chunk"
