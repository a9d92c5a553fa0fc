"""The tokenizer and the chat template of random checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
MEDIA_TOKENS = {  # as ModelConfig.token_ids calls them
    "boi": "<start_of_image>",
    "eoi": "<end_of_image>",
    "image": "<image_soft_token>",
    "boa": "<start_of_audio>",
    "eoa": "<end_of_audio>",
    "audio": "<audio_soft_token>",
}
TEMPLATE = (
    "{{ '<bos>' }}{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] | trim }}{% else %}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image_soft_token>{% elif p['type'] == 'audio' %}<audio_soft_token>"
    "{% else %}{{ p['text'] | trim }}{% endif %}{% endfor %}{% endif %}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def tokenizer_json(vocabulary: int, media: Mapping[int, str] | None = None) -> bytes:
    """A byte-fallback BPE tokenizer of Gemma's kind and, at full vocabulary, of Gemma's size in memory.

    After the special tokens and the 256 byte tokens come the printable ASCII characters, then merges of
    earlier tokens drawn at random. `media` gives more special tokens by id, within the vocabulary and right
    behind it.
    """
    media = dict(sorted((media or {}).items()))
    inside = {i: token for i, token in media.items() if i < vocabulary}
    tokens = [*SPECIAL_TOKENS, *(f"<0x{b:02X}>" for b in range(256)), "▁", *map(chr, range(33, 127))]
    known = set(tokens)
    alphabet = tokens[len(SPECIAL_TOKENS) + 256 :]
    merges: list[tuple[str, str]] = []
    rng = np.random.default_rng(0)
    while len(tokens) < vocabulary:
        candidates = np.array(alphabet)
        for left, right in rng.choice(candidates, (2 * (vocabulary - len(tokens)), 2)).tolist():
            while len(tokens) in inside:
                tokens.append(inside[len(tokens)])
            if len(tokens) == vocabulary:
                break
            if left + right in known:
                merges.append((left, right))
            elif len(left + right) <= 12:
                merges.append((left, right))
                known.add(left + right)
                tokens.append(left + right)
                alphabet.append(left + right)
    tokens += [token for i, token in media.items() if i >= vocabulary]
    special = dict(enumerate(SPECIAL_TOKENS)) | media
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {
                    "id": i,
                    "content": token,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
                for i, token in special.items()
            ],
            "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            "pre_tokenizer": None,
            "post_processor": None,
            "decoder": {
                "type": "Sequence",
                "decoders": [
                    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                ],
            },
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": "<unk>",
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": True,
                "byte_fallback": True,
                "ignore_merges": False,
                "vocab": {token: i for i, token in enumerate(tokens)},
                "merges": merges,
            },
        },
        ensure_ascii=False,
    ).encode()
