"""What every benchmark prints around its numbers."""

from __future__ import annotations

import json
import sys
from typing import Any

from edge_gemma.console import print_table
from edge_gemma.runtime.doctor import environment


def print_report(module: str, header: tuple[str, ...], rows: list[tuple[str, ...]], data: Any) -> None:
    """The environment and the command, then the table, then everything as one line of JSON."""
    facts = environment("torch", "transformers")
    command = " ".join(["python -m", module, *sys.argv[1:]])
    print_table("environment", [(name, str(value)) for name, value in facts.items()])
    print_table(f"\n{command}", rows, header)
    print(json.dumps({"command": command, "environment": facts, "results": data}))
