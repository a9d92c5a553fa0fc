"""The Gemma 3n decoder as two ONNX graphs of onnxruntime's fused operators.

Shapes: B batch, S tokens of this call, R ≤ S rows that go on to the logits, H hidden, N AltUp streams,
L layers, P per-layer width. Formulas follow transformers' modeling_gemma3n.py; AltUp is the paper
"Alternating Updates for Efficient Transformers" (NeurIPS 2023).

Three things differ from the reference in form, not in result:

- Layers that share the KV of earlier layers own none, so only the rows that go on to the logits need them:
  they and the head are a graph of their own, which cuts the streams to the last `num_logits` rows. Prefilling
  a prompt runs 20 of E2B's 30 layers (20 of E4B's 35) for all tokens but the last. Two graphs are also loaded
  side by side, each on a core.
- Levels of an elastic artifact share the graphs: what only wider ones have is inside an `If` on the input
  `level`, so that the narrowest is computed by the nodes of its own export, and the weights of the others are
  not read.
- The per-layer residual of a layer is added to the streams by the next layer's AltUp prediction, which is
  linear: M(X + f⊗m) = MX + f⊗(Mm).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from edge_gemma.artifact import DecoderSpec
from edge_gemma.export.altup import AltUp
from edge_gemma.export.attention import Attention
from edge_gemma.export.elastic import Levels, Segment
from edge_gemma.export.weights import WeightedGraph
from edge_gemma.shapes import head_shards
from edge_gemma.submodels import Submodel


@dataclass(frozen=True)
class Rows:
    """What belongs to the tokens a layer works on; changes once, when the rows are cut to the logits'."""

    positions: str  # int64 [B, S]: index into the rotary tables
    per_layer: list[str]  # float32 [B, S, P] by layer


class DecoderBuilder:
    """Adds the decoder of the graph's checkpoint to it, one layer after the other.

    `advance` is called after every layer and every shard of the head.
    """

    def __init__(
        self, graph: WeightedGraph, advance: Callable[[], None], levels: Sequence[Submodel] = ()
    ) -> None:
        self.g = graph
        self.altup = AltUp(graph)
        self.advance = advance
        self.levels = Levels(graph.config, levels)
        self._reached: dict[int, str] = {}  # level → bool [1], whether the one that runs is it or a wider one

    def build(self, files: Mapping[str, Sequence[str]]) -> dict[str, DecoderSpec]:
        """Build and save everything; there is a variant for each dtype of the global layers' KV cache.

        Args:
            files: dtype of the global layers' KV cache → files of its graphs.

        Returns:
            What the manifest says of each variant.
        """
        g, c = self.g, self.g.config
        x0 = g.input("inputs_embeds", "float32", ("batch", "tokens", c.hidden_size))
        layer_rows = g.input(
            "per_layer_inputs",
            "float32",
            ("batch", "tokens", c.num_hidden_layers, c.hidden_size_per_layer_input),
        )
        positions = g.input("position_ids", "int64", ("batch", "tokens"))
        start = g.op("Neg", g.input("num_logits", "int64", (1,)))
        if len(self.levels) > 1:
            running = g.input("level", "int64", (1,))
            for level in range(1, len(self.levels)):
                self._reached[level] = g.op("GreaterOrEqual", running, g.constant([level], np.int64))
        self.attention = Attention(g, positions, files)

        first = c.first_shared_layer
        own, shared = self._split_layers(layer_rows, first)
        rows = Rows(self._row_index(positions), self._per_layer(x0, own, 0, first))
        streams, residual = self.altup.expand(x0), ""
        for layer in range(c.num_hidden_layers):
            if layer == first:
                self._cut(streams, residual)
                streams, residual, x0, shared, index = (
                    self._last_rows(t, start) for t in (streams, residual, x0, shared, rows.positions)
                )
                tail = self._per_layer(x0, shared, first, c.num_hidden_layers)
                rows = Rows(index, rows.per_layer + tail)
            with g.scope(f"layers.{layer}"):
                streams, residual = self._layer_of_levels(layer, streams, residual, rows)
            self.advance()
        if first == c.num_hidden_layers:
            self._cut(streams, residual)
            streams, residual = (self._last_rows(t, start) for t in (streams, residual))
        self._head(self.altup.collapse(streams, residual))
        return {
            dtype: DecoderSpec(
                graphs=g.save(dtype, names),
                data=g.data_file,
                kv=self.attention.buffers(dtype),
                sliding_window=c.sliding_window,
            )
            for dtype, names in files.items()
        }

    def _cut(self, streams: str, residual: str) -> None:
        """End the graph that all tokens need: what follows is for those with logits."""
        c = self.g.config
        each = ("batch", "tokens")
        self.g.cut((streams, (*each, c.altup_num_inputs, c.hidden_size)), (residual, (*each, c.hidden_size)))

    # -- rows -------------------------------------------------------------------------------------------

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
        layers = self.g.config.num_hidden_layers
        if first == layers:
            return rows_of_layers, ""
        sizes = self.g.constant([first, layers - first], np.int64)
        own, shared = self.g.ops("Split", rows_of_layers, sizes, outputs=[None, None], axis=2)
        return own, shared

    def _per_layer(self, x0: str, rows: str, first: int, last: int) -> list[str]:
        """((rms(Wmp x0 · H^-½)) + rows) · 2^-½ for layers first … last-1: float32 [B, S, P] each."""
        g, c = self.g, self.g.config
        width = c.hidden_size_per_layer_input
        with g.scope(f"per_layer.{first}"):
            weight = g.checkpoint.rows(
                "per_layer_model_projection.weight", first * width, last * width
            ).float()
            projected = g.matmul(x0, weight * c.hidden_size**-0.5, "per_layer_model_projection")
            shaped = g.op("Reshape", projected, g.constant([0, 0, last - first, width], np.int64))
            normed = g.rms(shaped, "per_layer_projection_norm")
            mixed = g.op("Mul", g.op("Add", normed, rows), g.constant(2**-0.5))
            flat = g.op("Reshape", mixed, g.constant([0, 0, (last - first) * width], np.int64))
            if last - first == 1:
                return [flat]
            sizes = g.constant([width] * (last - first), np.int64)
            return g.ops("Split", flat, sizes, outputs=[None] * (last - first), axis=2)

    # -- one layer --------------------------------------------------------------------------------------

    def _layer_of_levels(self, layer: int, streams: str, residual: str, rows: Rows) -> tuple[str, str]:
        """The layer, where the level that runs has it."""
        level = self.levels.first_level(layer)
        if not level:
            return self._layer(layer, streams, residual, rows, level)
        g = self.g
        with g.branch() as there:
            results = self._layer(layer, streams, residual, rows, level)
        with g.branch() as left_out:
            same = [g.op("Identity", t) for t in (streams, residual)]
        streams, residual = g.either(self._reached[level], (there, results), (left_out, same))
        return streams, residual

    def _layer(self, layer: int, streams: str, residual: str, rows: Rows, level: int) -> tuple[str, str]:
        """One decoder layer: streams [B, S, N, H] and the residual still to be added, [B, S, H].

        `level` is the narrowest that comes here.
        """
        g = self.g
        predicted = self.altup.predict(streams, residual)
        active = self.altup.stream(predicted, 0)
        normed = g.rms(active, "input_layernorm")
        laurel = self._laurel(normed)
        attention = g.rms(self.attention.add(layer, normed, rows.positions), "post_attention_layernorm")
        summed = g.op("Add", g.op("Add", active, attention), laurel)
        hidden = g.op("Mul", summed, g.constant(2**-0.5))
        forward = self._mlp(layer, g.rms(hidden, "pre_feedforward_layernorm"), level)
        activated = g.op("Add", hidden, g.rms(forward, "post_feedforward_layernorm"))
        corrected = self.altup.correct(predicted, active, activated)
        return corrected, self._per_layer_residual(corrected, rows.per_layer[layer])

    def _laurel(self, normed: str) -> str:
        """n + rms(Wright Wleft n): learned augmented residual"""
        with self.g.scope("laurel"):
            left = self.g.linear(normed, "laurel.linear_left", "laurel")
            right = self.g.linear(left, "laurel.linear_right", "laurel")
            return self.g.op("Add", normed, self.g.rms(right, "laurel.post_laurel_norm"))

    def _per_layer_residual(self, corrected: str, per_layer: str) -> str:
        """rms(Wpp (gelu(Wpg · X0·scale) · ple)): [B, S, H]"""
        g, c = self.g, self.g.config
        with g.scope("per_layer"):
            first = self.altup.stream(corrected, 0)
            gate = g.tensor("per_layer_input_gate.weight")
            if c.altup_correct_scale:
                gate = gate * g.tensor("altup.correct_output_scale")[None]
            gated = g.op("Gelu", g.matmul(first, gate, "per_layer_input_gate"), approximate="tanh")
            projected = g.linear(g.op("Mul", gated, per_layer), "per_layer_projection")
            return g.rms(projected, "post_per_layer_input_norm")

    def _mlp(self, layer: int, x: str, level: int) -> str:
        """Wd (gelu_tanh(gate) · up), the gate thinned to its Gaussian top part where the layer is sparse.

        Of several levels, the sum over the segments of the width that the one that runs has.
        """
        g = self.g
        with g.scope("mlp"):
            segments = self.levels.segments(layer)
            sparsity = g.config.activation_sparsity_pattern[layer]
            gates = [""] * len(segments)
            if sparsity > 0.0:  # what is thinned depends on the whole width: all gates come first
                gates = self._gates(x, segments, level)
                gates = self._gaussian_topk(gates, sparsity)
            total = ""
            for segment, gate in zip(segments, gates, strict=True):
                total = self._add_segment(total, x, gate, segment, level)
            return total

    def _project(self, x: str, name: str, s: Segment) -> str:
        """x · W[s]ᵀ with the gate's or up's rows of a segment"""
        weight = self.g.tensor(f"mlp.{name}.weight")[s.first : s.last]
        return self.g.matmul(x, weight, name, "mlp")

    def _gates(self, x: str, segments: list[Segment], level: int) -> list[str]:
        """Gate by segment: float32 [B, S, width], of width 0 where the level that runs has it not."""
        g = self.g
        gates: list[str] = []
        for s in segments:
            with g.branch() as there:
                gate = self._project(x, "gate_proj", s)
            if s.level <= level:
                g.add(there)
            else:
                with g.branch() as left_out:
                    none = [g.constant([0], np.int64) for _ in range(2)]
                    empty = g.op("Slice", x, *none, g.constant([2], np.int64))
                (gate,) = g.either(self._reached[s.level], (there, [gate]), (left_out, [empty]))
            gates.append(gate)
        return gates

    def _add_segment(self, total: str, x: str, gate: str, s: Segment, level: int) -> str:
        """total + Wd[:, s] (gelu_tanh(gate) · Wu[s] x); total where the running level has no segment s"""
        g = self.g
        with g.branch() as there:
            gate = g.op("Gelu", gate or self._project(x, "gate_proj", s), approximate="tanh")
            hidden = g.op("Mul", gate, self._project(x, "up_proj", s))
            down = g.tensor("mlp.down_proj.weight")[:, s.first : s.last]
            out = g.matmul(hidden, down, "down_proj", "mlp")
            if total:
                out = g.op("Add", total, out)
        if s.level <= level:
            g.add(there)
            return out
        with g.branch() as left_out:
            same = g.op("Identity", total)
        return g.either(self._reached[s.level], (there, [out]), (left_out, [same]))[0]

    def _gaussian_topk(self, gates: list[str], sparsity: float) -> list[str]:
        """relu(g - (mean + std·Φ⁻¹(sparsity))) by segment; population mean and deviation of them all"""
        g = self.g
        axis = g.constant([-1], np.int64)
        with g.scope("gaussian_topk"):
            whole = g.op("Concat", *gates, axis=2) if len(gates) > 1 else gates[0]
            mean = g.op("ReduceMean", whole, axis, keepdims=1)
            centered = [g.op("Sub", part, mean) for part in ([whole] if len(gates) == 1 else [*gates, whole])]
            variance = g.op("ReduceMean", g.op("Mul", centered[-1], centered[-1]), axis, keepdims=1)
            cutoff = g.op("Mul", g.op("Sqrt", variance), g.constant(NormalDist().inv_cdf(sparsity)))
            return [g.op("Relu", g.op("Sub", part, cutoff)) for part in centered[: len(gates)]]

    # -- head -------------------------------------------------------------------------------------------

    def _head(self, hidden: str) -> None:
        """cap·tanh(E·rms(h)/cap) with the tied embedding E, in shards along the vocabulary"""
        g, c = self.g, self.g.config
        with g.scope("lm_head"):
            normed = g.rms(hidden, "norm")
            shards = []
            for first, last in head_shards(c.vocab_size):
                weight = g.checkpoint.rows("embed_tokens.weight", first, last)
                shards.append(g.matmul(normed, weight, "shard", "head"))
                self.advance()
            logits = g.op("Concat", *shards, axis=2) if len(shards) > 1 else shards[0]
            cap = c.final_logit_softcapping
            squashed = g.op("Tanh", g.op("Mul", logits, g.constant(1.0 / cap)))
            g.op("Mul", squashed, g.constant(cap), out="logits")
        g.output("logits", "float32", ("batch", "num_logits", c.vocab_size))
