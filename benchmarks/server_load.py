"""A server under more load than it can serve: status codes, memory, and how evenly clients are answered.

    python -m benchmarks.server_load DIR [--clients 64] [--seconds 60] [--max-waiting 16]

Runs `edge-gemma serve DIR` in a process of its own. Every client has a key and asks again as soon as it has
an answer; where it is refused, after as long as Retry-After says. A third of them reads a stream, a few go
away in the middle of one.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
import httpx
import psutil

from benchmarks.command import Benchmark
from benchmarks.report import print_report
from edge_gemma import artifact as artifacts
from edge_gemma.memory import format_bytes

MODEL = "loaded"
QUESTIONS = ("What is {a} plus {b}?", "Turn on the lights in the kitchen", "Set a timer for {a} minutes")
LEAVING = 0.02  # share of the streams that a client leaves


@dataclass
class Seen:
    """What the clients saw."""

    outcomes: Counter[str] = field(default_factory=Counter)  # status codes, and errors of connections
    answers: Counter[int] = field(default_factory=Counter)  # by client
    seconds: list[float] = field(default_factory=list)  # from question to answer
    memory: list[int] = field(default_factory=list)  # bytes resident, twice a second


@contextmanager
def serving(artifact: Path, keys: list[str], max_waiting: int) -> Iterator[tuple[str, psutil.Process]]:
    """The address of a server and its process."""
    with tempfile.NamedTemporaryFile("w") as file, tempfile.TemporaryFile("w+") as log:
        file.write("\n".join(keys))
        file.flush()
        command = [sys.executable, "-m", "edge_gemma.cli", "serve", str(artifact), "--port", "0"]
        command += ["--api-key-file", file.name, "--rate-limit", "0", "--model-name", MODEL]
        command += ["--max-waiting", str(max_waiting)]
        process = subprocess.Popen(command, stderr=log)
        try:
            while not (lines := Path(f"/proc/self/fd/{log.fileno()}").read_text().splitlines()):
                if process.poll() is not None:
                    raise click.ClickException("the server did not start")
                time.sleep(0.05)
            yield lines[0].split()[0], psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()


async def ask_on(client: httpx.AsyncClient, number: int, key: str, end: float, seen: Seen) -> None:
    """One client, until the end."""
    choose = random.Random(number)
    headers = {"authorization": f"Bearer {key}"}
    while time.monotonic() < end:
        text = choose.choice(QUESTIONS).format(a=choose.randrange(100), b=choose.randrange(100))
        stream, leaves = choose.random() < 1 / 3, choose.random() < LEAVING
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "stream": stream}
        began = time.monotonic()
        try:
            async with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
                async for _ in response.aiter_raw():
                    if stream and leaves:
                        break
        except httpx.HTTPError as error:
            seen.outcomes[type(error).__name__] += 1
            continue
        seen.outcomes[str(response.status_code)] += 1
        if response.status_code == 200:
            seen.answers[number] += 1
            seen.seconds.append(time.monotonic() - began)
        else:
            await asyncio.sleep(float(response.headers.get("retry-after", 0)))


async def load(address: str, process: psutil.Process, keys: list[str], seconds: float) -> Seen:
    """All clients at once."""
    seen, end = Seen(), time.monotonic() + seconds
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=120) as client:
        asking = [
            asyncio.create_task(ask_on(client, number, key, end, seen)) for number, key in enumerate(keys)
        ]
        while time.monotonic() < end:
            seen.memory.append(process.memory_info().rss)
            await asyncio.sleep(0.5)
        await asyncio.gather(*asking)
    return seen


@click.command(cls=Benchmark)
@click.argument("artifact", type=click.Path(exists=True, path_type=Path))
@click.option("--clients", default=64, show_default=True)
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--max-waiting", default=16, show_default=True)
def main(artifact: Path, clients: int, seconds: float, max_waiting: int) -> None:
    """Serve ARTIFACT to many clients at once, and tell what they saw."""
    artifacts.read(artifact)  # says what is wrong with it
    keys = [f"key-{number}" for number in range(clients)]
    with serving(artifact, keys, max_waiting) as (address, process):
        seen = asyncio.run(load(address, process, keys, seconds))
    answers = [seen.answers[number] for number in range(clients)]
    quarter = len(seen.memory) // 4
    early, late = max(seen.memory[quarter : 2 * quarter]), max(seen.memory[-quarter:])
    rows = [
        *((f"requests that ended in {outcome}", str(n)) for outcome, n in sorted(seen.outcomes.items())),
        ("answers of a client: fewest", str(min(answers))),
        ("median", f"{statistics.median(answers):g}"),
        ("most", str(max(answers))),
        ("seconds to an answer, median", f"{statistics.median(seen.seconds):.2f}"),
        ("slowest", f"{max(seen.seconds):.2f}"),
        ("resident memory, second quarter", format_bytes(early)),
        ("last quarter", format_bytes(late)),
    ]
    data = {
        "outcomes": dict(seen.outcomes),
        "answers": answers,
        "seconds": seen.seconds,
        "memory": seen.memory,
    }
    print_report("benchmarks.server_load", ("", ""), rows, data)


if __name__ == "__main__":
    main()
