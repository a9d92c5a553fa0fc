"""Functions called in a process of their own: what comes back, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from edge_gemma.errors import ArtifactError, EdgeGemmaError
from edge_gemma.runtime.fresh_process import call

FUNCTIONS = """
import ctypes, logging, os, signal, sys, time
from edge_gemma.errors import ArtifactError

def work(step, number):
    print("noise", flush=True)
    ctypes.CDLL(None).puts(b"more noise")
    logging.getLogger("somewhere").warning("beware of %d", number)
    logging.getLogger("somewhere").info("never mind")
    for _ in range(number):
        step()
    return number + 1, os.getpid(), "torch" in sys.modules

def fail(step, error):
    raise error

def die(step, how):
    how = getattr(signal, how, None) or os._exit(3)
    os.kill(os.getpid(), how)

def wait(step):
    step()
    time.sleep(100)
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "functions_elsewhere.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "functions_elsewhere", raising=False)
    import functions_elsewhere  # type: ignore[import-not-found]

    return functions_elsewhere


def ignore(*_: Any) -> None:
    pass


def test_a_result_comes_back(functions: Any, capfd: pytest.CaptureFixture[str]) -> None:
    steps: list[None] = []
    warnings: list[str] = []
    result = call(functions.work, step=lambda: steps.append(None), warn=warnings.append, number=3)
    assert (result[0], result[2]) == (4, False) and result[1] != os.getpid()
    assert len(steps) == 3 and warnings == ["beware of 3"]
    out, err = capfd.readouterr()
    assert out == "" and "noise" in err  # between the answers it would break them
    assert not psutil.pid_exists(result[1])


@pytest.mark.parametrize("error", [ArtifactError("it is damaged"), FileNotFoundError(2, "No such file", "x")])
def test_an_error_comes_back(error: Exception, functions: Any) -> None:
    with pytest.raises(type(error)) as caught:
        call(functions.fail, step=ignore, warn=ignore, error=error)
    assert str(caught.value) == str(error)


@pytest.mark.parametrize(
    ("how", "message"),
    [("SIGKILL", "was killed, as the system does when memory runs out"), ("_exit", "ended with status 3")],
)
def test_a_process_that_dies(how: str, message: str, functions: Any) -> None:
    with pytest.raises(EdgeGemmaError, match=message):
        call(functions.die, step=ignore, warn=ignore, how=how)


def test_an_interruption_ends_it(functions: Any) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    before = psutil.Process().children()
    with pytest.raises(KeyboardInterrupt):
        call(functions.wait, step=interrupt, warn=ignore)
    assert psutil.Process().children() == before


def test_it_does_not_outlive_its_parent(functions: Any) -> None:
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "import functions_elsewhere as f\nfrom edge_gemma.runtime.fresh_process import call\n"
        "call(f.wait, step=lambda: print(flush=True), warn=print)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout and parent.stdout.readline()
        (child,) = psutil.Process(parent.pid).children()
        parent.send_signal(signal.SIGKILL)
    end = time.monotonic() + 30
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < end:
        time.sleep(0.01)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
