"""pytest plugin: tests that hold an app to a memory budget.

    @pytest.mark.memory_budget("2GiB")
    def test_an_answer_fits(): ...          # the peak of a fresh process, imports and fixtures included

    def test_decoding_fits(memory_budget):
        with memory_budget("300MiB"): ...   # growth of this process's peak, inside the block

The peak of a process (VmHWM) never falls, and memory that was freed once is used again without a trace: after
other tests, a test's own peak cannot be told. So the marked test runs in a process of its own
(`pytest_process`), and its reports are shown here as if it had run here. The fixture sets the record back,
where the system allows it; it sees growth over what the process holds already, no more.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

if TYPE_CHECKING:
    from edge_gemma.peak import Watch

MARKER = "memory_budget"
IN_CHILD = "edge_gemma_child"  # the plugin that only the fresh process has

Reports: TypeAlias = dict[str, pytest.TestReport]  # by phase: setup, call, teardown
_reports = pytest.StashKey[Reports]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f'{MARKER}(size): run the test in a fresh process and fail it if its memory exceeds size ("2GiB")',
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    """Let a marked test run elsewhere, in place of its own setup; all else of pytest's protocol goes on."""
    mark = item.get_closest_marker(MARKER)
    if mark is None or item.config.pluginmanager.hasplugin(IN_CHILD):
        return

    def run_elsewhere() -> None:
        from edge_gemma.pytest_process import run_alone

        item.stash[_reports] = run_alone(item, budget_of(mark))

    # Neither its fixtures nor the test itself are wanted here.
    vars(item).update(setup=run_elsewhere, runtest=lambda: None, teardown=lambda: None)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the report of the fresh process in place of ours, which knows of nothing."""
    report = yield
    return item.stash.get(_reports, {}).get(call.when, report)


@pytest.fixture(scope="session")
def memory_budget() -> Callable[[str | int], Growth]:
    """`with memory_budget("300MiB") as m:` fails if peak memory grows by more inside the block.

    Behind the block, `m.growth` and `m.peak` tell how much it was, in bytes.
    """
    return Growth


class Growth:
    """Fails if the peak of this process grows by more than a size between entry and exit."""

    def __init__(self, size: str | int) -> None:
        __tracebackhide__ = True
        self.budget = parse_size(size)
        self.growth = self.peak = 0

    def __enter__(self) -> Growth:
        from edge_gemma.peak import Watch

        self._watch: Watch = Watch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        __tracebackhide__ = True
        from edge_gemma.memory import format_bytes

        watch = self._watch
        watch.close()
        self.growth, self.peak = watch.growth, watch.peak
        if kind is not None:
            return
        if self.growth > self.budget:
            rows = {"before": watch.before, "peak": self.peak, "growth": self.growth, "budget": self.budget}
            grown, allowed = format_bytes(self.growth), format_bytes(self.budget)
            pytest.fail(f"memory grew by {grown} and the budget is {allowed}\n{table(rows)}")
        if watch.blind_to - watch.before > self.budget:
            warnings.warn(
                pytest.PytestWarning(
                    "this system does not let VmHWM be set back, and the process had been larger: growth of "
                    f"more than the budget would not be seen here; mark the test with {MARKER} instead"
                ),
                stacklevel=2,
            )


def budget_of(mark: pytest.Mark) -> int:
    """The size of a marker, in bytes; fails the test where it is none."""
    __tracebackhide__ = True
    if len(mark.args) != 1 or mark.kwargs:
        given = ", ".join([*map(repr, mark.args), *(f"{name}=…" for name in mark.kwargs)])
        pytest.fail(f'{MARKER}({given}): expected one size, as in {MARKER}("2GiB")', pytrace=False)
    return parse_size(mark.args[0])


def parse_size(size: Any) -> int:
    """Bytes of "2GiB" or of a number of bytes; fails the test where it is neither."""
    __tracebackhide__ = True
    from edge_gemma.errors import PromptError
    from edge_gemma.memory import parse_bytes

    try:
        return parse_bytes(str(size))
    except PromptError as error:
        reason = str(error)
    pytest.fail(f"{MARKER}: {reason}", pytrace=False)


def table(rows: dict[str, int]) -> str:
    """Names and sizes in bytes as aligned lines."""
    width = max(map(len, rows))
    return "\n".join(f"  {name:<{width}}  {size / (1 << 20):9.1f} MiB" for name, size in rows.items())
