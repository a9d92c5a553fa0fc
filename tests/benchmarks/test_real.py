"""make real: one report of everything, that is resumed, and that tells what failed or was not run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny

from benchmarks import real_parts, real_work
from benchmarks.first_layers import FirstLayers
from benchmarks.real import run
from benchmarks.real_inputs import Clip, read_clips, spoken
from benchmarks.real_measures import pair_bytes
from benchmarks.real_work import Work
from edge_gemma.errors import PromptError
from edge_gemma.export.checkpoint import open_checkpoint
from edge_gemma.recipes import find_recipe
from edge_gemma.runtime import bench, bench_tasks

PARTS = [
    *("export int4", "export int8", "export fp32", "verify fp32", "verify encoders"),
    *("reference fp32", "loss int4", "loss int8", "blocks", "words"),
    *("memory int4", "memory int8", "speed int4", "speed int8"),
]


@pytest.fixture(scope="module")
def tasks() -> Iterator[list[str]]:
    """Parts run here instead of in processes of their own; names of their tasks."""
    names: list[str] = []

    def call(function: Callable[..., Any], *, step: Any, warn: Any, **arguments: Any) -> Any:
        if "task" in arguments:
            names.append(arguments["task"].__name__)
        return function(step, **arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(real_work, "call", call)
        patch.setattr(bench, "call", call)
        patch.setattr(bench_tasks, "read_bandwidth", lambda threads, size: 1e9)
        yield names


@pytest.fixture(scope="module")
def finished(tasks: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder with a finished report of synthetic:tiny; copy it before changing it."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "prompts.txt").write_text("Why?\n\nWhere is the station?\n", "utf-8")
    assert run(command(folder)) == 0
    assert len(tasks) == 11
    return folder


@pytest.fixture
def folder(finished: Path, tasks: list[str], tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    tasks.clear()
    return tmp_path


def command(folder: Path, source: str = "synthetic:tiny") -> list[str]:
    options = {"--out": folder / "out", "--texts": folder / "prompts.txt", "--recipes": "int4 int8"}
    quick = ["--skip", "blocks", "--new-tokens", "4", "--runs", "1"]
    return [source, *quick, *(str(word) for pair in options.items() for word in pair)]


def parts(folder: Path) -> dict[str, dict[str, Any]]:
    report = json.loads((folder / "out" / "report.json").read_text("utf-8"))
    return {part["name"]: part for part in report["parts"]}


def test_one_report_has_everything(finished: Path) -> None:
    found = parts(finished)
    assert list(found) == PARTS
    assert {n: p["reason"] for n, p in found.items() if p["status"] != "done"} == {
        "verify encoders": "the checkpoint has neither an audio nor a vision tower",
        "blocks": "--skip blocks",
        "words": "no --clips were given",
    }
    assert found["verify fp32"]["result"]["max_relative_error"] <= 1e-4
    losses = [found[f"loss {name}"]["result"] for name in ("int8", "int4")]
    assert 0 < losses[0]["kl_divergence"] < losses[1]["kl_divergence"]
    assert losses[0]["positions"] == found["reference fp32"]["result"]["positions"]
    assert found["memory int8"]["result"]["peak"] > 30 << 20
    assert found["speed int8"]["result"]["prefill"]["128"]["median"] > 0
    text = (finished / "out" / "report.md").read_text("utf-8")
    for line in (
        "| words | **not run**: no --clips were given | – | – |",
        "## Quantization loss against fp32",
        "## Seconds to load",
    ):
        assert line in text


def test_what_is_done_is_not_done_again(folder: Path, tasks: list[str]) -> None:
    before = parts(folder)
    assert run(command(folder)) == 0
    assert (tasks, parts(folder)) == ([], before)
    shutil.rmtree(
        folder / "out" / "artifacts" / "int8"
    )  # the same bytes come of it: nothing else is measured
    assert run(command(folder)) == 0
    assert tasks == ["export_recipe"]
    assert run([*command(folder), "--new-tokens", "3"]) == 0
    assert tasks[1:] == ["verify_text", "reference_logits", "loss", "loss"]


def test_an_interrupted_run_goes_on(
    folder: Path, tasks: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    shutil.rmtree(folder / "out" / "reference")
    with monkeypatch.context() as patch:
        patch.setattr(real_parts, "_logits", interrupted)
        assert run(command(folder)) == 130
    assert capsys.readouterr().err.endswith("interrupted: the same command goes on from here\n")
    tasks.clear()
    assert run(command(folder)) == 0
    assert tasks == ["reference_logits"]


def test_a_part_that_fails_is_told_and_the_others_run(
    folder: Path, tasks: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("loss-int4", "loss-int8", "memory-int4"):
        (folder / "out" / "parts" / f"{name}.json").unlink()
    data = folder / "out" / "artifacts" / "int4" / "decoder.data"
    data.write_bytes(data.read_bytes()[:100])
    assert run(command(folder)) == 1
    out, err = capsys.readouterr()
    assert "Traceback" not in err and err.endswith("failed: loss int4, memory int4\n")
    found = parts(folder)
    assert found["loss int8"]["status"] == "done"
    reason = found["loss int4"]["reason"]
    assert reason and "\n" not in reason
    report = (folder / "out" / "report.md").read_text("utf-8")
    assert f"| loss int4 | **failed**: {reason} |" in report


def test_what_memory_does_not_allow_is_not_run(tasks: list[str], tmp_path: Path) -> None:
    """The whole model beside transformers needs more than its first layers do: those are compared."""
    made = tiny.make(tmp_path / "checkpoint", **tiny.SHAPES["alternating"], hidden_size=256)
    first = FirstLayers(open_checkpoint(str(made.folder)))
    assert first.config.text.num_hidden_layers == 4
    memory = str(pair_bytes(first, find_recipe("fp32")))
    skip = [word for kind in ("loss", "words", "memory", "speed") for word in ("--skip", kind)]
    options = ["--out", str(tmp_path / "out"), "--memory", memory, "--new-tokens", "4"]
    assert run([str(made.folder), *options, *skip]) == 0
    found = parts(tmp_path)
    assert found["verify fp32"]["status"] == "not run"
    assert found["verify fp32"]["reason"].startswith("beside transformers in float32 it needs about 1.")
    exact = found["verify fp32, first 4 layers"]
    assert exact["status"] == "done" and exact["result"]["max_relative_error"] <= 1e-4


def test_an_unforeseen_error_is_one_line(tmp_path: Path) -> None:
    """In a process of its own."""
    work = Work(tmp_path, {"name": "none"})
    part = work.run("loss", real_parts.loss, settings={}, artifact=tmp_path, folder=None)
    assert (part.status, part.reason[:11]) == ("failed", "TypeError: ")
    assert part.reason.endswith(" (parts/loss.log has more)")
    assert "Traceback" in (tmp_path / "parts" / "loss.log").read_text("utf-8")


def test_words_are_counted_as_written_and_as_spoken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    heard = {"a.wav": "Turn on the light.", "b.wav": ""}

    @contextmanager
    def load(artifact: Path, **options: Any) -> Iterator[Any]:
        yield SimpleNamespace(transcribe=lambda path, language: SimpleNamespace(text=heard[path.name]))

    monkeypatch.setattr(real_parts, "load", load)
    clips = [Clip(tmp_path / "a.wav", "turn on the lights"), Clip(tmp_path / "b.wav", "¿Qué hora es?")]
    progress = SimpleNamespace(stage=lambda name, total: None, advance=lambda: None)
    found = real_parts.words(progress, tmp_path, clips, None, tmp_path)
    assert found["written"] == {"wrong": [2, 3], "of": [4, 3]}
    assert found["spoken"] == {"wrong": [1, 3], "of": [4, 3]}
    assert spoken("¿Qué  hora es?") == "qué hora es"


def test_clips_of_a_folder_and_of_lists(tmp_path: Path) -> None:
    for name in ("b.wav", "a.mp3"):
        (tmp_path / name).touch()
        (tmp_path / name).with_suffix(".txt").write_text(f"said in {name}\n", "utf-8")
    (tmp_path / "notes.txt").touch()
    expected = (Clip(tmp_path / "a.mp3", "said in a.mp3"), Clip(tmp_path / "b.wav", "said in b.wav"))
    assert read_clips(tmp_path) == expected
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "all.tsv").write_text("../a.mp3\tsaid in a.mp3\n\n", "utf-8")
    assert read_clips(lists) == (Clip(lists / "../a.mp3", "said in a.mp3"),)
    line = json.dumps({"file": "b.wav", "text": "said in b.wav"})
    (tmp_path / "some.jsonl").write_text(line, "utf-8")
    assert read_clips(tmp_path / "some.jsonl") == expected[1:]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "holds no clips"),
        ({"a.wav": ""}, "has no transcript: expected a.txt beside it"),
        ({"a.wav": "", "a.txt": " … \n"}, "the transcript of a.wav"),
        ({"all.tsv": "a.wav\tsaid"}, "lists a.wav, which is not there"),
        ({"all.tsv": "a.wav said"}, "line 1 of"),
        ({"all.jsonl": '{"file": "a.wav"}'}, "line 1 of"),
        ({"a.tsv": "", "b.jsonl": ""}, "name the list to take"),
    ],
)
def test_bad_clips_are_refused_before_the_work(
    files: dict[str, str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    for name, text in files.items():
        (clips / name).write_text(text, "utf-8")
    with pytest.raises(PromptError):
        read_clips(clips)
    assert run(["synthetic:tiny", "--clips", str(clips), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and expected in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (["no/such/folder"], 3, "does not exist"),
        (["synthetic:tiny", "--recipes", "int4 int5"], 2, "no recipe is called 'int5'"),
        (["synthetic:tiny", "--recipes", "int4,int4"], 2, "each once"),
        (["synthetic:tiny", "--clips", "no-clips"], 2, "no-clips does not exist"),
        (["synthetic:tiny", "--texts", "no-texts"], 2, "no-texts cannot be read"),
        (["synthetic:tiny", "--memory", "much"], 2, "'much' is not a size"),
        (["synthetic:tiny", "--out", __file__], 2, "cannot be used as work folder"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], status: int, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == status
    err = capsys.readouterr().err
    assert err.startswith("error: ") and expected in err and err.count("\n") == 1


def test_a_folder_is_of_one_checkpoint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command(folder, "synthetic:tiny:1")) == 2
    assert "holds the work on synthetic:tiny, " in capsys.readouterr().err
