"""What this machine offers, and what edge-gemma would use of it."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import psutil

from edge_gemma.memory import format_bytes
from edge_gemma.runtime.session import default_threads

PACKAGES = ("edge-gemma", "onnxruntime", "numpy", "tokenizers", "jinja2", "click", "rich", "psutil")
EXPORT_PACKAGES = ("torch", "transformers", "onnx", "safetensors", "huggingface_hub")
# processor features that decide which of onnxruntime's int8 kernels run, best first
FEATURES = (
    "amx_int8",
    "avx512_vnni",
    "avx_vnni",
    "avx512f",
    "avx2",
    "i8mm",
    "asimddp",
    "asimdhp",
    "asimd",
)


def examine() -> dict[str, dict[str, str]]:
    """Facts by topic: processor, memory, what would be used, versions."""
    import onnxruntime as ort

    model, flags = _processor()
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


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> tuple[str, set[str]]:
    """Model name and feature flags from /proc/cpuinfo; what Python knows where there is none."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            pairs = [line.split(":", 1) for line in file if ":" in line]
    except OSError:
        return platform.processor() or "unknown", set()
    facts = {key.strip().lower(): value.strip() for key, value in pairs}
    # "model" is a number on x86, which has a "model name", and the board on a Raspberry Pi, which has none
    named = (facts.get(key) for key in ("model name", "model", "hardware"))
    model = next(filter(None, named), platform.processor() or "unknown")
    return model, set((facts.get("flags") or facts.get("features") or "").split())
