"""An artifact appears whole or not at all, and the same checkpoint gives the same bytes."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge_gemma import artifact as artifacts
from edge_gemma.errors import EdgeGemmaError, ExportError
from edge_gemma.export import embeddings, pipeline, staging
from edge_gemma.export.checkpoint import open_checkpoint
from edge_gemma.export.graph import Graph
from edge_gemma.export.synthetic import SyntheticCheckpoint
from edge_gemma.export.tokenizer import write_tokenizer
from edge_gemma.recipes import find_recipe


def export(target: Path, *, seed: int = 0, overwrite: bool = False) -> None:
    checkpoint = open_checkpoint(f"synthetic:tiny:{seed}")
    pipeline.export(checkpoint, find_recipe("int4"), target, overwrite=overwrite)


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(ExportError) as caught:
        action()
    assert "\n" not in str(caught.value) and caught.value.exit_code == 4
    return str(caught.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def artifact(tiny_artifact: Path, tmp_path: Path) -> Path:
    """An artifact that is already there."""
    return Path(shutil.copytree(tiny_artifact, tmp_path / "artifact"))


def test_the_same_checkpoint_gives_the_same_bytes(tiny_artifact: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint("synthetic:tiny")
    pipeline.export(checkpoint, find_recipe("int4"), tmp_path / "deep" / "down" / "again")
    found = contents(tmp_path / "deep" / "down" / "again")
    assert found == contents(tiny_artifact)
    assert [p.name for p in (tmp_path / "deep" / "down").iterdir()] == ["again"]


def test_the_manifest_lists_every_file_with_its_hash(tiny_artifact: Path) -> None:
    listed = artifacts.read(tiny_artifact).manifest.files
    found = contents(tiny_artifact)
    del found["manifest.json"]
    assert {name: (spec.bytes, spec.sha256) for name, spec in listed.items()} == {
        name: (len(raw), hashlib.sha256(raw).hexdigest()) for name, raw in found.items()
    }


def test_progress_adds_up(tmp_path: Path) -> None:
    totals: dict[str, int] = {}
    counts: dict[str, int] = {}

    def stage(name: str, total: int) -> None:
        totals[name] = total
        counts[name] = 0

    def advance(amount: int = 1) -> None:
        counts[list(counts)[-1]] += amount

    progress = SimpleNamespace(stage=stage, advance=advance)
    pipeline.export(
        open_checkpoint("synthetic:tiny"), find_recipe("fp32"), tmp_path / "artifact", progress=progress
    )
    assert totals == counts and list(totals) == ["decoder", "embedding records", "checksums"]


def test_what_exists_is_not_replaced(artifact: Path) -> None:
    before = contents(artifact)
    assert "exists: choose another folder, or pass --overwrite" in refusal(lambda: export(artifact, seed=1))
    assert contents(artifact) == before


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "artifact").mkdir()
    export(tmp_path / "artifact")
    artifacts.read(tmp_path / "artifact").verify()


def test_overwrite_replaces_an_artifact(artifact: Path, tmp_path: Path) -> None:
    (artifact / "stray").touch()
    export(artifact, seed=1, overwrite=True)
    opened = artifacts.read(artifact)
    opened.verify()
    assert opened.manifest.source.name == "synthetic:tiny:1"
    assert not (artifact / "stray").exists()
    assert os.listdir(tmp_path) == ["artifact"]


def test_what_a_link_names_is_replaced(artifact: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(artifact.name)
    export(link, seed=1, overwrite=True)
    assert artifacts.read(artifact).manifest.source.name == "synthetic:tiny:1"
    assert link.is_symlink() and sorted(os.listdir(tmp_path)) == [artifact.name, "link"]


def test_a_mount_point_is_refused_before_the_work() -> None:
    assert "is a mount point, which no folder can replace" in refusal(lambda: export(Path("/proc")))


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_things_are_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "holiday.jpg").write_bytes(b"x")
    (tmp_path / "file").write_bytes(b"x")
    before = contents(tmp_path)
    for target in (folder, tmp_path / "file"):
        refusal(lambda target=target: export(target, overwrite=overwrite))
    assert "cannot be written" in refusal(lambda: export(tmp_path / "file" / "artifact"))
    assert contents(tmp_path) == before


STAGES = [
    (pipeline, "write_embeddings"),
    (pipeline, "write_tokenizer"),
    (pipeline, "_hash_files"),
    (staging, "_publish"),
]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(("module", "stage"), STAGES, ids=[name for _, name in STAGES])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_an_interrupted_export_leaves_nothing(
    tiny_artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overwrite: bool,
    module: object,
    stage: str,
    error: type[BaseException],
) -> None:
    """Whichever stage is interrupted; an artifact that was to be replaced stays as it was."""
    if overwrite:
        shutil.copytree(tiny_artifact, tmp_path / "artifact")
    before = contents(tmp_path)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(module, stage, fail)
    with pytest.raises(error):
        export(tmp_path / "artifact", seed=1, overwrite=overwrite)
    assert contents(tmp_path) == before
    assert os.listdir(tmp_path) == (["artifact"] if overwrite else [])


@pytest.mark.parametrize("fails_at", [1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt, PermissionError(errno.EACCES, "Permission denied")])
def test_an_export_that_fails_while_it_is_renamed(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int, error: BaseException
) -> None:
    """The artifact that was there is put back."""
    before = contents(artifact)
    real, calls = Path.rename, []

    def rename(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == fails_at:
            raise error
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises((KeyboardInterrupt, ExportError)):
        export(artifact, seed=1, overwrite=True)
    assert contents(artifact) == before
    assert os.listdir(artifact.parent) == ["artifact"]


@pytest.fixture(scope="module")
def dead() -> int:
    """The pid of a process that is gone."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_what_killed_exports_left_is_removed(tmp_path: Path, dead: int) -> None:
    stale = [f".a[1].partial-{dead}", f".a[1].partial-{dead}.old", f".a[1].partial-{os.getpid()}"]
    kept = [
        f".a[1].partial-{os.getppid()}",  # of a process that lives
        f".other.partial-{dead}",  # of another target
        ".a[1].partial-99999999999999999999",
        ".a[1].partial-x",
    ]
    for name in (*stale, *kept):
        (tmp_path / name).mkdir()
        (tmp_path / name / "decoder_kv.onnx").touch()
    shutil.rmtree(tmp_path / stale[1])
    with staging.staging(tmp_path / "a[1]", overwrite=False):
        pass
    assert sorted(os.listdir(tmp_path)) == sorted(["a[1]", *kept])


def test_what_was_killed_between_two_renames_is_put_back(artifact: Path, dead: int) -> None:
    before = contents(artifact)
    artifact.rename(artifact.with_name(f".artifact.partial-{dead}.old"))
    with pytest.raises(RuntimeError), staging.staging(artifact, overwrite=True):
        raise RuntimeError
    assert contents(artifact) == before
    assert os.listdir(artifact.parent) == ["artifact"]


def test_a_disk_that_is_plainly_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    message = refusal(lambda: export(tmp_path / "deep" / "artifact"))
    assert message.startswith(f"the disk of {tmp_path} has 98 KiB left and the artifact needs about ")
    assert not list(tmp_path.iterdir())


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("owner", "name"),
    [(Graph, "weight"), (Graph, "save"), (embeddings, "_store"), (artifacts.Manifest, "save")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_disk_that_fills_up(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str
) -> None:
    before = contents(artifact.parent)
    monkeypatch.setattr(owner, name, no_space)
    message = refusal(lambda: export(artifact, seed=1, overwrite=True))
    assert message.startswith(f"the disk of {artifact.parent} is full (") and "nothing was kept" in message
    assert contents(artifact.parent) == before


@pytest.mark.parametrize("limit", [100_000, 500_000])
def test_files_that_may_not_grow(tmp_path: Path, limit: int) -> None:
    """The system itself refuses the write, in the decoder's data."""
    script = (
        "import resource, signal, sys; from edge_gemma.cli import run\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "sys.exit(run(['export', 'synthetic:tiny', '-o', sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "artifact")], capture_output=True, text=True
    )
    assert done.stderr == f"error: {tmp_path / 'artifact'} cannot be written: File too large\n"
    assert done.returncode == 4
    assert not list(tmp_path.iterdir())


def test_a_parent_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mkdir(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    message = refusal(lambda: export(tmp_path / "artifact"))
    assert message == f"{tmp_path / 'artifact'} cannot be written: Permission denied"


@pytest.mark.parametrize(
    ("generation", "bos", "stop"),
    [
        ({}, 2, (1, 5)),
        ({"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}, 2, (1, 5)),
        ({"eos_token_id": 106, "bos_token_id": 7}, 7, (106,)),
        ({"eos_token_id": [1, 106]}, 2, (1, 106)),
        ({"eos_token_id": []}, 2, ()),
    ],
)
def test_special_ids(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    generation: dict[str, object],
    bos: int,
    stop: tuple[int, ...],
) -> None:
    """From generation_config.json; what it leaves open, from the tokenizer."""
    monkeypatch.setattr(SyntheticCheckpoint, "generation_config", lambda _: generation)
    tokens, _ = write_tokenizer(open_checkpoint("synthetic:tiny"), tmp_path)
    assert (tokens.bos, tokens.pad, tokens.stop) == (bos, 0, stop)


def test_a_tokenizer_without_bos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = open_checkpoint("synthetic:tiny").tokenizer_json().replace(b"<bos>", b"<s>")
    monkeypatch.setattr(SyntheticCheckpoint, "generation_config", lambda _: {})
    monkeypatch.setattr(SyntheticCheckpoint, "tokenizer_json", lambda _: raw)
    with pytest.raises(EdgeGemmaError, match="has no <bos>: expected Gemma 3n's tokenizer"):
        export(tmp_path / "artifact")


def test_a_chat_template_that_is_no_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SyntheticCheckpoint, "chat_template", lambda _: "{% for %}")
    with pytest.raises(EdgeGemmaError, match="is not valid jinja .* line 1"):
        export(tmp_path / "artifact")
