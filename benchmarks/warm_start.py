"""Seconds from the start of a process to the first token of a short prompt, with everything in memory.

    python -m benchmarks.warm_start ARTIFACT [--prompt TEXT] [--runs 7]

Each run is a Python process of its own that imports the library, loads the artifact from the cache of packed
weights, and answers with one token. Time counts from before the process is made. A first run, untimed, writes
the cache and brings all files into memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import click

from benchmarks.command import Benchmark
from benchmarks.report import print_report
from edge_gemma import artifact as artifacts

PROGRAM = """
import json, sys, time
started = time.time()
import edge_gemma
imported = time.time()
model = edge_gemma.load(sys.argv[2])
loaded = time.time()
reply = model.generate(sys.argv[3], max_new_tokens=1)
times = [float(sys.argv[1]), started, imported, loaded, time.time()]
print(json.dumps([reply.statistics.prompt_tokens, times]))
"""
PARTS = ("Python's start", "imports", "loading", "first token", "all")


def run(artifact: Path, prompt: str) -> tuple[int, list[float]]:
    """Tokens of the prompt, and seconds of each of PARTS."""
    command = [sys.executable, "-c", PROGRAM, str(time.time()), str(artifact), prompt]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    tokens, times = json.loads(done.stdout)
    return tokens, [after - before for before, after in pairwise(times)] + [times[-1] - times[0]]


@click.command(cls=Benchmark)
@click.argument("artifact", type=click.Path(exists=True, path_type=Path))
@click.option("--prompt", default="Why?", show_default=True)
@click.option("--runs", default=7, show_default=True)
def main(artifact: Path, prompt: str, runs: int) -> None:
    """Seconds from the start of a process to the first token."""
    artifacts.read(artifact)  # says what is wrong with it
    tokens, _ = run(artifact, prompt)
    values = list(zip(*(run(artifact, prompt)[1] for _ in range(runs)), strict=True))
    rows: list[tuple[str, ...]] = [
        (part, f"{median(seconds):.2f} s", f"{min(seconds):.2f}", f"{max(seconds):.2f}")
        for part, seconds in zip(PARTS, values, strict=True)
    ]
    rows.append(("tokens of the prompt", str(tokens), "", ""))
    results = {"prompt_tokens": tokens, "seconds": dict(zip(PARTS, values, strict=True))}
    print_report("benchmarks.warm_start", ("", "median", "least", "greatest"), rows, results)


if __name__ == "__main__":
    main()
