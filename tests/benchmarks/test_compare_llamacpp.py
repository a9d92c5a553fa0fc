"""Rounds, ratios and messages of the comparison, without llama.cpp."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from benchmarks import compare_llamacpp
from benchmarks.compare_llamacpp import main, parse_artifacts, ratios, run_rounds, table
from benchmarks.contestants import EdgeGemma, LlamaCpp, Work, run_llamacpp
from edge_gemma import artifact as artifacts
from edge_gemma.errors import ArtifactError, DependencyError, EdgeGemmaError

WORK = Work(threads=1, context=256, prefill=(4, 8), decode_at=(12,), tokens=2)


class Fake:
    """Takes its figures from a list."""

    def __init__(self, name: str, speeds: list[float], turns: list[str]) -> None:
        self.name, self._speeds, self._turns = name, speeds, turns

    def measure(self, work: Work) -> dict[str, float]:
        self._turns.append(self.name)
        return {"prefill 4": self._speeds.pop(0)}


def python(folder: Path, code: str) -> str:
    """An interpreter that runs `code` whatever it is given."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\n{code}\n")
    path.chmod(0o755)
    return str(path)


def test_rounds_alternate_and_ratios_are_of_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_llamacpp, "read_bandwidth", lambda threads, size: 2e9)
    turns: list[str] = []
    contestants = [Fake("llama.cpp", [10, 20, 40], turns), Fake("ours", [20, 20, 20], turns)]
    values = run_rounds(contestants, WORK, 3)
    assert turns == ["llama.cpp", "ours", "ours", "llama.cpp", "llama.cpp", "ours"]
    assert ratios(values)["prefill 4"] == {"ours": [2, 1, 0.5]}
    rows = [row for row in table(values) if "prefill" in row[0] or row[2] == "20.0"]
    assert rows == [
        ("prefill of 4 tokens, tokens/s", "llama.cpp", "20.0", "10.0", "40.0", "", "", ""),
        ("", "ours", "20.0", "20.0", "20.0", "1.00", "0.50", "2.00"),
    ]


def test_an_artifact_is_measured(tiny_artifact: Path) -> None:
    contestant = EdgeGemma("ours", artifacts.read(tiny_artifact))
    contestant.prepare(WORK)
    figures = contestant.measure(WORK)
    assert set(figures) == {"load", "prefill 4", "prefill 8", "decode 12", "peak", "anonymous"}
    assert min(figures.values()) > 0 and figures["peak"] > figures["anonymous"]


def test_the_faster_attention_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(self: LlamaCpp, work: Work) -> dict[str, float]:
        return {"prefill 4": 8, "prefill 8": 8, "decode 12": 1 if self.flash else 2}

    monkeypatch.setattr(LlamaCpp, "measure", measure)
    chosen, trials = LlamaCpp("llama.cpp", "python", Path("x.gguf"), (1,)).faster(WORK, (True, False))
    assert not chosen.flash and set(trials) == {"on", "off"}


def test_artifacts_are_named_and_of_one_shape(tiny_artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match="expected NAME=DIR"):
        parse_artifacts([str(tmp_path)])
    with pytest.raises(ArtifactError, match="make one with `edge-gemma export synthetic:E2B -o "):
        parse_artifacts([f"a={tmp_path / 'none'}"])
    with pytest.raises(ArtifactError, match="neither E2B's nor E4B's shape"):
        parse_artifacts([f"a={tiny_artifact}"])
    with pytest.raises(ArtifactError, match="found none"):
        parse_artifacts([])


@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is not None, reason="llama_cpp is here")
def test_without_llama_cpp_it_says_how_to_install_it() -> None:
    result = CliRunner().invoke(main, ["--artifact", "a=b"])
    assert result.exit_code == DependencyError.exit_code
    assert "No module named 'llama_cpp'" in result.output and "pip install" in result.output


def test_what_llama_cpp_returns_and_how_it_fails(tmp_path: Path) -> None:
    echo = python(tmp_path, "import sys; print('noise'); print(sys.argv[2])")
    assert run_llamacpp(echo, "facts", a=1)[0] == json.loads('{"task": "facts", "a": 1}')
    broken = python(tmp_path, "import sys; sys.exit('llama.cpp cannot load it')")
    with pytest.raises(EdgeGemmaError, match="failed at measure: llama.cpp cannot load it"):
        run_llamacpp(broken, "measure")
    with pytest.raises(DependencyError, match="name a Python that has llama_cpp"):
        run_llamacpp(str(tmp_path / "none"), "facts")


def test_a_context_that_is_too_short_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    facts = python(tmp_path, "print('{}')")
    result = CliRunner().invoke(
        main, ["--llama-python", facts, "--artifact", "a=b", "--context", "512", "--decode-at", "4096"]
    )
    assert result.exit_code == 2
    assert "the longest prompt or context is 4096" in result.output
