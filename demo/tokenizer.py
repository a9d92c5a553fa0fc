"""Builds the demo's tokenizer: Gemma's conventions with a small vocabulary.

Byte-pair encoding with byte fallback, "▁" for the space, one token a digit. The ids are laid out as in Gemma
3n: first the text vocabulary (special tokens, bytes, characters, merges, unused), then the vision range, then
the audio range.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from demo.corpus import training_texts

TEXT_VOCAB = 1280  # = vocab_size_per_layer_input, and the vision range's first id
RANGE = 8  # ids in the vision range and in the audio range
VISION_OFFSET = TEXT_VOCAB
AUDIO_OFFSET = TEXT_VOCAB + RANGE
VOCAB_SIZE = TEXT_VOCAB + 2 * RANGE
MAX_LENGTH = 2048

TEXT_SPECIALS = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<start_of_audio>",
)
EOS_ID, BOS_ID, START_OF_TURN_ID, END_OF_TURN_ID = 1, 2, 4, 5
SPANISH = tuple("áéíóúñü¿¡")
CHARACTERS = ("▁", "\n", *map(chr, range(33, 127)), *SPANISH)
TEMPLATE = Path(__file__).with_name("chat_template.jinja")

# What a merge may not cross. A digit matches nothing, so digits stay alone.
WORD = re.compile(r"▁?[A-Za-záéíóúñü]+|▁?[^\sA-Za-záéíóúñü0-9▁]+")


def count_words() -> Counter[tuple[str, ...]]:
    """The words of the seeded training texts, each as a tuple of characters, with their counts."""
    counts: Counter[tuple[str, ...]] = Counter()
    for text in training_texts():
        marked = text.replace(" ", "▁")
        counts.update(tuple(word) for word in WORD.findall(marked) if set(word) <= set(CHARACTERS))
    return counts


def learn_merges(limit: int) -> list[tuple[str, str]]:
    """At most `limit` merges, the most frequent pair first and ties in alphabetical order."""
    words = count_words()
    merges: list[tuple[str, str]] = []
    while len(merges) < limit:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = Counter({_merge(word, best): count for word, count in words.items()})
    return merges


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """`word` with every occurrence of `pair` joined, from the left."""
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return tuple(merged)


def media_tokens() -> tuple[str, ...]:
    """The tokens of the vision range, then those of the audio range."""
    tokens: list[str] = []
    for kind, name in (("image", "vision"), ("audio", "audio")):
        unused = [f"<unused_{name}_{i}>" for i in range(2, RANGE)]
        tokens += [f"<end_of_{kind}>", f"<{kind}_soft_token>", *unused]
    return tuple(tokens)


def build_tokenizer() -> Tokenizer:
    """The tokenizer that `tokenizer.json` holds."""
    base = [*TEXT_SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *CHARACTERS]
    merges = learn_merges(TEXT_VOCAB - len(base))
    text = base + list(dict.fromkeys(left + right for left, right in merges))
    text += [f"<unused{i}>" for i in range(TEXT_VOCAB - len(text))]
    vocab = {token: index for index, token in enumerate([*text, *media_tokens()])}

    bpe = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", BOS_ID)]
    )
    specials = [*TEXT_SPECIALS, *media_tokens()]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return tokenizer


def tokenizer_config() -> dict[str, object]:
    """The content of `tokenizer_config.json`."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_LENGTH,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "audio_token": "<audio_soft_token>",
        "boa_token": "<start_of_audio>",
        "eoa_token": "<end_of_audio>",
        "chat_template": TEMPLATE.read_text(),
    }


def write_tokenizer(folder: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and chat_template.jinja into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer().save(str(folder / "tokenizer.json"))
    text = json.dumps(tokenizer_config(), indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n")
    (folder / "chat_template.jinja").write_text(TEMPLATE.read_text())
