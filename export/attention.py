"""Grouped-query attention with its KV buffers, rotary tables and shared layers."""

from __future__ import annotations

import math

import numpy as np
import torch
from onnx import TensorProto

from edge_gemma.artifact import KvBuffer
from edge_gemma.config import FULL, SLIDING
from edge_gemma.export.graph import MICROSOFT
from edge_gemma.export.weights import WeightedGraph

KINDS = {SLIDING: "sliding", FULL: "global"}
INT8_MAX = 127.0


class Attention:
    """Adds the attention of one layer after the other, and declares the KV buffers they read and write.

    Args:
        graph: the decoder's graph.
        positions: name of position_ids, int64 [B, S].
    """

    def __init__(self, graph: WeightedGraph, positions: str) -> None:
        self.g = graph
        kinds = sorted(set(graph.config.layer_types))
        self._rotary = {kind: self._rotary_tables(positions, kind) for kind in kinds}
        self._lengths = {kind: self._length_inputs(kind) for kind in kinds}
        self._presents: dict[int, list[tuple[str, str]]] = {}  # owning layer → present keys and values

    def buffers(self) -> tuple[KvBuffer, ...]:
        """The KV buffers of the layers added so far."""
        return tuple(self._kv_buffer(layer) for layer in self._presents)

    def add(self, layer: int, normed: str, rows: str) -> str:
        """Grouped-query attention with RMS-normed heads; a sharing layer attends to its source's KV."""
        g, c = self.g, self.g.config
        kind = c.layer_types[layer]
        source = c.kv_source(layer)
        window = c.window(layer)
        q_width = c.num_attention_heads * c.head_dim
        kv_width = c.num_key_value_heads * c.head_dim
        with g.scope("self_attn"):
            weights = [g.tensor("self_attn.q_proj.weight")]
            if source == layer:
                weights += [g.tensor(f"self_attn.{n}_proj.weight") for n in ("k", "v")]
                joined = g.matmul(normed, torch.cat(weights), "qkv_proj", "attention")
                sizes = g.constant([q_width, kv_width, kv_width], np.int64)
                q, k, v = g.ops("Split", joined, sizes, outputs=[None] * 3, axis=2)
                k = self._rotate(self._head_norm(k, c.num_key_value_heads, "self_attn.k_norm"), kind, rows)
                v = self._head_norm(v, c.num_key_value_heads, None)
                past = self._past(layer)
            else:
                q = g.matmul(normed, weights[0], "q_proj", "attention")
                k = v = self._empty_kv(q, kv_width)
                past = self._presents[source][0]
            q = self._rotate(self._head_norm(q, c.num_attention_heads, "self_attn.q_norm"), kind, rows)
            last, total = self._lengths[kind]
            attributes: dict[str, int | float | str] = {
                "num_heads": c.num_attention_heads,
                "kv_num_heads": c.num_key_value_heads,
                "scale": 1.0,
                "local_window_size": window if window else -1,
            }
            dtype = g.recipe.kv_cache[KINDS[kind]]
            if dtype == "float16":  # the kernel of a float16 cache takes float16 throughout
                q, k, v = (g.op("Cast", t, to=TensorProto.FLOAT16) for t in (q, k, v))
            inputs = [q, k, v, *past, last, total]
            if dtype == "int8":
                inputs += ["", "", "", "", "", *self._kv_scales(source)]
                attributes |= {
                    "k_quant_type": "PER_CHANNEL",
                    "v_quant_type": "PER_CHANNEL",
                    "kv_cache_bit_width": 8,
                }
            outputs: list[str | None] = [None]
            if source == layer or dtype == "int8":  # a quantized cache must come out of every node
                outputs += self._present(layer, source)
            attended, *_ = g.ops(
                "GroupQueryAttention", *inputs, outputs=outputs, domain=MICROSOFT, **attributes
            )
            if dtype == "float16":
                attended = g.op("Cast", attended, to=TensorProto.FLOAT)
            return g.linear(attended, "self_attn.o_proj", "attention")

    def _past(self, layer: int) -> tuple[str, str]:
        """Declare the KV buffers of an owning layer as inputs: [B, heads, rows, head_dim]"""
        self._presents[layer] = []
        names = (f"past_key.{layer}", f"past_value.{layer}")
        for name in names:
            self.g.input(name, *self._kv_type(layer))
        return names

    def _present(self, layer: int, source: int) -> tuple[str, str]:
        """Declare what `layer` makes of its source's KV buffers as outputs, in the same memory."""
        names = (f"present_key.{layer}", f"present_value.{layer}")
        for name in names:
            self.g.output(name, *self._kv_type(source))
        self._presents[source].append(names)
        return names

    def _kv_type(self, layer: int) -> tuple[str, tuple[int | str, ...]]:
        c = self.g.config
        kind = KINDS[c.layer_types[layer]]
        shape = ("batch", c.num_key_value_heads, f"{kind}_capacity", c.head_dim)
        return self.g.recipe.kv_cache[kind], shape

    def _kv_buffer(self, layer: int) -> KvBuffer:
        c = self.g.config
        kind = KINDS[c.layer_types[layer]]
        keys, values = zip(*self._presents[layer], strict=True)
        return KvBuffer(
            layer=layer,
            kind=kind,
            dtype=self.g.recipe.kv_cache[kind],
            heads=c.num_key_value_heads,
            head_dim=c.head_dim,
            past_key=f"past_key.{layer}",
            past_value=f"past_value.{layer}",
            present_key=keys,
            present_value=values,
        )

    def _kv_scales(self, source: int) -> list[str]:
        """Per-channel scales of an int8 cache, float32 [kv_heads·head_dim], from the bound of a normed head.

        |k_i| ≤ sqrt(head_dim)·max(|w_i|, |w_pair(i)|), since rotation mixes a channel with its pair.
        """
        c = self.g.config
        bound = math.sqrt(c.head_dim) / INT8_MAX
        weight = self.g.checkpoint.tensor(f"layers.{source}.self_attn.k_norm.weight").float().abs()
        pairs = weight.reshape(2, -1)
        rotated = pairs.amax(0).repeat(2).clamp(min=1e-6)
        keys = (rotated * bound).repeat(c.num_key_value_heads)
        values = torch.full((c.num_key_value_heads * c.head_dim,), bound)
        return [self.g.weight(n, t.numpy()) for n, t in (("k_scale", keys), ("v_scale", values))]

    def _empty_kv(self, query: str, width: int) -> str:
        """float32 [B, 0, width]: a sharing layer brings no new keys"""
        g = self.g
        batch = g.op("Shape", query, start=0, end=1)
        shape = g.op("Concat", batch, g.constant([0, width], np.int64), axis=0)
        return g.op("Expand", g.constant(np.zeros((1, 1, 1))), shape)

    def _head_norm(self, x: str, heads: int, weight: str | None) -> str:
        """RMS norm over each head: [B, S, heads·head_dim] in and out"""
        g, d = self.g, self.g.config.head_dim
        split = g.op("Reshape", x, g.constant([0, 0, heads, d], np.int64))
        normed = g.rms(split, weight) if weight else g.rms_by(split, g.constant(np.ones(d)))
        return g.op("Reshape", normed, g.constant([0, 0, heads * d], np.int64))

    def _rotate(self, x: str, kind: str, rows: str) -> str:
        return self.g.op("RotaryEmbedding", x, rows, *self._rotary[kind], domain=MICROSOFT)

    def _rotary_tables(self, positions: str, kind: str) -> tuple[str, str]:
        """cos and sin of this call's tokens, float32 [B·S, head_dim/2] each."""
        g, c = self.g, self.g.config
        exponent = torch.arange(0, c.head_dim, 2, dtype=torch.float32) / c.head_dim
        inverse = 1.0 / (c.rope_theta[kind] ** exponent)
        with g.scope(f"rotary.{KINDS[kind]}"):
            column = g.op(
                "Reshape", g.op("Cast", positions, to=TensorProto.FLOAT), g.constant([-1, 1], np.int64)
            )
            angles = g.op("Mul", column, g.weight("inverse_frequency", inverse.numpy()[None]))
            return g.op("Cos", angles), g.op("Sin", angles)

    def _length_inputs(self, kind: str) -> tuple[str, str]:
        """GroupQueryAttention's two lengths, from the rows that each buffer holds after this call."""
        g = self.g
        rows = g.input(f"{KINDS[kind]}_rows", "int32", ("batch",))
        last = g.op("Sub", rows, g.constant(1, np.int32))  # int32 [B]
        total = g.op("ReduceMax", rows, keepdims=0)  # int32 scalar
        return last, total
