from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from edge_gemma.cli import run
from edge_gemma.runtime.evaluation import Question

OPTIONS = ("--threads", "1", "--context", "256", "--max-new-tokens", "8")


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    path = tmp_path / "sums.jsonl"
    lines = [{"id": f"{a}", "prompt": f"What is {a} + 5?", "reference": f"{a + 5}"} for a in (38, 12, 71, 20)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


@pytest.fixture
def demo(made: object) -> str:
    return str(made("demo-text-fp32"))  # type: ignore[operator]


def test_a_table(demo: str, sums: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", demo, str(sums), *OPTIONS]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert [line.split() for line in out.splitlines()] == [
        ["4", "of", "4", "questions", "answered"],
        ["metric", "score", "95", "%", "questions"],
        ["exact", "100.00%", "[100.00%,", "100.00%]", "4"],
    ]


def test_json_and_a_metric(demo: str, sums: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", demo, str(sums), *OPTIONS, "--json", "--metric", "bleu", "--limit", "2"]
    assert run(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["complete"], report["questions"], report["answered"]) == (True, 2, 2)
    assert list(report["scores"]) == ["bleu"] and report["scores"]["bleu"]["items"] == 2


def test_a_question_that_is_too_long_leaves_the_others(
    demo: str, sums: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = {"prompt": "What is 1 + 1? " * 100, "reference": "2"}
    sums.write_text(json.dumps(line) + "\n" + sums.read_text("utf-8"), "utf-8")
    assert run(["eval", demo, str(sums), *OPTIONS, "--json"]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {sums} line 1: the prompt has ") and err.count("\n") == 1
    report = json.loads(out)
    assert (report["complete"], report["answered"]) == (False, 4)
    assert report["scores"]["exact"]["value"] == 1.0


def test_ctrl_c_reports_and_the_next_run_goes_on(
    demo: str, sums: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, written = [], []
    out = sums.with_name("answers.jsonl")
    put_to = Question.put_to

    def once_interrupted(self: Question, *arguments: object, **options: object) -> str:
        asked.append(self.id)
        written.append(len(out.read_text("utf-8").splitlines()))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return put_to(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Question, "put_to", once_interrupted)
    command = ["eval", demo, str(sums), *OPTIONS, "--json", "--out", str(out)]
    assert run(command) == 130
    report = json.loads(capsys.readouterr().out)
    assert (report["complete"], report["answered"]) == (False, 2)
    assert report["scores"]["exact"]["items"] == 2
    assert len(out.read_text("utf-8").splitlines()) == 2
    assert run(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["complete"], report["answered"], report["scores"]["exact"]["value"]) == (True, 4, 1.0)
    assert asked == ["38", "12", "71", "71", "20"]
    assert written == [0, 1, 2, 2, 3]  # each as soon as it is there
    assert run(["eval", "nowhere", *command[2:]]) == 0  # nothing is left to ask: no model is needed
    assert len(asked) == 5


def test_refusals_are_one_line(
    demo: str, sums: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(status: int, *arguments: str) -> str:
        assert run(["eval", *arguments]) == status
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1
        return err

    assert "No such file" in refused(1, demo, "nowhere.jsonl")
    assert "nowhere" in refused(5, "nowhere", str(sums))
    bad = sums.with_name("bad.jsonl")
    bad.write_text("{}\n", "utf-8")
    assert f"{bad} line 1 asks nothing" in refused(2, demo, str(bad))
    assert "temperature" in refused(2, demo, str(sums), "--temperature", "-1")
    monkeypatch.setitem(sys.modules, "jiwer", None)
    assert "pip install 'edge-gemma[eval]'" in refused(6, "nowhere", str(sums), "--metric", "wer")
