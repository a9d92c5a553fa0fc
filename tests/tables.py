"""A small tokenizer of the `tokenizers` library, and the runtime's tokenizer of one of the library's."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers

from edge_gemma.export.tokenizer_tables import write_tables
from edge_gemma.runtime.tokenizer import Tokenizer

REPLACE = decoders.Replace("▁", " ")
DECODERS = {
    "gemma": decoders.Sequence([REPLACE, decoders.ByteFallback(), decoders.Fuse()]),
    "llama": decoders.Sequence(
        [REPLACE, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    ),
    "strip two": decoders.Sequence([REPLACE, decoders.Fuse(), decoders.Strip(" ", 2, 0)]),
    "metaspace": decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback(), decoders.Fuse()]),
    "none": None,
}


def small_tokenizer(decoder: Any, special: Sequence[str]) -> tokenizers.Tokenizer:
    """With a normalized added token, overlapping merges and texts that look like bytes."""
    pieces = [*"▁abhi\n<\ufffdé", "▁a", "hi", "▁hi", "▁▁", "▁a▁b", "<0x+1>", "<0xg0>"]
    vocab = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    merges = [("▁", "a"), ("h", "i"), ("▁", "hi"), ("▁", "▁")]
    made = tokenizers.Tokenizer(
        models.BPE({text: i for i, text in enumerate(vocab)}, merges, byte_fallback=True, unk_token="<unk>")
    )
    made.normalizer = normalizers.Replace(" ", "▁")
    if decoder is not None:
        made.decoder = decoder
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    made.add_tokens([AddedToken("\n\n", special=False, normalized=False), AddedToken("▁ab", normalized=True)])
    return made


def runtime_tokenizer(inner: tokenizers.Tokenizer) -> Tokenizer:
    """By way of a tokenizer.bin, which stays mapped when its folder is gone."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.bin"
        return Tokenizer(path, write_tables(inner, path, "a test"))
