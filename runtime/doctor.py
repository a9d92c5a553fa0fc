"""What this machine offers, and what edge-gemma would use of it."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

from edge_gemma.machine import FEATURES, processor
from edge_gemma.memory import format_bytes
from edge_gemma.runtime.session import default_threads

PACKAGES = ("edge-gemma", "onnxruntime", "numpy", "jinja2", "click", "rich", "psutil")
MEASURED_PACKAGES = ("edge-gemma", "onnxruntime", "numpy")
EXPORT_PACKAGES = ("torch", "transformers", "onnx", "safetensors", "huggingface_hub", "tokenizers")


def examine() -> dict[str, dict[str, str]]:
    """Facts by topic: processor, memory, what would be used, versions."""
    import onnxruntime as ort

    model, flags = processor()
    memory = psutil.virtual_memory()
    return {
        "processor": {
            "architecture": platform.machine(),
            "model": model,
            "cores": f"{psutil.cpu_count(logical=False) or '?'} physical, {psutil.cpu_count()} logical",
            "int8 features": ", ".join(f for f in FEATURES if f in flags) or "none known",
        },
        "memory": {
            "total": format_bytes(memory.total),
            "available": format_bytes(memory.available),
            "swap": format_bytes(psutil.swap_memory().total),
        },
        "would be used": {
            "threads": str(default_threads()),
            "execution provider": "CPUExecutionProvider",
            "providers offered": ", ".join(ort.get_available_providers()),
        },
        "versions": {
            "python": sys.version.split()[0],
            "system": platform.platform(),
            **{name: _version(name) for name in PACKAGES},
            **{name: f"{_version(name)} (export)" for name in EXPORT_PACKAGES},
        },
    }


def environment(*packages: str) -> dict[str, Any]:
    """What measurements depend on: machine, system, versions of the runtime's packages and of `packages`."""
    facts = examine()["processor"]
    return {
        "machine": f"{facts['model']}, {facts['cores']} cores, {facts['int8 features']}",
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30), 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: _version(name) for name in (*MEASURED_PACKAGES, *packages)},
    }


def _version(package: str) -> str:
    if package == "onnxruntime":  # its builds for other devices are packages of other names
        import onnxruntime as ort

        return str(ort.__version__)
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
