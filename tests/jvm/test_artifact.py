"""Manifest, embedding records and JSON on the JVM: what Python reads, and the errors where it is damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jvm import golden
from jvm.bridge import EngineError, Jvm

# what the engine does not keep of a manifest: for people, or of other clients
UNREAD = {"format_version", "recipe_details"}


@pytest.mark.parametrize("name", ["demo", "elastic-fp32", "tiny-int4-int8-kv"])
def test_manifest(jvm: Jvm, demo: Path, made: Callable[[str], Path], name: str) -> None:
    folder = demo if name == "demo" else made(name)
    expected = golden.manifest_fields(folder)
    found = jvm.ask("manifest", artifact=str(folder))["manifest"]
    source = expected.pop("source")
    assert (found.pop("source_name"), found.pop("source_revision")) == (source["name"], source["revision"])
    assert found.pop("files") == {file: spec["bytes"] for file, spec in expected.pop("files").items()}
    tokenizer, tables = expected.pop("tokenizer"), found.pop("tokenizer")
    entries = {name: table["count"] for name, table in tokenizer.items() if isinstance(table, dict)}
    assert tables.pop("tables") == entries
    assert tables == {name: tokenizer[name] for name in ("file", "original", "ids", "tokens")}
    for key in UNREAD:
        expected.pop(key)
    assert found == json.loads(json.dumps(expected))


@pytest.mark.parametrize("name", ["demo", "tiny-fp32", "tiny-int8"])
def test_records_are_bit_equal(jvm: Jvm, demo: Path, made: Callable[[str], Path], name: str) -> None:
    folder = demo if name == "demo" else made(name)
    expected = golden.record_vectors(folder)
    jvm.ask("open", artifact=str(folder))
    found = jvm.ask("rows", ids=expected["ids"])
    assert found["embeds"] == expected["embeds"]
    assert found["per_layer"] == expected["per_layer"]


def test_an_id_outside_the_vocabulary(jvm: Jvm, demo: Path) -> None:
    jvm.ask("open", artifact=str(demo))
    with pytest.raises(EngineError, match="PromptException: token id 1296 is outside the vocabulary of 1296"):
        jvm.ask("rows", ids=[1296])


@pytest.fixture
def copy(demo: Path, tmp_path: Path) -> Path:
    """An artifact to be damaged, of links to the demo's files."""
    folder = tmp_path / "artifact"
    folder.mkdir()
    for file in demo.iterdir():
        (folder / file.name).symlink_to(file)
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text("utf-8"))
    change(data)
    path.unlink()
    path.write_text(json.dumps(data), "utf-8")


def refused(jvm: Jvm, folder: Path) -> str:
    with pytest.raises(EngineError) as caught:
        jvm.ask("open", artifact=str(folder))
    assert caught.value.kind == "ArtifactException"
    assert "\n" not in caught.value.message
    return caught.value.message


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "newer": (
        lambda m: m.update(format_version=7),
        "has format version 7, this engine reads 6: update the app",
    ),
    "older": (
        lambda m: m.update(format_version=3),
        "has format version 3, this engine reads 6: export the artifact again with a newer edge-gemma",
    ),
    "no version": (lambda m: m.pop("format_version"), "has no format_version: expected an artifact made by"),
    "unknown key": (lambda m: m.update(sparkle=1), "unknown key 'sparkle' at the top level; copy or export"),
    "unknown key inside": (
        lambda m: m["decoder"]["kv"][1].update(sparkle=1),
        "unknown key 'sparkle' at decoder.kv[1]; copy or export",
    ),
    "missing key": (lambda m: m["audio"].pop("hop"), "missing key 'hop' at audio; copy or export"),
    "wrong type": (
        lambda m: m.update(vocab_size="many"),
        "vocab_size is 'many', expected a whole number; copy or export",
    ),
    "wrong dtype": (
        lambda m: m["decoder"]["kv"][0].update(dtype="float8"),
        "decoder.kv[0].dtype is 'float8', expected a type that this engine knows",
    ),
    "newer onnxruntime": (
        lambda m: m.update(minimum_onnxruntime="99.1"),
        "is too old for this artifact, which needs 99.1: update the app",
    ),
    "records": (
        lambda m: m["embeddings"].update(record_bytes=315),
        "its embeddings cannot be right; copy or export the artifact again",
    ),
    "outside": (
        lambda m: m["files"].update({"../x": {"bytes": 1, "sha256": ""}}),
        "names the file '../x': expected a plain name inside the folder",
    ),
    "unlisted": (
        lambda m: m["files"].pop("decoder.data"),
        "uses 'decoder.data' and does not list it under files; copy or export",
    ),
    "size": (
        lambda m: m["files"]["embeddings.bin"].update(bytes=7),
        "embeddings.bin has 409536 bytes, expected 7: copy or export the artifact again",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_manifest_that_cannot_be_right(jvm: Jvm, copy: Path, name: str) -> None:
    change, message = CHANGES[name]
    edit(copy, change)
    assert message in refused(jvm, copy)


def test_a_missing_and_a_cut_file(jvm: Jvm, copy: Path, demo: Path) -> None:
    (copy / "decoder_kv.onnx").unlink()
    assert refused(jvm, copy) == f"{copy / 'decoder_kv.onnx'} is missing: copy or export the artifact again"
    data = (demo / "decoder_kv.onnx").read_bytes()
    (copy / "decoder_kv.onnx").write_bytes(data[:-9])
    message = (
        f"decoder_kv.onnx has {len(data) - 9} bytes, expected {len(data)}: copy or export the artifact again"
    )
    assert refused(jvm, copy).endswith(message)


def test_a_wrong_folder(jvm: Jvm, tmp_path: Path) -> None:
    made_by = "expected an artifact made by `edge-gemma export`"
    assert refused(jvm, tmp_path) == f"{tmp_path} has no manifest.json: {made_by}"
    assert refused(jvm, tmp_path / "x") == f"{tmp_path / 'x'} is not a folder: {made_by}"


@pytest.mark.parametrize("text", ["", "{", "null", '{"format_version": 4', "\x00", "{} {}", "[" * 1000])
def test_a_manifest_that_is_no_json(jvm: Jvm, copy: Path, text: str) -> None:
    (copy / "manifest.json").unlink()
    (copy / "manifest.json").write_text(text)
    assert "manifest.json" in refused(jvm, copy)


def test_a_template_of_another_model(jvm: Jvm, copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    edit(copy, lambda m: m["files"]["chat_template.jinja"].update(bytes=14))
    assert "does not write Gemma's turns" in refused(jvm, copy)


def test_a_damaged_graph(jvm: Jvm, copy: Path, demo: Path) -> None:
    size = (demo / "decoder_kv.onnx").stat().st_size
    (copy / "decoder_kv.onnx").unlink()
    (copy / "decoder_kv.onnx").write_bytes(bytes(size))
    with pytest.raises(EngineError, match="OnnxException"):
        jvm.ask("open", artifact=str(copy))


def test_settings_out_of_range(jvm: Jvm, demo: Path) -> None:
    for wrong in ({"context": 4096}, {"context": -1}, {"chunk": 0}, {"global_kv": "float8"}):
        with pytest.raises(EngineError, match="PromptException"):
            jvm.ask("open", artifact=str(demo), **wrong)


GOOD = [
    '{"a": [1, -2.5e3, "x\\u00e9\\n", true, false, null]}',
    " [ ] ",
    "0",
    '"\\ud83d\\ude00"',
    "-0.5",
    "1e400",
]
BAD = [
    "[1,]", '{"a":1,}', "[1 2]", "01", "+1", ".5", "1.", "1e", "--1", "NaN", "tru", "'a'", '"\n"', '"\\x"',
    '"\\u12"', '"a', '{"a"}', "{1: 2}", "[}", "1 1", "// x\n1", "nul",
]  # fmt: skip


def test_json_is_read_strictly(jvm: Jvm) -> None:
    for text in GOOD[:-1]:
        assert jvm.ask("json", text=text)["value"] == json.loads(text), text
    for text in BAD:
        with pytest.raises(EngineError, match="JsonException"):
            jvm.ask("json", text=text)


def test_links_lead_to_the_demo(copy: Path, demo: Path, jvm: Jvm) -> None:
    """The copy that the tests above damage is good itself."""
    jvm.ask("open", artifact=str(copy))
    shutil.rmtree(copy)
    assert (demo / "manifest.json").exists()
