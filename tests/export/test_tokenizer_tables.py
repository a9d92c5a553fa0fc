"""Only tokenizers of Gemma's kind become tables, and only those that give what the library gives are kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers

from edge_gemma.errors import CheckpointError
from edge_gemma.export.synthetic_tokenizer import tokenizer_json
from edge_gemma.export.tokenizer import check_tables
from edge_gemma.export.tokenizer_tables import write_tables
from edge_gemma.tokenizer_spec import TokenizerSpec

Change = Callable[[tokenizers.Tokenizer], object]


def gemma(**model: Any) -> tokenizers.Tokenizer:
    data = json.loads(tokenizer_json(400))
    data["model"] |= model
    return tokenizers.Tokenizer.from_str(json.dumps(data))


def write(inner: tokenizers.Tokenizer, folder: Path) -> TokenizerSpec:
    return write_tables(inner, folder / "tokenizer.bin", "this test")


@pytest.mark.parametrize(
    ("model", "found"),
    [
        ({"byte_fallback": False}, "a model of byte_fallback False, expected True"),
        ({"ignore_merges": True}, "a model of ignore_merges True, expected False"),
        ({"dropout": 0.1}, r"a model of dropout 0.1\d*, expected None"),
        ({"continuing_subword_prefix": "#", "merges": []}, "a model of continuing_subword_prefix '#'"),
        ({"end_of_word_suffix": "#"}, "a model of end_of_word_suffix '#'"),
        ({"vocab": {"a": 0, "b": 1}, "merges": []}, "no token <0x00>, expected one for each byte"),
        ({"type": "WordLevel", "vocab": {"<unk>": 3}}, "a model of type 'WordLevel', expected 'BPE'"),
    ],
)
def test_a_model_of_another_kind(model: dict[str, Any], found: str, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=f"^the tokenizer of this test has {found}.*: is it one of Gemma.$"
    ):
        write(gemma(**model), tmp_path)


def vocabulary(**changes: int) -> dict[str, int]:
    return json.loads(tokenizer_json(400))["model"]["vocab"] | changes


@pytest.mark.parametrize(
    ("vocab", "found"),
    [(vocabulary(new=300), "two tokens of the same id"), ({**vocabulary(), "": 400}, "a token without text")],
)
def test_a_vocabulary_that_says_too_little(vocab: dict[str, int], found: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=found):
        write(gemma(vocab=vocab, merges=[]), tmp_path)


def put(name: str, part: Any) -> Change:
    return lambda inner: setattr(inner, name, part)


def add(**options: Any) -> Change:
    return lambda inner: inner.add_tokens([AddedToken("a b", **options)])


SPLIT = pre_tokenizers.Split(" ", "removed")
CHANGES: dict[str, tuple[Change, str]] = {
    "lower case": (
        put("normalizer", normalizers.Lowercase()),
        'the normalizer {"type": "Lowercase"}, expected',
    ),
    "two spaces": (
        put("normalizer", normalizers.Replace("  ", "▁")),
        "the normalizer .*, expected a space to",
    ),
    "words": (put("pre_tokenizer", pre_tokenizers.Whitespace()), "the pre-tokenizer .*, expected none"),
    "inverted": (
        put("pre_tokenizer", pre_tokenizers.Split(" ", "removed", invert=True)),
        "the pre-tokenizer",
    ),
    "spaces": (lambda i: (put("normalizer", None)(i), put("pre_tokenizer", SPLIT)(i)), "the pre-tokenizer"),
    "lstrip": (add(lstrip=True), "the added token 'a b' with lstrip"),
    "rstrip": (add(rstrip=True), "the added token 'a b' with rstrip"),
    "single word": (add(single_word=True), "the added token 'a b' with single_word"),
    "normalized": (add(normalized=True), "the added token 'a b', normalized and with a space"),
    "byte level": (
        put("decoder", decoders.ByteLevel()),
        "the decoder step .*ByteLevel.*, expected Replace, Byte",
    ),
    "CTC": (put("decoder", decoders.CTC()), "the decoder step"),
    "replace behind fuse": (
        put("decoder", decoders.Sequence([decoders.Fuse(), decoders.Replace("aa", "b")])),
        "the decoder step .*Replace.* behind Fuse, expected",
    ),
    "strip at the end": (
        put("decoder", decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)])),
        "the decoder step .*Strip",
    ),
    "a pattern": (
        put("decoder", decoders.Replace(tokenizers.Regex("a+"), "b")),
        "the decoder step .*Regex",
    ),
}


@pytest.mark.parametrize(("change", "found"), CHANGES.values(), ids=CHANGES)
def test_a_part_of_another_kind(change: Change, found: str, tmp_path: Path) -> None:
    inner = gemma()
    change(inner)
    with pytest.raises(CheckpointError, match=f"^the tokenizer of this test has {found}") as error:
        write(inner, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        put("pre_tokenizer", SPLIT),  # Gemma's own: no space is left to split at
        put("normalizer", None),
        add(normalized=False),
        lambda inner: inner.enable_truncation(3),
        lambda inner: inner.enable_padding(length=50),
    ],
)
def test_what_makes_no_difference_and_what_is_supported(change: Change, tmp_path: Path) -> None:
    inner = gemma()
    change(inner)
    check_tables(inner, tmp_path / "tokenizer.bin", write(inner, tmp_path), "this test")


def test_tables_are_compared_with_the_library(tmp_path: Path) -> None:
    spec = write(gemma(), tmp_path)
    other = gemma()
    other.add_tokens(["wn fo"])
    with pytest.raises(CheckpointError, match="gives other ids .* for 'The quick brown .*: please report it"):
        check_tables(other, tmp_path / "tokenizer.bin", spec, "this test")
    other = gemma()
    other.decoder = decoders.Fuse()
    with pytest.raises(CheckpointError, match="another text than the library's for ' '"):
        check_tables(other, tmp_path / "tokenizer.bin", spec, "this test")


def test_one_tokenizer_one_file(tmp_path: Path) -> None:
    first = write(gemma(), tmp_path), (tmp_path / "tokenizer.bin").read_bytes()
    assert first == (write(gemma(), tmp_path), (tmp_path / "tokenizer.bin").read_bytes())
    assert first[0].fits(len(first[1])) and not first[0].fits(len(first[1]) - 1)
