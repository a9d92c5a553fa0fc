"""Random checkpoints of the real architecture, made on the fly from a seed and never written to disk.

Their values mean nothing; their shapes are those of Google's models, so that memory and speed can be
measured by anyone, without the weights.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np
import torch

from edge_gemma.config import ModelConfig, TextConfig, parse_config
from edge_gemma.errors import CheckpointError

ROW_CHUNK = 1024  # rows drawn from one generator, so that any range of rows can be made alone
COEFFICIENT_DEVIATION = 0.02  # of AltUp's coefficients: larger ones let the streams grow without bound
BASE: dict[str, Any] = {
    "model_type": "gemma3n_text",
    "vocab_size": 262_400,
    "vocab_size_per_layer_input": 262_144,
    "hidden_size": 2048,
    "hidden_size_per_layer_input": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "sliding_window": 512,
    "altup_num_inputs": 4,
    "altup_active_idx": 0,
    "laurel_rank": 64,
    "rms_norm_eps": 1e-6,
    "final_logit_softcapping": 30.0,
    "max_position_embeddings": 32_768,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "E2B": BASE | {"num_hidden_layers": 30, "num_kv_shared_layers": 10, "intermediate_size": 8192},
    "E4B": BASE | {"num_hidden_layers": 35, "num_kv_shared_layers": 15, "intermediate_size": 16_384},
    "tiny": BASE
    | {
        "vocab_size": 1040,
        "vocab_size_per_layer_input": 1024,
        "hidden_size": 64,
        "hidden_size_per_layer_input": 16,
        "num_attention_heads": 4,
        "head_dim": 16,
        "sliding_window": 16,
        "laurel_rank": 8,
        "num_hidden_layers": 10,
        "num_kv_shared_layers": 5,
        "intermediate_size": 128,
        "activation_sparsity_pattern": [0.95] * 3 + [0.0] * 7,
        "max_position_embeddings": 2048,
    },
}
SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
TEMPLATE = (
    "{{ '<bos>' }}{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] | trim }}{% else %}"
    "{% for p in m['content'] %}{{ p['text'] | trim }}{% endfor %}{% endif %}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


class SyntheticCheckpoint:
    """Random weights: matrices of standard deviation 1/sqrt(inputs), norms near 1, small coefficients.

    The norm of the queries holds the 1/sqrt(head_dim) that Gemma 3n's attention leaves to training: without
    it every softmax is all but one-hot, and the network amplifies rounding a thousandfold.
    """

    revision: str | None = None

    def __init__(self, name: str, config: dict[str, Any], seed: int) -> None:
        self.name = name
        self.seed = seed
        self.config: ModelConfig = parse_config(config, where=name)
        self._shapes = text_shapes(self.config.text)

    @classmethod
    def from_name(cls, source: str) -> SyntheticCheckpoint:
        """Make the checkpoint of `synthetic:NAME` or `synthetic:NAME:SEED`."""
        _, name, *rest = source.split(":")
        if name not in CONFIGS or len(rest) > 1 or (rest and not rest[0].isdecimal()):
            raise CheckpointError(
                f"{source!r} is not a synthetic checkpoint: expected synthetic:NAME or synthetic:NAME:SEED "
                f"with NAME one of {', '.join(CONFIGS)}"
            )
        return cls(source, CONFIGS[name], int(rest[0]) if rest else 0)

    def tensor(self, name: str) -> torch.Tensor:
        shape = self._shape(name)
        if len(shape) == 2:
            return self.rows(name, 0, shape[0])
        values = 1.0 + 0.1 * self._generator(name, 0).standard_normal(shape, dtype=np.float32)
        if name.endswith("q_norm.weight"):
            values *= np.float32(self.config.text.head_dim**-0.5)
        return torch.from_numpy(values)

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        _, columns = self._shape(name)
        out = np.empty((last - first, columns), np.float32)
        for chunk in range(first // ROW_CHUNK, -(-last // ROW_CHUNK)):
            start = chunk * ROW_CHUNK
            end = min(last, start + ROW_CHUNK)
            drawn = self._generator(name, chunk).standard_normal((end - start, columns), dtype=np.float32)
            low = max(first, start)
            out[low - first : end - first] = drawn[low - start :]
        out *= COEFFICIENT_DEVIATION if name.endswith("coefs.weight") else columns**-0.5
        return torch.from_numpy(out)

    def has(self, name: str) -> bool:
        return name in self._shapes

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        return self._shapes

    def tokenizer_json(self) -> bytes:
        return tokenizer_json(self.config.text.vocab_size_per_layer_input)

    def chat_template(self) -> str:
        return TEMPLATE

    def generation_config(self) -> dict[str, Any]:
        # nothing ends an answer of random weights, so that benchmarks get the length they ask for
        return {"bos_token_id": 2, "pad_token_id": 0, "eos_token_id": []}

    def _shape(self, name: str) -> tuple[int, ...]:
        if name not in self._shapes:
            raise CheckpointError(f"{self.name} has no tensor {name}")
        return self._shapes[name]

    def _generator(self, name: str, chunk: int) -> np.random.Generator:
        key = [self.seed, zlib.crc32(name.encode()), chunk]
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence(key)))


def text_shapes(c: TextConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of Gemma3nTextModel with its shape, as Google's checkpoints hold them.

    That includes K and V projections of the layers that share another layer's KV, which nothing reads.
    """
    h, p, n = c.hidden_size, c.hidden_size_per_layer_input, c.altup_num_inputs
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (c.vocab_size, h),
        "embed_tokens_per_layer.weight": (c.vocab_size_per_layer_input, c.num_hidden_layers * p),
        "per_layer_model_projection.weight": (c.num_hidden_layers * p, h),
        "per_layer_projection_norm.weight": (p,),
        "norm.weight": (h,),
    }
    for i in range(n - 1):
        shapes[f"altup_projections.{i}.weight"] = (h, h)
        shapes[f"altup_unembed_projections.{i}.weight"] = (h, h)
    for i, width in enumerate(c.intermediate_size):
        layer: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (q, h),
            "self_attn.k_proj": (kv, h),
            "self_attn.v_proj": (kv, h),
            "self_attn.o_proj": (h, q),
            "self_attn.q_norm": (c.head_dim,),
            "self_attn.k_norm": (c.head_dim,),
            "mlp.gate_proj": (width, h),
            "mlp.up_proj": (width, h),
            "mlp.down_proj": (h, width),
            "input_layernorm": (h,),
            "post_attention_layernorm": (h,),
            "pre_feedforward_layernorm": (h,),
            "post_feedforward_layernorm": (h,),
            "altup.correction_coefs": (n, n),
            "altup.prediction_coefs": (n * n, n),
            "altup.modality_router": (n, h),
            "altup.router_norm": (h,),
            "laurel.linear_left": (c.laurel_rank, h),
            "laurel.linear_right": (h, c.laurel_rank),
            "laurel.post_laurel_norm": (h,),
            "per_layer_input_gate": (p, h),
            "per_layer_projection": (h, p),
            "post_per_layer_input_norm": (h,),
        }
        shapes |= {f"layers.{i}.{name}.weight": shape for name, shape in layer.items()}
        shapes[f"layers.{i}.altup.correct_output_scale"] = (h,)
    return shapes


def tokenizer_json(vocabulary: int) -> bytes:
    """A byte-fallback BPE tokenizer of Gemma's kind and, at full vocabulary, of Gemma's size in memory.

    After the special tokens and the 256 byte tokens come the printable ASCII characters, then merges of
    earlier tokens drawn at random.
    """
    tokens = [*SPECIAL_TOKENS, *(f"<0x{b:02X}>" for b in range(256)), "▁", *map(chr, range(33, 127))]
    known = set(tokens)
    alphabet = tokens[len(SPECIAL_TOKENS) + 256 :]
    merges: list[tuple[str, str]] = []
    rng = np.random.default_rng(0)
    while len(tokens) < vocabulary:
        candidates = np.array(alphabet)
        for left, right in rng.choice(candidates, (2 * (vocabulary - len(tokens)), 2)).tolist():
            if len(tokens) == vocabulary:
                break
            if left + right in known:
                merges.append((left, right))
            elif len(left + right) <= 12:
                merges.append((left, right))
                known.add(left + right)
                tokens.append(left + right)
                alphabet.append(left + right)
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
                for i, token in enumerate(SPECIAL_TOKENS)
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
