"""Tokenizer.java gives the ids and texts that the Python runtime and the `tokenizers` library give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jvm import golden
from jvm.bridge import EngineError, Jvm
from tables import DECODERS, small_tokenizer

CONTROL = ("<bos>", "<end>", "<e", "<end>>>")  # some begin others: the longest counts
OTHERS = ("gemma", "llama", "metaspace", "none")


def test_texts_and_ids_of_the_demo(jvm: Jvm, demo: Path, vectors: dict[str, Any]) -> None:
    opened = jvm.ask("tokenizer", file=str(demo / "tokenizer.json"))
    spec = vectors["manifest"]["tokenizer"]
    assert (opened["ids"], opened["tokens"]) == (spec["ids"], spec["tokens"])
    encoded, decoded = vectors["tokenizer"]["encode"], vectors["tokenizer"]["decode"]
    assert len(encoded) >= 500
    for case in encoded:
        assert jvm.ask("encode", text=case["text"])["ids"] == case["ids"], repr(case["text"])
    for case in [*decoded, *({"ids": c["ids"], "text": None} for c in encoded)]:
        found = jvm.ask("decode", ids=case["ids"])
        assert "".join(found["pieces"]) == found["text"], case
        if case["text"] is not None:
            assert found["text"] == case["text"], case


@pytest.mark.parametrize("name", OTHERS)
def test_other_decoders(jvm: Jvm, tmp_path: Path, name: str) -> None:
    """The library is the reference."""
    inner = small_tokenizer(DECODERS[name], CONTROL)
    path = tmp_path / "tokenizer.json"
    path.write_text(inner.to_str(), "utf-8")
    jvm.ask("tokenizer", file=str(path))
    words = ["hi", " hi", "a", " ab", "b", "\n\n", "<0x+1>"]
    for text in golden.texts([*CONTROL, "\n\n"], words, 150):
        expected = inner.encode(text, add_special_tokens=False).ids
        assert jvm.ask("encode", text=text)["ids"] == expected, repr(text)
        found = jvm.ask("decode", ids=expected)
        assert found["text"] == "".join(found["pieces"]) == inner.decode(expected), repr(text)


@pytest.mark.parametrize("text", ["\ud800", "a\udc00b", "\ud83d \ude00"])
def test_a_lone_surrogate_is_refused(jvm: Jvm, demo: Path, text: str) -> None:
    jvm.ask("tokenizer", file=str(demo / "tokenizer.json"))
    with pytest.raises(EngineError, match="PromptException: the text has a lone surrogate at character"):
        jvm.ask("encode", text=text)


def changed(demo: Path, target: Path, **changes: Any) -> str:
    """The demo's tokenizer.json with other values at the top or, as model.KEY, in its model."""
    data = json.loads((demo / "tokenizer.json").read_text("utf-8"))
    for name, value in changes.items():
        part, _, key = name.rpartition("__")
        (data[part] if part else data)[key] = value
    target.write_text(json.dumps(data), "utf-8")
    return str(target)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__type": "WordPiece"}, "byte-pair encoding with byte fallback"),
        ({"model__byte_fallback": False}, "byte-pair encoding with byte fallback"),
        ({"model__dropout": 0.1}, "a model with dropout"),
        ({"model__ignore_merges": True}, "a model with ignore_merges"),
        ({"model__merges": [["a", "nothing"]]}, "a merge with 'nothing'"),
        ({"normalizer": {"type": "NFC"}}, "missing key 'pattern'|does not turn a space"),
        ({"pre_tokenizer": {"type": "ByteLevel"}}, "missing key|a pre-tokenizer that splits"),
        ({"decoder": {"type": "CTC"}}, "the decoder step CTC"),
    ],
)
def test_other_kinds_are_refused(
    jvm: Jvm, demo: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = changed(demo, tmp_path / "tokenizer.json", **changes)
    with pytest.raises(EngineError, match=message) as caught:
        jvm.ask("tokenizer", file=path)
    assert caught.value.kind == "ArtifactException"


@pytest.mark.parametrize("text", ["", "{", '{"model": {}}', "[]", '{"model": {"vocab": {"a": 1.5}}}'])
def test_damaged_files_are_refused(jvm: Jvm, tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(EngineError, match="expected the tokenizer of a Gemma") as caught:
        jvm.ask("tokenizer", file=str(path))
    assert caught.value.kind == "ArtifactException"
