"""`make test-device`: what it asks for, and what it would run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import device  # noqa: E402


@pytest.fixture
def tests(tmp_path: Path) -> Path:
    (tmp_path / device.DEMO).mkdir()
    (tmp_path / device.DEMO / "manifest.json").touch()
    return tmp_path


def test_nothing_named_is_told_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert device.main([]) == 2
    error = capsys.readouterr().err
    assert "neither TESTS nor ARTIFACT: run `make test-artifacts`" in error and error.count("\n") == 1


@pytest.mark.parametrize("option", ["--tests", "--artifact"])
def test_a_folder_of_something_else(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert device.main([option, str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path} holds no ")


def test_the_demo_takes_the_tests_own_artifact_or_the_one_named(tests: Path) -> None:
    assert device.folders(tests, None) == (tests, tests / device.DEMO)
    assert device.folders(None, tests / device.DEMO) == (None, tests / device.DEMO)


def test_tests_come_first_and_are_left_out_without_their_artifacts(tests: Path) -> None:
    artifact = tests / device.DEMO
    everything, without = device.steps(tests, artifact), device.steps(None, artifact)
    assert "pytest" in everything[0] and everything[1:] == without
    commands = [step[2] for step in without]
    assert set(commands) == {"run", "transcribe", "translate", "describe", "doctor", "check", "bench"}


def test_the_samples_are_there() -> None:
    media = [
        part for command in device.demo(Path("x")) for part in command if part.endswith((".wav", ".png"))
    ]
    assert len(media) == 10 and all(Path(part).exists() for part in media)


def test_nothing_of_the_exporter_is_installed() -> None:
    assert not {"torch", "transformers", "onnx"} & set(device.TEST_PACKAGES)
