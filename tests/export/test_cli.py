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
from edge_gemma.recipes import find_recipe
from edge_gemma.submodel_choice import Chooser, explain

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
        "output", "source", "submodel", "levels", "recipe", "files", "text_parameters",
        "effective_parameters", "memory_estimate", "seconds", "peak_memory_bytes",
    }  # fmt: skip
    assert (data["source"], data["submodel"], data["recipe"]) == ("synthetic:tiny", None, "int4")
    assert data["files"] == {
        p.name: p.stat().st_size for p in (tmp_path / "artifact").iterdir() if p.name != "manifest.json"
    }


def test_export_says_what_it_made(tmp_path: Path, capsys: Capture) -> None:
    assert run(["export", "synthetic:tiny", "-o", str(tmp_path / "a"), "--recipe", "fp32"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{tmp_path / 'a'}: ") and "in 7 files, recipe fp32\n" in out and err == ""


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
        while not list(tmp_path.glob(".artifact.partial-*/decoder.data")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == "" and err.strip() == "interrupted"
    assert os.listdir(tmp_path) == (["artifact"] if overwrite else [])
    if overwrite:
        assert os.listdir(target) == ["manifest.json"]


@pytest.fixture(scope="module")
def as_e4b(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of E4B's pattern."""
    changes = tiny.AS_E4B | {"max_position_embeddings": 32_768}
    return str(tiny.make(tmp_path_factory.mktemp("checkpoints") / "as-e4b", **changes).folder)


def test_a_published_submodel(as_e4b: str, tmp_path: Path, capsys: Capture) -> None:
    """It is exported by its name, and verified by the name that the artifact has."""
    target = str(tmp_path / "artifact")
    options = ["-o", target, "--recipe", "fp32", "--submodel"]
    assert run(["export", as_e4b, *options, "E2B", "--json"]) == 0
    exported = json.loads(capsys.readouterr().out)
    assert exported["submodel"] == "E2B"
    quick = ["--against", as_e4b, "--prompt", "hello", "--new-tokens", "2", "--max-relative-error", "1e-3"]
    assert run(["verify", target, *quick]) == 0
    capsys.readouterr()
    assert run(["verify", target, *quick, "--submodel", "E2.49B-block"]) == 5
    assert "compare it with the checkpoint it was made from" in capsys.readouterr().err


def test_a_submodel_of_ones_own(as_e4b: str, tmp_path: Path, capsys: Capture) -> None:
    """The artifact has only its name: verifying needs its file."""
    own, target = tmp_path / "own.yaml", str(tmp_path / "artifact")
    own.write_text("mine: {drop: [0-15, 21-33], widths: {default: 77, 20: half}}", "utf-8")
    assert run(["export", as_e4b, "-o", target, "--recipe", "fp32", "--submodel", str(own)]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("recipe fp32, sub-model mine")
    quick = ["--against", as_e4b, "--prompt", "hello", "--new-tokens", "2"]
    assert run(["verify", target, *quick]) == 2
    assert "holds 'mine', which is not published: give its file with --submodel" in capsys.readouterr().err
    assert run(["verify", target, *quick, "--submodel", str(own)]) == 0


def test_the_submodel_that_fits(
    as_e4b: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """By the plan for E4B itself, without encoders where none is exported."""
    monkeypatch.setattr("edge_gemma.export.cli.model_name", lambda config: "E4B")
    options = ["--recipe", "fp32", "--overwrite", "--json", "-o", str(tmp_path / "artifact")]
    fp32 = find_recipe("fp32")
    sizes = {
        c.name: c.candidate.plan.peak for c in Chooser(fp32, context=4096, budget=1, encoders=()).ranked()
    }
    budget = sizes["E2.69B-layer"]  # enough for that one, and for no longer context
    for context, expected in (("4096", "E2.69B-layer"), ("32768", "E2.54B-layer")):
        assert run(["export", as_e4b, *options, "--memory", str(budget), "--context", context]) == 0
        out, err = capsys.readouterr()
        ranked = Chooser(fp32, context=int(context), budget=budget, encoders=()).ranked()
        assert err == f"{explain(ranked)}\n"
        assert json.loads(out)["submodel"] == ranked[0].name == expected
    assert run(["export", as_e4b, *options, "--memory", "1GiB"]) == 8
    assert capsys.readouterr().err.startswith(
        "error: nothing fits 1.00 GiB at 4096 tokens of context, E2B fp32"
    )


def test_submodels_that_are_refused(as_e4b: str, tmp_path: Path, capsys: Capture) -> None:
    target = str(tmp_path / "artifact")
    cases = [
        (["--submodel", "E3B"], "no sub-model is called 'E3B': choose E4B, E2B"),
        (["--submodel", str(tmp_path / "none.yaml")], "does not exist: expected a sub-model file"),
        (["--submodel", "E2B", "--memory", "2GiB"], "each say what to export: give one of them"),
        (["--context", "512"], "--context is about --memory: give both or neither"),
        (["--memory", "plenty"], "'plenty' is not a size"),
        (
            ["--memory", "3GiB"],
            "is neither E2B nor E4B, and --memory chooses among published sub-models of E4B",
        ),
    ]
    for text, message in (
        ("drop: [18]", "drops layer 18, whose keys and values later layers read: keep [18, 19]"),
        ("drop: [40]", "drop names layer 40, expected 0 to 34"),
        ("layers: [18, 19, 19]", "layers names layer 19 twice"),
        ("layers: []", "keeps no layer"),
        ("widths: 512", "a width of 512: expected 1 to 256"),
        ("widths: 100", "a width of 100: expected a multiple of 128, the recipe's block"),
    ):
        (tmp_path / f"{len(cases)}.yaml").write_text(f"mine: {{{text}}}", "utf-8")
        cases.append((["--submodel", str(tmp_path / f"{len(cases)}.yaml")], message))
    for arguments, message in cases:
        assert run(["export", as_e4b, "-o", target, *arguments]) == 2, arguments
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert run(["export", "synthetic:tiny", "-o", target, "--submodel", "E2B"]) == 2
    assert "the source has 10 layers of 1 feed-forward widths, 5 of which share" in capsys.readouterr().err
    assert not Path(target).exists()


def test_a_folder_goes_through_the_command(tmp_path: Path, capsys: Capture) -> None:
    folder = tiny.make(tmp_path / "checkpoint").folder
    target = str(tmp_path / "artifact")
    assert run(["export", str(folder), "-o", target, "--recipe", "int8"]) == 0
    assert run(["export", str(folder), "-o", target, "--recipe", "int8"]) == 4
    assert run(["export", str(folder), "-o", target, "--recipe", "int8", "--overwrite"]) == 0
    assert run(["inspect", target, "--verify"]) == 0
    assert "checkpoint" in capsys.readouterr().out
