"""The Gemma 3n decoder as an ONNX graph of onnxruntime's fused operators.

Shapes: B batch, S tokens of this call, R ≤ S rows that go on to the logits, H hidden, N AltUp streams,
L layers, P per-layer width. Formulas follow transformers' modeling_gemma3n.py; AltUp is the paper
"Alternating Updates for Efficient Transformers" (NeurIPS 2023).

Two things differ from the reference in form, not in result:

- Layers that share the KV of earlier layers own none, so only the rows that go on to the logits need them:
  the streams are cut to the last `num_logits` rows before the first shared layer. Prefilling a prompt
  runs 20 of E2B's 30 layers (20 of E4B's 35) for all tokens but the last.
- The per-layer residual of a layer is added to the streams by the next layer's AltUp prediction, which is
  linear: M(X + f⊗m) = MX + f⊗(Mm).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from edge_gemma.artifact import DecoderSpec, KvBuffer, TensorSpec
from edge_gemma.config import FULL, SLIDING, TextConfig
from edge_gemma.export.checkpoint import Checkpoint
from edge_gemma.export.graph import FLOAT, MICROSOFT, Graph
from edge_gemma.export.quantize import MatrixFormat, quantize_matrix
from edge_gemma.export.recipes import Recipe

HEAD_SHARD_ROWS = 65_600  # a quarter of the vocabulary: loading peaks by the size of the largest matrix
KV_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int8": TensorProto.INT8}
KINDS = {SLIDING: "sliding", FULL: "global"}
# rms-normed heads are at most sqrt(head_dim) times the norm's weight, so int8 can never clip
INT8_MAX = 127.0
STREAM_MAGNITUDE_FLOOR = 1e-5


@dataclass(frozen=True)
class Rows:
    """What belongs to the tokens a layer works on; changes once, when the rows are cut to the logits'."""

    positions: str  # int64 [B, S]: index into the rotary tables
    per_layer: list[str]  # float32 [B, S, P] by layer


class DecoderBuilder:
    """Adds the decoder of one checkpoint to a graph, one layer after the other."""

    def __init__(
        self, graph: Graph, checkpoint: Checkpoint, recipe: Recipe, advance: Callable[[str], None]
    ) -> None:
        self.g = graph
        self.checkpoint = checkpoint
        self.config: TextConfig = checkpoint.config.text
        self.recipe = recipe
        self.advance = advance
        self.inputs: list[TensorSpec] = []
        self.presents: dict[int, list[tuple[str, str]]] = {}  # owning layer → present keys and values

    def build(self, file: str) -> DecoderSpec:
        """Build everything and return what the manifest says of it."""
        c, g = self.config, self.g
        x0 = self._input("inputs_embeds", "float32", ("batch", "tokens", c.hidden_size))
        rows_of_layers = self._input(
            "per_layer_inputs",
            "float32",
            ("batch", "tokens", c.num_hidden_layers, c.hidden_size_per_layer_input),
        )
        positions = self._input("position_ids", "int64", ("batch", "tokens"))
        num_logits = self._input("num_logits", "int64", (1,))
        self.rotary = {kind: self._rotary_tables(positions, kind) for kind in sorted(set(c.layer_types))}
        self.lengths = {kind: self._lengths(kind) for kind in sorted(set(c.layer_types))}
        start = g.op("Neg", num_logits)

        first = c.first_shared_layer
        own, shared = self._split_layers(rows_of_layers, first)
        rows = Rows(self._row_index(positions), self._per_layer(x0, own, 0, first))
        streams, residual = self._expand(x0), ""
        for layer in range(c.num_hidden_layers):
            if layer == first:
                streams, residual, x0, shared, index = (
                    self._last_rows(t, start) for t in (streams, residual, x0, shared, rows.positions)
                )
                tail = self._per_layer(x0, shared, first, c.num_hidden_layers)
                rows = Rows(index, rows.per_layer + tail)
            with g.scope(f"layers.{layer}"):
                streams, residual = self._layer(layer, streams, residual, rows)
            self.advance(f"layer {layer + 1} of {c.num_hidden_layers}")
        if first == c.num_hidden_layers:
            streams, residual = (self._last_rows(t, start) for t in (streams, residual))
        self._head(self._collapse(streams, residual))
        return DecoderSpec(
            file=file,
            inputs=tuple(self.inputs),
            outputs=(
                TensorSpec(name="logits", dtype="float32", shape=("batch", "num_logits", c.vocab_size)),
            ),
            kv=tuple(self._kv_buffer(layer) for layer in self.presents),
            sliding_window=c.sliding_window,
        )

    # -- inputs -----------------------------------------------------------------------------------------

    def _input(self, name: str, dtype: str, shape: tuple[int | str, ...]) -> str:
        kinds = {"int64": TensorProto.INT64, "int32": TensorProto.INT32, **KV_TYPES}
        self.inputs.append(TensorSpec(name=name, dtype=dtype, shape=shape))
        return self.g.input(name, kinds[dtype], shape)

    def _lengths(self, kind: str) -> tuple[str, str]:
        """GroupQueryAttention's two lengths, from the rows that each buffer holds after this call."""
        g = self.g
        rows = self._input(f"{KINDS[kind]}_rows", "int32", ("batch",))
        last = g.op("Sub", rows, g.constant(1, np.int32))  # int32 [B]
        total = g.op("ReduceMax", rows, keepdims=0)  # int32 scalar
        return last, total

    def _rotary_tables(self, positions: str, kind: str) -> tuple[str, str]:
        """cos and sin of this call's tokens, float32 [B·S, head_dim/2] each."""
        g, c = self.g, self.config
        exponent = torch.arange(0, c.head_dim, 2, dtype=torch.float32) / c.head_dim
        inverse = 1.0 / (c.rope_theta[kind] ** exponent)
        with g.scope(f"rotary.{KINDS[kind]}"):
            column = g.op("Reshape", g.op("Cast", positions, to=FLOAT), g.constant([-1, 1], np.int64))
            angles = g.op("Mul", column, g.weight("inverse_frequency", inverse.numpy()[None]))
            return g.op("Cos", angles), g.op("Sin", angles)

    def _row_index(self, positions: str) -> str:
        """int64 [B, S]: 0 … B·S-1, the rows of the rotary tables."""
        g = self.g
        count = g.op("Size", positions)
        index = g.op("Range", g.constant(0, np.int64), count, g.constant(1, np.int64))
        return g.op("Reshape", index, g.op("Shape", positions))

    def _last_rows(self, tensor: str, start: str) -> str:
        """Keep the last num_logits rows of axis 1."""
        g = self.g
        return g.op("Slice", tensor, start, g.constant([2**62], np.int64), g.constant([1], np.int64))

    # -- per-layer embeddings ---------------------------------------------------------------------------

    def _split_layers(self, rows_of_layers: str, first: int) -> tuple[str, str]:
        """[B, S, L, P] → the owning layers' and the sharing layers' part ("" where none share)."""
        layers = self.config.num_hidden_layers
        if first == layers:
            return rows_of_layers, ""
        sizes = self.g.constant([first, layers - first], np.int64)
        own, shared = self.g.ops("Split", rows_of_layers, sizes, outputs=[None, None], axis=2)
        return own, shared

    def _per_layer(self, x0: str, rows: str, first: int, last: int) -> list[str]:
        """((rms(Wmp x0 · H^-½)) + rows) · 2^-½ for layers first … last-1: float32 [B, S, P] each."""
        g, c = self.g, self.config
        width = c.hidden_size_per_layer_input
        with g.scope(f"per_layer.{first}"):
            weight = self.checkpoint.rows(
                "per_layer_model_projection.weight", first * width, last * width
            ).float()
            projected = self._matmul(x0, weight * c.hidden_size**-0.5, "per_layer_model_projection")
            shaped = g.op("Reshape", projected, g.constant([0, 0, last - first, width], np.int64))
            normed = self._rms(shaped, "per_layer_projection_norm")
            mixed = g.op("Mul", g.op("Add", normed, rows), g.constant(2**-0.5))
            flat = g.op("Reshape", mixed, g.constant([0, 0, (last - first) * width], np.int64))
            if last - first == 1:
                return [flat]
            sizes = g.constant([width] * (last - first), np.int64)
            return g.ops("Split", flat, sizes, outputs=[None] * (last - first), axis=2)

    # -- AltUp ------------------------------------------------------------------------------------------

    def _expand(self, x0: str) -> str:
        """The N streams at the input: x0, and N-1 projections of it with its magnitude. [B, S, N, H]"""
        g, c = self.g, self.config
        with g.scope("altup_projections"):
            target = self._magnitude(x0)
            streams = [x0]
            for i in range(c.altup_num_inputs - 1):
                weight = self._tensor(f"altup_projections.{i}.weight")
                streams.append(self._rescale(self._matmul(x0, weight, f"{i}", "altup"), target))
            axis = g.constant([2], np.int64)
            return g.op("Concat", *(g.op("Unsqueeze", s, axis) for s in streams), axis=2)

    def _collapse(self, streams: str, residual: str) -> str:
        """The N streams at the output, unprojected to one magnitude and averaged. [B, R, H]"""
        g, c = self.g, self.config
        n = c.altup_num_inputs
        with g.scope("altup_unembed_projections"):
            sizes = g.constant([1] * n, np.int64)
            parts = g.ops("Split", streams, sizes, outputs=[None] * n, axis=2)
            axis = g.constant([2], np.int64)
            first, *others = (g.op("Squeeze", p, axis) for p in parts)
            target = self._magnitude(first)
            total = first
            for i, other in enumerate(others):
                weight = self._tensor(f"altup_unembed_projections.{i}.weight")
                projected = self._matmul(g.op("Add", other, residual), weight, f"{i}", "altup")
                total = g.op("Add", total, self._rescale(projected, target))
            return g.op("Mul", total, g.constant(1.0 / n))

    def _magnitude(self, x: str) -> str:
        """sqrt(mean(x²)): float32 [B, S, 1]"""
        g = self.g
        square = g.op("ReduceMean", g.op("Mul", x, x), g.constant([-1], np.int64), keepdims=1)
        return g.op("Sqrt", square)

    def _rescale(self, y: str, target: str) -> str:
        """y · target / sqrt(max(mean(y²), 1e-5))"""
        g = self.g
        square = g.op("ReduceMean", g.op("Mul", y, y), g.constant([-1], np.int64), keepdims=1)
        own = g.op("Sqrt", g.op("Max", square, g.constant(STREAM_MAGNITUDE_FLOOR)))
        return g.op("Mul", y, g.op("Div", target, own))

    def _router(self, x: str) -> str:
        """tanh(Wr · rms(x)/H): float32 [B, S, N]. Predict and correct share these weights."""
        g, c = self.g, self.config
        weight = self._tensor("altup.modality_router.weight") / c.hidden_size
        normed = self._rms(x, "altup.router_norm")
        return g.op("Tanh", g.op("MatMul", normed, g.weight("modality_router", weight.T.numpy())))

    def _predict(self, streams: str, residual: str) -> str:
        """Predicted streams (I + M)·(X + f⊗m) with m = (0, 1, …, 1): [B, S, N, H]

        M = reshape(Wp · router(X0)); stream 0 has no residual, so the router reads X as it is.
        """
        g, c = self.g, self.config
        n = c.altup_num_inputs
        with g.scope("altup.predict"):
            active = self._stream(streams, 0)
            coefficients = self._tensor("altup.prediction_coefs.weight").reshape(
                n, n, n
            )  # [to, from, router]
            gain = coefficients[:, 1:].sum(1)  # what each predicted stream takes of the residual [to, router]
            weight = torch.cat([coefficients.transpose(0, 1).reshape(n * n, n), gain])  # mix[from, to]; gains
            identity = torch.eye(n)
            bias = torch.cat([identity.reshape(-1), identity[:, 1:].sum(1)])
            routed = g.op("MatMul", self._router(active), g.weight("coefficients", weight.T.numpy()))
            routed = g.op("Add", routed, g.weight("identity", bias.numpy()))
            mix, post = g.ops("Split", routed, g.constant([n * n, n], np.int64), outputs=[None, None], axis=2)
            mix = g.op("Reshape", mix, g.constant([0, 0, n, n], np.int64))
            if not residual:
                residual, post = active, g.op("Mul", post, g.constant(0.0))
            return self._mix(streams, residual, post, mix)

    def _mix(self, streams: str, addend: str, gains: str, mix: str = "") -> str:
        """Y[k] = Σ_c mix[c, k]·X[c] + gains[k]·addend; without `mix` the streams stay as they are."""
        inputs = [streams, addend, gains] + ([mix] if mix else [])
        return self.g.op("HyperConnectionPostMix", *inputs, domain=MICROSOFT)

    def _stream(self, streams: str, index: int) -> str:
        """One stream: [B, S, N, H] → [B, S, H]"""
        return self.g.op("Gather", streams, self.g.constant(index, np.int64), axis=2)

    # -- one layer --------------------------------------------------------------------------------------

    def _layer(self, layer: int, streams: str, residual: str, rows: Rows) -> tuple[str, str]:
        """One decoder layer: streams [B, S, N, H] and the residual still to be added, [B, S, H]."""
        g = self.g
        predicted = self._predict(streams, residual)
        active = self._stream(predicted, 0)
        normed = self._rms(active, "input_layernorm")
        laurel = self._laurel(normed)
        attention = self._rms(self._attention(layer, normed, rows), "post_attention_layernorm")
        summed = g.op("Add", g.op("Add", active, attention), laurel)
        hidden = g.op("Mul", summed, g.constant(2**-0.5))
        forward = self._mlp(layer, self._rms(hidden, "pre_feedforward_layernorm"))
        activated = g.op("Add", hidden, self._rms(forward, "post_feedforward_layernorm"))
        corrected = self._correct(predicted, active, activated)
        return corrected, self._per_layer_residual(corrected, rows.per_layer[layer])

    def _laurel(self, normed: str) -> str:
        """n + rms(Wright Wleft n): learned augmented residual"""
        with self.g.scope("laurel"):
            left = self._linear(normed, "laurel.linear_left", "laurel")
            right = self._linear(left, "laurel.linear_right", "laurel")
            return self.g.op("Add", normed, self._rms(right, "laurel.post_laurel_norm"))

    def _correct(self, predicted: str, active: str, activated: str) -> str:
        """X = PR + (y - a)⊗(Wc·router(y) + 1)"""
        g, c = self.g, self.config
        n = c.altup_num_inputs
        with g.scope("altup.correct"):
            weight = self._tensor("altup.correction_coefs.weight")
            gains = g.op("MatMul", self._router(activated), g.weight("coefficients", weight.T.numpy()))
            gains = g.op("Add", gains, g.constant(np.ones(n)))
            innovation = g.op("Sub", activated, active)
            return self._mix(predicted, innovation, gains)

    def _per_layer_residual(self, corrected: str, per_layer: str) -> str:
        """rms(Wpp (gelu(Wpg · X0·scale) · ple)): [B, S, H]"""
        g, c = self.g, self.config
        with g.scope("per_layer"):
            first = self._stream(corrected, 0)
            gate = self._tensor("per_layer_input_gate.weight")
            if c.altup_correct_scale:
                gate = gate * self._tensor("altup.correct_output_scale")[None]
            gated = g.op("Gelu", self._matmul(first, gate, "per_layer_input_gate"), approximate="tanh")
            projected = self._linear(g.op("Mul", gated, per_layer), "per_layer_projection")
            return self._rms(projected, "post_per_layer_input_norm")

    def _mlp(self, layer: int, x: str) -> str:
        """Wd (gelu_tanh(gate) · up), the gate thinned to its Gaussian top part where the layer is sparse"""
        g = self.g
        with g.scope("mlp"):
            gate = self._linear(x, "mlp.gate_proj", "mlp")
            sparsity = self.config.activation_sparsity_pattern[layer]
            if sparsity > 0.0:
                gate = self._gaussian_topk(gate, sparsity)
            up = self._linear(x, "mlp.up_proj", "mlp")
            return self._linear(
                g.op("Mul", g.op("Gelu", gate, approximate="tanh"), up), "mlp.down_proj", "mlp"
            )

    def _gaussian_topk(self, gate: str, sparsity: float) -> str:
        """relu(g - (mean + std·Φ⁻¹(sparsity))), population standard deviation"""
        g = self.g
        axis = g.constant([-1], np.int64)
        with g.scope("gaussian_topk"):
            centered = g.op("Sub", gate, g.op("ReduceMean", gate, axis, keepdims=1))
            variance = g.op("ReduceMean", g.op("Mul", centered, centered), axis, keepdims=1)
            cutoff = g.op("Mul", g.op("Sqrt", variance), g.constant(NormalDist().inv_cdf(sparsity)))
            return g.op("Relu", g.op("Sub", centered, cutoff))

    # -- attention --------------------------------------------------------------------------------------

    def _attention(self, layer: int, normed: str, rows: Rows) -> str:
        """Grouped-query attention with RMS-normed heads; a sharing layer attends to its source's KV."""
        g, c = self.g, self.config
        kind = c.layer_types[layer]
        source = c.kv_source(layer)
        window = c.window(layer)
        q_width = c.num_attention_heads * c.head_dim
        kv_width = c.num_key_value_heads * c.head_dim
        with g.scope("self_attn"):
            weights = [self._tensor("self_attn.q_proj.weight")]
            if source == layer:
                weights += [self._tensor(f"self_attn.{n}_proj.weight") for n in ("k", "v")]
                joined = self._matmul(normed, torch.cat(weights), "qkv_proj", "attention")
                sizes = g.constant([q_width, kv_width, kv_width], np.int64)
                q, k, v = g.ops("Split", joined, sizes, outputs=[None] * 3, axis=2)
                k = self._rotate(self._head_norm(k, c.num_key_value_heads, "self_attn.k_norm"), kind, rows)
                v = self._head_norm(v, c.num_key_value_heads, None)
                past = self._past(layer)
            else:
                q = self._matmul(normed, weights[0], "q_proj", "attention")
                k = v = self._empty_kv(q, kv_width)
                past = self.presents[source][0]
            q = self._rotate(self._head_norm(q, c.num_attention_heads, "self_attn.q_norm"), kind, rows)
            last, total = self.lengths[kind]
            attributes: dict[str, int | float | str] = {
                "num_heads": c.num_attention_heads,
                "kv_num_heads": c.num_key_value_heads,
                "scale": 1.0,
                "local_window_size": window if window else -1,
            }
            dtype = self.recipe.kv_cache[KINDS[kind]]
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
                attended = g.op("Cast", attended, to=FLOAT)
            return self._linear(attended, "self_attn.o_proj", "attention")

    def _past(self, layer: int) -> tuple[str, str]:
        """Declare the KV buffers of an owning layer as inputs: [B, heads, rows, head_dim]"""
        self.presents[layer] = []
        names = (f"past_key.{layer}", f"past_value.{layer}")
        for name in names:
            self.g.input(name, *self._kv_type(layer))
        return names

    def _present(self, layer: int, source: int) -> tuple[str, str]:
        """Declare what `layer` makes of its source's KV buffers as outputs, in the same memory."""
        names = (f"present_key.{layer}", f"present_value.{layer}")
        for name in names:
            self.g.output(name, *self._kv_type(source))
        self.presents[source].append(names)
        return names

    def _kv_type(self, layer: int) -> tuple[int, tuple[int | str, ...]]:
        c = self.config
        kind = KINDS[c.layer_types[layer]]
        shape = ("batch", c.num_key_value_heads, f"{kind}_capacity", c.head_dim)
        return KV_TYPES[self.recipe.kv_cache[kind]], shape

    def _kv_buffer(self, layer: int) -> KvBuffer:
        c = self.config
        kind = KINDS[c.layer_types[layer]]
        keys, values = zip(*self.presents[layer], strict=True)
        return KvBuffer(
            layer=layer,
            kind=kind,
            dtype=self.recipe.kv_cache[kind],
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
        c = self.config
        bound = math.sqrt(c.head_dim) / INT8_MAX
        weight = self.checkpoint.tensor(f"layers.{source}.self_attn.k_norm.weight").float().abs()
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
        g, d = self.g, self.config.head_dim
        split = g.op("Reshape", x, g.constant([0, 0, heads, d], np.int64))
        normed = self._rms(split, weight) if weight else self._rms_by(split, g.constant(np.ones(d)))
        return g.op("Reshape", normed, g.constant([0, 0, heads * d], np.int64))

    def _rotate(self, x: str, kind: str, rows: Rows) -> str:
        return self.g.op("RotaryEmbedding", x, rows.positions, *self.rotary[kind], domain=MICROSOFT)

    # -- head -------------------------------------------------------------------------------------------

    def _head(self, hidden: str) -> None:
        """cap·tanh(E·rms(h)/cap) with the tied embedding E, in shards along the vocabulary"""
        g, c = self.g, self.config
        with g.scope("lm_head"):
            normed = self._rms(hidden, "norm")
            shards = []
            for first in range(0, c.vocab_size, HEAD_SHARD_ROWS):
                last = min(first + HEAD_SHARD_ROWS, c.vocab_size)
                weight = self.checkpoint.rows("embed_tokens.weight", first, last)
                shards.append(self._matmul(normed, weight, "shard", "head"))
                self.advance(f"head rows {last} of {c.vocab_size}")
            logits = g.op("Concat", *shards, axis=2) if len(shards) > 1 else shards[0]
            cap = c.final_logit_softcapping
            squashed = g.op("Tanh", g.op("Mul", logits, g.constant(1.0 / cap)))
            g.op("Mul", squashed, g.constant(cap), out="logits")
        g.output("logits", FLOAT, ("batch", "num_logits", c.vocab_size))

    # -- weights ----------------------------------------------------------------------------------------

    def _tensor(self, name: str) -> torch.Tensor:
        """A tensor of the current layer, or a global one, as float32."""
        scope = self.g.current_scope
        prefix = f"{scope[0]}." if scope and scope[0].startswith("layers.") else ""
        return self.checkpoint.tensor(prefix + name).float()

    def _rms(self, x: str, name: str) -> str:
        return self._rms_by(x, self.g.weight(name, self._tensor(f"{name}.weight").numpy()))

    def _rms_by(self, x: str, weight: str) -> str:
        """x / sqrt(mean(x²) + eps) · weight over the last axis"""
        return self.g.op(
            "SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=self.config.rms_norm_eps, stash_type=1
        )

    def _linear(self, x: str, name: str, kind: str = "per_layer_input") -> str:
        return self._matmul(x, self._tensor(f"{name}.weight"), name.split(".")[-1], kind)

    def _matmul(self, x: str, weight: torch.Tensor, name: str, kind: str = "per_layer_input") -> str:
        """x · weightᵀ, weight [out, in] stored as the recipe says for its kind"""
        fmt = self.recipe.matrices[kind]
        if fmt is None:
            return self.g.op("MatMul", x, self.g.weight(name, weight.float().T.numpy()))
        return self._matmul_nbits(x, weight, name, fmt)

    def _matmul_nbits(self, x: str, weight: torch.Tensor, name: str, fmt: MatrixFormat) -> str:
        rows, columns = weight.shape
        packed = quantize_matrix(weight, fmt)
        parts: list[tuple[str, NDArray[np.uint8] | NDArray[np.float32]]] = [
            ("codes", packed.packed),
            ("scales", packed.scales),
            ("zero_points", packed.zero_points),
        ]
        return self.g.op(
            "MatMulNBits",
            x,
            *(self.g.weight(f"{name}.{part}", array) for part, array in parts),
            domain=MICROSOFT,
            K=columns,
            N=rows,
            bits=fmt.bits,
            block_size=fmt.block,
            accuracy_level=self.recipe.accuracy_level,
        )
