"""Grouped-query attention with its KV buffers, rotary tables and shared layers."""

from __future__ import annotations

import math
from collections.abc import Iterable

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
        global_kv: dtypes of the global layers' KV buffers. Each is the name of a variant of the graph, and
            these buffers and the nodes that touch them are all that the variants differ in.
    """

    def __init__(self, graph: WeightedGraph, positions: str, global_kv: Iterable[str]) -> None:
        self.g = graph
        self._dtypes = {  # kind → variant → dtype
            "sliding": {"": graph.recipe.kv_cache["sliding"]},
            "global": {dtype: dtype for dtype in global_kv},
        }
        kinds = sorted(set(graph.config.layer_types))
        self._rotary = {kind: self._rotary_tables(positions, kind) for kind in kinds}
        self._lengths = {kind: self._length_inputs(kind) for kind in kinds}
        # variant and owning layer → present keys and values
        self._presents: dict[tuple[str, int], list[tuple[str, str]]] = {}

    def buffers(self, variant: str) -> tuple[KvBuffer, ...]:
        """The KV buffers of the layers added so far, in a variant of the graph."""
        return tuple(self._kv_buffer(*key) for key in self._presents if key[0] in ("", variant))

    def add(self, layer: int, normed: str, rows: str) -> str:
        """Grouped-query attention with RMS-normed heads; a sharing layer attends to its source's KV."""
        g, c = self.g, self.g.config
        kind = c.layer_types[layer]
        source = c.kv_source(layer)
        with g.scope("self_attn"):
            if source == layer:
                qkv = [self._queries_keys_values(normed, kind, rows), "", ""]
            else:
                qkv = self._queries(normed, kind, rows)
            attended = g.unique("attended")
            for variant in self._dtypes[KINDS[kind]]:
                with g.only(variant):
                    self._attend(variant, layer, qkv, attended)
            return g.linear(attended, "self_attn.o_proj", "attention_output")

    def _queries_keys_values(self, normed: str, kind: str, rows: str) -> str:
        """Queries, keys and values of a layer that owns its KV, side by side: [B, S, (heads + 2·kv)·head_dim]

        All heads are normed at once, and queries and keys rotated at once: fewer and larger nodes.
        """
        g, c = self.g, self.g.config
        d, kv = c.head_dim, c.num_key_value_heads
        weights = torch.cat([g.tensor(f"self_attn.{n}_proj.weight") for n in "qkv"])
        heads = self._split_heads(g.matmul(normed, weights, "qkv_proj", "attention"), len(weights) // d)
        q, k = (g.tensor(f"self_attn.{n}_norm.weight") for n in "qk")
        gains = torch.cat([q.expand(c.num_attention_heads, d), k.expand(kv, d), torch.ones(kv, d)])
        normed_heads = g.op(
            "Mul", g.rms_by(heads, g.constant(np.ones(d))), g.weight("head_norms", gains.numpy())
        )
        sizes = g.constant([len(weights) - kv * d, kv * d], np.int64)
        joined, v = g.ops(
            "Split", self._join_heads(normed_heads, len(weights)), sizes, outputs=[None] * 2, axis=2
        )
        return g.op("Concat", self._rotate(joined, kind, rows), v, axis=2)

    def _queries(self, normed: str, kind: str, rows: str) -> list[str]:
        """Queries of a layer that shares another's KV, [B, S, heads·head_dim], and no keys and values."""
        g, c = self.g, self.g.config
        weight = g.tensor("self_attn.q_proj.weight")
        heads = self._split_heads(g.matmul(normed, weight, "q_proj", "attention"), c.num_attention_heads)
        q = self._rotate(self._join_heads(g.rms(heads, "self_attn.q_norm"), len(weight)), kind, rows)
        empty = self._empty_kv(q, c.num_key_value_heads * c.head_dim)
        return [q, empty, empty]

    def _attend(self, variant: str, layer: int, qkv: list[str], out: str) -> None:
        """Add the attention node of a layer as a variant has it: float32 [B, S, heads·head_dim] to `out`."""
        g, c = self.g, self.g.config
        source = c.kv_source(layer)
        dtype, _ = self._kv_type(variant, layer)
        past = self._past(variant, layer) if source == layer else self._presents[variant, source][0]
        attributes: dict[str, int | float | str] = {
            "num_heads": c.num_attention_heads,
            "kv_num_heads": c.num_key_value_heads,
            "scale": 1.0,
            "local_window_size": c.window(layer) or -1,
        }
        if dtype == "float16":  # the kernel of a float16 cache takes float16 throughout
            qkv = [g.op("Cast", t, to=TensorProto.FLOAT16) if t else "" for t in qkv]
        inputs = [*qkv, *past, *self._lengths[c.layer_types[layer]]]
        if dtype == "int8":
            inputs += ["", "", "", "", "", *self._kv_scales(source)]
            attributes |= {
                "k_quant_type": "PER_CHANNEL",
                "v_quant_type": "PER_CHANNEL",
                "kv_cache_bit_width": 8,
            }
        outputs: list[str | None] = [None if dtype == "float16" else out]
        if source == layer or dtype == "int8":  # a quantized cache must come out of every node
            outputs += self._present(variant, layer, source)
        attended, *_ = g.ops("GroupQueryAttention", *inputs, outputs=outputs, domain=MICROSOFT, **attributes)
        if dtype == "float16":
            g.op("Cast", attended, to=TensorProto.FLOAT, out=out)

    def _past(self, variant: str, layer: int) -> tuple[str, str]:
        """Declare the KV buffers of an owning layer as inputs: [B, heads, rows, head_dim]"""
        self._presents[variant, layer] = []
        names = (f"past_key.{layer}", f"past_value.{layer}")
        for name in names:
            self.g.input(name, *self._kv_type(variant, layer))
        return names

    def _present(self, variant: str, layer: int, source: int) -> tuple[str, str]:
        """Declare what `layer` makes of its source's KV buffers as outputs, in the same memory."""
        names = (f"present_key.{layer}", f"present_value.{layer}")
        for name in names:
            self.g.output(name, *self._kv_type(variant, source))
        self._presents[variant, source].append(names)
        return names

    def _kv_type(self, variant: str, layer: int) -> tuple[str, tuple[int | str, ...]]:
        c = self.g.config
        kind = KINDS[c.layer_types[layer]]
        shape = ("batch", c.num_key_value_heads, f"{kind}_capacity", c.head_dim)
        return self._dtypes[kind][variant], shape

    def _kv_buffer(self, variant: str, layer: int) -> KvBuffer:
        c = self.g.config
        kind = KINDS[c.layer_types[layer]]
        keys, values = zip(*self._presents[variant, layer], strict=True)
        return KvBuffer(
            layer=layer,
            kind=kind,
            dtype=self._dtypes[kind][variant],
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

    def _split_heads(self, x: str, heads: int) -> str:
        """[B, S, heads·head_dim] → [B, S, heads, head_dim]"""
        return self.g.op("Reshape", x, self.g.constant([0, 0, heads, self.g.config.head_dim], np.int64))

    def _join_heads(self, x: str, width: int) -> str:
        """[B, S, heads, head_dim] → [B, S, width]"""
        return self.g.op("Reshape", x, self.g.constant([0, 0, width], np.int64))

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
