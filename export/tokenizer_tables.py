"""Writes tokenizer.bin: what a tokenizer.json says, in tables that the runtime maps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_gemma.artifact import TOKENIZER_JSON
from edge_gemma.errors import CheckpointError
from edge_gemma.tokenizer_spec import (
    BYTES,
    JOIN,
    NORMALIZED,
    REPLACE,
    SEPARATOR,
    SPACE,
    SPECIAL,
    STRIP,
    DecoderStep,
    TableSpec,
    TokenizerSpec,
)

if TYPE_CHECKING:
    import tokenizers

ALIGNMENT = 8  # bytes, of every table
# The forms of a tokenizer that the tables can hold, Gemma's first.
MODEL: dict[str, tuple[object, ...]] = {
    "type": ("BPE",),
    "byte_fallback": (True,),
    "ignore_merges": (False,),
    "dropout": (None, 0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
}
NORMALIZER = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
SPLIT = {"type": "Split", "pattern": {"String": " "}, "invert": False}  # there is no space left to split at
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]


def write_tables(tokenizer: tokenizers.Tokenizer, path: Path, source: str) -> TokenizerSpec:
    """Write the tables of a tokenizer, which is that of the checkpoint `source`, to `path`.

    Raises:
        CheckpointError: the tokenizer is not of Gemma's kind.
    """
    data = json.loads(tokenizer.to_str())
    vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    added: dict[int, tokenizers.AddedToken] = tokenizer.get_added_tokens_decoder()
    try:
        steps = _decoder_steps(data["decoder"])
        _check_model(data, vocabulary)
        _check_added(data, added.values())
    except _UnsupportedError as found:
        raise CheckpointError(f"the tokenizer of {source} has {found}: is it one of Gemma?") from None
    model, merges = data["model"]["vocab"], data["model"]["merges"]
    ids = 1 + max(vocabulary.values())
    tables = {
        "byte_ids": np.array([model[text] for text in BYTE_TOKENS], np.uint32),
        **_character_tables(model),
        **_merge_tables(model, merges, ids),
        **_piece_tables(vocabulary, ids),
        "added": np.array(list(added), np.uint32),
        "added_flags": np.array(
            [SPECIAL * token.special | NORMALIZED * token.normalized for token in added.values()], np.uint8
        ),
    }
    specs = {}
    with path.open("wb") as file:
        for name, table in tables.items():
            file.write(bytes(-file.tell() % ALIGNMENT))
            specs[name] = TableSpec(offset=file.tell(), count=len(table), dtype=table.dtype.name)
            file.write(table.astype(table.dtype.newbyteorder("<")).tobytes())
    return TokenizerSpec(
        file=path.name,
        original=TOKENIZER_JSON,
        ids=ids,
        tokens=len(vocabulary),
        spaces=data["normalizer"] is not None,
        words=SPACE in model and not any(b[0] == SPACE != a[-1] for a, b in merges),
        decoder=steps,
        **specs,
    )


class _UnsupportedError(Exception):
    """Says what a tokenizer has that the tables cannot hold."""


def _check_model(data: Mapping[str, Any], vocabulary: Mapping[str, int]) -> None:
    model = data["model"]
    for key, allowed in MODEL.items():
        if model.get(key) not in allowed:
            raise _UnsupportedError(f"a model of {key} {model.get(key)!r}, expected {allowed[0]!r}")
    if missing := [text for text in BYTE_TOKENS if text not in model["vocab"]]:
        raise _UnsupportedError(f"no token {missing[0]}, expected one for each byte")
    if "" in vocabulary:
        raise _UnsupportedError("a token without text")
    if len(set(vocabulary.values())) < len(vocabulary):
        raise _UnsupportedError("two tokens of the same id")
    if data["normalizer"] not in (None, NORMALIZER):
        raise _UnsupportedError(
            f"the normalizer {_brief(data['normalizer'])}, expected a space to become {SPACE!r}"
        )
    splitter = data["pre_tokenizer"]
    if splitter is not None and (data["normalizer"] is None or {**splitter, **SPLIT} != splitter):
        raise _UnsupportedError(f"the pre-tokenizer {_brief(splitter)}, expected none")


def _check_added(data: Mapping[str, Any], added: Any) -> None:
    for token in added:
        for option in ("single_word", "lstrip", "rstrip"):
            if getattr(token, option):
                raise _UnsupportedError(f"the added token {token.content!r} with {option}")
        if token.normalized and data["normalizer"] and " " in token.content:  # libraries differ
            raise _UnsupportedError(f"the added token {token.content!r}, normalized and with a space")


def _decoder_steps(state: Mapping[str, Any] | None) -> tuple[DecoderStep, ...]:
    """The decoder's steps, if each token's text depends only on itself, its byte run and on being first."""
    if state is None:
        return (_step(JOIN, content=" "),)
    steps: list[DecoderStep] = []
    joined = False
    for part in state["decoders"] if state["type"] == "Sequence" else [state]:
        kind = part["type"]
        if kind == "Fuse":
            steps.append(_step(JOIN))
            joined = True
        elif kind == "Strip" and not part["stop"]:
            steps.append(_step(STRIP, content=part["content"], count=part["start"]))
        elif kind == "ByteFallback" and not joined:
            steps.append(_step(BYTES))
        elif kind == "Replace" and not joined and part["pattern"].get("String"):
            content = part["content"]
            steps.append(_step(REPLACE, pattern=part["pattern"]["String"], content=content, first=content))
        elif kind == "Metaspace" and not joined:
            first = " " if part["prepend_scheme"] == "never" else ""
            steps.append(_step(REPLACE, pattern=part["replacement"], content=" ", first=first))
        else:
            where = " behind Fuse" if joined else ""
            raise _UnsupportedError(
                f"the decoder step {_brief(part)}{where}, expected Replace, ByteFallback, Fuse"
            )
    return tuple(steps)


def _step(kind: str, *, pattern: str = "", content: str = "", first: str = "", count: int = 0) -> DecoderStep:
    return DecoderStep(kind=kind, pattern=pattern, content=content, first=first, count=count)


def _character_tables(vocabulary: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    pairs = sorted((ord(text), token) for text, token in vocabulary.items() if len(text) == 1)
    table = np.array(pairs, np.uint32).reshape(-1, 2)
    return {"characters": table[:, 0], "character_ids": table[:, 1]}


def _merge_tables(
    vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], ids: int
) -> dict[str, NDArray[Any]]:
    """`merges` are in the order of their ranks, and each pair is there once."""
    lefts = np.array([vocabulary[left] for left, _ in merges], np.uint32)
    rights = np.array([vocabulary[right] for _, right in merges], np.uint32)
    merged = np.array([vocabulary[left + right] for left, right in merges], np.uint64)
    order = np.lexsort((rights, lefts))
    entries = (np.arange(len(merges), dtype=np.uint64) << np.uint64(32)) | merged
    return {
        "merge_starts": np.searchsorted(lefts[order], np.arange(ids + 1)).astype(np.uint32),
        "merge_rights": rights[order],
        "merges": entries[order],
    }


def _piece_tables(vocabulary: Mapping[str, int], ids: int) -> dict[str, NDArray[Any]]:
    texts = [b""] * ids
    for text, token in vocabulary.items():
        texts[token] = text.encode()
    lengths = np.array([len(text) + len(SEPARATOR) for text in texts])
    return {
        "piece_starts": (1 + np.cumsum([0, *lengths])).astype(np.uint32),
        "pieces": np.frombuffer(SEPARATOR + SEPARATOR.join([*texts, b""]), np.uint8),
    }


def _brief(state: Mapping[str, Any]) -> str:
    """The JSON of a part of a tokenizer, cut to a readable length."""
    text = json.dumps(state, ensure_ascii=False)
    return text if len(text) <= 100 else text[:100] + "…"
