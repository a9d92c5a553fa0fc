"""A folder that appears whole or not at all, whatever interrupts the work on it."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_gemma.errors import ExportError
from edge_gemma.memory import format_bytes

PARTIAL = re.compile(r"\.(?P<name>.+)\.partial-(?P<pid>\d{1,9})(?P<old>\.old)?")


@contextmanager
def staging(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside `target` that becomes `target` if the block ends without an error."""
    target = Path(os.path.realpath(target))  # what a link names is replaced, and not the link
    if os.path.ismount(target):
        raise ExportError(f"{target} is a mount point, which no folder can replace: name a folder inside it")
    occupied = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if occupied and not overwrite:
        raise ExportError(f"{target} exists: choose another folder, or pass --overwrite to replace it")
    if occupied and not (target / "manifest.json").is_file():
        raise ExportError(f"{target} is not an artifact: it is not overwritten, choose another folder")
    folder = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target)
        folder.mkdir()
        yield folder
        _publish(folder, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = format_bytes(shutil.disk_usage(target.parent).free)
            raise ExportError(
                f"the disk of {target.parent} is full ({free} left): nothing was kept; free some space, retry"
            ) from None
        raise ExportError(f"{target} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, target: Path) -> None:
    """Rename the finished folder into place; a previous artifact is replaced, never mixed with."""
    old = folder.with_name(folder.name + ".old")
    try:
        if target.exists():
            target.rename(old)
        folder.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove_stale(target: Path) -> None:
    """Remove what an export of the same target left behind when it was killed."""
    for path in target.parent.iterdir():
        match = PARTIAL.fullmatch(path.name)
        if not match or match["name"] != target.name or _alive(int(match["pid"])):
            continue
        if match["old"] and not target.exists():  # killed between the two renames of _publish
            path.rename(target)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    if pid == os.getpid():  # in a container every run has the same pid
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
