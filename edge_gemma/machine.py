"""What this machine is: board, processor, cores and memory, as far as the system tells."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CPU = "CPUExecutionProvider"  # onnxruntime's name for computing on the processor
ROOT = Path("/")  # of the file system; tests have one of their own
# processor features that decide which of onnxruntime's int8 kernels run, best first, as /proc/cpuinfo calls
# them: asimd is NEON, asimddp its int8 dot product, i8mm its int8 matrix product
FEATURES = (
    "amx_int8",
    "avx512_vnni",
    "avx_vnni",
    "avx512f",
    "avx2",
    "i8mm",
    "asimddp",
    "asimdhp",
    "asimd",
)
ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}  # what Windows and macOS call them


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Facts by which a device profile is chosen."""

    board: str  # the device tree's name of it, on Android the product's; "" where there is neither
    system: str  # linux, android, darwin, windows
    architecture: str  # x86_64 or aarch64, or what the system calls another one
    memory: int  # bytes that this process may use of it: the machine's, or its control group's limit
    cores: int  # that this process may run on, without the slow ones of a phone
    features: tuple[str, ...]  # those of FEATURES that the processor has
    ci: bool  # whether this is continuous integration


def this_machine(root: Path = ROOT) -> Machine:
    """The facts about this machine."""
    android = hasattr(sys, "getandroidapilevel")
    architecture = platform.machine().lower()
    _, flags = processor(root)
    return Machine(
        board=_product() if android else _text(root / "proc/device-tree/model").strip(" \0\n"),
        system="android" if android else platform.system().lower(),
        architecture=ARCHITECTURES.get(architecture, architecture),
        memory=usable_memory(root),
        cores=_cores(root),
        features=tuple(name for name in FEATURES if name in flags),
        ci=os.environ.get("CI", "").lower() not in ("", "0", "false"),
    )


def usable_memory(root: Path = ROOT) -> int:
    """Bytes that this process may use: the machine's, or its control group's limit where that is less."""
    if hasattr(os, "sysconf"):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:
        import psutil  # which takes longer than all else that loading a model needs of this module

        total = psutil.virtual_memory().total
    return min([total, *_limits(root)])


def processor(root: Path = ROOT) -> tuple[str, set[str]]:
    """Model name and feature flags from /proc/cpuinfo; what Python knows where there is none."""
    pairs = [line.split(":", 1) for line in _text(root / "proc/cpuinfo").splitlines() if ":" in line]
    facts = {key.strip().lower(): value.strip() for key, value in pairs}
    # "model" is a number on x86, which has a "model name", and the board on a Raspberry Pi, which has none
    named = (facts.get(key) for key in ("model name", "model", "hardware"))
    model = next(filter(None, named), "") or platform.processor() or "unknown"  # Python asks another program
    return model, set((facts.get("flags") or facts.get("features") or "").split())


def _cores(root: Path) -> int:
    """Cores of this process that are at least half as fast as its fastest one."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    folder = root / "sys/devices/system/cpu"
    speeds = [_number(folder / f"cpu{core}/cpu_capacity") or 1024 for core in allowed]
    return sum(2 * speed >= max(speeds) for speed in speeds)


def _limits(root: Path) -> list[int]:
    """Memory limits, in bytes, of the control groups that this process is in, of version 1 and 2."""
    second = root / "sys/fs/cgroup"
    first = second / "memory"
    files = [first / "memory.limit_in_bytes"]
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        top, name = (second, "memory.max") if number == "0" else (first, "memory.limit_in_bytes")
        own = top / path.lstrip("/")
        files += [folder / name for folder in (own, *own.parents) if top in (folder, *folder.parents)]
    return [limit for file in files if (limit := _number(file))]


def _product() -> str:
    """What Android calls the phone, such as "Pixel 8"."""
    command = shutil.which("getprop")
    if not command:
        return ""
    done = subprocess.run([command, "ro.product.model"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    """The contents of a file; nothing where it cannot be read."""
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""
