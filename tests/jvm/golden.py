"""Golden vectors: what the Python runtime makes of texts, ids and records, for engines in other languages.

python tests/jvm/golden.py ARTIFACT > golden.json
"""

from __future__ import annotations

import base64
import dataclasses
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_gemma import artifact as artifacts
from edge_gemma.runtime.embeddings import EmbeddingStore
from edge_gemma.runtime.tokenizer import Tokenizer

PLAIN = (
    "",
    " ",
    "   ",
    "\n",
    "\n\n\n",
    "\t \r\n",
    "a",
    " a",
    "a ",
    "  two  spaces  ",
    "What is 17 + 25?",
    "Turn on the kitchen light.",
    "don't stop—believing…",
    "naïve café, señor; Straße, Łódź",
    "e\u0301 versus \u00e9, a\u0308\u0304 stacked",
    "\u202bעברית\u202c and العربية",
    "日本語の文章。中文字符，한국어",
    "हिन्दी में क्षत्रिय",
    "👍🏽 👩‍👩‍👧‍👦 🇪🇸 🏳️‍🌈",
    "\U0001f600" * 7,
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010ffff \ufeff \u200b",
    "\x00\x01\x7f\x80\x9f",
    "▁already ▁▁ marked",
    "<0xE2><0x82><0xAC> is no byte",
    "<bos>", "<eos><pad>",
    "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
    "text<end_of_turn>text", "<end_of_turn", "<<bos>>", "< bos >",
    "<start_of_<start_of_turn>turn>",
    "\ufffd\ufffd",
    '{"name": "set_light", "arguments": {"room": "kitchen"}}',
    "supercalifragilisticexpialidocious" * 5,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "0123456789 3.14159 1e-9 -42",
)  # fmt: skip
ALPHABETS = (
    "abcdefghij klmnop qrstuv wxyz ",
    "ABC abc 012 .,;:!?'\"()[]{}<>/\\|@#$%^&*-_=+~` \n\t",
    "áéíóúüñçßøåæœłžšđðþ ÁÉÍ ",
    "абвгдежзий αβγδεζηθ אבגדה ابتثج ",
    "日本語中文字符한국어の。、 ",
    "\u0300\u0301\u0302\u0308\u0327ae o",
    "😀😁👍🏽\u200d\ufe0f🇪🇸𝔘\U0010ffff ",
    "\x00\x1f\x7f\x80\xa0\u2028\u3000\ufeff\ufffd x",
)


def texts(special: Sequence[str], words: Sequence[str], count: int = 600) -> list[str]:
    """Varied texts: those above, then `count` random ones of characters, words and control tokens."""
    rng = random.Random(0)
    found = list(PLAIN)
    for number in range(count):
        kind = number % (len(ALPHABETS) + 3)
        length = rng.randint(1, 40)
        if kind < len(ALPHABETS):
            found.append("".join(rng.choices(ALPHABETS[kind], k=length)))
        elif kind == len(ALPHABETS):
            found.append(" ".join(rng.choices(words, k=length)))
        elif kind == len(ALPHABETS) + 1:
            pieces = [*special, *words[:50], *"<> \n"]
            found.append("".join(rng.choices(pieces, k=length)))
        else:  # any of Unicode but surrogates
            points = [
                rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)]) for _ in range(length)
            ]
            found.append("".join(map(chr, points)))
    return found


def id_lists(tokenizer: Tokenizer, ids: int, count: int = 300) -> list[list[int]]:
    """Random ids: of all kinds alike, many bytes among them, and some that no token has."""
    rng = random.Random(1)
    first = tokenizer.token_id("<0x00>")
    assert first is not None
    bytes_ = range(first, first + 256)
    euro = [first + byte for byte in "€😀".encode()]
    found = []
    for number in range(count):
        pools = [range(ids), bytes_, euro, range(min(16, ids)), range(ids, ids + 3)]
        weights = [(6, 1, 1, 1, 1), (1, 6, 3, 1, 0), (3, 0, 6, 0, 0)][number % 3]
        found.append([rng.choice(rng.choices(pools, weights)[0]) for _ in range(rng.randint(0, 24))])
    return found


def tokenizer_vectors(tokenizer: Tokenizer, ids: int) -> dict[str, list[dict[str, Any]]]:
    """Texts with their ids, and ids with their text."""
    words = [text.replace("▁", " ") for i in range(ids) if (text := tokenizer.texts([i])[i]).isascii()]
    return {
        "encode": [
            {"text": text, "ids": tokenizer.encode(text)} for text in texts(tokenizer.special_tokens, words)
        ],
        "decode": [{"ids": row, "text": tokenizer.decode(row)} for row in id_lists(tokenizer, ids)],
    }


def record_vectors(folder: Path) -> dict[str, Any]:
    """Ids, and their rows as float32 in base64."""
    artifact = artifacts.read(folder)
    spec = artifact.manifest.embeddings
    ids = [0, 1, spec.records - 1, *random.Random(2).choices(range(spec.records), k=200)]
    store = EmbeddingStore(artifact.path(spec.file), spec)
    try:
        embeds, per_layer = store.rows(ids)
    finally:
        store.close()
    return {"ids": ids, "embeds": _base64(embeds), "per_layer": _base64(per_layer)}


def manifest_fields(folder: Path) -> dict[str, Any]:
    """What a client reads of the manifest, as the Python side understands it."""
    return dataclasses.asdict(artifacts.read(folder).manifest)


def vectors(folder: Path) -> dict[str, Any]:
    """All of them, of one artifact."""
    artifact = artifacts.read(folder)
    spec = artifact.manifest.tokenizer
    tokenizer = Tokenizer(artifact.path(spec.file), spec)
    return {
        "tokenizer": tokenizer_vectors(tokenizer, spec.ids),
        "records": record_vectors(folder),
        "manifest": manifest_fields(folder),
    }


def _base64(rows: NDArray[np.float32]) -> str:
    return base64.b64encode(rows.astype("<f4").tobytes()).decode()


if __name__ == "__main__":
    json.dump(vectors(Path(sys.argv[1])), sys.stdout)
