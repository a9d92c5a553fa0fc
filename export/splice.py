"""Copies a traced graph into a `WeightedGraph`, its weights read from the checkpoint on the way."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from edge_gemma.errors import CheckpointError, ExportError
from edge_gemma.export.graph import INLINE_BYTES, OPSET
from edge_gemma.export.weights import WeightedGraph

SCOPES = "pkg.torch.onnx.name_scopes"  # where the exporter notes the modules a node came from


class Splicer:
    """Copies traced graphs into `graph`; `kind` is the recipe's class of their matrices.

    What depends on parameters and constants alone is computed now and stored as a weight: transposed
    matrices, projected position tables, scales. Override `emit` to treat some operators differently.
    `advance` is called once for each parameter of the traced model.
    """

    def __init__(self, graph: WeightedGraph, kind: str, advance: Callable[[], None] = lambda: None) -> None:
        self.graph = graph
        self.kind = kind
        self.advance = advance
        self._names: dict[ir.Value, str] = {}  # traced value → its name in `graph`
        self._static: dict[ir.Value, bool] = {}
        self._read: set[str] = set()

    def splice(self, model: ir.Model, inputs: Mapping[str, str]) -> list[str]:
        """Add the nodes of a traced model; `inputs` gives, by name, the graph's values for its inputs.

        Returns:
            What its outputs are called in the graph.

        Raises:
            CheckpointError: a parameter is not in the checkpoint, or has another shape there.
            ExportError: the model has control flow.
        """
        for value in model.graph.inputs:
            name = value.name or ""
            self._static[value] = name not in inputs
            if name in inputs:
                self.bind(value, inputs[name])
        for node in model.graph:
            if not all(self.is_static(value) for value in node.outputs):
                self.emit(node)
        return [self.name(value) for value in model.graph.outputs]

    def emit(self, node: ir.Node) -> None:
        """Add one node: products with a matrix as the recipe stores them, anything else as it is."""
        if self._is_linear(node):
            x, matrix = (self._input(node, i) for i in (0, 1))
            weight = self.value(matrix)
            if not node.attributes.get_int("transB", 0):
                weight = weight.T  # MatMul has [in, out], the graph takes [out, in]
            with self.scope(node):
                self.bind(
                    node.outputs[0],
                    self.graph.matmul(self.name(x), torch.from_numpy(weight), "weight", self.kind),
                )
            return
        self.copy(node)

    def copy(self, node: ir.Node) -> None:
        """Add one node as it is."""
        names = [self.name(value) for value in node.inputs]
        attributes = {name: _attribute(attr) for name, attr in node.attributes.items()}
        with self.scope(node):
            outputs = self.graph.ops(
                node.op_type, *names, outputs=[None] * len(node.outputs), domain=node.domain, **attributes
            )
        for value, name in zip(node.outputs, outputs, strict=True):
            self.bind(value, name)

    def bind(self, value: ir.Value, name: str) -> None:
        """Say what a traced value is called in the graph."""
        self._names[value] = name

    def name(self, value: ir.Value | None) -> str:
        """What a traced value is called in the graph; a static one is stored at its first use."""
        if value is None:
            return ""
        if value not in self._names:
            array = self.value(value)
            computed = value.producer() is not None or value.const_value is not None
            if computed and array.nbytes < INLINE_BYTES:
                self._names[value] = self.graph.constant(array, array.dtype)
            else:
                self._names[value] = self.graph.weight(value.name or "weight", array)
        return self._names[value]

    def is_static(self, value: ir.Value | None) -> bool:
        """Whether a traced value depends on parameters and constants alone."""
        if value is None or value.const_value is not None:
            return True
        if value not in self._static:
            node = value.producer()
            self._static[value] = node is not None and all(self.is_static(i) for i in node.inputs)
        return self._static[value]

    def value(self, value: ir.Value) -> NDArray[Any]:
        """What a static value holds; parameters as float32."""
        constant = ir.convenience.get_const_tensor(value)
        if constant is not None:
            return constant.numpy()
        node = value.producer()
        if node is None:
            return self._parameter(value)
        feeds = {i.name or "": self.value(i) for i in node.inputs if i is not None}
        results: Any = ReferenceEvaluator(ir.to_proto(node), opsets={"": OPSET}).run(None, feeds)
        return np.asarray(results[value.index() or 0])

    def _parameter(self, value: ir.Value) -> NDArray[np.float32]:
        assert value.name is not None and value.shape is not None
        checkpoint = self.graph.checkpoint
        tensor = checkpoint.tensor(value.name)
        expected = list(value.shape)
        if list(tensor.shape) != expected:
            raise CheckpointError(
                f"{checkpoint.name} has {value.name} of shape {list(tensor.shape)}, its config.json expects "
                f"{expected}: download the checkpoint again"
            )
        if value.name not in self._read:  # scales are read again for each of their uses
            self._read.add(value.name)
            self.advance()
        array: NDArray[np.float32] = tensor.float().numpy()
        return array

    def _is_linear(self, node: ir.Node) -> bool:
        """Whether a node multiplies what is computed by a static matrix."""
        if node.op_type not in ("MatMul", "Gemm") or len(node.inputs) > 2:
            return False
        x, matrix = (self._input(node, i) for i in (0, 1))
        attributes = node.attributes
        plain = not attributes.get_int("transA", 0) and attributes.get_float("alpha", 1.0) == 1.0
        rank = len(matrix.shape) if matrix.shape is not None else None
        return plain and rank == 2 and self.is_static(matrix) and not self.is_static(x)

    @staticmethod
    def _input(node: ir.Node, index: int) -> ir.Value:
        value = node.inputs[index]
        assert value is not None
        return value

    def scope(self, node: ir.Node) -> AbstractContextManager[None]:
        """The graph's scope for what a node becomes: the module that it was traced in."""
        modules = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
        return self.graph.scope(modules[-2]) if len(modules) > 1 and modules[-2] else nullcontext()


def _attribute(attribute: ir.Attr) -> Any:
    """An attribute as onnx.helper.make_node takes it."""
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        raise ExportError(
            f"torch exported control flow ({attribute.name}), expected a graph of plain operators: "
            "try the versions of torch and transformers that docs/export.md names"
        )
    if attribute.type == ir.AttributeType.TENSOR:
        return ir.to_proto(attribute.as_tensor())
    return attribute.value
