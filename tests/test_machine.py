"""Facts about a machine are read from where each system has them."""

from __future__ import annotations

import os
import platform
import stat
import sys
from pathlib import Path

import psutil
import pytest

from edge_gemma.machine import processor, this_machine

X86 = (
    "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Some Xeon @ 2.0GHz\n"
    "flags\t\t: fpu avx2 avx512f avx512_vnni\n"
)
RASPBERRY = (
    "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd asimdhp asimddp\n"
    "\nHardware\t: BCM2835\nRevision\t: d04170\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"
)
PHONE = "Processor\t: AArch64 rev 14\nFeatures\t: fp asimd i8mm asimddp\nHardware\t: Qualcomm SM8550\n"
GIB = 1 << 30


@pytest.fixture(autouse=True)
def small_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four cores, 8 GiB, no continuous integration."""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 8 * GIB // 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.delenv("CI", raising=False)


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(str(text))
    return root


@pytest.mark.parametrize(
    ("cpuinfo", "model", "features"),
    [
        (X86, "Some Xeon @ 2.0GHz", ("avx512_vnni", "avx512f", "avx2")),
        (RASPBERRY, "Raspberry Pi 5 Model B Rev 1.0", ("asimddp", "asimdhp", "asimd")),
        (PHONE, "Qualcomm SM8550", ("i8mm", "asimddp", "asimd")),
    ],
)
def test_the_processor(cpuinfo: str, model: str, features: tuple[str, ...], tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/cpuinfo": cpuinfo})
    name, flags = processor(root)
    assert name == model and set(features) <= flags
    assert this_machine(root).features == features


def test_a_system_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    monkeypatch.setattr(platform, "machine", lambda: "AMD64")
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    name, flags = processor(tmp_path)
    assert name and flags == set()
    found = this_machine(tmp_path)
    assert (found.board, found.system, found.architecture) == ("", "windows", "x86_64")
    assert (found.memory, found.cores, found.features, found.ci) == (8 * GIB, 6, (), False)


def test_a_board(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"})
    found = this_machine(root)
    assert found.board == "Raspberry Pi 5 Model B Rev 1.0"
    assert (found.system, found.architecture, found.cores) == ("linux", "aarch64", 4)


def test_macos_calls_its_architecture_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert this_machine(tmp_path).architecture == "aarch64"


@pytest.mark.parametrize(
    ("capacities", "cores"),
    [([1024] * 4, 4), ([250, 250, 700, 1024], 2), ([512, 1024, 511, 1024], 3), ([160, 160, 160, 1024], 1)],
)
def test_slow_cores_do_not_count(capacities: list[int], cores: int, tmp_path: Path) -> None:
    files = {f"sys/devices/system/cpu/cpu{i}/cpu_capacity": f"{c}\n" for i, c in enumerate(capacities)}
    # another core of this machine, that this process may not use
    files["sys/devices/system/cpu/cpu4/cpu_capacity"] = "4096\n"
    assert this_machine(tree(tmp_path, files)).cores == cores


@pytest.mark.parametrize(
    ("files", "memory"),
    [
        ({}, 8),
        ({"sys/fs/cgroup/memory.max": "max\n", "proc/self/cgroup": "0::/\n"}, 8),
        ({"sys/fs/cgroup/memory.max": 2 * GIB, "proc/self/cgroup": "0::/\n"}, 2),
        ({"sys/fs/cgroup/a/b/memory.max": 3 * GIB, "proc/self/cgroup": "0::/a/b\n"}, 3),
        (
            {
                "sys/fs/cgroup/a/b/memory.max": "max",
                "sys/fs/cgroup/a/memory.max": GIB,
                "proc/self/cgroup": "1:name=systemd:/x\n0::/a/b\n",
            },
            1,
        ),
        ({"sys/fs/cgroup/c/memory.max": GIB, "proc/self/cgroup": "0::/a\n"}, 8),
        ({"sys/fs/cgroup/memory.max": 100 * GIB, "proc/self/cgroup": "0::/\n"}, 8),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": 2 * GIB}, 2),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": 2**63 - 4096}, 8),
        (
            {
                "sys/fs/cgroup/memory/a/memory.limit_in_bytes": 3 * GIB,
                "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": 2**63 - 4096,
                "sys/fs/cgroup/cpu/a/b/memory.limit_in_bytes": GIB,
                "proc/self/cgroup": "5:cpu,cpuacct:/a/b\n4:memory:/a/b\n0::/\n",
            },
            3,
        ),
    ],
)
def test_memory_is_no_more_than_the_control_group_allows(
    files: dict[str, object], memory: int, tmp_path: Path
) -> None:
    assert this_machine(tree(tmp_path, files)).memory == memory * GIB


def test_memory_where_there_is_no_sysconf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf")
    assert this_machine(tmp_path).memory == psutil.virtual_memory().total


@pytest.mark.parametrize(("value", "ci"), [("true", True), ("1", True), ("false", False), ("", False)])
def test_continuous_integration(
    value: str, ci: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", value)
    assert this_machine(tmp_path).ci == ci


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands for Android's getprop")
def test_an_android_phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "getandroidapilevel", lambda: 34, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    root = tree(tmp_path, {"proc/device-tree/model": "SHIBA"})
    assert (this_machine(root).system, this_machine(root).board) == ("android", "")
    script = tmp_path / "getprop"
    script.write_text('#!/bin/sh\n[ "$1" = ro.product.model ] && echo "Pixel 8"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    assert this_machine(root).board == "Pixel 8"
