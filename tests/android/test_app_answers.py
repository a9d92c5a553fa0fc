"""The app without its screen, over the demo artifact on the desktop: it hears and says what Python does."""

from __future__ import annotations

import json
import wave
from pathlib import Path

import numpy as np
from android.demo_app import DEMO, ROOT, run
from jvm.bridge import compile_classes, compile_shim, onnxruntime_library
from PIL import Image

import edge_gemma

SAMPLES = ROOT / "demo/samples"
APP = DEMO / "app/src/main/java/io/github/edgegemma/demo"


def test_it_answers_hears_and_sees(demo_artifact: Path, tmp_path: Path) -> None:
    classes = tmp_path / "classes"
    engine = (DEMO / "engine/src/main/java", DEMO / "engine/desktop/java")
    desktop = Path(__file__).parent / "desktop"
    compile_classes(classes, *engine, APP / "core", desktop)
    compile_shim(tmp_path / "libshim.so")

    with wave.open(str(SAMPLES / "english-2.wav")) as clip:
        assert (clip.getframerate(), clip.getnchannels(), clip.getsampwidth()) == (16_000, 1, 2)
        (tmp_path / "clip").write_bytes(clip.readframes(clip.getnframes()))
    picture = np.asarray(Image.open(SAMPLES / "picture-1.png").convert("RGB")).astype(np.int32)
    argb = (picture[..., 0] << 16) + (picture[..., 1] << 8) + picture[..., 2] - (1 << 24)  # opaque
    argb.astype("<i4").tofile(tmp_path / "picture")

    done = run(
        *("java", "-cp", classes, "io.github.edgegemma.demo.core.Session", tmp_path / "libshim.so"),
        *(
            onnxruntime_library(),
            demo_artifact,
            tmp_path / "clip",
            "es",
            tmp_path / "picture",
            str(argb.shape[1]),
        ),
    )
    answer, transcription, translation, description = done.stdout.splitlines()
    model = edge_gemma.load(demo_artifact)
    expected = json.loads((SAMPLES / "samples.json").read_text("utf-8"))
    assert answer
    assert transcription == model.transcribe(SAMPLES / "english-2.wav").text
    assert transcription == expected["english-2.wav"]["English"]
    assert translation == f"{transcription} | {expected['english-2.wav']['Spanish']}"
    assert description == expected["picture-1.png"]["description"]
