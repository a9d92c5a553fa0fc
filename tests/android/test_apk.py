"""`android_demo/build_apk.sh`: what is in the APK, and what it says where something is missing."""

from __future__ import annotations

import re
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from android.demo_app import DEMO, run, sources

SCRIPT = DEMO / "build_apk.sh"
TOOLS = DEMO / "build/tools"
JAVA = (DEMO / "app/src/main/java", DEMO / "engine/src/main/java")
BINDING = Path(__file__).parent / "fake_onnxruntime"


@dataclass(frozen=True)
class Build:
    apk: Path
    output: str

    @property
    def classes(self) -> set[str]:
        return dex_classes(zipfile.ZipFile(self.apk).read("classes.dex"))

    @property
    def badging(self) -> str:
        return (self.apk.parent / "badging.txt").read_text("utf-8")


def dex_classes(dex: bytes) -> set[str]:
    """Classes that a DEX file defines, such as "a/b/C"; its layout is that of source.android.com."""

    def ints(offset: int, count: int, step: int = 4) -> list[int]:
        return [struct.unpack_from("<I", dex, offset + step * i)[0] for i in range(count)]

    string_count, string_offset, type_count, type_offset = ints(0x38, 4)
    class_count, class_offset = ints(0x60, 2)
    strings = ints(string_offset, string_count)
    types = ints(type_offset, type_count)
    names = set()
    for index in ints(class_offset, class_count, step=32):
        start = strings[types[index]] + 1  # behind the length, one byte for names as short as ours
        names.add(dex[start : dex.index(b"\0", start)].decode()[1:-1])
    return names


def build(folder: Path, *options: str, **environment: str) -> Build:
    done = run(SCRIPT, *options, ANDROID_BUILD=str(folder), ANDROID_TOOLS=str(TOOLS), **environment)
    assert done.returncode == 0, done.stdout
    return Build(folder / "edge-gemma-demo.apk", done.stdout)


def apksigner(*arguments: str | Path) -> tuple[int, str]:
    java = TOOLS / "root/usr/share/java"
    jars = f"{java / 'apksigner.jar'}:{java / 'apksig.jar'}"
    done = run("java", "-cp", jars, "com.android.apksigner.ApkSignerTool", *arguments)
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return build(tmp_path_factory.mktemp("plain"), ONNXRUNTIME_AAR="", D8_JAR="")


def aar(folder: Path, *files: Path) -> Path:
    """An AAR of these sources, with a library for two processors."""
    classes = folder / "classes"
    done = run(
        "javac",
        "--release",
        "8",
        "-sourcepath",
        DEMO / "compile_stubs",
        "-d",
        classes,
        *files,
        "-Xlint:-options",
    )
    assert done.returncode == 0, done.stdout
    run("jar", "cf", folder / "classes.jar", "-C", classes, ".")
    path = folder / "onnxruntime-android.aar"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(folder / "classes.jar", "classes.jar")
        for processor in ("arm64-v8a", "x86_64"):
            archive.writestr(f"jni/{processor}/libonnxruntime.so", b"\x7fELF" * 1000)
    return path


def test_every_source_is_in_it(plain: Build) -> None:
    for root in JAVA:
        for source in sources(root):
            name = source.relative_to(root).with_suffix("").as_posix()
            assert source.stem == "package-info" or name in plain.classes


def test_without_the_binding_none_is_in_it(plain: Build) -> None:
    assert not [name for name in plain.classes if name.startswith("ai/onnxruntime")]
    assert not [name for name in zipfile.ZipFile(plain.apk).namelist() if name.startswith("lib/")]
    assert "without ONNX Runtime" in plain.output


def test_its_signature_is_valid_until_it_is_changed(plain: Build, tmp_path: Path) -> None:
    assert apksigner("verify", "--min-sdk-version", "26", plain.apk) == (0, "")
    changed = bytearray(plain.apk.read_bytes())
    changed[200] ^= 1
    (tmp_path / "changed.apk").write_bytes(changed)
    code, said = apksigner("verify", "--min-sdk-version", "26", tmp_path / "changed.apk")
    assert code != 0 and "DOES NOT VERIFY" in said


def test_it_may_record_and_nothing_else(plain: Build) -> None:
    assert re.findall(r"^uses-permission.*name='([^']*)'", plain.badging, re.MULTILINE) == [
        "android.permission.RECORD_AUDIO"
    ]
    assert "INTERNET" not in plain.badging


def test_the_last_line_says_where_it_is(plain: Build) -> None:
    assert plain.output.splitlines()[-1] == f"{plain.apk}, {plain.apk.stat().st_size} bytes"


def test_an_aar_is_bundled_for_phones(tmp_path: Path) -> None:
    made = build(tmp_path, ONNXRUNTIME_AAR=str(aar(tmp_path, *sources(BINDING))), D8_JAR="")
    assert "ai/onnxruntime/OrtSession" in made.classes
    libraries = [name for name in zipfile.ZipFile(made.apk).namelist() if name.startswith("lib/")]
    assert libraries == ["lib/arm64-v8a/libonnxruntime.so"]
    assert "native-code: 'arm64-v8a'" in made.badging


def test_a_lambda_is_refused_where_dx_would_copy_it(tmp_path: Path) -> None:
    source = tmp_path / "Lambda.java"
    source.write_text("package ai.onnxruntime; class Lambda { Runnable nothing = () -> {}; }")
    archive = aar(tmp_path, *sources(BINDING), source)
    done = run(
        SCRIPT, ANDROID_BUILD=str(tmp_path), ANDROID_TOOLS=str(TOOLS), ONNXRUNTIME_AAR=str(archive), D8_JAR=""
    )
    assert done.returncode == 1
    assert "Lambda.class has a lambda" in done.stdout and "D8_JAR" in done.stdout


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    done = run(SCRIPT, "--fast")
    assert (done.returncode, "unknown option --fast" in done.stdout) == (1, True)
    done = run(SCRIPT, ONNXRUNTIME_AAR=str(tmp_path / "no.aar"))
    assert (done.returncode, "no.aar is not a file" in done.stdout) == (1, True)


def test_only_compiling_makes_no_apk(tmp_path: Path) -> None:
    made = build(tmp_path, "--compile-only", ONNXRUNTIME_AAR="", D8_JAR="")
    assert not made.apk.exists()
    assert re.search(r"^\d+ sources, \d+ classes$", made.output, re.MULTILINE)
