"""Runs the recorded questions and the runtime's tests on emulated ARM cores: `make test-arm`.

    python tests/arm/run.py TREE TEST_ARTIFACTS [--core a72 …] [--long]

Two processes at a time, a thread each. What is compared with x86-64 runs on every core, and so do the tests
of what goes through onnxruntime's kernels in small; the rest of the runtime's tests runs on one.
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

from device import COMPARED
from tree import CORES

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from made import REFERENCES  # noqa: E402

AT_ONCE = 2
PATIENCE = 1800  # seconds that a test may take
WHOLE = "a76"  # the core that runs the runtime's tests
EVERY_CORE = tuple(f"tests/runtime/test_{name}.py" for name in ("embeddings", "session"))
# file or test of tests/runtime → why it is not emulated
NOT_EMULATED = {
    "test_hard_limit.py": "memory limits would count the emulator's memory",
    "test_residency.py": "so would resident pages",
    "test_page_cache.py": "mincore is the host's",
    "test_check.py": "peak memory is the emulator's",
    "test_long_audio.py": "likewise, and twenty minutes of sound take hours",
    "test_bench.py": "speed is the emulator's",
    "test_bench_cli.py": "likewise",
    "test_bench_tasks.py": "likewise",
    "test_bandwidth.py": "likewise",
    "test_fresh_process.py": "looks for processes that the emulator's hide",
    "test_speculation.py": "hundreds of random conversations, which take an hour",
    "test_prefixes.py": "the memory that goes back is the emulator's",
    "test_scheduler.py": "threads and clocks, no arithmetic",
    "test_aio.py": "likewise",
    "test_serve_cli.py": "a server and its libraries",
    "test_eval_cli.py": "scores, with libraries that need not be on a board",
    "test_evaluation.py": "likewise",
    "test_scoring.py": "likewise",
}
# file → why it waits for --long
LONG = {
    "test_cli.py": "terminals, signals and starts of Python, in 2.5 minutes",
    "test_media_cli.py": "the commands around what test_audio.py and test_multimodal.py run, in 3.5 minutes",
    "test_conversation.py": "random conversations beside a fresh model's, in 2 minutes",
    "test_session_file.py": "files and processes, in 2 minutes",
    "test_structured.py": "hundreds of answers of ten schemas",
    "test_segments.py": "numpy alone, on thousands of random recordings, in 2 minutes",
}


@dataclass(frozen=True)
class Job:
    """A process of pytest on a core."""

    core: str
    title: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    job: Job
    status: int
    seconds: float
    output: str

    def __str__(self) -> str:
        """With pytest's last line, such as "300 passed, 12 skipped"."""
        found = re.findall(r"^=*\s*(\d+ (?:passed|failed|error|skipped).*?) in [\d.]+s", self.output, re.M)
        counts = found[-1] if found else f"no result: it ended with {self.status}"
        return f"{self.job.core}, {self.job.title}: {counts} in {self.seconds:.0f} s"


def jobs(cores: Sequence[str], long: bool = False) -> list[Job]:
    """The longest first, so that two at a time end together."""
    found = []
    if WHOLE in cores:
        left_out = {
            *REFERENCES,
            *NOT_EMULATED,
            *({} if long else LONG),
            *(Path(test).name for test in EVERY_CORE),
        }
        paths = sorted(path.relative_to(ROOT) for path in ROOT.glob("tests/runtime/test_*.py"))
        rest = [str(path) for path in paths if path.name not in left_out]
        found = [Job(WHOLE, f"the runtime's tests, part {n + 1}", tuple(rest[n::2])) for n in range(2)]
    return found + [Job(core, "compared with x86", (*COMPARED, *EVERY_CORE)) for core in cores]


def run(job: Job, tree: Path, artifacts: Path) -> Outcome:
    python = tree / "root" / "usr" / "bin" / f"python-{job.core}"
    options = ["-q", "-rs", "-p", "no:cacheprovider", "--durations=8", f"--timeout={PATIENCE}"]
    begun = time.monotonic()
    done = subprocess.run(
        [str(python), "-m", "pytest", *options, *job.tests],
        cwd=ROOT,
        env=os.environ | {"EDGE_GEMMA_TEST_ARTIFACTS": str(artifacts), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    outcome = Outcome(job, done.returncode, time.monotonic() - begun, done.stdout)
    print(f"---- {job.core}, {job.title}\n{done.stdout}\n{outcome}", flush=True)
    return outcome


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="The runtime's tests on emulated ARM cores.")
    parser.add_argument("tree", type=Path)
    parser.add_argument("artifacts", type=Path)
    parser.add_argument("--core", action="append", choices=list(CORES))
    parser.add_argument("--long", action="store_true", help="the tests that CI has no time for, too")
    chosen = parser.parse_args(arguments)
    tree, artifacts = chosen.tree.absolute(), chosen.artifacts.absolute()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = jobs(chosen.core or list(CORES), chosen.long)
        outcomes = list(pool.map(lambda job: run(job, tree, artifacts), found))
    print()
    for name, reason in NOT_EMULATED.items():
        print(f"not emulated: {name}: {reason}")
    for name, reason in ({} if chosen.long else LONG).items():
        print(f"only with LONG=1: {name}: {reason}")
    for outcome in outcomes:
        print(outcome)
    return 1 if any(outcome.status for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
