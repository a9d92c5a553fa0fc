"""What many tests need."""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach a hub
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="edge-gemma-tests-")  # not this user's own
sys.path.insert(0, str(Path(__file__).parent))  # `import tiny` in every test folder
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # `import demo`

import made as made_artifacts  # noqa: E402

TORCH = made_artifacts.installed("torch")  # not where only the runtime is: on a board, on an emulated one
if TORCH:
    from edge_gemma.export.timm_support import repair_torchvision

    repair_torchvision()  # before any test imports a model of transformers
settings.register_profile("untimed", deadline=None)  # no example may fail for being slow
settings.load_profile("untimed")
if made_artifacts.folder():  # a board, or an emulated one
    settings.register_profile("slow", max_examples=20, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("slow")
LEFT_OUT = {
    module: library
    for module, library in made_artifacts.REFERENCES.items()
    if not made_artifacts.installed(library)
}
collect_ignore = [f"runtime/{module}" for module in LEFT_OUT]


@pytest.fixture(scope="session", autouse=True)
def quiet_transformers() -> None:
    if not TORCH:
        return
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)  # tiny models gain nothing from more


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for module, library in LEFT_OUT.items():
        tests = re.findall(r"^def test_", (ROOT / "tests" / "runtime" / module).read_text("utf-8"), re.M)
        terminalreporter.write_line(
            f"left out: {len(tests)} tests of {module}, which compare with {library}: it is not installed"
        )


def pytest_sessionfinish() -> None:
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    return ROOT / "demo" / "checkpoint"


@pytest.fixture(scope="session")
def demo_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int4 artifact of the demo checkpoint, for other languages' runtimes; read-only."""
    target = tmp_path_factory.mktemp("artifacts") / "demo"
    made_artifacts.export_demo("int4", target)
    return target


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The artifact of a name in tests/made.py; read-only: copy it before damaging it."""
    found: dict[str, Path] = {}

    def made(name: str) -> Path:
        if name not in found:
            found[name] = made_artifacts.find(name, lambda: tmp_path_factory.mktemp("artifacts"))
        return found[name]

    return made


@pytest.fixture(scope="session")
def tiny_artifact(made: Callable[[str], Path]) -> Path:
    """An int4 artifact of synthetic:tiny."""
    return made("tiny-int4")


@pytest.fixture(scope="session")
def media_artifact(made: Callable[[str], Path]) -> Path:
    """An fp32 artifact of a random checkpoint with all three towers."""
    return made("multimodal-fp32")


@pytest.fixture(scope="session")
def multimodal_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The checkpoint of media_artifact, and transformers' model of it: a multimodal.Multimodal."""
    made_artifacts.needs("torch")
    import multimodal

    return multimodal.make(tmp_path_factory.mktemp("checkpoints") / "multimodal")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of what went through an encoder, in order."""
    from edge_gemma.runtime.encoders import Encoders

    kinds: list[str] = []
    run = Encoders._run

    def counted(self: Encoders, spec: Any, item: Any) -> Any:
        kinds.append(item.kind)
        return run(self, spec, item)

    monkeypatch.setattr(Encoders, "_run", counted)
    return kinds
