"""The demo for Android: what its tests share."""

from __future__ import annotations

import pytest
from jvm.bridge import MissingToolError, javac


@pytest.fixture(scope="session", autouse=True)
def jdk() -> None:
    try:
        javac()
    except MissingToolError as missing:
        pytest.fail(str(missing), pytrace=False)
