"""Many clients at once, for seconds; `python -m benchmarks.server_load` does the same for a minute."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.server_load import Seen, load, serving

KEYS = [f"key-{number}" for number in range(24)]
SECONDS = 6.0


def run(artifact: Path, max_waiting: int) -> Seen:
    with serving(artifact, KEYS, max_waiting) as (address, process):
        return asyncio.run(load(address, process, KEYS, SECONDS))


def test_where_all_may_wait_all_are_answered_alike(demo_artifact: Path) -> None:
    seen = run(demo_artifact, len(KEYS))
    assert set(seen.outcomes) == {"200"}
    answers = [seen.answers[number] for number in range(len(KEYS))]
    assert (
        min(answers) >= 1 and max(answers) - min(answers) <= 2
    )  # who leaves a stream has asked earlier again
    assert seen.memory[-1] < 1.2 * seen.memory[len(seen.memory) // 4]


def test_where_few_may_wait_others_are_refused_and_nothing_fails(demo_artifact: Path) -> None:
    seen = run(demo_artifact, 4)
    assert set(seen.outcomes) == {"200", "503"}
    assert seen.memory[-1] < 1.2 * seen.memory[len(seen.memory) // 4]


@contextmanager
def started(artifact: Path, port: int, cache: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "edge_gemma.cli", "serve", str(artifact), "--model-name", "demo"]
    command += ["--port", str(port), "--cache-dir", str(cache)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        assert process.stderr.readline() == f"http://127.0.0.1:{port} serves demo\n"
        yield process
        process.terminate()


def test_a_server_that_was_killed_starts_again_in_its_place(demo_artifact: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    asked: dict[str, Any] = {
        "model": "demo",
        "messages": [{"role": "user", "content": "What is 17 + 25?"}],
        "temperature": 0,
    }
    with started(demo_artifact, port, tmp_path) as process:
        said = httpx.post(url, json=asked, timeout=60).json()["choices"]
        made = sorted(path.name for path in tmp_path.rglob("*"))
        with httpx.stream("POST", url, json=asked | {"stream": True}) as answer:
            next(answer.iter_raw(1))
            process.kill()
            assert process.wait() == -signal.SIGKILL
    with started(demo_artifact, port, tmp_path):
        assert httpx.post(url, json=asked, timeout=60).json()["choices"] == said
    assert made and sorted(path.name for path in tmp_path.rglob("*")) == made
