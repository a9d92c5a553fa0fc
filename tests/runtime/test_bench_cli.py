"""`edge-gemma bench`: what is printed where, what is refused, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from edge_gemma.cli import run
from edge_gemma.runtime import bench, bench_cli

SMALL = ("--runs", "1", "--prefill", "20", "--decode-at", "0,40", "--tokens", "3", "--threads", "1")
DECODING = "decoding of 3 tokens, global KV in float16"
PATIENCE = 60  # seconds


def only_line(text: str) -> str:
    assert text.endswith("\n") and text.count("\n") == 1, text
    return text


@pytest.mark.parametrize("name", ["missing/report.html", ".", "file/report.html", "x" * 300])
def test_a_page_that_cannot_be_written_is_told_first(
    name: str,
    tiny_artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(bench, "measure", None)
    assert run(["bench", str(tiny_artifact), "--html", str(tmp_path / name)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and only_line(err).startswith("error: --html ")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["/nowhere"], 5, "expected an artifact"),
        (["ARTIFACT", "--context", "5000"], 2, "at most the 2048 tokens"),
        (["ARTIFACT", "--prefill", "0,5"], 2, "whole numbers from 1 on"),
        (["ARTIFACT", "--prefill", "5,,6"], 2, "whole numbers from 1 on"),
        (["ARTIFACT", "--decode-at", "-1"], 2, "whole numbers from 0 on"),
        (["ARTIFACT", "--runs", "0"], 2, "--runs"),
    ],
)
def test_what_cannot_be_measured(
    arguments: Sequence[str],
    status: int,
    message: str,
    tiny_artifact: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [str(tiny_artifact) if word == "ARTIFACT" else word for word in arguments]
    assert run(["bench", *words]) == status
    out, err = capsys.readouterr()
    assert out == "" and message in err and "Traceback" not in err


def test_what_is_printed(tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "report.html"
    assert run(["bench", str(tiny_artifact), *SMALL, "--html", str(page)]) == 0
    out, err = capsys.readouterr()
    assert err == ""  # not a terminal
    *text, last = out.splitlines()
    data = json.loads(last)
    command = f"edge-gemma bench {tiny_artifact} {' '.join(SMALL)}"
    assert data["command"].split() == [*command.split()[:-2], "--html", str(page), *command.split()[-2:]]
    assert text[0] == "environment"
    assert text.index(data["command"]) < text.index("prefill") < text.index(DECODING)
    assert list(data["results"]["prefill"]) == ["20"]
    figure = f"{data['results']['decode']['40']['tokens_per_second']['median']:.1f}"
    assert any(figure in line for line in text) and f"<td>{figure}</td>" in page.read_text("utf-8")


def test_json_alone(tiny_artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", str(tiny_artifact), *SMALL, "--skip-media", "--json"]) == 0
    out, err = capsys.readouterr()
    results = json.loads(only_line(out))["results"]
    assert err == "" and results["options"]["threads"] == results["threads"] == 1
    for figure in (results["memory"]["load"], results["memory"]["text"]):
        assert 20 << 20 < figure["median"] < 200 << 20  # not this process's, which holds torch


def test_ctrl_c_leaves_nothing(tiny_artifact: Path, tmp_path: Path) -> None:
    start = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import edge_gemma.cli as c"
    )
    command = [sys.executable, "-c", f"{start}; c.main()", "bench", str(tiny_artifact), "--runs", "1000"]
    command += ["--html", str(tmp_path / "report.html")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        measuring: list[psutil.Process] = []
        end = time.monotonic() + PATIENCE
        while not measuring and time.monotonic() < end:
            measuring = psutil.Process(child.pid).children()
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=PATIENCE)
    assert (child.returncode, out, err.split()) == (130, b"", [b"interrupted"])
    assert measuring and not any(process.is_running() for process in measuring)
    assert not os.listdir(tmp_path)


def test_counts_are_read_in_order_and_once() -> None:
    read = bench_cli.counts(0)
    assert read(None, None, "512, 0,128,512") == (0, 128, 512)  # type: ignore[arg-type]
