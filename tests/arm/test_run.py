"""What `make test-arm` runs on which core, and how it reads pytest's last line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import run  # noqa: E402
import tree  # noqa: E402


@pytest.mark.parametrize("core", tree.CORES)
def test_every_core_is_compared_with_x86(core: str) -> None:
    found = [job for job in run.jobs(list(tree.CORES)) if job.core == core]
    assert sum(set(run.COMPARED) <= set(job.tests) for job in found) == 1


@pytest.mark.parametrize("long", [False, True])
def test_each_test_of_the_runtime_runs_once_or_there_is_a_reason(long: bool) -> None:
    tests = [test for job in run.jobs([run.WHOLE], long) for test in job.tests]
    assert len(tests) == len(set(tests)) and all((run.ROOT / test).exists() for test in tests)
    there = {path.name for path in run.ROOT.glob("tests/runtime/test_*.py")}
    assert {Path(test).name for test in tests if "runtime" in test} == there - {
        *run.REFERENCES,
        *run.NOT_EMULATED,
        *(() if long else run.LONG),
    }
    assert {*run.NOT_EMULATED, *run.LONG} <= there


@pytest.mark.parametrize(
    ("output", "counts"),
    [
        ("....\n300 passed, 12 skipped in 61.20s (0:01:01)\n", "300 passed, 12 skipped"),
        ("F\n=== 1 failed, 2 passed in 3.00s ===\n", "1 failed, 2 passed"),
        ("qemu: uncaught target signal 11\n", "no result: it ended with 139"),
    ],
)
def test_the_last_line_of_pytest(output: str, counts: str) -> None:
    job = run.Job("a72", "tests", ())
    assert str(run.Outcome(job, 139, 1.0, output)) == f"a72, tests: {counts} in 1 s"
