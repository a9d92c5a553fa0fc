"""AltUp: N streams, of which a layer computes one and predicts the others.

"Alternating Updates for Efficient Transformers" (NeurIPS 2023); names as in transformers' Gemma3nTextAltUp.
X[…, N] are the streams, [B, S, N, H].
"""

from __future__ import annotations

import numpy as np
import torch

from edge_gemma.export.weights import WeightedGraph

MAGNITUDE_FLOOR = 1e-5


class AltUp:
    """Adds the steps of AltUp to a graph."""

    def __init__(self, graph: WeightedGraph) -> None:
        self.g = graph
        self._routers: dict[str, tuple[str, str]] = {}  # layer's scope → norm and router weights

    def expand(self, x0: str) -> str:
        """The N streams at the input: x0, and N-1 projections of it with its magnitude. [B, S, N, H]"""
        g, c = self.g, self.g.config
        with g.scope("altup_projections"):
            target = self._magnitude(x0)
            streams = [x0]
            for i in range(c.altup_num_inputs - 1):
                weight = g.tensor(f"altup_projections.{i}.weight")
                streams.append(self._rescale(g.matmul(x0, weight, f"{i}", "altup"), target))
            axis = g.constant([2], np.int64)
            return g.op("Concat", *(g.op("Unsqueeze", s, axis) for s in streams), axis=2)

    def collapse(self, streams: str, residual: str) -> str:
        """The N streams at the output, unprojected to one magnitude and averaged. [B, R, H]"""
        g, c = self.g, self.g.config
        n = c.altup_num_inputs
        with g.scope("altup_unembed_projections"):
            sizes = g.constant([1] * n, np.int64)
            parts = g.ops("Split", streams, sizes, outputs=[None] * n, axis=2)
            axis = g.constant([2], np.int64)
            first, *others = (g.op("Squeeze", p, axis) for p in parts)
            target = self._magnitude(first)
            total = first
            for i, other in enumerate(others):
                weight = g.tensor(f"altup_unembed_projections.{i}.weight")
                projected = g.matmul(g.op("Add", other, residual), weight, f"{i}", "altup")
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
        own = g.op("Sqrt", g.op("Max", square, g.constant(MAGNITUDE_FLOOR)))
        return g.op("Mul", y, g.op("Div", target, own))

    def _router(self, x: str) -> str:
        """tanh(Wr · rms(x)/H): float32 [B, S, N]. Predict and correct share these weights."""
        g, c = self.g, self.g.config
        layer = g.current_scope[0]
        if layer not in self._routers:
            norm = g.weight("router_norm", g.tensor("altup.router_norm.weight").numpy())
            weight = g.tensor("altup.modality_router.weight") / c.hidden_size
            self._routers[layer] = (norm, g.weight("modality_router", weight.T.numpy()))
        norm, router = self._routers[layer]
        return g.op("Tanh", g.op("MatMul", g.rms_by(x, norm), router))

    def predict(self, streams: str, residual: str) -> str:
        """Predicted streams (I + M)·(X + f⊗m) with m = (0, 1, …, 1): [B, S, N, H]

        M = reshape(Wp · router(X0)); stream 0 has no residual, so the router reads X as it is.
        """
        g, c = self.g, self.g.config
        n = c.altup_num_inputs
        with g.scope("altup.predict"):
            active = self.stream(streams, 0)
            coefficients = g.tensor("altup.prediction_coefs.weight").reshape(n, n, n)  # [to, from, router]
            gain = coefficients[:, 1:].sum(1)  # what each predicted stream takes of the residual [to, router]
            weight = torch.cat([coefficients.reshape(n * n, n), gain])  # mix[to, from]; gains[to]
            identity = torch.eye(n)
            bias = torch.cat([identity.reshape(-1), identity[:, 1:].sum(1)])
            routed = g.op("MatMul", self._router(active), g.weight("coefficients", weight.T.numpy()))
            routed = g.op("Add", routed, g.weight("identity", bias.numpy()))
            mix, gains = g.ops(
                "Split", routed, g.constant([n * n, n], np.int64), outputs=[None, None], axis=2
            )
            mix = g.op("Reshape", mix, g.constant([0, 0, n, n], np.int64))
            predicted = g.op("MatMul", mix, streams)
            return self._add(predicted, residual, gains) if residual else predicted

    def _add(self, streams: str, addend: str, gains: str) -> str:
        """Y[k] = X[k] + gains[k]·addend"""
        g = self.g
        row = g.op("Unsqueeze", addend, g.constant([2], np.int64))
        column = g.op("Unsqueeze", gains, g.constant([3], np.int64))
        return g.op("Add", streams, g.op("MatMul", column, row))

    def stream(self, streams: str, index: int) -> str:
        """One stream: [B, S, N, H] → [B, S, H]"""
        return self.g.op("Gather", streams, self.g.constant(index, np.int64), axis=2)

    def correct(self, predicted: str, active: str, activated: str) -> str:
        """X = PR + (y - a)⊗(Wc·router(y) + 1)"""
        g, c = self.g, self.g.config
        n = c.altup_num_inputs
        with g.scope("altup.correct"):
            weight = g.tensor("altup.correction_coefs.weight")
            gains = g.op("MatMul", self._router(activated), g.weight("coefficients", weight.T.numpy()))
            gains = g.op("Add", gains, g.constant(np.ones(n)))
            innovation = g.op("Sub", activated, active)
            return self._add(predicted, innovation, gains)
