from __future__ import annotations

import io
import json
import os

import onnxruntime
import pytest

from edge_gemma.runtime import doctor

X86 = (
    "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Some Xeon @ 2.0GHz\n"
    "flags\t\t: fpu avx2 avx512f avx512_vnni\n"
)
RASPBERRY = (
    "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd asimdhp asimddp\n"
    "\nHardware\t: BCM2835\nRevision\t: d04170\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"
)
PHONE = "Processor\t: AArch64 rev 14\nFeatures\t: fp asimd i8mm asimddp\nHardware\t: Qualcomm SM8550\n"


@pytest.mark.parametrize(
    ("cpuinfo", "model", "features"),
    [
        (X86, "Some Xeon @ 2.0GHz", "avx512_vnni, avx512f, avx2"),
        (RASPBERRY, "Raspberry Pi 5 Model B Rev 1.0", "asimddp, asimdhp, asimd"),
        (PHONE, "Qualcomm SM8550", "i8mm, asimddp, asimd"),
    ],
)
def test_names_the_processor(
    cpuinfo: str, model: str, features: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "open", lambda *_, **__: io.StringIO(cpuinfo), raising=False)
    processor = doctor.examine()["processor"]
    assert processor["model"] == model
    assert processor["int8 features"] == features


def test_a_system_without_cpuinfo(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(doctor, "open", missing, raising=False)
    processor = doctor.examine()["processor"]
    assert processor["model"]
    assert processor["int8 features"] == "none known"


def test_tells_what_would_be_used() -> None:
    facts = doctor.examine()
    assert facts["would be used"]["threads"] == str(len(os.sched_getaffinity(0)))
    assert facts["versions"]["onnxruntime"] == onnxruntime.__version__
    assert "iB" in facts["memory"]["total"]
    assert json.loads(json.dumps(facts)) == facts


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "EXPORT_PACKAGES", ("no-such-package",))
    assert doctor.examine()["versions"]["no-such-package"].startswith("not installed")
