"""The demo for Android: what its tests share."""

from __future__ import annotations

import shutil

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "apk: builds the demo for Android: a JDK, and Debian's packages")


@pytest.fixture(scope="session", autouse=True)
def jdk() -> None:
    if shutil.which("javac") is None:
        pytest.fail("JDK 17 is needed: apt-get install openjdk-17-jdk-headless", pytrace=False)
