"""The command line of the export: exit statuses, one line for an error, JSON alone on standard output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from edge_gemma.cli import COMMANDS, run

Capture = pytest.CaptureFixture[str]


def edge_gemma(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_gemma.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_export_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = edge_gemma("export", "synthetic:tiny", "-o", tmp_path / "artifact", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    data = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert set(data) == {
        "output", "source", "recipe", "files", "text_parameters", "effective_parameters",
        "memory_estimate", "seconds", "peak_memory_bytes",
    }  # fmt: skip
    assert (data["source"], data["recipe"]) == ("synthetic:tiny", "int4")
    assert data["files"] == {
        p.name: p.stat().st_size for p in (tmp_path / "artifact").iterdir() if p.name != "manifest.json"
    }


def test_export_says_what_it_made(tmp_path: Path, capsys: Capture) -> None:
    assert run(["export", "synthetic:tiny", "-o", str(tmp_path / "a"), "--recipe", "fp32"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{tmp_path / 'a'}: ") and "in 6 files, recipe fp32\n" in out and err == ""


def test_error_statuses(tmp_path: Path, capsys: Capture) -> None:
    target = str(tmp_path / "artifact")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "bad.yaml").write_text("mine: [", "utf-8")
    full = str(tmp_path / "full")
    cases = [
        (2, ["export", "synthetic:tiny", "-o", target, "--recipe", "int3"], "no recipe is called 'int3'"),
        (2, ["export", "synthetic:tiny", "-o", target, "--recipe", f"{tmp_path}/bad.yaml"], "not valid YAML"),
        (3, ["export", full, "-o", target], "has no config.json"),
        (3, ["export", f"{full}/nowhere", "-o", target], "does not exist"),
        (3, ["export", "owner/name-that-is-not-cached", "-o", target], "the hub cannot be reached"),
        (3, ["export", "synthetic:huge", "-o", target], "is not a synthetic checkpoint"),
        (4, ["export", "synthetic:tiny", "-o", full], "exists: choose another folder"),
        (4, ["export", "synthetic:tiny", "-o", full, "--overwrite"], "is not an artifact"),
        (4, ["export", "synthetic:tiny", "-o", f"{full}/file", "--overwrite"], "is not an artifact"),
        (5, ["verify", full, "--against", "synthetic:tiny"], "has no manifest.json"),
    ]
    for status, arguments, message in cases:
        for option in ([], ["--json"]):
            assert run([*arguments, *option]) == status, arguments
            out, err = capsys.readouterr()
            assert out == "" and message in err
            assert err.startswith("error: ") and err.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["bad.yaml", "full"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["export"],
        ["export", "synthetic:tiny"],
        ["export", "synthetic:tiny", "-o", "x", "--unknown"],
        ["verify", "x"],
        ["verify", "x", "--against", "y", "--new-tokens", "0"],
        ["verify", "x", "--against", "y", "--max-relative-error", "small"],
        ["exprot"],
        ["--unknown"],
    ],
)
def test_bad_usage(arguments: list[str], capsys: Capture) -> None:
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.lower().count("error: ") == 1
    assert err.startswith("Usage: edge-gemma")


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help(command: str | None, capsys: Capture) -> None:
    for flag in ("--help", "-h") if command is None else ("--help",):
        assert run([*([command] if command else []), flag]) == 0
        out, err = capsys.readouterr()
        assert out.startswith(f"Usage: edge-gemma {command or '[OPTIONS]'}") and err == ""
        if command is None:
            assert all(f"  {name} " in out for name in COMMANDS)


def test_errors_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = edge_gemma("export", tmp_path, "-o", tmp_path / "artifact", "--json")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("module", ["torch", "onnx", "safetensors"])
@pytest.mark.parametrize("command", ["export", "verify"])
def test_a_missing_package_names_the_extra(command: str, module: str) -> None:
    script = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from edge_gemma.cli import run\n"
        f"sys.exit(run([{command!r}, '--help']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr == (
        f"error: `edge-gemma {command}` needs the package {module}: pip install 'edge-gemma[export]'\n"
    )


def test_help_needs_no_extra() -> None:
    script = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'onnx', 'onnxruntime', 'numpy')))\n"
        "from edge_gemma.cli import run\n"
        "sys.exit(run(['--help']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "export" in done.stdout


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("huggingface_hub", ["export", "owner/name", "-o", "x"]),
        ("transformers", ["verify", "ARTIFACT", "--against", "synthetic:tiny"]),
    ],
)
def test_a_package_that_is_missed_later(
    module: str,
    arguments: list[str],
    tiny_artifact: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert run([str(tiny_artifact) if a == "ARTIFACT" else a for a in arguments]) == 6
    assert capsys.readouterr().err == f"error: {module} is missing: pip install 'edge-gemma[export]'\n"


@pytest.mark.parametrize("overwrite", [False, True])
def test_ctrl_c_leaves_nothing(overwrite: bool, tmp_path: Path) -> None:
    """During an export that would take minutes, as soon as it has begun to write."""
    target = tmp_path / "artifact"
    command = [sys.executable, "-m", "edge_gemma.cli", "export", "synthetic:E2B", "-o", str(target)]
    if overwrite:
        target.mkdir()
        (target / "manifest.json").write_text("{}", "utf-8")
        command.append("--overwrite")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 90
        while not list(tmp_path.glob(".artifact.partial-*/decoder.onnx.data")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == "" and err.strip() == "interrupted"
    assert os.listdir(tmp_path) == (["artifact"] if overwrite else [])
    if overwrite:
        assert os.listdir(target) == ["manifest.json"]


def test_a_folder_goes_through_the_command(tmp_path: Path, capsys: Capture) -> None:
    folder = tiny.make(tmp_path / "checkpoint").folder
    target = str(tmp_path / "artifact")
    assert run(["export", str(folder), "-o", target, "--recipe", "int8"]) == 0
    assert run(["export", str(folder), "-o", target, "--recipe", "int8"]) == 4
    assert run(["export", str(folder), "-o", target, "--recipe", "int8", "--overwrite"]) == 0
    assert run(["inspect", target, "--verify"]) == 0
    assert "checkpoint" in capsys.readouterr().out
