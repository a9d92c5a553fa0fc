from __future__ import annotations

import json
import os
from importlib.metadata import PackageNotFoundError

import onnxruntime
import pytest

from edge_gemma.runtime import doctor


def test_names_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "processor", lambda: ("Some Xeon", {"fpu", "avx2", "avx512_vnni"}))
    assert doctor.examine()["processor"]["int8 features"] == "avx512_vnni, avx2"
    assert doctor.examine()["processor"]["model"] == "Some Xeon"


def test_a_processor_that_tells_no_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "processor", lambda: ("unknown", set()))
    assert doctor.examine()["processor"]["int8 features"] == "none known"


def test_tells_what_would_be_used() -> None:
    facts = doctor.examine()
    assert facts["would be used"]["threads"] == str(len(os.sched_getaffinity(0)))
    assert facts["versions"]["onnxruntime"] == onnxruntime.__version__
    assert "iB" in facts["memory"]["total"]
    assert json.loads(json.dumps(facts)) == facts


def test_onnxruntime_by_another_package_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """As onnxruntime-gpu has it: the module tells its version."""

    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(doctor, "version", version)
    assert doctor.examine()["versions"]["onnxruntime"] == onnxruntime.__version__
    assert doctor.environment()["onnxruntime"] == onnxruntime.__version__
    assert doctor.environment()["numpy"] == "not installed"


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "EXPORT_PACKAGES", ("no-such-package",))
    assert doctor.examine()["versions"]["no-such-package"].startswith("not installed")
