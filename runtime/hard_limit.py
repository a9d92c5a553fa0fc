"""Run a program under a limit of memory that the kernel enforces: a control group (cgroup) of its own.

All memory that the program's processes touch is charged to the group: anonymous memory, page tables, and the
page cache of files that it is the first to read (`page_cache.evict` them before). At the limit the kernel
drops clean file pages; where that is not enough it kills. Swap is not given. The first kind that works is
taken:

- cgroup v2: a new group below the nearest ancestor of our own that hands the memory controller down (root);
- cgroup v1: a new group inside our own, of the memory controller (root);
- a scope of the user's systemd, for users who may not make groups themselves.

Other limits of Linux are not this: RLIMIT_AS and RLIMIT_DATA count address space, among it mapped weights
that are not in memory, so they refuse what fits; RLIMIT_RSS does nothing; a watchdog comes too late.

The program runs as a child of a small process (this module's `main`), which asks wait4 for its peak: asked
by a large parent, wait4 would answer with the parent's size, which is what a fork begins with.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_gemma.runtime.control_groups import (
    Support,
    candidates,
    limited_group,
    own_usage,
    scope_command,
    usage,
)

PROBE_BYTES = 64 << 20
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl
MODULE = "edge_gemma.runtime.hard_limit"


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a program ended. Sizes are in bytes."""

    returncode: int  # negative: the signal that ended it
    maxrss: int = 0  # highest resident memory of its largest process, by wait4; 0 where it was not waited for
    group_peak: int | None = None  # most memory charged to the group, where there was one and it is recorded
    oom_kills: int = 0  # processes that the kernel killed at the limit
    timed_out: bool = False
    stderr: str = ""


def available() -> Support:
    """The first kind of limit under which a program could be started just now; found by starting one."""
    if sys.platform != "linux":
        return Support(None, reason="control groups are Linux's")
    reasons = []
    for support in candidates():
        if support.kind is None:
            reasons.append(support.reason)
            continue
        try:
            result = run(["true"], PROBE_BYTES, support=support)
        except OSError as error:
            reasons.append(f"{support.kind}: {error.strerror or error}")
            continue
        if result.returncode == 0:
            return support
        said = result.stderr.strip().splitlines() or [f"a program in it ended with {result.returncode}"]
        reasons.append(f"{support.kind}: {said[-1]}")
    return Support(None, reason="; ".join(dict.fromkeys(reasons)) or "no control groups are mounted")


def run(
    argv: Sequence[str],
    limit: int | None = None,
    *,
    support: Support | None = None,
    on_line: Callable[[str], None] = lambda line: None,
    timeout: float | None = None,
) -> Result:
    """Run a program to its end, in a process of its own.

    However this ends, by Ctrl-C or a crash of the caller too, the program ends with it. Its group is removed;
    one that a killed caller left, empty, goes with the next call.

    Args:
        argv: the program and its arguments.
        limit: bytes; None is no limit.
        support: the kind of limit, from `available`; needed with a limit.
        on_line: called with each line of the program's standard output.
        timeout: seconds after which it is killed.

    Raises:
        OSError: the group cannot be made.
    """
    with contextlib.ExitStack() as stack:
        report = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "report"
        stderr = stack.enter_context(tempfile.TemporaryFile())
        group, before = None, []
        if limit is not None:
            assert support is not None and support.kind is not None, "a limit needs a kind"
            if support.parent is None:
                before = scope_command(limit)
            else:
                group = stack.enter_context(limited_group(support.kind, support.parent, limit))
        job = {"argv": list(argv), "report": str(report), "join": group and str(group), "scope": bool(before)}
        process = subprocess.Popen(
            [*before, sys.executable, "-m", MODULE, json.dumps(job), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            encoding="utf-8",
        )
        late = threading.Event()
        with process, _killed_after(timeout, process, late):
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    on_line(line)
                process.wait()
            except BaseException:  # Ctrl-C too
                process.kill()
                raise
        stderr.seek(0)
        said = stderr.read().decode("utf-8", "replace")
        if late.is_set():
            return Result(returncode=-signal.SIGKILL, timed_out=True, stderr=said)
        if not report.exists():
            return Result(returncode=process.returncode or 1, stderr=said)
        ended = json.loads(report.read_text("utf-8"))
        if group:
            ended["group_peak"], ended["oom_kills"] = usage(group)
        return Result(**ended, stderr=said)


@contextlib.contextmanager
def _killed_after(
    seconds: float | None, process: subprocess.Popen[str], late: threading.Event
) -> Iterator[None]:
    """Kill a process that has not ended by then, and set `late`."""

    def kill() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(seconds or 0, kill)
    if seconds is not None:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def main(job: str, caller: str) -> None:
    """The small process: start the program, wait for it, write the report."""
    _die_with_parent()
    if os.getppid() != int(caller):  # it was gone before we asked
        sys.exit(1)
    task = json.loads(job)
    child = os.fork()
    if child == 0:
        _start(task["argv"], task["join"])
    os.close(1)  # so that its reader sees the end when the program ends
    if task["scope"]:  # which systemd stops when something in it was killed; the report is still to come
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _, status, resources = os.wait4(child, 0)
    report: dict[str, int | None] = {
        "returncode": os.waitstatus_to_exitcode(status),
        "maxrss": resources.ru_maxrss * 1024,
    }
    if task["scope"]:  # systemd removes it when we end
        report["group_peak"], report["oom_kills"] = own_usage()
    whole = Path(task["report"])
    part = whole.with_suffix(".part")
    part.write_text(json.dumps(report), "utf-8")
    part.rename(whole)


def _start(argv: list[str], group: str | None) -> None:
    """Become the program, in the group."""
    _die_with_parent()
    place = group
    try:
        if group:
            (Path(group) / "cgroup.procs").write_text("0")  # the process that writes
        place = argv[0]
        os.execvp(place, argv)
    except OSError as error:
        os.write(2, f"{error.strerror} ({place})\n".encode())
        os._exit(127)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
