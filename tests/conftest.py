"""What many tests need."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach a hub
sys.path.insert(0, str(Path(__file__).parent))  # `import tiny` in every test folder
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # `import demo`


@pytest.fixture(scope="session", autouse=True)
def quiet_transformers() -> None:
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)  # tiny models gain nothing from more


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    return ROOT / "demo" / "checkpoint"


@pytest.fixture(scope="session")
def tiny_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An int4 artifact of synthetic:tiny; read-only: copy it before damaging it."""
    from edge_gemma.export.checkpoint import open_checkpoint
    from edge_gemma.export.pipeline import export
    from edge_gemma.export.recipes import find_recipe

    target = tmp_path_factory.mktemp("artifacts") / "tiny-int4"
    export(open_checkpoint("synthetic:tiny"), find_recipe("int4"), target)
    return target
