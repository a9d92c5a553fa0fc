"""The app's classes that need no Android, on the JVM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from android.demo_app import DEMO, run, sources
from PIL import Image, ImageOps

HERE = Path(__file__).parent
APP = DEMO / "app/src/main/java/io/github/edgegemma/demo"
TESTS = sorted((HERE / "java").rglob("*Test.java"))


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled without Android's classes; the binding's that have no fake are the stubs'."""
    folder = tmp_path_factory.mktemp("classes")
    files = sources(DEMO / "engine/src/main/java", APP / "core", HERE / "java", HERE / "fake_onnxruntime")
    files += sorted(APP.glob("OrtAndroid*.java"))
    stubs = DEMO / "compile_stubs"
    done = run("javac", "-encoding", "UTF-8", "-Xlint:all", "-sourcepath", stubs, "-d", folder, *files)
    assert done.returncode == 0, done.stdout
    return folder


@pytest.mark.parametrize("test", TESTS, ids=lambda path: path.stem)
def test_on_the_jvm(classes: Path, test: Path, tmp_path: Path) -> None:
    name = ".".join(test.relative_to(HERE / "java").with_suffix("").parts)
    temporary = f"-Djava.io.tmpdir={tmp_path}"
    done = run("java", temporary, "-cp", classes, "io.github.edgegemma.demo.core.Runner", name)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("ok ") == test.read_text("utf-8").count("    static void ")


def test_orientations_are_pillows(classes: Path) -> None:
    """A 3×2 image whose red is 16·y + x, stored in each of EXIF's eight orientations."""
    done = run("java", "-cp", classes, "io.github.edgegemma.demo.core.PictureTest")
    stored = Image.fromarray(np.array([[0, 1, 2], [16, 17, 18]], np.uint8))
    expected = []
    for orientation in range(1, 9):
        stored.getexif()[0x0112] = orientation
        upright = ImageOps.exif_transpose(stored)
        expected.append([*upright.size, *np.asarray(upright).ravel().tolist()])
    assert [[int(word) for word in line.split()] for line in done.stdout.splitlines()] == expected
