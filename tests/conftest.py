"""What many tests need."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach a hub
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="edge-gemma-tests-")  # not this user's own
sys.path.insert(0, str(Path(__file__).parent))  # `import tiny` in every test folder
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # `import demo`

from edge_gemma.export.timm_support import repair_torchvision  # noqa: E402

repair_torchvision()  # before any test imports a model of transformers


@pytest.fixture(scope="session", autouse=True)
def quiet_transformers() -> None:
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)  # tiny models gain nothing from more


def pytest_sessionfinish() -> None:
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    return ROOT / "demo" / "checkpoint"


@pytest.fixture(scope="session")
def tiny_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int4 artifact of synthetic:tiny; read-only: copy it before damaging it."""
    from edge_gemma.export.checkpoint import open_checkpoint
    from edge_gemma.export.pipeline import export
    from edge_gemma.recipes import find_recipe

    target = tmp_path_factory.mktemp("artifacts") / "tiny-int4"
    export(open_checkpoint("synthetic:tiny"), find_recipe("int4"), target)
    return target


@pytest.fixture(scope="session")
def multimodal_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A random checkpoint with all three towers, and transformers' model of it: a multimodal.Multimodal."""
    import multimodal

    return multimodal.make(tmp_path_factory.mktemp("checkpoints") / "multimodal")


@pytest.fixture(scope="session")
def media_artifact(multimodal_checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its fp32 artifact; read-only."""
    from edge_gemma.export.checkpoint import open_checkpoint
    from edge_gemma.export.pipeline import export
    from edge_gemma.recipes import find_recipe

    target = tmp_path_factory.mktemp("artifacts") / "multimodal-fp32"
    export(open_checkpoint(str(multimodal_checkpoint.folder)), find_recipe("fp32"), target)
    return target
