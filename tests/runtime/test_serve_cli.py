"""`edge-gemma serve`: a server in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from edge_gemma.cli import run

pytest.importorskip("uvicorn", reason="uvicorn, which a server needs, is not installed")

http = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))
BODY = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}


@contextmanager
def served(artifact: Path, *options: str, **environment: str) -> Iterator[tuple[str, Any]]:
    """The address of a server, and its process."""
    command = [sys.executable, "-m", "edge_gemma.cli", "serve", str(artifact), "--port", "0", *options]
    process = subprocess.Popen(
        [*command, "--context", "64", "--threads", "1"],
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr
        line = process.stderr.readline()
        found = re.match(r"(http://\S+) serves", line)
        assert found, line + process.stderr.read()
        yield found[1], process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_told_to_end(tiny_artifact: Path, end: signal.Signals) -> None:
    with served(tiny_artifact, "--model-name", "org/tiny") as (url, process):
        for name in ("org/tiny", "org%2Ftiny"):
            assert http.get(f"{url}/v1/models/{name}").json()["id"] == "org/tiny"
        answer = http.post(f"{url}/v1/chat/completions", json=BODY | {"model": "org/tiny"}, timeout=60)
        assert answer.json()["usage"]["completion_tokens"] == 3
        process.send_signal(end)
        assert process.wait(30) == 0
        log = process.stderr.read()
    assert re.fullmatch(
        r"(\S+Z .* 200 .*\n){2}\S+Z req_\w+ client=\w{6} POST /v1/chat/completions 200 length .*\n", log
    ), log


def test_keys_come_from_a_file_or_the_environment(tiny_artifact: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("first\n\nsecond\n")
    with served(tiny_artifact, "--api-key-file", str(file), EDGE_GEMMA_API_KEY="third") as (url, _):
        for key, status in (("first", 200), ("second", 200), ("third", 200), ("fourth", 401)):
            found = http.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"})
            assert found.status_code == status
        assert found.headers["content-type"] == "application/json"


def test_the_name_is_the_folders(tiny_artifact: Path) -> None:
    with served(tiny_artifact, "--rate-limit", "1") as (url, _):
        models = http.get(f"{url}/v1/models")
        assert [card["id"] for card in models.json()["data"]] == [tiny_artifact.name]
        assert http.get(f"{url}/v1/models").status_code == 429


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--host", "0.0.0.0"], 2, "would let other machines ask, and there is no key"),
        (["--host", "example.invalid", "--insecure-no-key"], 1, "cannot listen on example.invalid port"),
        (["--api-key", "two words"], 2, "a key has spaces or characters"),
        (["--api-key-file", os.devnull], 2, "is empty: expected a key on each line"),
        (["--api-key-file", sys.executable], 2, "is no text: expected a key on each line"),
    ],
)
def test_what_it_refuses(
    tiny_artifact: Path, capsys: pytest.CaptureFixture[str], options: list[str], status: int, message: str
) -> None:
    assert run(["serve", str(tiny_artifact), "--port", "0", *options]) == status
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_a_file_of_blank_lines_holds_no_key(
    tiny_artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `echo "$KEY" > keys` writes it where KEY is not set."""
    (tmp_path / "keys").write_text("\n \n")
    assert run(["serve", str(tiny_artifact), "--port", "0", "--api-key-file", str(tmp_path / "keys")]) == 2
    assert "is empty: expected a key on each line" in capsys.readouterr().err


def test_a_port_that_is_taken(tiny_artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["serve", str(tiny_artifact), "--port", str(port)]) == 1
    error = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1 port {port} (Address already in use)" in error
    assert error.count("\n") == 1


def test_without_its_packages_it_says_which(
    tiny_artifact: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("edge_gemma.runtime.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    assert run(["serve", str(tiny_artifact)]) == 6
    error = capsys.readouterr().err
    assert "pip install 'edge-gemma[server]'" in error and error.count("\n") == 1


def test_a_missing_artifact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", str(tmp_path / "none"), "--port", "0"]) == 5
    assert capsys.readouterr().err.count("\n") == 1
