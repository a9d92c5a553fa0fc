"""Work in processes of their own, whose peak memory is theirs alone."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def edge_gemma(*arguments: str, stdin: str = "") -> dict[str, Any]:
    """What a command prints as JSON."""
    return _report(["-m", "edge_gemma.cli", *arguments, "--json"], stdin)


def program(code: str, *arguments: str) -> dict[str, Any]:
    """What a program prints as JSON."""
    return _report(["-c", code, *arguments])


def _report(arguments: list[str], stdin: str = "") -> dict[str, Any]:
    done = subprocess.run([sys.executable, *arguments], input=stdin, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report
