"""Compiles the Android demo's engine for the desktop, and talks to it in one Java process."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

ENGINE = Path(__file__).parent.parent.parent / "android_demo" / "engine"
MAIN = ENGINE / "src" / "main" / "java"
DESKTOP = ENGINE / "desktop"
NEEDS_JDK = "JDK 17 is needed: apt-get install openjdk-17-jdk-headless"
NEEDS_C = "a C compiler is needed: apt-get install gcc libc6-dev"


class MissingToolError(Exception):
    """A program of the build is not installed; the message says how to get it."""


class EngineError(Exception):
    """The engine threw; `kind` is the class of its exception."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message


def javac() -> Path:
    """The compiler of a JDK of version 17 or later.

    Raises:
        MissingToolError: there is none.
    """
    found = shutil.which("javac")
    said = subprocess.run([found, "-version"], capture_output=True, text=True).stdout if found else ""
    version = re.match(r"javac (\d+)", said)
    if not found or not version or int(version[1]) < 17:
        raise MissingToolError(NEEDS_JDK)
    return Path(found).resolve()


def compile_classes(target: Path, *folders: Path) -> None:
    """Compile all sources below `folders` as Java 8, with every warning an error."""
    sources = [str(path) for folder in folders for path in sorted(folder.rglob("*.java"))]
    _run([str(javac()), "--release", "8", "-Xlint:all", "-Werror", "-d", str(target), *sources])


def compile_shim(target: Path) -> None:
    """Compile the JNI shim to a shared library."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        raise MissingToolError(NEEDS_C)
    include = javac().parent.parent / "include"
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    includes = [f"-I{include}", f"-I{include / 'linux'}"]
    _run([compiler, *flags, *includes, str(DESKTOP / "onnx_shim.c"), "-o", str(target), "-ldl"])


def onnxruntime_library() -> Path:
    """The shared library inside the Python wheel."""
    return next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))


class Jvm:
    """The engine in a process of its own: `Cases.java` is its other end."""

    def __init__(self, folder: Path) -> None:
        """Compile into `folder`, and start."""
        compile_classes(folder / "classes", MAIN, DESKTOP / "java")
        compile_shim(folder / "libshim.so")
        self._media = folder / "media"
        self._media.mkdir()
        self._files = 0
        java = str(javac().with_name("java"))
        arguments = ["-Xmx512m", "-Xcheck:jni", "-cp", str(folder / "classes")]
        main = ["io.github.edgegemma.engine.Cases", str(folder / "libshim.so"), str(onnxruntime_library())]
        self._process = subprocess.Popen(
            [java, *arguments, *main], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, op: str, **case: Any) -> dict[str, Any]:
        """Have one case answered. `messages` are as in Python, arrays included.

        Raises:
            EngineError: the engine threw.
        """
        if "messages" in case:
            case["messages"] = [self._message(message) for message in case["messages"]]
        for name in ("audio", "image"):
            if name in case:
                case |= self._medium(name, case[name])
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"op": op, **case}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(f"the Java process ended with {self._process.wait()} at {op}")
        result: dict[str, Any] = json.loads(line)
        if "error" in result:
            raise EngineError(result["error"], result["message"])
        return result

    def follow(self, **case: Any) -> NDArray[np.float32]:
        """The logits before each of `ids`, an answer to `messages`: float32 [len(ids), V]."""
        rows = self.ask("follow", **case)["logits"]
        return np.stack([np.frombuffer(base64.b64decode(row), "<f4") for row in rows])

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()

    def __enter__(self) -> Jvm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        content = message["content"]
        parts: Sequence[Mapping[str, Any]] = (
            [{"type": "text", "text": content}] if isinstance(content, str) else content
        )
        role = {"assistant": "model"}.get(message["role"], message["role"])
        return {"role": role, "parts": [self._part(part) for part in parts]}

    def _part(self, part: Mapping[str, Any]) -> dict[str, Any]:
        kind = part["type"]
        return {"text": part["text"]} if kind == "text" else self._medium(kind, part[kind])

    def _medium(self, kind: str, data: NDArray[Any]) -> dict[str, Any]:
        """Audio float32 [samples], or an image uint8 [height, width, 3], by way of a file."""
        self._files += 1
        path = self._media / str(self._files)
        if kind == "audio":
            np.asarray(data, "<f4").tofile(path)
            return {"audio": str(path)}
        data.tofile(path)
        return {"image": str(path), "height": data.shape[0], "width": data.shape[1]}


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"{Path(command[0]).name} failed:\n{done.stdout}{done.stderr}")
