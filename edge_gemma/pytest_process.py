"""A test in a process of its own, for `pytest_plugin`: both sides of it.

The parent starts pytest anew with its own options on that one test; the child sends the reports of setup,
call and teardown back, and fails the call (or, if it comes later, the teardown) where the process's peak
memory exceeds the budget. That way skips, expected failures, captured output and tracebacks are pytest's own.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_gemma.memory import format_bytes
from edge_gemma.peak import process_peak
from edge_gemma.pytest_plugin import IN_CHILD, Reports, table

# Options that are the parent's own business.
PARENTS_OWN = {
    *("file_or_dir", "keyword", "markexpr", "deselect", "collectonly", "lf", "failedfirst", "newfirst"),
    *("stepwise", "stepwise_skip", "stepwise_reset", "cacheclear", "cacheshow", "maxfail", "usepdb", "trace"),
    *("basetemp", "xmlpath", "report_log", "htmlpath", "log_file", "pastebin", "debug", "cov_source"),
    *("numprocesses", "maxprocesses", "dist", "tx", "looponfail"),
}
OUTPUTS = ("stdout", "stderr")


def run_alone(item: pytest.Item, budget: int) -> Reports:
    """Run a test in a fresh process; its reports by phase, a failed one where the process broke off."""
    config = item.config
    _, _, inside = item.nodeid.partition("::")
    options = {k: v for k, v in vars(config.option).items() if k not in PARENTS_OWN and _is_plain(v)}
    options |= {
        "rootdir": str(config.rootpath),
        "inifilename": str(config.inipath) if config.inipath else None,
        "plugins": [*options.get("plugins", []), "no:terminal"],
        "capture": "no",  # output goes to files, so that what a killed process said is not lost
    }
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        job = {"options": options, "test": f"{item.path}::{inside}", "budget": budget, "folder": str(folder)}
        outputs: list[Any] = [stack.enter_context((folder / name).open("wb")) for name in OUTPUTS]
        if config.getoption("capture", "fd") == "no":
            outputs = [None, None]
        code = f"import sys; sys.path[:] = {sys.path!r}; from edge_gemma.pytest_process import serve; serve()"
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", code],
            cwd=config.invocation_params.dir,
            stdin=subprocess.PIPE,
            stdout=outputs[0],
            stderr=outputs[1],
        )
        with process:
            try:
                process.communicate(json.dumps(job).encode())
            finally:  # a timeout or Ctrl-C here ends the test there
                process.kill()
        return _collect(item, folder, process.returncode)


def _collect(item: pytest.Item, folder: Path, code: int) -> Reports:
    """The reports that a process left in its folder, completed where it ended before its time."""
    found: Reports = {}
    failure = _epitaph(code)
    for data in _received(folder / "reports"):
        report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
        if isinstance(report, pytest.TestReport) and type(report) is not pytest.TestReport:
            item.ihook.pytest_runtest_logreport(report=report)  # of a subtest: one of many in a phase
        elif isinstance(report, pytest.TestReport):
            found[report.when or "call"] = report
        else:
            failure = f"the fresh process could not collect the test:\n{report.longreprtext}"
    phases = ["setup", *(["call"] if "setup" not in found or found["setup"].passed else []), "teardown"]
    output = [(f"Captured {name} of the process", text) for name in OUTPUTS if (text := _read(folder / name))]
    for phase in phases:
        if phase not in found:
            found[phase] = pytest.TestReport(
                nodeid=item.nodeid,
                location=item.location,
                keywords={name: 1 for name in item.keywords},
                outcome="failed" if failure else "passed",
                longrepr=failure or None,
                when=phase,  # type: ignore[arg-type]  # one of the three
                sections=output if failure else [],
            )
            failure = ""  # told once
    return found


def _received(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        with path.open("rb") as file, contextlib.suppress(EOFError, pickle.UnpicklingError):
            while True:
                yield pickle.load(file)


def _read(path: Path, start: int = 0) -> str:
    with path.open("rb") as file:
        file.seek(start)
        return file.read().decode("utf-8", "replace")


def _epitaph(code: int) -> str:
    how = f"ended with status {code}"
    if code < 0:
        how = f"was ended by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            how += " (the system does so when memory runs out)"
    return f"before the test was done, the fresh process {how}"


def _is_plain(value: Any) -> bool:
    """Whether JSON gives it back as it is."""
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


def serve() -> None:
    """The child's side: run one test, told on standard input."""
    from _pytest.config import Config  # its `fromdictargs` is "usable for subprocesses"; pytest-xdist does so

    job = json.load(sys.stdin)
    config = Config.fromdictargs(job["options"], [job["test"]])
    config.pluginmanager.register(Child(config, job["budget"], Path(job["folder"])), IN_CHILD)
    sys.exit(config.hook.pytest_cmdline_main(config=config))


class Child:
    """Plugin of the fresh process: sends reports, and fails what exceeds the budget, in bytes."""

    def __init__(self, config: pytest.Config, budget: int, folder: Path) -> None:
        self._config = config
        self._budget = budget
        self._folder = folder  # where reports go, and output
        self._peaks = {"pytest started": process_peak()}
        self._read = dict.fromkeys(OUTPUTS, 0)  # bytes of output that belong to phases before
        self._told = False

    def pytest_collection_finish(self) -> None:
        self._peaks["collected"] = process_peak()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None]:
        try:
            yield
        finally:
            self._end("setup", item)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None]:
        try:
            yield
        except BaseException:  # the test's own outcome comes first
            self._end("call", item)
            if self._peaks["call"] > self._budget:
                self._told = True
                item.add_report_section("call", "memory", self._table())
            raise
        self._end("call", item)
        self._check()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None]:
        try:
            yield
        finally:
            self._end("teardown", item)
        if "call" in self._peaks:
            self._check()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._send(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._send(report)

    def _end(self, phase: str, item: pytest.Item) -> None:
        """Note the peak, and attach what was written, at the end of a phase."""
        self._peaks[phase] = process_peak()
        if phase == "call":
            item.user_properties.append(("peak_memory_bytes", self._peaks[phase]))
        for name in OUTPUTS:
            path = self._folder / name
            item.add_report_section(phase, name, _read(path, self._read[name]))
            self._read[name] = path.stat().st_size

    def _check(self) -> None:
        """Fail where the budget was exceeded, once."""
        peak = max(self._peaks.values())
        if not self._told and peak > self._budget:
            self._told = True
            found = f"peak memory of {format_bytes(peak)} exceeds the budget of {format_bytes(self._budget)}"
            pytest.fail(f"{found}\n{self._table()}", pytrace=False)

    def _table(self) -> str:
        """Peaks so far, and the budget."""
        return table(self._peaks | {"budget": self._budget})

    def _send(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        with (self._folder / "reports").open("ab") as file:
            pickle.dump(data, file)
