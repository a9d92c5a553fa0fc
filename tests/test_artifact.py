"""An artifact opens if it is whole and of this version; whatever is wrong with one is said in one line."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_gemma import artifact as artifacts
from edge_gemma.errors import ArtifactError, FormatVersionError, PromptError

FILES = [
    "chat_template.jinja",
    "decoder.data",
    "decoder_kv.onnx",
    "decoder_kv_int8.onnx",
    "decoder_logits.onnx",
    "decoder_logits_int8.onnx",
    "embeddings.bin",
    "tokenizer.bin",
    "tokenizer.json",
]


@pytest.fixture
def folder(tiny_artifact: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_artifact, tmp_path / "artifact"))


@pytest.fixture(scope="session")
def good(tiny_artifact: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((tiny_artifact / "manifest.json").read_text("utf-8"))
    return data


def write(folder: Path, data: object) -> None:
    (folder / "manifest.json").write_text(json.dumps(data), "utf-8")


def refusal(folder: Path, kind: type[ArtifactError] = ArtifactError) -> str:
    """The message with which a folder is refused: one line that says what to do."""
    with pytest.raises(ArtifactError) as caught:
        artifacts.read(folder).verify()
    assert type(caught.value) is kind
    message = str(caught.value)
    assert message.startswith(str(folder)) and "\n" not in message
    assert any(w in message for w in ("again", "expected an artifact", "upgrade", "expected a plain name"))
    return message


def test_round_trip(tiny_artifact: Path, tmp_path: Path) -> None:
    opened = artifacts.read(tiny_artifact)
    opened.manifest.save(tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == (tiny_artifact / "manifest.json").read_bytes()
    for name in FILES:
        (tmp_path / name).symlink_to(tiny_artifact / name)
    assert artifacts.read(str(tmp_path)).manifest == opened.manifest


def test_verify_reads_every_byte(tiny_artifact: Path) -> None:
    opened = artifacts.read(tiny_artifact)
    assert sorted(opened.manifest.files) == FILES
    counts: list[int] = []
    opened.verify(counts.append)
    assert sum(counts) == sum((tiny_artifact / name).stat().st_size for name in FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"{name} is missing" in refusal(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", [-1, 1])
def test_a_wrong_size(folder: Path, name: str, change: int) -> None:
    raw = (folder / name).read_bytes()
    (folder / name).write_bytes((raw + b"x")[: len(raw) + change])
    assert f"{name} has {len(raw) + change:,} bytes, expected {len(raw):,}" in refusal(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0, 0.5, -1])
def test_one_changed_byte(folder: Path, name: str, where: float) -> None:
    raw = bytearray((folder / name).read_bytes())
    raw[int(where * len(raw)) if where > 0 else int(where)] ^= 1
    (folder / name).write_bytes(raw)
    artifacts.read(folder)  # opening does not hash
    message = refusal(folder)
    assert f"{name} is damaged: sha256 " in message and "expected" in message


@pytest.mark.parametrize(
    ("version", "kind", "advice"),
    [
        (7, FormatVersionError, "has format version 7, this edge-gemma reads 6: upgrade edge-gemma"),
        (2, FormatVersionError, "has format version 2, this edge-gemma reads 6: export it again"),
        (None, ArtifactError, "has no format_version"),
        ("1", ArtifactError, "has no format_version"),
        (True, ArtifactError, "has no format_version"),
    ],
)
def test_other_versions(
    folder: Path, good: dict[str, Any], version: Any, kind: type[ArtifactError], advice: str
) -> None:
    # a newer format may hold anything else
    write(folder, good | {"format_version": version} | ({"new": 1} if version == 7 else {}))
    assert advice in refusal(folder, kind)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"format_version": ' + b"1" * 5000 + b"}", "is not valid JSON"),
        (b"[]", "has no format_version"),
    ],
    ids=lambda value: repr(value[:4]),
)
def test_not_a_manifest(folder: Path, raw: bytes, message: str) -> None:
    (folder / "manifest.json").write_bytes(raw)
    assert message in refusal(folder)


def test_not_an_artifact(folder: Path, tmp_path: Path) -> None:
    (folder / "manifest.json").unlink()
    assert "has no manifest.json" in refusal(folder)
    (folder / "manifest.json").mkdir()
    assert "manifest.json cannot be read: Is a directory" in refusal(folder)
    assert "is not a folder" in refusal(folder / "decoder_kv.onnx")
    assert "is not a folder" in refusal(tmp_path / "nowhere")


def keys(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every key whose place has a fixed set of keys."""
    if isinstance(data, list):
        return [p for i, v in enumerate(data[:1]) for p in keys(v, (*path, i))]
    if not isinstance(data, dict):
        return []
    free = path and path[0] in ("recipe_details", "memory_estimate") or path == ("tokens", "media")
    own = [] if free or path == ("files",) else [(*path, key) for key in data]
    return own + [p for key, value in data.items() if not free for p in keys(value, (*path, key))]


def changed(data: dict[str, Any], path: tuple[Any, ...], **change: Any) -> dict[str, Any]:
    data = copy.deepcopy(data)
    place: Any = data
    for key in path[:-1]:
        place = place[key]
    value = place.pop(path[-1])
    if change:
        place[change.get("name", path[-1])] = change.get("value", value)
    return data


def test_every_key_is_needed_and_known_and_typed(folder: Path, good: dict[str, Any]) -> None:
    paths = keys(good)
    assert len(paths) > 60
    for path in paths:
        if path == ("format_version",):
            continue
        name = path[-1]
        write(folder, changed(good, path))
        assert f"missing key {name!r} at" in refusal(folder)
        write(folder, changed(good, path, name=f"_{name}"))
        assert f"unknown key '_{name}' at" in refusal(folder)
        write(folder, changed(good, path, value=1.5))
        assert "1.5, expected" in refusal(folder) or "holds float, expected an object" in refusal(folder)


NAMES = ["../x", "a/b", "/etc/passwd", "..", ".", "", "a\\b", "decoder.data/", "./decoder.data"]


@pytest.mark.parametrize("name", NAMES)
def test_file_names_stay_inside_the_folder(folder: Path, good: dict[str, Any], name: str) -> None:
    entry = {"bytes": 1, "sha256": ""}
    graph, *rest = good["decoder"]["graphs"]
    for data in (
        good | {"files": good["files"] | {name: entry}},
        good | {"tokenizer": good["tokenizer"] | {"file": name}},
        good | {"tokenizer": good["tokenizer"] | {"original": name}},
        good | {"chat_template": name},
        good | {"decoder": good["decoder"] | {"graphs": [*rest, graph | {"file": name}]}},
        good | {"decoder": good["decoder"] | {"data": name}},
        good | {"decoder_int8_kv": good["decoder_int8_kv"] | {"data": name}},
        good | {"embeddings": good["embeddings"] | {"file": name}},
    ):
        write(folder, data)
        assert f"names the file {name!r}: expected a plain name" in refusal(folder)


def test_files_in_use_are_listed(folder: Path, good: dict[str, Any]) -> None:
    graph, *rest = good["decoder_int8_kv"]["graphs"]
    for change in (
        {"chat_template": "other"},
        {"decoder_int8_kv": good["decoder_int8_kv"] | {"graphs": [*rest, graph | {"file": "other"}]}},
        {"decoder_int8_kv": good["decoder_int8_kv"] | {"data": "other"}},
    ):
        write(folder, good | change)
        assert "uses 'other' and does not list it under files" in refusal(folder)


@pytest.mark.parametrize("key", ["decoder", "decoder_int8_kv"])
@pytest.mark.parametrize("part", ["graphs", "kv"])
def test_a_decoder_of_nothing(folder: Path, good: dict[str, Any], key: str, part: str) -> None:
    write(folder, good | {key: good[key] | {part: []}})
    assert "its decoder cannot be right; copy or export the artifact again" in refusal(folder)


def test_decoders_by_their_global_kv(tiny_artifact: Path, media_artifact: Path) -> None:
    both = artifacts.read(tiny_artifact)
    assert list(both.manifest.decoders) == ["float16", "int8"]
    assert both.decoder() == both.decoder("float16") == both.manifest.decoder
    assert both.decoder("int8") == both.manifest.decoder_int8_kv
    one = artifacts.read(media_artifact)
    assert one.decoder() == one.decoder("float32") == one.manifest.decoder
    with pytest.raises(PromptError, match=r"global_kv is 'int8': .* has float32, choose of these or export"):
        one.decoder("int8")
    with pytest.raises(PromptError, match="has float16 and int8, choose of these"):
        both.decoder("int4")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("embeddings", "records"), 1039),
        (("embeddings", "record_bytes"), 64),
        (("vocab_size",), 1039),
        (("embeddings", "fields", 0, "name"), "embeding"),
        (("embeddings", "fields", 0, "bits"), 5),
        (("embeddings", "fields", 0, "block"), 0),
        (("embeddings", "fields", 1, "block"), 48),
        (("embeddings", "fields", 1, "offset"), 10_000),
        (("embeddings", "fields", 1, "scale_offset"), -1),
        (("embeddings", "fields", 0, "values"), 65),
    ],
)
def test_records_that_cannot_be(
    folder: Path, good: dict[str, Any], path: tuple[Any, ...], value: Any
) -> None:
    write(folder, changed(good, path, value=value))
    assert "embeddings cannot be right" in refusal(folder)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("ids",), 1025),
        (("tokens",), 1025),
        (("tokens",), -1),
        (("merge_starts", "count"), 1024),
        (("merge_rights", "count"), 0),
        (("byte_ids", "count"), 255),
        (("characters", "dtype"), "uint64"),
        (("characters", "offset"), 2),
        (("piece_starts", "offset"), -4),
        (("pieces", "count"), 10**9),
        (("pieces", "offset"), 10**9),
        (("added_flags", "count"), -1),
        (("decoder", 0, "kind"), "lower"),
    ],
)
def test_tables_that_cannot_be(folder: Path, good: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    write(folder, changed(good, ("tokenizer", *path), value=value))
    assert "tokenizer cannot be right" in refusal(folder)


@settings(max_examples=50)
@given(data=st.data())
def test_any_single_value_opens_or_is_refused(
    tiny_artifact: Path, good: dict[str, Any], data: st.DataObject
) -> None:
    """No edit of the manifest raises anything but an ArtifactError."""
    path = data.draw(st.sampled_from(keys(good)))
    value = data.draw(st.none() | st.integers() | st.text(max_size=4) | st.lists(st.integers(), max_size=2))
    manifest = changed(good, path, value=value)
    folder = tiny_artifact.with_name("edited")
    folder.mkdir(exist_ok=True)
    for name in FILES:
        if not (folder / name).exists():
            (folder / name).symlink_to(tiny_artifact / name)
    write(folder, manifest)
    try:
        artifacts.read(folder)
    except ArtifactError as error:
        assert "\n" not in str(error)
