"""Runs the runtime's tests and the recorded questions on emulated ARM cores: `make test-arm`.

    python tests/arm/run.py TREE TEST_ARTIFACTS [--core a72 …]

Two cores at a time, a thread each. What compares numbers, and what goes through onnxruntime or a codec's
compiled code, runs on every core; what is Python alone cannot tell cores apart and runs on one.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tree import CORES

ROOT = Path(__file__).parent.parent.parent
AT_ONCE = 2
PATIENCE = 1800  # seconds that a test may take
WHOLE = "a76"  # the core that runs everything
COMPARED = ("tests/arm/test_kernels.py", "tests/arm/test_recorded.py")  # with x86-64, on every core
EVERY_CORE = (
    *COMPARED,
    *(
        f"tests/runtime/test_{name}.py"
        for name in ("embeddings", "engine", "generation", "levels", "multimodal")
    ),
    *(f"tests/runtime/test_{name}.py" for name in ("kv_cache", "session")),
)
# file or test → why it says nothing under emulation
NOT_EMULATED = {
    "test_hard_limit.py": "memory limits would count the emulator's memory",
    "test_residency.py": "so would resident pages",
    "test_page_cache.py": "mincore is the host's",
    "test_check.py": "peak memory is the emulator's",
    "test_bench.py": "speed is the emulator's",
    "test_bench_cli.py": "likewise",
    "test_bandwidth.py": "likewise",
    "test_bench_tasks.py": "likewise",
    "test_long_audio.py": "peak memory is the emulator's, and twenty minutes of sound take hours",
    "test_speculation.py": "hundreds of random conversations, which take an hour",
    "test_fresh_process.py": "looks for processes that the emulator's hide",
}


@dataclass(frozen=True)
class Outcome:
    core: str
    status: int
    seconds: float
    output: str

    @property
    def counts(self) -> str:
        """pytest's last line, such as "300 passed, 12 skipped"."""
        found = re.findall(r"^=*\s*(\d+ (?:passed|failed|error|skipped).*?) in [\d.]+s", self.output, re.M)
        return str(found[-1]) if found else f"no result: it ended with {self.status}"


def tests_of(core: str) -> list[str]:
    if core != WHOLE:
        return list(EVERY_CORE)
    left_out = [f"--ignore=tests/runtime/{name}" for name in NOT_EMULATED]
    return [*COMPARED, "tests/runtime", *left_out]


def run(core: str, tree: Path, artifacts: Path) -> Outcome:
    python = tree / "root" / "usr" / "bin" / f"python-{core}"
    environment = os.environ | {"EDGE_GEMMA_TEST_ARTIFACTS": str(artifacts), "OMP_NUM_THREADS": "1"}
    options = ["-q", "-rs", "-p", "no:cacheprovider", "--durations=8", f"--timeout={PATIENCE}"]
    command = [str(python), "-m", "pytest", *options]
    begun = time.monotonic()
    done = subprocess.run(
        [*command, *tests_of(core)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Outcome(core, done.returncode, time.monotonic() - begun, done.stdout)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="The runtime's tests on emulated ARM cores.")
    parser.add_argument("tree", type=Path)
    parser.add_argument("artifacts", type=Path)
    parser.add_argument("--core", action="append", choices=list(CORES))
    chosen = parser.parse_args(arguments)
    cores = sorted(chosen.core or CORES, key=lambda core: core != WHOLE)  # the longest first
    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = list(
            pool.map(lambda core: run(core, chosen.tree.absolute(), chosen.artifacts.absolute()), cores)
        )
    for outcome in outcomes:
        print(f"---- {outcome.core}\n{outcome.output}")
    for name, reason in NOT_EMULATED.items():
        print(f"not emulated: {name}: {reason}")
    for outcome in outcomes:
        print(f"{outcome.core}: {outcome.counts} in {outcome.seconds:.0f} s")
    return max(abs(outcome.status) for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
