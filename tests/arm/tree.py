"""An arm64 Debian with Python and aarch64 wheels, run by qemu-user: without root, chroot or binfmt.

    python tests/arm/tree.py FOLDER         builds it, where it is missing or out of date
    FOLDER/root/usr/bin/python-a72 …        likewise python-a76, python-i8mm

qemu shows programs the host's /proc/cpuinfo, on which onnxruntime's aarch64 build ends; so each core has a
folder of its own for qemu's -L, with a proc/cpuinfo that fits it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
PYPROJECT = ROOT / "pyproject.toml"
PYTHON = "3.11"  # Debian 12's
PACKAGES = (
    *(
        "libc6",
        "libgcc-s1",
        "libstdc++6",
        "zlib1g",
        "libexpat1",
        "libbz2-1.0",
        "liblzma5",
        "libffi8",
        "libssl3",
    ),
    *("libuuid1", "libcrypt1", "libsqlite3-0", "libncursesw6", "libtinfo6", "libreadline8"),
    *("libpython3.11-minimal", "libpython3.11-stdlib", "python3.11-minimal"),
)
TEST_PACKAGES = ("pytest", "pytest-timeout", "hypothesis", "srt", "webvtt-py")
SOURCE_ONLY = ("srt",)  # of them: pure Python of which there is no wheel
GLIBC = (17, 26, 27, 28, 31, 34, 35)  # minor versions that wheels are built against; Debian 12 has 2.36


@dataclass(frozen=True)
class Core:
    """A processor: its name in qemu, and what /proc/cpuinfo says of it."""

    qemu: str
    part: str
    features: str


A72 = "fp asimd evtstrm crc32 cpuid"
A76 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
CORES = {
    "a72": Core("cortex-a72", "0xd08", A72),  # Raspberry Pi 4: no int8 dot product
    "a76": Core("cortex-a76", "0xd0b", A76),  # Raspberry Pi 5: has it
    # phones since about 2021: int8 matrix products too; qemu's "max" alone would add SVE and SME
    "i8mm": Core("max,sve=off,sme=off", "0xd4d", f"{A76} i8mm bf16"),
}


class TreeError(Exception):
    """What is missing, and what to do; for people."""


def cpuinfo(core: Core, processors: int) -> str:
    """/proc/cpuinfo as Linux writes it on ARM."""
    return "".join(
        f"processor\t: {number}\nBogoMIPS\t: 108.00\nFeatures\t: {core.features}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: {core.part}\nCPU revision\t: 0\n\n"
        for number in range(processors)
    )


def requirements() -> list[str]:
    """What the runtime needs with sounds, images and structured answers, and its tests."""
    project = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    chosen = [package for name in ("audio", "vision", "structured") for package in extras[name]]
    return [*project["dependencies"], *chosen, *TEST_PACKAGES]


def fingerprint(folder: Path) -> str:
    """Of all that the tree is made from; it holds its own absolute path, too."""
    parts = [Path(__file__).read_text("utf-8"), CONSTRAINTS.read_text("utf-8"), *requirements(), str(folder)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def build(folder: Path) -> None:
    """Build the tree anew, unless it is there and of the same parts."""
    stamp = folder / "stamp"
    if stamp.exists() and stamp.read_text() == fingerprint(folder):
        return
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise TreeError(
                f"{tool} is missing: the ARM tests need a Debian 12 host, whose arm64 packages they use"
            )
    shutil.rmtree(folder, ignore_errors=True)
    apt = Apt(folder / "apt")
    debs = apt.download("arm64", PACKAGES)
    for deb in debs:
        call("dpkg-deb", "--extract", str(deb), str(folder / "root"))
    for name in ("doc", "man"):
        shutil.rmtree(folder / "root" / "usr" / "share" / name, ignore_errors=True)
    qemu = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64") or fetch_qemu(apt, folder)
    shutil.rmtree(folder / "apt")
    install_wheels(folder)
    for name, core in CORES.items():
        add_core(folder, name, core, qemu)
    stamp.write_text(fingerprint(folder))


class Apt:
    """The host's Debian sources and keys, with a state of its own: other architectures can be asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        deb822 = Path("/etc/apt/sources.list.d/debian.sources")
        self._sources = deb822 if deb822.exists() else Path("/etc/apt/sources.list")

    def download(self, architecture: str, packages: Sequence[str]) -> list[Path]:
        state = self._folder / architecture
        for name in ("lists/partial", "cache/archives/partial", "debs"):
            (state / name).mkdir(parents=True)
        (state / "status").touch()
        settings = {
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Dir::State": state,
            "Dir::State::status": state / "status",
            "Dir::Cache": state / "cache",
            "Dir::Etc::sourcelist": self._sources,
            "Dir::Etc::sourceparts": "/dev/null",
        }
        apt_get = [
            "apt-get",
            "-qq",
            *(part for key, value in settings.items() for part in ("-o", f"{key}={value}")),
        ]
        call(*apt_get, "update")
        call(*apt_get, "download", *packages, folder=state / "debs")
        return sorted((state / "debs").glob("*.deb"))


def fetch_qemu(apt: Apt, folder: Path) -> str:
    """The emulator alone out of Debian's package, 13 MB of 200."""
    host = subprocess.run(
        ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True
    ).stdout.strip()
    (package,) = apt.download(host, ["qemu-user-static"])
    unpacked = folder / "qemu"
    call("dpkg-deb", "--extract", str(package), str(unpacked))
    emulator = shutil.move(unpacked / "usr" / "bin" / "qemu-aarch64-static", folder / "qemu-aarch64-static")
    shutil.rmtree(unpacked)
    return str(emulator)


def install_wheels(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--quiet", "--disable-pip-version-check"]
    pins = ["--constraint", str(CONSTRAINTS)]
    call(*pip, "wheel", "--no-deps", *pins, "--wheel-dir", str(folder / "wheels"), *SOURCE_ONLY)
    platforms = ["manylinux2014", *(f"manylinux_2_{minor}" for minor in GLIBC)]
    call(
        *(*pip, "install", "--target", str(folder / "site"), "--no-compile", "--only-binary=:all:", *pins),
        *("--find-links", str(folder / "wheels"), "--implementation", "cp", "--python-version", PYTHON),
        *(part for platform in platforms for part in ("--platform", f"{platform}_aarch64")),
        *requirements(),
    )


def add_core(folder: Path, name: str, core: Core, qemu: str) -> None:
    """A sysroot for qemu, and python-NAME beside the tree's own Python.

    There sys.executable is that command itself: tests that start Python start it on the same core.
    """
    sysroot = folder / f"sysroot-{name}"
    (sysroot / "proc").mkdir(parents=True)
    (sysroot / "proc" / "cpuinfo").write_text(cpuinfo(core, len(os.sched_getaffinity(0))))
    for part in ("lib", "usr", "etc"):
        if (folder / "root" / part).exists():
            (sysroot / part).symlink_to(Path("..") / "root" / part)
    python = folder / "root" / "usr" / "bin" / f"python-{name}"
    python.write_text(
        "#!/bin/sh\n"
        f'export PYTHONPATH="{ROOT}:{folder / "site"}" PYTHONPYCACHEPREFIX="{folder / "pycache"}"\n'
        f'exec "{qemu}" -cpu "{core.qemu}" -L "{sysroot}" -0 "{python}" '
        f'"{python.with_name(f"python{PYTHON}")}" "$@"\n'
    )
    python.chmod(0o755)
    call(str(python), "-c", "import onnxruntime")


def call(*command: str, folder: Path | None = None) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines() or [f"it ended with {done.returncode}"]
        raise TreeError(
            f"{' '.join(command[:1])} failed, the ARM tests need a Debian 12 host and network: {reason[-1]}"
        )


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python tests/arm/tree.py FOLDER", file=sys.stderr)
        return 2
    try:
        build(Path(sys.argv[1]).absolute())
    except TreeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
