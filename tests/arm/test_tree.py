"""The emulated cores' folders; building a tree for real is `make test-arm`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import tree  # noqa: E402

from edge_gemma import machine  # noqa: E402


@pytest.mark.parametrize(("core", "best"), [("a72", "asimd"), ("a76", "asimddp"), ("i8mm", "i8mm")])
def test_the_runtime_reads_each_core_as_what_it_is(core: str, best: str, tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(tree.cpuinfo(tree.CORES[core], 3))
    _, flags = machine.processor(tmp_path)
    assert next(name for name in machine.FEATURES if name in flags) == best
    assert (tmp_path / "proc" / "cpuinfo").read_text().count("processor\t:") == 3


def test_what_is_missing_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["tree.py", str(tmp_path / "tree")])
    assert tree.main() == 1
    error = capsys.readouterr().err
    assert error.startswith("apt-get is missing: ") and error.count("\n") == 1
    assert not (tmp_path / "tree").exists()


def test_a_command_that_fails_is_told_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(tree.TreeError, match=r"^sh failed, .*network: no route$"):
        tree.call("sh", "-c", "echo first >&2; echo no route >&2; exit 3", folder=tmp_path)


def test_a_tree_is_built_once_and_again_when_its_parts_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stamp").write_text(tree.fingerprint(tmp_path))
    monkeypatch.setenv("PATH", "")  # building would fail
    tree.build(tmp_path)
    changed = tmp_path / "constraints.txt"
    changed.write_text("numpy==1.0\n")
    monkeypatch.setattr(tree, "CONSTRAINTS", changed)
    with pytest.raises(tree.TreeError):
        tree.build(tmp_path)


def test_wheels_are_those_of_the_runtime() -> None:
    wanted = " ".join(tree.requirements())
    assert "onnxruntime" in wanted and "soxr" in wanted and "pytest" in wanted
    assert "torch" not in wanted and "transformers" not in wanted
