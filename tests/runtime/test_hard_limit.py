"""The hard limit: that it bites, what is charged to it, and that nothing of it stays."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_gemma.runtime import control_groups, hard_limit
from edge_gemma.runtime.control_groups import SYSTEMD, V1, V2, Support, candidates, limited_group, usage
from edge_gemma.runtime.hard_limit import run
from edge_gemma.runtime.page_cache import evict

MIB = 1 << 20
PATIENCE = 60  # seconds that a process may take
ALLOCATE = "import sys; block = bytearray(int(sys.argv[1]) << 20); print(len(block) >> 20, flush=True)"
READ = """
import sys
with open(sys.argv[1], "rb") as file:
    print(sum(len(piece) for piece in iter(lambda: file.read(1 << 20), b"")))
"""
CALLER = """
import signal
from edge_gemma.runtime.hard_limit import available, run

signal.signal(signal.SIGINT, signal.default_int_handler)  # who starts us may ignore it
show = lambda line: print(line, flush=True)
run(["sh", "-c", "echo $$; exec sleep 1000"], 64 << 20, support=available(), on_line=show)
"""


@pytest.fixture(scope="session")
def support() -> Support:
    found = hard_limit.available()
    if found.kind is None:
        pytest.skip(f"no hard limit can be made here: {found.reason}")
    return found


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def wait_for_end(pid: int) -> bool:
    deadline = time.monotonic() + PATIENCE
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def groups(support: Support, maker: int) -> list[Path]:
    """What a process has left."""
    return list(support.parent.glob(f"{control_groups.PREFIX}{maker}-*")) if support.parent else []


def test_what_fits_runs_to_its_end(support: Support) -> None:
    lines: list[str] = []
    result = run(python(ALLOCATE, "100"), 200 * MIB, support=support, on_line=lines.append)
    assert (lines, result.returncode, result.oom_kills, result.stderr) == (["100\n"], 0, 0, "")
    assert 100 * MIB < result.maxrss < 200 * MIB
    assert result.group_peak is None or 100 * MIB < result.group_peak < 200 * MIB
    assert not groups(support, os.getpid())


def test_what_is_too_large_is_killed(support: Support) -> None:
    """The same program ends well without the limit: it is the limit that bites."""
    lines: list[str] = []
    result = run(python(ALLOCATE, "300"), 200 * MIB, support=support, on_line=lines.append)
    assert (lines, result.returncode, result.oom_kills) == ([], -signal.SIGKILL, 1)
    assert 150 * MIB < result.maxrss < 220 * MIB
    assert result.group_peak is None or result.group_peak <= 200 * MIB
    assert not groups(support, os.getpid())
    assert run(python(ALLOCATE, "300")).returncode == 0


def test_pages_of_files_are_charged_to_who_reads_them_first(support: Support, tmp_path: Path) -> None:
    """Evicted before, a file counts; left in the page cache it would be read for nothing."""
    file = tmp_path / "weights"
    file.write_bytes(bytes(80 * MIB))
    if (evict([file]) or 0) > 0.05:
        pytest.skip("files here stay in memory")
    cold = run(python(READ, str(file)), 200 * MIB, support=support)
    warm = run(python(READ, str(file)), 200 * MIB, support=support)
    assert cold.returncode == warm.returncode == 0
    if cold.group_peak is None or warm.group_peak is None:
        pytest.skip("this kernel does not record what was charged at most")
    assert cold.group_peak > 80 * MIB
    assert warm.group_peak < 60 * MIB


def test_pages_of_files_give_way_before_anything_is_killed(support: Support, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(160 * MIB))
    evict([file])
    lines: list[str] = []
    result = run(python(READ, str(file)), 80 * MIB, support=support, on_line=lines.append)
    assert (result.returncode, result.oom_kills, lines) == (0, 0, [f"{160 * MIB}\n"])


def test_the_peak_is_not_that_of_a_large_caller() -> None:
    """A fork begins as large as its parent, and wait4 would count that: this process is larger by far."""
    block = bytearray(300 * MIB)
    assert run(["true"]).maxrss < 60 * MIB
    assert len(block) == 300 * MIB


def test_what_cannot_start_says_why(support: Support) -> None:
    result = run(["/no/such/program"], 64 * MIB, support=support)
    assert (result.returncode, result.stderr) == (127, "No such file or directory (/no/such/program)\n")


def test_a_timeout_ends_the_program(support: Support) -> None:
    pids: list[str] = []
    command = ["sh", "-c", "echo $$; exec sleep 1000"]
    result = run(command, 64 * MIB, support=support, on_line=pids.append, timeout=1.0)
    assert (result.timed_out, result.returncode) == (True, -signal.SIGKILL)
    assert wait_for_end(int(pids[0]))
    assert not groups(support, os.getpid())


def test_what_the_program_leaves_running_ends_with_its_group(support: Support) -> None:
    if support.parent is None:
        pytest.skip("a scope of systemd outlives its program")
    pids: list[str] = []
    run(
        ["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & echo $!"],
        64 * MIB,
        support=support,
        on_line=pids.append,
    )
    assert wait_for_end(int(pids[0]))
    assert not groups(support, os.getpid())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "a crash"])
def test_the_program_ends_with_its_caller(support: Support, number: signal.Signals) -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(python(CALLER), **pipes, text=True) as caller:
        assert caller.stdout is not None
        program = int(caller.stdout.readline())
        assert alive(program)
        os.kill(caller.pid, number)
        caller.wait(PATIENCE)
    assert wait_for_end(program)
    if number == signal.SIGKILL:  # it could not tidy up; the next one does
        run(["true"], 64 * MIB, support=support)
    assert not groups(support, caller.pid)


def fake_machine(folder: Path, own: str, mounts: str) -> tuple[Path, Path]:
    """Files like /proc/self/mountinfo and /proc/self/cgroup; @ stands for `folder`."""
    (folder / "mountinfo").write_text(mounts.replace("@", str(folder)))
    (folder / "cgroup").write_text(own)
    return folder / "mountinfo", folder / "cgroup"


V2_MOUNT = "30 23 0:26 / @/unified rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNT = (
    "31 23 0:27 {root} @/memory rw - cgroup cgroup rw,memory\n32 23 0:28 / @/cpu rw - cgroup cgroup rw,cpu\n"
)


def test_v2_groups_go_below_the_nearest_that_hands_memory_down(tmp_path: Path) -> None:
    here = tmp_path / "unified" / "system.slice" / "runner.service"
    here.mkdir(parents=True)
    for folder, controllers in ((here, ""), (here.parent, "cpu memory pids"), (here.parents[1], "memory")):
        (folder / "cgroup.subtree_control").write_text(controllers)
    machine = fake_machine(tmp_path, "0::/system.slice/runner.service\n", V2_MOUNT)
    found = [place.parent for place in candidates(*machine) if place.kind == V2]
    assert found == [here.parent, here.parents[1]]


@pytest.mark.parametrize(
    ("root", "expected"), [("/", "memory/jobs/7"), ("/jobs", "memory/7"), ("/elsewhere", "memory")]
)
def test_v1_groups_go_inside_our_own(tmp_path: Path, root: str, expected: str) -> None:
    """Also where a container shows a part of the hierarchy."""
    mounts = V2_MOUNT + V1_MOUNT.format(root=root)
    machine = fake_machine(tmp_path, "4:memory:/jobs/7\n1:cpu:/\n0::/\n", mounts)
    no_v2, *others = candidates(*machine)
    assert no_v2.kind is None and "hands the memory controller down" in no_v2.reason
    assert others == [Support(V1, tmp_path / expected)]


def test_a_machine_without_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = fake_machine(tmp_path, "", "22 1 0:21 / / rw - ext4 /dev/vda rw\n")
    monkeypatch.setattr(hard_limit, "candidates", lambda: candidates(*machine))
    found = hard_limit.available()
    assert (found.kind, found.reason) == (None, "no control groups are mounted")


def test_a_place_where_no_group_can_be_made_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    places = [Support(V2, tmp_path / "missing"), Support(V1, tmp_path / "missing")]
    monkeypatch.setattr(hard_limit, "candidates", lambda: iter(places))
    found = hard_limit.available()
    assert found.kind is None
    assert found.reason == "cgroup v2: No such file or directory; cgroup v1: No such file or directory"


def test_what_is_written_to_a_v2_group_and_read_from_it(tmp_path: Path) -> None:
    with limited_group(V2, tmp_path, 100 * MIB) as group:
        written = {path.name: path.read_text() for path in group.iterdir()}
        (group / "memory.peak").write_text("1048576\n")
        (group / "memory.events").write_text("low 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n")
        found = usage(group)
        for path in group.iterdir():  # the real file system has no files of ours to remove
            path.unlink()
    assert written == {"memory.max": str(100 * MIB), "memory.swap.max": "0"}
    assert found == (MIB, 2)
    assert list(tmp_path.iterdir()) == []


def test_a_scope_of_systemd_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a systemd-run that notes what it is asked for, and runs it."""
    stub = tmp_path / "systemd-run"
    stub.write_text(
        f'#!/bin/sh\nwhile [ "$1" != -- ]; do echo "$1" >>{tmp_path}/asked; shift; done\nshift; exec "$@"\n'
    )
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    lines: list[str] = []
    result = run(python(ALLOCATE, "50"), 100 * MIB, support=Support(SYSTEMD), on_line=lines.append)
    assert (lines, result.returncode) == (["50\n"], 0)
    assert (tmp_path / "asked").read_text().split() == [
        "--user",
        "--scope",
        "--quiet",
        f"--property=MemoryMax={100 * MIB}",
        "--property=MemorySwapMax=0",
    ]
