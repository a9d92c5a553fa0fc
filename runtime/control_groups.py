"""Linux's control groups with a limit of memory: where one may be made, making, reading and removing it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

V1, V2, SYSTEMD = "cgroup v1", "cgroup v2", "systemd scope (cgroup v2)"
PREFIX = "edge-gemma-"  # of groups' names; the process id of their maker follows
PATIENCE = 10.0  # seconds for killed processes to leave their group
MOUNTS, OWN = Path("/proc/self/mountinfo"), Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Support:
    """A kind of limit, and where its group goes."""

    kind: str | None  # V1, V2, SYSTEMD or None
    parent: Path | None = None  # folder of the group that new ones go into; None for SYSTEMD
    reason: str = ""  # where there is no kind: why


def candidates(mounts: Path = MOUNTS, own: Path = OWN) -> Iterator[Support]:
    """Places for a group, the best first; those that cannot be one have a reason and no kind.

    Never a place from which the limits of our own group would not be in force any longer where a nearer one
    is possible: v1 groups go inside our own; v2 allows no processes beside groups, so there it is the nearest
    ancestor that hands the memory controller down.
    """
    groups = _own_groups(mounts, own)
    if V2 in groups:
        top, here = groups[V2]
        places = [here, *(place for place in here.parents if place.is_relative_to(top))]
        handing = [place for place in places if "memory" in _words(place / "cgroup.subtree_control")]
        yield from (Support(V2, place) for place in handing)
        if not handing:
            yield Support(None, reason=f"{V2}: no group above ours hands the memory controller down")
    if V1 in groups:
        yield Support(V1, groups[V1][1])
    if shutil.which("systemd-run") and os.geteuid() != 0:  # root makes groups itself
        yield Support(SYSTEMD)


@contextlib.contextmanager
def limited_group(kind: str, parent: Path, limit: int) -> Iterator[Path]:
    """A new group with a limit, in bytes; removed at the end, with what still runs in it.

    Raises:
        OSError: it cannot be made.
    """
    for left in parent.glob(f"{PREFIX}*"):  # of a maker that was killed
        if not Path("/proc", left.name.removeprefix(PREFIX).partition("-")[0]).exists():
            with contextlib.suppress(OSError):
                left.rmdir()
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent))
    try:
        if kind == V2:
            (folder / "memory.max").write_text(str(limit))
            optional = {"memory.swap.max": "0"}
        else:
            (folder / "memory.limit_in_bytes").write_text(str(limit))
            optional = {"memory.memsw.limit_in_bytes": str(limit), "memory.swappiness": "0"}
        for name, value in optional.items():  # absent where the kernel does not account for swap
            with contextlib.suppress(OSError):
                (folder / name).write_text(value)
        yield folder
    finally:
        _remove(folder)


def scope_command(limit: int) -> list[str]:
    """The beginning of a command that runs the rest in a scope of the user's systemd."""
    properties = (f"MemoryMax={limit}", "MemorySwapMax=0")
    return ["systemd-run", "--user", "--scope", "--quiet", *(f"--property={p}" for p in properties), "--"]


def usage(folder: Path) -> tuple[int | None, int]:
    """Most bytes ever charged to a group, None where that is not recorded; and processes killed in it."""
    peaks = [*_words(folder / "memory.peak"), *_words(folder / "memory.max_usage_in_bytes")]
    kills = 0
    for name in ("memory.events", "memory.oom_control"):
        kills += sum(int(line.split()[1]) for line in _lines(folder / name) if line.startswith("oom_kill "))
    return (int(peaks[0]) if peaks else None), kills


def own_usage() -> tuple[int | None, int]:
    """`usage` of the cgroup v2 that this process is in."""
    groups = _own_groups(MOUNTS, OWN)
    return usage(groups[V2][1]) if V2 in groups else (None, 0)


def _own_groups(mounts: Path, own: Path) -> dict[str, tuple[Path, Path]]:
    """V1 and V2 → the folders of the hierarchy's top and of our own group, as far as they are mounted."""
    paths = {}
    for line in _lines(own):
        number, controllers, path = line.split(":", 2)
        if number == "0" or "memory" in controllers.split(","):
            paths[V2 if number == "0" else V1] = path
    found = {}
    for line in _lines(mounts):
        left, _, right = line.partition(" - ")
        root, point = left.split()[3:5]
        kind, _, options = right.split(" ", 2)
        version = {"cgroup2": V2, "cgroup": V1 if "memory" in options.split(",") else ""}.get(kind, "")
        if version in paths:
            inside = os.path.relpath(paths[version], root)  # a container may see a part of the hierarchy
            top = Path(point)
            found[version] = (top, top if inside.startswith("..") else top / inside)
    return found


def _remove(folder: Path) -> None:
    """Remove a group, killing what is in it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        for pid in _words(folder / "cgroup.procs"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        try:
            folder.rmdir()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except OSError:
        return []
