"""What `make test-device` runs on a real board: tests, demo, check and bench, without the exporter.

    python3 tests/arm/device.py [--tests FOLDER] [--artifact FOLDER] [--venv FOLDER]

--tests is what `make test-artifacts` wrote on a workstation: the runtime's tests open its artifacts, and
compare their answers with those that were recorded there. --artifact is what the demo, check and bench use;
without it they take demo-int4 of the test artifacts.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SAMPLES = ROOT / "demo" / "samples"
DEMO = "demo-int4"
COMPARED = ("tests/arm/test_kernels.py", "tests/arm/test_recorded.py")  # with x86-64
TEST_PACKAGES = ("pytest", "pytest-timeout", "hypothesis", "srt", "webvtt-py")
OLDEST = (3, 11)  # that onnxruntime 1.32 has wheels for
HOW = (
    "run `make test-artifacts` on a workstation, copy artifacts/test-artifacts here and "
    "say `make test-device TESTS=folder`"
)


class Missing(Exception):
    """What the board lacks, and how to get it."""


def folders(tests: Path | None, artifact: Path | None) -> tuple[Path | None, Path]:
    """The test artifacts, if any, and the artifact that the demo uses.

    Raises:
        Missing: a folder does not hold what it should, or none was named.
    """
    if tests is None and artifact is None:
        raise Missing(f"found neither TESTS nor ARTIFACT: {HOW}, or name any artifact with ARTIFACT=folder")
    if tests and not (tests / DEMO / "manifest.json").exists():
        raise Missing(f"{tests} holds no test artifacts: {HOW}")
    if artifact and not (artifact / "manifest.json").exists():
        raise Missing(f"{artifact} holds no artifact: copy there what `edge-gemma export` wrote")
    if artifact is None:
        assert tests is not None
        artifact = tests / DEMO
    return tests and tests.absolute(), artifact.absolute()


def demo(artifact: Path) -> list[list[str]]:
    """Commands of edge-gemma: text, then what the samples say in both languages and show."""
    english, spanish = (sorted(map(str, SAMPLES.glob(f"{name}-*.wav"))) for name in ("english", "spanish"))
    pictures = sorted(map(str, SAMPLES.glob("*.png")))
    folder = str(artifact)
    return [
        ["run", folder, "What is 17 + 25?", "--temperature", "0", "--stats"],
        ["run", folder, "Turn on the kitchen light.", "--temperature", "0"],
        ["transcribe", folder, *english, *spanish],
        ["translate", folder, *english, "--from", "English", "--to", "Spanish"],
        ["translate", folder, *spanish, "--from", "Spanish", "--to", "English"],
        ["describe", folder, *pictures, "--temperature", "0"],
    ]


def steps(tests: Path | None, artifact: Path) -> list[list[str]]:
    """All that is run with the virtual environment's Python, in order."""
    options = ["-q", "-rs", "-p", "no:cacheprovider"]
    runtime_tests = ["-m", "pytest", *options, *COMPARED, "tests/runtime"]
    measures = [["doctor"], ["check", str(artifact), "--device", "auto"], ["bench", str(artifact)]]
    commands = [["-m", "edge_gemma.cli", *command] for command in [*demo(artifact), *measures]]
    return [*([runtime_tests] if tests else []), *commands]


def install(venv: Path) -> Path:
    """A virtual environment with the runtime and its tests' packages, and nothing of the exporter."""
    python = venv / "bin" / "python"
    if not python.exists():
        made = subprocess.run([sys.executable, "-m", "venv", str(venv)])
        if made.returncode:
            raise Missing("no virtual environment could be made: apt-get install python3-venv")
    packages = ["--editable", f"{ROOT}[audio,vision]", *TEST_PACKAGES]
    if subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages]).returncode:
        raise Missing("pip could not install the runtime: see above; its packages need a network or wheels")
    return python


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Tests, demo, check and bench on a board.")
    parser.add_argument("--tests", type=Path)
    parser.add_argument("--artifact", type=Path)
    parser.add_argument("--venv", type=Path, default=ROOT / "artifacts" / "device-venv")
    chosen = parser.parse_args(arguments)
    try:
        if sys.version_info < OLDEST:
            raise Missing(
                f"found Python {sys.version.split()[0]}: onnxruntime 1.32 has wheels for 3.11 and later"
            )
        tests, artifact = folders(chosen.tests, chosen.artifact)
        python = install(chosen.venv.absolute())
    except Missing as error:
        print(error, file=sys.stderr)
        return 2
    environment = os.environ | ({"EDGE_GEMMA_TEST_ARTIFACTS": str(tests)} if tests else {})
    failed = []
    for step in steps(tests, artifact):
        print(f"\n> {' '.join(step)}", flush=True)
        if subprocess.run([str(python), *step], cwd=ROOT, env=environment).returncode:
            failed.append(" ".join(step))
    if tests is None:
        print(f"\nThe runtime's tests were left out, for want of TESTS: {HOW}")
    for command in failed:
        print(f"failed: {command}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
