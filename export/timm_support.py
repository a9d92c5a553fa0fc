"""Makes timm importable, and with it transformers' vision tower, beside a torch that torchvision is not for.

timm imports torchvision, whose compiled half is built for one torch. Beside any other (some CPU builds of
torch have none) its import ends with "operator torchvision::nms does not exist": its Python half registers
shape functions for two operators that were never defined. Nothing of Gemma 3n calls them, so declaring their
schemas is enough.
"""

from __future__ import annotations

import functools
import sys

import torch

from edge_gemma.errors import DependencyError

OPERATORS = ("nms", "qnms")
SCHEMA = "{}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@functools.cache
def repair_torchvision() -> None:
    """Make torchvision importable where it is installed; call it before importing models of transformers."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return
    except RuntimeError:
        _declare_operators()


def require_timm() -> None:
    """Make timm and transformers' vision tower importable.

    Raises:
        DependencyError: timm or torchvision is not installed.
    """
    repair_torchvision()
    try:
        import timm  # noqa: F401
        import torchvision  # noqa: F401
    except ImportError:
        raise DependencyError(
            "timm and torchvision are missing and the vision tower needs them: "
            "pip install 'edge-gemma[export]', with the torch that is installed named beside it"
        ) from None


@functools.cache  # torch drops the schemas with the library object
def _library() -> torch.library.Library:
    return torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]


def _declare_operators() -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    for operator in OPERATORS:
        _library().define(SCHEMA.format(operator))  # type: ignore[no-untyped-call]
