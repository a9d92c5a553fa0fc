"""Writes Gemma 3n as a GGUF file with random weights at the true shape, to measure llama.cpp with.

    python -m benchmarks.gguf_random E2B [-o artifacts/llamacpp]

Types are those that `llama-quantize … Q4_0` gives to a file of `convert_hf_to_gguf.py --outtype f16`
(`tensor_allows_quantization` and `llama_tensor_get_type_impl` in llama.cpp's src/llama-quant.cpp): Q4_0 for
the matrices, Q6_K for both embeddings (one is the head too), float16 for AltUp's and LAuReL's matrices and
the per-layer projection, float32 for norms and coefficients. Random blocks are written as they are:
quantizing random numbers would give others of their kind.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import click
import numpy as np

from benchmarks.command import Benchmark
from edge_gemma.config import FULL, SLIDING, TextConfig
from edge_gemma.export.checkpoint import Checkpoint, open_checkpoint
from edge_gemma.memory import format_bytes
from edge_gemma.models import MODELS

FOLDER = Path("artifacts/llamacpp")
ALIGNMENT = 32  # bytes: where a tensor may begin
CHUNK = 32 << 20  # bytes of a tensor in memory at once, about
SPREAD_4, SPREAD_6 = 4.61, 18.47  # standard deviation of all values that 4 or 6 bits hold
UNIT = 4  # scale of every group of a Q6_K block: its float16 factor would be tiny with a larger one
NORMAL, UNKNOWN, CONTROL, UNUSED, BYTE = 1, 2, 3, 5, 6  # types of tokens
SPECIAL = {"<pad>": CONTROL, "<eos>": CONTROL, "<bos>": CONTROL, "<unk>": UNKNOWN}
Q4_0_BLOCK = np.dtype([("scale", "<f2"), ("codes", "u1", 16)])  # of 32 values
Q6_K_BLOCK = np.dtype([("codes", "u1", 192), ("scales", "i1", 16), ("scale", "<f2")])  # of 256 values


@dataclass(frozen=True)
class Kind:
    """How a tensor is stored."""

    number: int  # ggml's
    values: int  # of a block
    bytes: int  # of a block


F32, F16, Q4_0, Q6_K = Kind(0, 1, 4), Kind(1, 1, 2), Kind(2, 32, 18), Kind(14, 256, 210)


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor of the file."""

    name: str
    sources: tuple[str, ...]  # tensors of the checkpoint, stacked where they are several
    shape: tuple[int, ...]  # the last axis is the one that blocks lie along; ggml counts it first
    kind: Kind

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) // self.kind.values * self.kind.bytes


Fill = Callable[[Tensor], Iterator[bytes]]  # a tensor's bytes, in pieces
# transformers' name inside a layer → llama.cpp's, and how it is stored
LAYER = {
    "self_attn.q_proj": ("attn_q", Q4_0),
    "self_attn.k_proj": ("attn_k", Q4_0),
    "self_attn.v_proj": ("attn_v", Q4_0),
    "self_attn.o_proj": ("attn_output", Q4_0),
    "self_attn.q_norm": ("attn_q_norm", F32),
    "self_attn.k_norm": ("attn_k_norm", F32),
    "mlp.gate_proj": ("ffn_gate", Q4_0),
    "mlp.up_proj": ("ffn_up", Q4_0),
    "mlp.down_proj": ("ffn_down", Q4_0),
    "input_layernorm": ("attn_norm", F32),
    "post_attention_layernorm": ("post_attention_norm", F32),
    "pre_feedforward_layernorm": ("ffn_norm", F32),
    "post_feedforward_layernorm": ("post_ffw_norm", F32),
    "altup.correction_coefs": ("altup_correct_coef", F32),
    "altup.correct_output_scale": ("altup_correct_scale", F32),
    "altup.prediction_coefs": ("altup_predict_coef", F32),
    "altup.modality_router": ("altup_router", F16),
    "altup.router_norm": ("altup_router_norm", F32),
    "laurel.linear_left": ("laurel_l", F16),
    "laurel.linear_right": ("laurel_r", F16),
    "laurel.post_laurel_norm": ("laurel_post_norm", F32),
    "per_layer_input_gate": ("inp_gate", Q4_0),
    "per_layer_projection": ("proj", Q4_0),
    "post_per_layer_input_norm": ("post_norm", F32),
}


def tensors(checkpoint: Checkpoint, *, exact: bool = False) -> list[Tensor]:
    """Every tensor of the file in order; all of float32 if `exact`."""
    c, shapes = checkpoint.config.text, checkpoint.text_shapes()
    rows = c.vocab_size  # of the per-layer embeddings too: llama.cpp wants one for each token
    streams = range(c.altup_num_inputs - 1)
    stacked = (len(streams), c.hidden_size, c.hidden_size)
    found = [
        ("token_embd", ("embed_tokens.weight",), (rows, c.hidden_size), Q6_K),
        ("per_layer_token_embd", ("embed_tokens_per_layer.weight",), (rows, _per_layer(c)), Q6_K),
        ("altup_proj", tuple(f"altup_projections.{i}.weight" for i in streams), stacked, F16),
        ("altup_unembd_proj", tuple(f"altup_unembed_projections.{i}.weight" for i in streams), stacked, F16),
        ("per_layer_model_proj", ("per_layer_model_projection.weight",), (_per_layer(c), c.hidden_size), F16),
        ("per_layer_proj_norm", ("per_layer_projection_norm.weight",), (c.hidden_size_per_layer_input,), F32),
        ("output_norm", ("norm.weight",), (c.hidden_size,), F32),
    ]
    for layer in range(c.num_hidden_layers):
        for ours, (theirs, kind) in LAYER.items():
            source = f"layers.{layer}.{ours}" + ("" if ours.endswith("output_scale") else ".weight")
            found.append((f"blk.{layer}.{theirs}", (source,), shapes[source], kind))
    return [
        Tensor(name=f"{name}.weight", sources=sources, shape=shape, kind=F32 if exact else kind)
        for name, sources, shape, kind in found
    ]


def metadata(checkpoint: Checkpoint) -> dict[str, Any]:
    """Hyperparameters as llama.cpp's converter writes them, and the checkpoint's vocabulary."""
    c = checkpoint.config.text
    (width,) = set(c.intermediate_size)  # llama.cpp has one for all layers of Gemma 3n
    arch: dict[str, Any] = {
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "embedding_length_per_layer_input": c.hidden_size_per_layer_input,
        "block_count": c.num_hidden_layers,
        "feed_forward_length": width,
        "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": c.num_key_value_heads,
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        "attention.layer_norm_rms_epsilon": c.rms_norm_eps,
        "attention.sliding_window": c.sliding_window,
        "attention.sliding_window_pattern": [kind == SLIDING for kind in c.layer_types],
        "attention.shared_kv_layers": c.num_kv_shared_layers,
        "rope.freq_base": c.rope_theta[FULL],
        "rope.freq_base_swa": c.rope_theta[SLIDING],
        "altup.active_idx": c.altup_active_idx,
        "altup.num_inputs": c.altup_num_inputs,
        "activation_sparsity_scale": [
            NormalDist().inv_cdf(s) if s else -math.inf for s in c.activation_sparsity_pattern
        ],
        "final_logit_softcapping": c.final_logit_softcapping,
    }
    numbers = {"bos_token_id": 2, "eos_token_id": 1, "unknown_token_id": 3, "padding_token_id": 0}
    return {
        "general.architecture": "gemma3n",
        "general.name": checkpoint.name,
        "general.file_type": 2,  # mostly Q4_0
        "general.quantization_version": 2,
        **{f"gemma3n.{name}": value for name, value in arch.items()},
        "tokenizer.ggml.model": "llama",
        **_vocabulary(json.loads(checkpoint.tokenizer_json()), c.vocab_size),
        **{f"tokenizer.ggml.{name}": number for name, number in numbers.items()},
        "tokenizer.ggml.add_space_prefix": False,
    }


def _vocabulary(tokenizer: Mapping[str, Any], size: int) -> dict[str, Any]:
    names = {number: token for token, number in tokenizer["model"]["vocab"].items()}
    names |= {entry["id"]: entry["content"] for entry in tokenizer["added_tokens"]}
    tokens = [names.get(i, f"[PAD{i}]") for i in range(size)]
    return {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(i) for i in range(size)],
        "tokenizer.ggml.token_type": [_token_type(token) for token in tokens],
    }


def _token_type(token: str) -> int:
    if token.startswith("<0x") and len(token) == 6:
        return BYTE
    return UNUSED if token.startswith(("[PAD", "<unused")) else SPECIAL.get(token, NORMAL)


def write(path: Path, facts: Mapping[str, Any], content: Sequence[Tensor], fill: Fill) -> None:
    """Write a GGUF file, version 3 (docs/gguf.md of ggml has the format); it appears when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(b"GGUF" + struct.pack("<IQQ", 3, len(content), len(facts)))
            for key, value in facts.items():
                kind, data = _packed(value)
                file.write(_string(key) + struct.pack("<I", kind) + data)
            offset = 0
            for tensor in content:
                dimensions = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape[::-1])
                file.write(_string(tensor.name) + dimensions)
                file.write(struct.pack("<IQ", tensor.kind.number, offset))
                offset += tensor.bytes + -tensor.bytes % ALIGNMENT
            for tensor in content:
                file.write(bytes(-file.tell() % ALIGNMENT))
                began = file.tell()
                for piece in fill(tensor):
                    file.write(piece)
                if file.tell() - began != tensor.bytes:
                    raise ValueError(f"{tensor.name}: {file.tell() - began} bytes, expected {tensor.bytes}")
            file.write(bytes(-file.tell() % ALIGNMENT))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _packed(value: Any) -> tuple[int, bytes]:
    """GGUF's number for a value's type, and the value."""
    match value:
        case bool():
            return 7, struct.pack("<?", value)
        case int():
            return 4, struct.pack("<I", value)
        case float():
            return 6, struct.pack("<f", value)
        case str():
            return 8, _string(value)
    items = [_packed(item) for item in value]
    number = 5 if items[0][0] == 4 else items[0][0]  # integers of arrays are signed
    return 9, struct.pack("<IQ", number, len(items)) + b"".join(data for _, data in items)


def filler(checkpoint: Checkpoint) -> Fill:
    """Random blocks for quantized tensors, the checkpoint's values for the others."""
    random = np.random.Generator(np.random.SFC64(0))

    def fill(tensor: Tensor) -> Iterator[bytes]:
        if tensor.kind in (Q4_0, Q6_K):
            block, spread = (Q4_0_BLOCK, SPREAD_4) if tensor.kind is Q4_0 else (Q6_K_BLOCK, SPREAD_6 * UNIT)
            scale = tensor.shape[-1] ** -0.5 / spread
            left = tensor.bytes // block.itemsize
            while left:
                count = min(left, CHUNK // block.itemsize)
                blocks = np.frombuffer(bytearray(random.bytes(count * block.itemsize)), block)
                blocks["scale"] = scale
                if tensor.kind is Q6_K:
                    blocks["scales"] = UNIT
                yield blocks.tobytes()
                left -= count
            return
        dtype = np.float16 if tensor.kind is F16 else np.float32
        written = 0
        for source in tensor.sources:
            shape = checkpoint.text_shapes()[source]
            step = max(CHUNK // (4 * math.prod(shape[1:])), 1)
            for first in range(0, shape[0] if len(shape) > 1 else 0, step):
                rows = checkpoint.rows(source, first, min(first + step, shape[0])).numpy()
                yield rows.astype(dtype).tobytes()
            if len(shape) == 1:
                yield checkpoint.tensor(source).numpy().astype(dtype).tobytes()
            written += math.prod(shape) * np.dtype(dtype).itemsize
        yield bytes(tensor.bytes - written)  # of tokens that have no per-layer embedding

    return fill


def _per_layer(config: TextConfig) -> int:
    return config.num_hidden_layers * config.hidden_size_per_layer_input


def ensure(model: str, folder: Path = FOLDER) -> Path:
    """The file of "E2B" or "E4B", written first where it is missing."""
    path = folder / f"{model}-Q4_0.gguf"
    if not path.exists():
        checkpoint = open_checkpoint(f"synthetic:{model}")
        write(path, metadata(checkpoint), tensors(checkpoint), filler(checkpoint))
    return path


@click.command(cls=Benchmark)
@click.argument("model", type=click.Choice(list(MODELS)))
@click.option("-o", "--folder", type=click.Path(path_type=Path), default=FOLDER, show_default=True)
def main(model: str, folder: Path) -> None:
    """Write a GGUF file of MODEL with random weights."""
    path = ensure(model, folder)
    click.echo(f"{path}: {format_bytes(path.stat().st_size)}")


if __name__ == "__main__":
    main()
