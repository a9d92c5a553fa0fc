"""What a benchmark says of a folder that it cannot use."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner

from edge_gemma.errors import ArtifactError

FOLDER = Path(__file__).parents[2] / "benchmarks"
OF_ARTIFACTS = sorted(
    file.stem
    for file in FOLDER.glob("*.py")
    if re.search(r'click\.argument\("(artifact|folder|folders)", .*exists=True', file.read_text("utf-8"))
)


def test_they_are_found() -> None:
    assert {"warm_start", "long_context", "levels", "batch"} <= set(OF_ARTIFACTS)


@pytest.mark.parametrize("name", OF_ARTIFACTS)
def test_a_folder_that_is_no_artifact(name: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(import_module(f"benchmarks.{name}").main, [str(tmp_path)])
    assert done.exit_code == ArtifactError.exit_code
    assert done.output == (
        f"Error: {tmp_path} has no manifest.json: expected an artifact made by `edge-gemma export`\n"
    )
