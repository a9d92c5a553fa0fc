"""The cache of packed weights: written once, by one of several, whole or not at all."""

from __future__ import annotations

import errno
import json
import logging
import mmap
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edge_gemma import artifact as artifacts
from edge_gemma.artifact import DECODER, Artifact
from edge_gemma.cli import run
from edge_gemma.errors import CacheError
from edge_gemma.runtime import decoder as decoders
from edge_gemma.runtime import prepared, residency
from edge_gemma.runtime.decoder import Decoder
from edge_gemma.runtime.embeddings import EmbeddingStore
from edge_gemma.runtime.kv_cache import KvCache
from edge_gemma.runtime.loading import load
from edge_gemma.runtime.page_cache import evict, resident_pages
from edge_gemma.runtime.prepared import find, forget, open_decoder, prepare

needs_proc = pytest.mark.skipif(not residency.SMAPS.exists(), reason="needs /proc")


@pytest.fixture
def artifact(tiny_artifact: Path) -> Artifact:
    return artifacts.read(tiny_artifact)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def entries(cache: Path) -> list[str]:
    """What is in the cache, but for its lock."""
    return sorted(path.name for path in cache.iterdir() if path.name != prepared.LOCK)


def logits(decoder: Decoder, artifact: Artifact) -> np.ndarray:
    """Of 20 tokens in chunks of 8, float32 [20, V]."""
    store = EmbeddingStore(artifact.path("embeddings.bin"), artifact.manifest.embeddings)
    cache = KvCache(decoder.spec, context=24, chunk=8)
    ids = list(range(10, 30))
    chunks = [ids[i : i + 8] for i in range(0, 20, 8)]
    found = [decoder.forward(*store.rows(chunk), cache, num_logits=len(chunk)) for chunk in chunks]
    store.close()
    return np.concatenate(found)


def test_answers_are_those_of_the_artifact(artifact: Artifact, cache: Path) -> None:
    decoder = open_decoder(artifact, cache, threads=1)
    assert decoder.prepared
    plain = open_decoder(artifact, None, threads=1)
    assert not plain.prepared
    assert np.array_equal(logits(decoder, artifact), logits(plain, artifact))


def test_every_recipe_can_be_prepared(media_artifact: Path, cache: Path) -> None:
    artifact = artifacts.read(media_artifact)  # float32
    decoder = open_decoder(artifact, cache, threads=1)
    assert decoder.prepared
    assert np.array_equal(logits(decoder, artifact), logits(Decoder(artifact, threads=1), artifact))


def test_is_written_once(artifact: Artifact, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(artifact, cache) is None
    entry = prepare(artifact, cache, threads=1)
    assert find(artifact, cache) == entry and len(entries(cache)) == 1
    monkeypatch.setattr(prepared, "open_session", None)  # would fail if it were written again
    assert prepare(artifact, cache) == entry


@needs_proc
@pytest.mark.parametrize("cached", [True, False])
def test_the_decoder_gives_way_and_goes_on_as_before(
    artifact: Artifact, cache: Path, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a conversation: what it has computed lies in the KV cache."""
    fetched: list[set[str]] = []
    monkeypatch.setattr(decoders, "fetch_pages", lambda found: fetched.append({m.path for m in found}))
    store = EmbeddingStore(artifact.path("embeddings.bin"), artifact.manifest.embeddings)
    decoder = open_decoder(artifact, cache if cached else None, threads=1)
    conversation = KvCache(decoder.spec, context=24, chunk=8)
    whole = KvCache(decoder.spec, context=24, chunk=8)
    decoder.forward(*store.rows(range(10, 18)), whole)
    expected = decoder.forward(*store.rows([18]), whole)[0]
    decoder.forward(*store.rows(range(10, 18)), conversation)
    files = {Path(cache, *entries(cache), f"{name}.data") for name in DECODER} if cached else set()
    assert residency.drop_pages(files) > 0 or not cached
    decoder.forward(*store.rows([10]), KvCache(decoder.spec, context=8, chunk=1))  # pages come back
    decoder.give_way()
    assert residency.drop_pages(files) == 0
    decoder.give_way()  # to a second encoder, for the same message
    assert not any(fetched)
    found = decoder.forward(*store.rows([18]), conversation)[0]
    decoder.forward(*store.rows([19]), conversation)
    assert [paths for paths in fetched if paths] == (
        [{str(file) for file in files}] if cached else []
    )  # once
    assert np.allclose(found, expected, atol=1e-3 * np.abs(expected).max())
    store.close()


@needs_proc
def test_originals_leave_the_page_cache_where_memory_is_short(
    artifact: Artifact, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing else: what every token reads stays, and so does all where there is room for it."""
    files = [prepare(artifact, cache, threads=1) / f"{name}.data" for name in DECODER]
    if evict(files) != 0:
        pytest.skip("files of this file system do not leave memory")
    packed = pages = 0
    for usable in (1 << 60, 0):
        monkeypatch.setattr(decoders, "usable_memory", lambda usable=usable: usable)
        decoder = open_decoder(artifact, cache, threads=1)
        mapped = [found for found in residency._mappings() if Path(found[2]) in files]
        packed = sum(last - first for first, last, *_ in mapped) // mmap.PAGESIZE
        before, pages = pages, sum(resident_pages(file) or 0 for file in files)
        del decoder
    assert 0.8 * packed <= pages < 0.8 * before  # neighbours share pages


def test_two_at_once(tiny_artifact: Path, artifact: Artifact, cache: Path) -> None:
    """Both processes get the same entry, and nothing else is left."""
    code = (
        "import sys; from pathlib import Path; from edge_gemma import artifact; "
        "from edge_gemma.runtime.prepared import prepare; "
        "print(prepare(artifact.read(sys.argv[1]), Path(sys.argv[2]), threads=1))"
    )
    command = [sys.executable, "-c", code, str(tiny_artifact), str(cache)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found = [process.communicate(timeout=120)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert found == [str(find(artifact, cache))] * 2
    assert len(entries(cache)) == 1


@pytest.mark.timeout(120)
def test_waits_for_the_writer(artifact: Artifact, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    fcntl = pytest.importorskip("fcntl")
    caplog.set_level(logging.INFO, "edge_gemma")
    cache.mkdir()
    found: list[Path] = []
    with (cache / prepared.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(
            target=lambda: found.append(prepare(artifact, cache, threads=1)), daemon=True
        )
        thread.start()
        while "waiting for another process" not in caplog.text:
            assert thread.is_alive()
            time.sleep(0.01)
        assert entries(cache) == []
    thread.join(timeout=60)
    assert found == [find(artifact, cache)]


def test_a_killed_writer(tiny_artifact: Path, artifact: Artifact, cache: Path) -> None:
    """What it left is removed by the next one, which need not wait."""
    code = (
        "import sys, time; from pathlib import Path; from edge_gemma import artifact; "
        "from edge_gemma.runtime import prepared; "
        "prepared.release_free_memory = lambda: (print('written', flush=True), time.sleep(60)); "
        "prepared.prepare(artifact.read(sys.argv[1]), Path(sys.argv[2]), threads=1)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tiny_artifact), str(cache)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    assert len(entries(cache)) == 1 and entries(cache)[0].endswith(".tmp")
    entry = prepare(artifact, cache, threads=1)
    assert entries(cache) == [entry.name]


def test_interrupted(artifact: Artifact, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepared, "release_free_memory", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(artifact, cache, threads=1)
    assert entries(cache) == []


@pytest.mark.parametrize("damage", ["truncated", "missing", "record"])
def test_an_entry_that_is_not_whole_is_written_again(artifact: Artifact, cache: Path, damage: str) -> None:
    entry = prepare(artifact, cache, threads=1)
    data = entry / f"{DECODER[1]}.data"
    size = data.stat().st_size
    if damage == "truncated":
        os.truncate(data, size // 2)
    elif damage == "missing":
        (entry / DECODER[0]).unlink()
    else:
        (entry / prepared.RECORD).write_text("{")
    assert find(artifact, cache) is None
    assert prepare(artifact, cache, threads=1) == entry
    assert data.stat().st_size == size and entries(cache) == [entry.name]


def test_an_entry_that_onnxruntime_refuses(
    artifact: Artifact, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graph = prepare(artifact, cache, threads=1) / DECODER[1]
    graph.write_bytes(os.urandom(graph.stat().st_size))
    decoder = open_decoder(artifact, cache, threads=1)
    assert not decoder.prepared and "removed from the cache" in caplog.text
    assert entries(cache) == []
    assert open_decoder(artifact, cache, threads=1).prepared


def test_damaged_weights_cost_memory_and_not_answers(artifact: Artifact, cache: Path) -> None:
    """onnxruntime compares what it packs with what the file promises; it takes its own where they differ."""
    expected = logits(open_decoder(artifact, cache, threads=1), artifact)
    graph = prepare(artifact, cache, threads=1) / DECODER[0]
    text = graph.read_bytes()
    assert text.count(b"MatMulNBits+") > 10
    graph.write_bytes(text.replace(b"MatMulNBits+1", b"MatMulNBits+2"))  # the hashes of packed weights
    decoder = open_decoder(artifact, cache, threads=1)
    assert decoder.prepared and np.array_equal(logits(decoder, artifact), expected)


def test_a_new_onnxruntime(artifact: Artifact, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not read what another one wrote, and the old entry goes."""
    old = prepare(artifact, cache, threads=1)
    monkeypatch.setattr(onnxruntime, "__version__", "1.99.0")
    assert find(artifact, cache) is None
    new = prepare(artifact, cache, threads=1)
    assert new != old and entries(cache) == [new.name]


def test_another_processor(artifact: Artifact, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines may share a cache: each keeps its own."""
    old = prepare(artifact, cache, threads=1)
    monkeypatch.setattr(prepared, "processor", lambda: ("another", {"avx512_vnni"}))
    monkeypatch.setattr(prepared, "_host", lambda: "another")
    new = prepare(artifact, cache, threads=1)
    assert entries(cache) == sorted([old.name, new.name])


def test_an_artifact_that_was_exported_again(tiny_artifact: Path, tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(tiny_artifact, folder)
    old = prepare(artifacts.read(folder), cache, threads=1)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["decoder.data"]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    new = prepare(artifacts.read(folder), cache, threads=1)
    assert new != old and entries(cache) == [new.name]


def test_each_global_kv_has_its_entry(artifact: Artifact, cache: Path) -> None:
    """One does not replace the other; their answers are those of their graphs."""
    made = [prepare(artifact, cache, global_kv=kv, threads=1) for kv in ("float16", "int8", "float16")]
    assert made[0] == made[2] == find(artifact, cache) != made[1]
    assert find(artifact, cache, global_kv="int8") == made[1]
    assert entries(cache) == sorted(entry.name for entry in made[:2])
    found = []
    for kv in ("float16", "int8"):
        decoder = open_decoder(artifact, cache, global_kv=kv, threads=1)
        assert decoder.prepared and decoder.spec.global_kv == kv
        found.append(logits(decoder, artifact))
        assert np.array_equal(found[-1], logits(Decoder(artifact, global_kv=kv, threads=1), artifact))
    assert not np.array_equal(*found)
    assert forget(cache, artifact.folder) > 0 and entries(cache) == []


def test_both_entries_of_an_older_export_go(tiny_artifact: Path, tmp_path: Path, cache: Path) -> None:
    """And only what onnxruntime refuses goes of those of this one."""
    folder = shutil.copytree(tiny_artifact, tmp_path / "artifact")
    for kv in ("float16", "int8"):
        prepare(artifacts.read(folder), cache, global_kv=kv, threads=1)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["decoder.data"]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    again = artifacts.read(folder)
    new = prepare(again, cache, global_kv="int8", threads=1)
    assert entries(cache) == [new.name]
    own = prepare(again, cache, threads=1)
    graph = own / DECODER[0]
    graph.write_bytes(b"no graph".ljust(graph.stat().st_size))
    assert not open_decoder(again, cache, threads=1).prepared
    assert entries(cache) == [new.name]


def test_no_room(
    artifact: Artifact, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prepared, "_bytes_needed", lambda *_: 1 << 60)
    with pytest.raises(CacheError, match=r"free and 1073741824.00 GiB are needed: make room, or name"):
        prepare(artifact, cache)
    assert not open_decoder(artifact, cache, threads=1).prepared
    assert "going on without a cache" in caplog.text and entries(cache) == []


def test_entries_of_artifacts_that_are_gone_make_room(
    artifact: Artifact, tiny_artifact: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is needed, and of this machine alone: another's folders cannot be seen from here."""
    for name, key in (("here", "0"), ("gone", "1"), ("elsewhere", "2")):
        folder = shutil.copytree(tiny_artifact, tmp_path / name)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"]["decoder.data"]["sha256"] = key * 64
        (folder / "manifest.json").write_text(json.dumps(manifest))
        entry = prepare(artifacts.read(folder), cache, threads=1)
        if name == "elsewhere":
            record = json.loads((entry / prepared.RECORD).read_text())
            (entry / prepared.RECORD).write_text(json.dumps(record | {"host": "another"}))
    shutil.rmtree(tmp_path / "gone")
    shutil.rmtree(tmp_path / "elsewhere")
    prepare(artifact, cache, threads=1)
    assert len(entries(cache)) == 4  # there was room
    forget(cache, artifact.folder)
    monkeypatch.setattr(prepared, "_bytes_needed", lambda *_: 1 << 60)
    with pytest.raises(CacheError, match="make room"):
        prepare(artifact, cache, threads=1)
    left = [json.loads((cache / name / prepared.RECORD).read_text()) for name in entries(cache)]
    assert sorted(Path(record["source"]).name for record in left) == ["elsewhere", "here"]


def test_the_disk_fills_up(artifact: Artifact, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(prepared, "open_session", full)
    with pytest.raises(CacheError, match="cannot be written: No space left on device"):
        prepare(artifact, cache)
    assert entries(cache) == []


def test_a_cache_that_cannot_be_written(
    artifact: Artifact, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    assert not open_decoder(artifact, tmp_path / "file", threads=1).prepared
    assert f"the cache {tmp_path / 'file'} cannot be written: " in caplog.text


def test_a_read_only_cache_is_read(artifact: Artifact, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(artifact, cache, threads=1)

    def refuse(*_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(prepared, "_locked", refuse)
    assert open_decoder(artifact, cache, threads=1).prepared


def test_forget(artifact: Artifact, cache: Path) -> None:
    entry = prepare(artifact, cache, threads=1)
    size = sum(file.stat().st_size for file in entry.iterdir())
    assert forget(cache, cache) == 0  # prepared of something else
    assert forget(cache, artifact.folder) == size and entries(cache) == []
    prepare(artifact, cache, threads=1)
    assert forget(cache) == size and entries(cache) == []
    assert forget(cache / "nothing") == 0


def test_a_user_without_a_home_has_no_cache(
    tiny_artifact: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    with load(tiny_artifact, context=32, threads=1) as model:
        assert not model.plan.prepared
    assert "no home folder for a cache" in caplog.text and "going on without a cache" in caplog.text
    assert run(["prepare", str(tiny_artifact)]) == CacheError.exit_code


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert prepared.default_folder() == tmp_path / "edge-gemma"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    for system, place in (("linux", ".cache"), ("darwin", "Library/Caches")):
        monkeypatch.setattr(sys, "platform", system)
        assert prepared.default_folder() == tmp_path / place / "edge-gemma"


def test_load_uses_the_cache(tiny_artifact: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(tiny_artifact, context=64, threads=1, cache_dir=cache) as model:
        assert model.plan.prepared and len(entries(cache)) == 1
    monkeypatch.setattr(decoders, "drop_pages", lambda _: 0)
    with load(tiny_artifact, context=64, threads=1, cache_dir=cache / "other", cache=False) as model:
        assert not model.plan.prepared and not (cache / "other").exists()


def test_prepare_command(
    tiny_artifact: Path, artifact: Artifact, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--cache-dir", str(cache)]
    assert run(["prepare", str(tiny_artifact), *options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    entry = find(artifact, cache)
    assert entry and report["prepared"] == str(entry)
    assert report["bytes"] == sum(file.stat().st_size for file in entry.iterdir())
    assert report["global_kv"] == "float16"
    assert run(["prepare", str(tiny_artifact), *options, "--global-kv", "int8"]) == 0
    assert "is prepared, global KV in int8: " in capsys.readouterr().out and len(entries(cache)) == 2
    assert run(["prepare", str(tiny_artifact), *options, "--global-kv", "float32"]) == 2
    assert capsys.readouterr().err.startswith("error: global_kv is 'float32': ")
    assert run(["prepare", "--remove", str(tiny_artifact), *options]) == 0
    assert capsys.readouterr().out.startswith("removed ") and entries(cache) == []
    assert run(["prepare", *options]) == 2
    assert run(["prepare", str(cache), *options]) == 5
    (cache.parent / "file").write_text("")
    assert run(["prepare", str(tiny_artifact), "--cache-dir", str(cache.parent / "file")]) == 1
    assert "cannot be written" in capsys.readouterr().err
