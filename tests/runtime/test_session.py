"""Sessions of onnxruntime: with how many threads, and in whose memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_gemma.memory import resident_bytes
from edge_gemma.runtime import fresh_process
from edge_gemma.runtime.session import default_threads, open_session, open_together

SCRATCH = 64 << 20


def test_default_threads_are_the_cores_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 5, 7})
    assert default_threads() == 3
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert default_threads() == 1


@pytest.fixture
def adds_up(tmp_path: Path) -> Path:
    """A graph that writes its input SCRATCH / 4 times, and adds up."""
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "adds_up.onnx"
    text = f"""
        <ir_version: 10, opset_import: ["" : 21]>
        adds_up (float[1] x) => (float[1] y) <int64[1] many = {{{SCRATCH // 4}}}> {{
            copies = Expand(x, many)
            y = ReduceSum(copies)
        }}
    """
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def grown(step: fresh_process.Step, path: Path, together: bool) -> tuple[int, int]:
    """By how much memory grew while two sessions ran in turn, and what of that is left when they are gone."""
    sessions = open_together([path] * 2) if together else [open_session(path) for _ in range(2)]
    before = resident_bytes()
    for session in sessions:
        (total,) = session.run(None, {"x": np.ones(1, np.float32)})
        assert total == [SCRATCH // 4]
    full = resident_bytes()
    sessions.clear()
    del session, total  # an answer lies where the session put it
    return full - before, resident_bytes() - before


@pytest.mark.parametrize(("together", "times"), [(False, 2), (True, 1)])
def test_sessions_opened_together_share_their_scratch(adds_up: Path, together: bool, times: int) -> None:
    full, left = fresh_process.call(
        grown, step=lambda: None, warn=pytest.fail, path=adds_up, together=together
    )
    assert times * SCRATCH <= full < (times + 0.5) * SCRATCH
    assert left < 0.5 * SCRATCH
