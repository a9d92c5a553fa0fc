"""Sessions of onnxruntime: with how many threads."""

from __future__ import annotations

import pytest

from edge_gemma.runtime.session import default_threads


def test_default_threads_are_the_cores_it_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 5, 7})
    assert default_threads() == 3
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert default_threads() == 1
