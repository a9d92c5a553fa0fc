"""The demo for Android: what its tests share."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture(scope="session", autouse=True)
def jdk() -> None:
    if shutil.which("javac") is None:
        pytest.fail("JDK 17 is needed: apt-get install openjdk-17-jdk-headless", pytrace=False)
