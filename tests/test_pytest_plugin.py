"""The pytest plugin: tests with a budget, whose processes are their own. Budgets of blocks: test_peak.py."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

pytest_plugins = ["pytester"]
MIB = 1 << 20
# A fresh pytest takes about 45 MiB, plugins of this environment included.
ROOMY, TIGHT = "400MiB", "150MiB"


@pytest.fixture
def suite(pytester: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    """Runs pytest on a test file with the given contents."""

    def run(code: str, *arguments: str, fresh: bool = False) -> pytest.RunResult:
        pytester.makepyfile(f"import os\nimport pytest\nbudget = pytest.mark.memory_budget\n\n{code}")
        start = pytester.runpytest_subprocess if fresh else pytester.runpytest
        return start("--strict-markers", *arguments)

    return run


def test_subtests_that_fail_are_told(suite: Callable[..., pytest.RunResult]) -> None:
    code = f"""
import unittest

class TestOfUnittest(unittest.TestCase):
    @budget("{ROOMY}")
    def test_sub(self):
        for i in range(3):
            with self.subTest(i=i):
                self.assertNotEqual(i, 1)

@budget("{ROOMY}")
def test_fixture(subtests):
    for i in range(3):
        with subtests.test(i=i):
            assert i != 1
"""
    result = suite(code)
    assert result.ret == 1
    assert len([line for line in result.outlines if line.startswith("SUBFAILED")]) == 2


def test_within_the_budget_passes_in_another_process(
    suite: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    code = f"""
@budget("{ROOMY}")
def test_within():
    block = bytearray(200 << 20)
    open("process", "w").write(str(os.getpid()))
"""
    suite(code, "--junitxml=report.xml").assert_outcomes(passed=1)
    assert int((pytester.path / "process").read_text()) != os.getpid()
    (value,) = pytester.path.joinpath("report.xml").read_text().split('peak_memory_bytes" value="')[1:]
    assert 200 * MIB < int(value.partition('"')[0]) < 400 * MIB


def test_exceeding_the_budget_fails_with_a_table(suite: Callable[..., pytest.RunResult]) -> None:
    code = f"""
@budget("{TIGHT}")
def test_exceeds():
    print("allocating")
    block = bytearray(200 << 20)
    del block
"""
    result = suite(code)
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines(
        [
            r"peak memory of 2\d\d MiB exceeds the budget of 150 MiB",
            r"  collected +\d+\.\d MiB",
            r"  call +2\d\d\.\d MiB",
            r"  budget +150\.0 MiB",
            "allocating",
        ]
    )


def test_a_failing_test_shows_its_own_traceback_and_output(suite: Callable[..., pytest.RunResult]) -> None:
    code = f"""
@budget("{TIGHT}")
def test_fails():
    block = bytearray(200 << 20)
    print("to stdout")
    os.write(2, b"to stderr, not through Python")
    assert 1 + 1 == 3
"""
    result = suite(code)
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines_random(
        [
            r"E +assert \(?1 \+ 1\)? == 3",
            r".*test_a_failing_test_shows_its_own_traceback_and_output.py:\d+: AssertionError",
            "to stdout",
            "to stderr, not through Python",
            r"  budget +150\.0 MiB",
        ]
    )


def test_parameters_and_methods(suite: Callable[..., pytest.RunResult]) -> None:
    code = f"""
import unittest

@budget("{TIGHT}")
@pytest.mark.parametrize("size", [1, 200], ids=["a::b/ c", "[large]"])
def test_sizes(size):
    block = bytearray(size << 20)

@budget("{TIGHT}")
class TestGroup:
    @pytest.fixture(autouse=True)
    def number(self):
        self.number = 3

    def test_small(self):
        assert self.number == 3

class TestCase(unittest.TestCase):
    def setUp(self):
        self.block = bytearray(200 << 20)

    @budget("{TIGHT}")
    def test_large(self):
        pass
"""
    result = suite(code, "-rA")
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines_random(
        ["PASSED *test_sizes*a::b/ c*", "PASSED *TestGroup::test_small", "FAILED *TestCase::test_large*"]
    )


def test_skips_and_expected_failures_are_those_of_pytest(suite: Callable[..., pytest.RunResult]) -> None:
    code = f"""
pytestmark = budget("{TIGHT}")

def test_skips():
    pytest.skip("no camera here")

@pytest.mark.skip(reason="always")
def test_skipped():
    pass

def test_expects():
    pytest.xfail("known")

@pytest.mark.xfail(reason="too large as yet", strict=True)
def test_too_large():
    block = bytearray(200 << 20)

@pytest.mark.xfail(strict=True)
def test_fits_after_all():
    pass
"""
    result = suite(code, "-rA")
    result.assert_outcomes(skipped=2, xfailed=2, failed=1)
    result.stdout.fnmatch_lines_random(
        ["SKIPPED*no camera here", "XFAIL *too large as yet*", "*XPASS(strict)*"]
    )


def test_fixtures_count_and_live_in_the_other_process(suite: Callable[..., pytest.RunResult]) -> None:
    code = f"""
@pytest.fixture(scope="module")
def model():
    yield bytearray(200 << 20)

@pytest.fixture
def leaving():
    yield
    block = bytearray(200 << 20)

@pytest.fixture
def broken():
    raise RuntimeError("no model")

@budget("{TIGHT}")
def test_with_a_large_fixture(model):
    pass

@budget("{TIGHT}")
def test_with_a_large_teardown(leaving):
    pass

@budget("{TIGHT}")
def test_with_a_broken_fixture(broken):
    pass
"""
    result = suite(code, "-rA")
    result.assert_outcomes(passed=1, failed=1, errors=2)
    result.stdout.fnmatch_lines_random(
        [
            "FAILED *test_with_a_large_fixture*",
            "PASSED *test_with_a_large_teardown",
            "*ERROR at teardown of test_with_a_large_teardown*",
            "*ERROR at setup of test_with_a_broken_fixture*",
            "E * no model",
        ]
    )


def test_tests_around_a_marked_one_keep_their_fixtures(
    suite: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    pytester.makepyfile(
        test_first="import pytest\n\n@pytest.fixture(autouse=True, scope='module')\ndef own():\n    yield\n\n"
        "def test_it(own):\n    pass\n"
    )
    code = f"""
@pytest.fixture(scope="module")
def shared():
    with open("made", "a") as made:
        made.write(f"{{os.getpid()}} ")

def test_before(shared):
    pass

@budget("{ROOMY}")
def test_marked(shared):
    pass

class TestGroup:
    def test_after(self, shared):
        pass

    @budget("{ROOMY}")
    def test_marked_last(self):
        pass
"""
    pytester.makepyfile(test_zlast="def test_it():\n    pass\n")
    suite(code).assert_outcomes(passed=6)
    here, there = (pytester.path / "made").read_text().split()
    assert here == str(os.getpid()) != there


def test_a_process_that_dies_fails_its_test_alone(suite: Callable[..., pytest.RunResult]) -> None:
    code = f"""
@budget("{ROOMY}")
def test_dies():
    print("last words")
    os.kill(os.getpid(), 9)

def test_next():
    pass
"""
    result = suite(code)
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*process was ended by SIGKILL*", "last words"])


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ('budget("2 potatoes")', "memory_budget: '2 potatoes' is not a size: expected a number and a unit*"),
        ("budget", 'memory_budget(): expected one size, as in memory_budget("2GiB")'),
        ('budget("1GiB", "2GiB")', "memory_budget('1GiB', '2GiB'): expected one size*"),
        ('budget(size="1GiB")', "memory_budget(size=…): expected one size*"),
    ],
)
def test_a_bad_size_is_one_line(suite: Callable[..., pytest.RunResult], marker: str, message: str) -> None:
    result = suite(f"@{marker}\ndef test_it():\n    pass\n")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([message])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_options_and_conftest_reach_the_other_process(
    suite: Callable[..., pytest.RunResult], pytester: pytest.Pytester
) -> None:
    pytester.makeconftest(
        "import pytest\n"
        "def pytest_addoption(parser):\n    parser.addoption('--artifact')\n"
        "@pytest.fixture\ndef artifact(request):\n    return request.config.getoption('--artifact')\n"
    )
    pytester.makeini("[pytest]\naddopts = --tb=short\nfilterwarnings = error\n")
    code = f"""
import warnings

@budget("{ROOMY}")
def test_option(artifact):
    assert artifact == "e2b"

@budget("{ROOMY}")
def test_warns(tmp_path):
    warnings.warn("old")
"""
    result = suite(code, "--artifact", "e2b", "--basetemp=temporary", "-k", "test_", "-x", fresh=True)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["E *UserWarning: old"])


def test_starting_pytest_stays_cheap() -> None:
    code = "import sys, edge_gemma.pytest_plugin; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    roots = {name.partition(".")[0] for name in done.stdout.split()}
    assert not roots & {"numpy", "onnxruntime", "psutil", "click", "rich", "torch"}


def test_a_marked_test_may_use_blocks(suite: Callable[..., pytest.RunResult]) -> None:
    """The record that a block sets back still counts for the whole."""
    code = f"""
@budget("{TIGHT}")
def test_exceeds(memory_budget):
    block = bytearray(200 << 20)
    del block
    with memory_budget("10MiB"):
        pass
"""
    suite(code).assert_outcomes(failed=1)
