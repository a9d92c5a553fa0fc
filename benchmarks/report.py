"""What every benchmark prints around its numbers."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import version
from typing import Any

import psutil

from edge_gemma.console import print_table
from edge_gemma.runtime.doctor import examine

PACKAGES = ("edge-gemma", "onnxruntime", "numpy", "torch", "transformers")


def environment() -> dict[str, Any]:
    """Machine and versions, as plain data."""
    processor = examine()["processor"]
    return {
        "machine": f"{processor['model']}, {processor['cores']} cores, {processor['int8 features']}",
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30), 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def print_report(module: str, header: tuple[str, ...], rows: list[tuple[str, ...]], data: Any) -> None:
    """The environment and the command, then the table, then everything as one line of JSON."""
    facts = environment()
    command = " ".join(["python -m", module, *sys.argv[1:]])
    print_table("environment", [(name, str(value)) for name, value in facts.items()])
    print_table(f"\n{command}", rows, header)
    print(json.dumps({"command": command, "environment": facts, "results": data}))
