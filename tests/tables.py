"""The runtime's tokenizer of one that the `tokenizers` library holds."""

from __future__ import annotations

import tempfile
from pathlib import Path

import tokenizers

from edge_gemma.export.tokenizer_tables import write_tables
from edge_gemma.runtime.tokenizer import Tokenizer


def runtime_tokenizer(inner: tokenizers.Tokenizer) -> Tokenizer:
    """By way of a tokenizer.bin, which stays mapped when its folder is gone."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.bin"
        return Tokenizer(path, write_tables(inner, path, "a test"))
