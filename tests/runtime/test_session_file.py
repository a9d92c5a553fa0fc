"""Sessions on disk: they go on elsewhere as here; what cannot go on is refused in a sentence."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import program

import edge_gemma
from edge_gemma import EdgeGemmaError, Model
from edge_gemma.errors import ContextLimitError, SessionError
from edge_gemma.runtime import atomic_file, session_file

GREEDY: dict[str, Any] = {"temperature": 0, "max_new_tokens": 10}
QUESTION = "Why is the sky blue? " * 3
OPTIONS: dict[str, Any] = {"context": 512, "threads": 1}
CONTINUE = """
import json, sys, edge_gemma
with edge_gemma.load(sys.argv[1], context=512, threads=1) as model:
    session = model.load_session(sys.argv[2])
    answer = session.generate("And at night?", temperature=0, max_new_tokens=10)
    print(json.dumps({"text": answer.text, "statistics": answer.statistics.to_dict()}))
"""


@pytest.fixture(scope="module")
def model(tiny_artifact: Path) -> Iterator[Model]:
    with edge_gemma.load(tiny_artifact, **OPTIONS) as model:
        yield model


@pytest.fixture(scope="module")
def saved(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session of one turn; read-only."""
    path = tmp_path_factory.mktemp("sessions") / "one.session"
    session = model.session("Be brief.")
    session.generate(QUESTION, **GREEDY)
    session.save(path)
    return path


@pytest.mark.parametrize("global_kv", ["float16", "int8"])
def test_it_goes_on_in_another_process(global_kv: str, tiny_artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.session"
    with edge_gemma.load(tiny_artifact, **OPTIONS, global_kv=global_kv) as model:
        session = model.session("Be brief.")
        session.generate(QUESTION, **GREEDY)
        session.save(path)
        expected = session.generate("And at night?", **GREEDY)
    found = program(CONTINUE.replace("threads=1", f"threads=1, global_kv={global_kv!r}"), tiny_artifact, path)
    assert found["text"] == expected.text
    assert found["statistics"]["reused_tokens"] == expected.statistics.reused_tokens > 60


def test_images_and_clips_go_along(media_artifact: Path, tmp_path: Path, monkeypatch: Any) -> None:
    path, random = tmp_path / "a.session", np.random.default_rng(0)
    parts = [
        {"type": "image", "image": random.integers(0, 256, (40, 30, 3), dtype=np.uint8)},
        {"type": "audio", "audio": 0.1 * random.standard_normal(9000).astype(np.float32)},
        {"type": "text", "text": "What?"},
    ]
    with edge_gemma.load(media_artifact, threads=1, context=1024) as model:
        session = model.session(messages=[])
        session.generate(parts, **GREEDY)
        session.save(path)
        expected = session.generate("And?", **GREEDY).text
    with edge_gemma.load(media_artifact, threads=1, context=1024) as model:
        monkeypatch.setattr(model._encoders, "_run", lambda *_: 1 / 0)
        for keeps in (True, False):
            session = model.load_session(path)
            if not keeps:  # the soft tokens do for a prefill, too
                model._session_memory = model._open().prefixes.limit = 0
                model.generate("other", **GREEDY)
            answer = session.generate("And?", **GREEDY)
            assert answer.text == expected
            assert (answer.statistics.reused_tokens > 250) == keeps


def test_before_the_first_answer_there_are_messages(media_artifact: Path, tmp_path: Path) -> None:
    image = np.zeros((10, 10, 3), np.uint8)
    begun = [
        {"role": "user", "content": [{"type": "image", "image": image}]},
        {"role": "assistant", "content": "Black."},
    ]
    with edge_gemma.load(media_artifact, threads=1, context=1024) as model:
        model.session("Be brief.").save(tmp_path / "a")
        assert model.load_session(tmp_path / "a").messages == [{"role": "system", "content": "Be brief."}]
        model.session(messages=begun).save(tmp_path / "b")
        assert model.load_session(tmp_path / "b").generate("Why?", **GREEDY).statistics.images == 0


def test_what_it_was_saved_over_is_stored(model: Model, saved: Path) -> None:
    """Loading takes the cache; the conversation in it goes on nevertheless."""
    session = model.session()
    session.generate(QUESTION, **GREEDY)
    model.load_session(saved)
    assert session.generate("And?", **GREEDY).statistics.reused_tokens > 60


def test_safetensors_reads_it(saved: Path) -> None:
    safe_open = pytest.importorskip("safetensors").safe_open

    with safe_open(saved, "np") as file:
        assert file.metadata()["format"] == "edge-gemma session"
        names = list(file.keys())
        assert all(name.startswith("kv.") for name in names) and len(names) % 2 == 0
        tokens = json.loads(file.metadata()["session"])["tokens"]
        shapes = {file.get_tensor(name).shape[1] for name in names}
        assert max(shapes) == tokens


def test_another_dtype_is_computed_anew(tiny_artifact: Path, saved: Path) -> None:
    with edge_gemma.load(tiny_artifact, **OPTIONS, global_kv="int8") as model:
        session = model.load_session(saved)
        assert [m["role"] for m in session.messages] == ["system", "user", "assistant"]
        assert session.generate("And?", **GREEDY).statistics.reused_tokens == 0


def test_a_context_that_is_too_small(tiny_artifact: Path, saved: Path) -> None:
    with (
        edge_gemma.load(tiny_artifact, threads=1, context=64) as model,
        pytest.raises(ContextLimitError, match="and the context 64: load the artifact with a larger context"),
    ):
        model.load_session(saved)


def refusal(model: Model, path: Path) -> str:
    with pytest.raises(SessionError) as error:
        model.load_session(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


def test_another_artifact(made: Callable[[str], Path], saved: Path) -> None:
    with edge_gemma.load(made("tiny-int4-hq"), **OPTIONS) as other:
        assert "is a conversation with another artifact: load the one" in refusal(other, saved)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "is no whole session file"),
        (b"\xff" * 100, "is no whole session file"),
        (b"\x02\0\0\0\0\0\0\0{}", "is no whole session file"),
        (b"\x02\0\0\0\0\0\0\0[]", "is no whole session file"),
        (b"PK\x03\x04" + b"\0" * 500, "is no whole session file"),
    ],
)
def test_no_session_file(contents: bytes, message: str, model: Model, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(contents)
    assert message in refusal(model, tmp_path / "file")


def test_no_file(model: Model, tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refusal(model, tmp_path / "missing")
    assert "cannot be read: Is a directory" in refusal(model, tmp_path)


def test_a_newer_version(model: Model, saved: Path, tmp_path: Path) -> None:
    newer = saved.read_bytes().replace(b'"version": "1"', b'"version": "2"')
    (tmp_path / "file").write_bytes(newer)
    assert "has version 2 and this edge-gemma reads 1: upgrade" in refusal(model, tmp_path / "file")


@given(data=st.data())
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_found(data: st.DataObject, model: Model, saved: Path, tmp_path: Path) -> None:
    """Whatever byte is another one, and wherever it ends."""
    whole = bytearray(saved.read_bytes())
    header = 8 + int.from_bytes(whole[:8], "little")
    at = data.draw(st.integers(0, header - 1) | st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        del whole[at:]
    else:
        whole[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "damaged"
    path.write_bytes(whole)
    try:
        session = model.load_session(path)
    except SessionError:
        return
    # what has no meaning: space in the header, the way a character is written
    assert session.messages == model.load_session(saved).messages


def rewritten(path: Path, **changes: Any) -> bytes:
    """A file whose checksum is right, made by hand: what else it says is wrong."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, tensors = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    session = json.loads(header["__metadata__"]["session"]) | changes
    header |= changes.pop("header", {})
    session.pop("header", None)
    text = json.dumps(session)
    checksum = hashlib.sha256(text.encode() + tensors).hexdigest()
    header["__metadata__"] |= {"session": text, "sha256": checksum}
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + tensors


USER = {"role": "user", "content": "hi"}
SAID = {"role": "assistant", "content": "x"}


@pytest.mark.parametrize(
    "changes",
    [
        {"messages": 3},
        {"messages": [3]},
        {"messages": [USER]},
        {"messages": [{"role": "user"}]},
        {"messages": [USER, {"role": "assistant", "content": "x", "ids": ["x"]}]},
        {"messages": [USER, {"role": "assistant", "content": "x", "ids": [10**9]}]},
        {"messages": [USER, {"role": "assistant", "content": "x", "ids": [-1]}]},
        {"messages": [USER, {"role": "assistant", "content": 7, "ids": [1]}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "media": 0}]}, SAID]},
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "/etc/passwd"}]}, SAID]},
        {"messages": [{"role": "user", "content": [{"type": "video", "text": "hi"}]}, SAID]},
        {"tokens": "many"},
        {"extra": 1},
        {"header": {"kv.9.key": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}},
        {"header": {"kv.9.key": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}},
        {"header": {"kv.9.key": 7}},
    ],
    ids=str,
)
def test_what_was_made_by_hand(changes: dict[str, Any], model: Model, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(rewritten(saved, **changes))
    assert "is damaged" in refusal(model, tmp_path / "file")


def test_media_that_are_no_soft_tokens(model: Model, saved: Path, tmp_path: Path) -> None:
    raw = saved.read_bytes()
    end = len(raw) - 8 - int.from_bytes(raw[:8], "little")
    header = {"media.0": {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}}
    (tmp_path / "file").write_bytes(rewritten(saved, header=header))
    assert "is damaged" in refusal(model, tmp_path / "file")


def test_tensors_in_another_order(model: Model, saved: Path, tmp_path: Path) -> None:
    """They are read one behind the other, and not where the header says."""
    raw = saved.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    key, value = header["kv.0.key"], header["kv.0.value"]
    swapped = {"kv.0.key": key | value, "kv.0.value": value | key}
    assert key["shape"] == value["shape"] and key != value
    (tmp_path / "file").write_bytes(rewritten(saved, header=swapped))
    assert "is damaged" in refusal(model, tmp_path / "file")


def test_there_is_no_second_copy_in_memory(made: Callable[[str], Path], tmp_path: Path) -> None:
    """96 MiB of keys and values, in a process of its own."""
    found = program(MEMORY, made("tiny-fp32"), tmp_path / "a.session")
    assert found["state"] == 96 << 20
    assert found["saving"] < 16 << 20 and found["loading"] < 16 << 20


MEMORY = """
import json, sys
from pathlib import Path
from edge_gemma import artifact
from edge_gemma.artifact import DecoderSpec, KvBuffer
from edge_gemma.memory import peak_resident_bytes
from edge_gemma.runtime import session_file
from edge_gemma.runtime.kv_cache import KvCache
from edge_gemma.runtime.kv_state import KvState

names = {"past_key": "a", "past_value": "b", "present_key": (), "present_value": ()}
buffers = tuple(
    KvBuffer(layer=n, kind="global", dtype="float16", heads=2, head_dim=256, **names) for n in range(12)
)
spec = DecoderSpec(graphs=(), data="w", kv=buffers, sliding_window=512)
cache = KvCache(spec, context=4096, chunk=512)
cache.occupy(4096)
manifest, path = artifact.read(sys.argv[1]).manifest, Path(sys.argv[2])
state = KvState(tuple(range(4096)), tuple(cache.rows(4096)))
before = peak_resident_bytes()
session_file.write(path, manifest, [], cache.layout(4096), state)
saved = peak_resident_bytes()
with session_file.opened(path, manifest) as stored:
    assert stored.fits([*range(4096), 0], cache.layout(4096))
    cache.restore(4096, stored.rows())
loaded = peak_resident_bytes()
print(json.dumps({"state": state.bytes, "saving": saved - before, "loading": loaded - saved}))
"""


@pytest.mark.parametrize(
    "changes", [{"tokens": 10**9}, {"tokens": -1}, {"tokens": 3}, {"keys": "0"}], ids=str
)
def test_a_state_of_something_else_is_computed_anew(
    changes: dict[str, Any], model: Model, saved: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(rewritten(saved, **changes))
    model._open().occupy([])
    model._open().prefixes.limit = 0
    model._open().prefixes.limit = 1 << 28
    session = model.load_session(tmp_path / "file")
    assert session.generate("And?", **GREEDY).statistics.reused_tokens == 0


def test_it_is_replaced_whole(model: Model, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "link"
    (tmp_path / "a.session").write_bytes(saved.read_bytes())
    path.symlink_to("a.session")
    session = model.load_session(path)
    session.generate("And?", **GREEDY)
    (tmp_path / ".a.session.partial-999999999").write_text("of a process that was killed")
    (tmp_path / f".a.session.partial-{os.getppid()}").write_text("of one that lives")
    session.save(path)
    assert path.is_symlink() and len(model.load_session(path).messages) == 5
    assert stat.S_IMODE((tmp_path / "a.session").stat().st_mode) == 0o600
    assert sorted(os.listdir(tmp_path)) == [f".a.session.partial-{os.getppid()}", "a.session", "link"]


class Full(io.BytesIO):
    def write(self, *_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_leaves_the_old_one(
    call: str, model: Model, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.session"
    path.write_bytes(saved.read_bytes())
    session = model.load_session(path)
    session.generate("And?", **GREEDY)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(atomic_file, "open", lambda fd, mode: Full(os.close(fd)), raising=False)
    with pytest.raises(SessionError, match=f"the disk of {tmp_path} is full: nothing was changed; free some"):
        session.save(path)
    monkeypatch.undo()
    assert path.read_bytes() == saved.read_bytes() and os.listdir(tmp_path) == ["a.session"]
    session.save(path)
    assert len(model.load_session(path).messages) == 5


@pytest.mark.skipif(os.geteuid() == 0 and not hasattr(os, "mkfifo"), reason="POSIX")
def test_places_that_cannot_be_written(model: Model, tmp_path: Path) -> None:
    session = model.session("Be brief.")
    (tmp_path / "folder").mkdir()
    for path, reason in ((tmp_path / "folder", "Is a directory"), (tmp_path / "no" / "file", "No such file")):
        with pytest.raises(SessionError, match=f"{path} cannot be written: {reason}"):
            session.save(path)
    assert os.listdir(tmp_path) == ["folder"]


def test_nothing_is_lost_by_kill_9(tiny_artifact: Path, saved: Path, model: Model, tmp_path: Path) -> None:
    """It saves one of two conversations over the other for as long as it lives."""
    code = f"""
import sys, edge_gemma
with edge_gemma.load({str(tiny_artifact)!r}, context=512, threads=1) as model:
    one, two = model.load_session({str(saved)!r}), model.load_session({str(saved)!r})
    two.generate("And?", temperature=0, max_new_tokens=10)
    while True:
        for session in (one, two):
            session.save(sys.argv[1])
            print(end=".", flush=True)
"""
    path = tmp_path / "a.session"
    seen = set()
    for delay in (0.0, 0.003, 0.011):
        with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None and child.stdout.read(3)
            time.sleep(delay)
            child.send_signal(signal.SIGKILL)
        seen.add(len(model.load_session(path).messages))
    assert seen <= {3, 5}
    model.load_session(path).save(path)
    assert os.listdir(tmp_path) == ["a.session"]


def test_not_while_it_answers(model: Model, saved: Path, tmp_path: Path) -> None:
    session = model.session()
    pieces = session.stream(QUESTION)
    next(pieces)
    fork = session.fork()
    assert fork.messages == []
    for work in (lambda: session.save(tmp_path / "a"), lambda: model.load_session(saved)):
        with pytest.raises(EdgeGemmaError, match="the model is answering another prompt"):
            work()
    pieces.close()  # type: ignore[attr-defined]


def test_an_artifact_is_known_by_its_files(model: Model) -> None:
    manifest = model.manifest
    file, spec = next(iter(manifest.files.items()))
    changed = dataclasses.replace(spec, sha256="0" * 64)
    other = dataclasses.replace(manifest, files=manifest.files | {file: changed})
    assert session_file.identity(manifest) == session_file.identity(manifest) != session_file.identity(other)
