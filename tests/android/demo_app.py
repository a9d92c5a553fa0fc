"""Where the demo for Android is, and how its tests run commands."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "android_demo"


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Both outputs in one, as a user sees them."""
    return subprocess.run(
        [str(part) for part in command],
        env=os.environ | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=400,
        cwd="/",
    )


def sources(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.java"))
