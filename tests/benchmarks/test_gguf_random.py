"""The GGUF file, read back by its specification."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import gguf_random
from benchmarks.gguf_random import F16, F32, Q4_0, Q6_K, Tensor, filler, metadata, tensors, write
from benchmarks.llamacpp_check import NARROW
from edge_gemma.export.synthetic import SyntheticCheckpoint

SHAPE = NARROW | {
    "num_hidden_layers": 5,
    "num_kv_shared_layers": 0,
    "activation_sparsity_pattern": [0.95] + [0.0] * 4,
    "intermediate_size": 256,
    "vocab_size": 1040,
    "vocab_size_per_layer_input": 1024,
}
SCALARS = {4: "<I", 5: "<i", 6: "<f", 7: "<?"}


@pytest.fixture(scope="module")
def checkpoint() -> SyntheticCheckpoint:
    return SyntheticCheckpoint("small", SHAPE, seed=0)


@pytest.fixture(scope="module")
def read(checkpoint: SyntheticCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Gguf:
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    write(path, metadata(checkpoint), tensors(checkpoint), filler(checkpoint))
    assert list(path.parent.iterdir()) == [path]
    return Gguf(path.read_bytes())


class Gguf:
    """A GGUF file: its facts, and each tensor's ggml shape, type number and bytes from its beginning on."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 4
        assert data[:4] == b"GGUF"
        version, count, facts = self._take("<I")[0], self._take("<Q")[0], self._take("<Q")[0]
        assert version == 3
        self.facts = {self._string(): self._value(self._take("<I")[0]) for _ in range(facts)}
        found = {}
        for _ in range(count):
            name, axes = self._string(), self._take("<I")[0]
            found[name] = (self._take(f"<{axes}Q"), *self._take("<IQ"))
        begin = -(-self._at // 32) * 32
        self.tensors = {name: (shape, kind, data[begin + o :]) for name, (shape, kind, o) in found.items()}

    def _take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return values

    def _string(self) -> str:
        (length,) = self._take("<Q")
        self._at += length
        return self._data[self._at - length : self._at].decode()

    def _value(self, kind: int) -> Any:
        if kind == 8:
            return self._string()
        if kind == 9:
            inner, length = self._take("<IQ")
            return [self._value(inner) for _ in range(length)]
        return self._take(SCALARS[kind])[0]


def test_hyperparameters_and_vocabulary(read: Gguf) -> None:
    assert read.facts["general.architecture"] == "gemma3n"
    assert read.facts["gemma3n.block_count"] == 5
    assert read.facts["gemma3n.attention.sliding_window_pattern"] == [True] * 4 + [False]
    assert read.facts["gemma3n.activation_sparsity_scale"][0] == pytest.approx(1.6448536)
    assert len(read.facts["tokenizer.ggml.tokens"]) == len(set(read.facts["tokenizer.ggml.tokens"])) == 1040
    assert read.facts["tokenizer.ggml.token_type"][:7] == [3, 3, 3, 2, 1, 1, 6]


def test_types_are_those_of_llama_quantize(read: Gguf) -> None:
    kinds = {name: kind for name, (_, kind, _) in read.tensors.items()}
    assert kinds["token_embd.weight"] == kinds["per_layer_token_embd.weight"] == Q6_K.number
    assert kinds["blk.4.ffn_down.weight"] == kinds["blk.0.inp_gate.weight"] == Q4_0.number
    assert kinds["altup_proj.weight"] == kinds["blk.1.laurel_l.weight"] == F16.number
    assert kinds["blk.2.attn_norm.weight"] == kinds["blk.2.altup_predict_coef.weight"] == F32.number
    assert len(kinds) == 7 + 5 * 24


def test_shapes_begin_with_the_axis_of_the_blocks(read: Gguf) -> None:
    assert read.tensors["per_layer_token_embd.weight"][0] == (5 * 256, 1040)
    assert read.tensors["altup_proj.weight"][0] == (256, 256, 3)
    assert read.tensors["blk.0.ffn_down.weight"][0] == (256, 256)


def test_values(checkpoint: SyntheticCheckpoint, read: Gguf) -> None:
    norm = np.frombuffer(read.tensors["blk.3.attn_norm.weight"][2][: 4 * 256], np.float32)
    assert np.array_equal(norm, checkpoint.tensor("layers.3.input_layernorm.weight").numpy())
    third = np.frombuffer(read.tensors["altup_proj.weight"][2], np.float16, 256 * 256, 2 * 2 * 256 * 256)
    wanted = checkpoint.tensor("altup_projections.2.weight").numpy().astype(np.float16)
    assert np.array_equal(third, wanted.ravel())
    blocks = np.frombuffer(read.tensors["blk.0.attn_q.weight"][2], gguf_random.Q4_0_BLOCK, 256 * 8)
    codes = np.concatenate([blocks["codes"] & 15, blocks["codes"] >> 4], 1).astype(np.float32)
    assert np.std((codes - 8) * blocks["scale"][:, None]) == pytest.approx(256**-0.5, rel=0.02)


def test_exact_pads_rows_that_the_checkpoint_lacks(checkpoint: SyntheticCheckpoint, tmp_path: Path) -> None:
    chosen = [t for t in tensors(checkpoint, exact=True) if t.name == "per_layer_token_embd.weight"]
    write(tmp_path / "one.gguf", {}, chosen, filler(checkpoint))
    (_, kind, data) = Gguf((tmp_path / "one.gguf").read_bytes()).tensors["per_layer_token_embd.weight"]
    rows = np.frombuffer(data, np.float32, 1040 * 1280).reshape(1040, 1280)
    assert kind == F32.number and rows[:1024].any(1).all() and not rows[1024:].any()


def test_a_tensor_of_the_wrong_size_leaves_no_file(checkpoint: SyntheticCheckpoint, tmp_path: Path) -> None:
    def short(tensor: Tensor) -> Iterator[bytes]:
        yield b"1234"

    with pytest.raises(ValueError, match="token_embd.weight: 4 bytes"):
        write(tmp_path / "bad.gguf", {}, tensors(checkpoint), short)
    assert not list(tmp_path.iterdir())
