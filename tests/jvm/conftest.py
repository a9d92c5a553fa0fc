"""One Java process for all tests of the engine, and the artifact that they share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jvm import golden
from jvm.bridge import Jvm, MissingToolError
from jvm.reference import counts


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if counts["answers"]:
        terminalreporter.write_line(
            f"JVM: {counts['answers']} answers compared token for token, {counts['near_ties']} near ties"
        )


@pytest.fixture(scope="session")
def jvm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jvm]:
    try:
        engine = Jvm(tmp_path_factory.mktemp("jvm"))
    except MissingToolError as missing:
        pytest.fail(str(missing), pytrace=False)
    with engine:
        yield engine


@pytest.fixture(scope="session")
def demo(demo_artifact: Path) -> Path:
    return demo_artifact


@pytest.fixture(scope="session")
def vectors(demo: Path) -> dict[str, Any]:
    return golden.vectors(demo)
