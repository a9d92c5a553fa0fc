"""Makes a traced graph smaller without changing what it computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxscript.optimizer
from onnx_ir.passes.common import CommonSubexpressionEliminationPass


def simplify(model: ir.Model) -> ir.Model:
    """Fold what is constant, compute nothing twice, fuse RMS norms over the last axis; changes `model`."""
    onnxscript.optimizer.optimize(model)
    CommonSubexpressionEliminationPass()(model)
    for node in list(model.graph):
        _fuse_rms_norm(model.graph, node)
    onnxscript.optimizer.optimize(model)
    return model


def _fuse_rms_norm(graph: ir.Graph, node: ir.Node) -> None:
    """x · (mean(x²) + eps)^-½ [· weight] → SimplifiedLayerNormalization, where `node` computes the power -½.

    onnxruntime itself recognises the form with Sqrt alone.
    """
    shifted = _made_by(node.inputs[0], "Add") if node.op_type == "Pow" and _number(node, 1) == -0.5 else None
    mean = _made_by(shifted.inputs[0], "ReduceMean") if shifted else None
    square = _made_by(mean.inputs[0], "Pow") if mean else None
    if not shifted or not mean or not square or _number(square, 1) != 2.0 or _number(mean, 1) != -1.0:
        return
    x, epsilon = square.inputs[0], _number(shifted, 1)
    product = _only_use(node)
    width = x.shape[-1] if x is not None and x.shape is not None else None
    if not product or x not in product.inputs or not isinstance(width, int) or epsilon is None:
        return
    scaled = _only_use(product)
    weight = (
        next((v for v in scaled.inputs if v is not None and v.shape == (width,)), None) if scaled else None
    )
    if scaled is None or weight is None:
        ones = ir.node("Constant", [], {"value": ir.tensor(np.ones(width, np.float32))})
        graph.insert_before(product, ones)
        scaled, weight = product, ones.outputs[0]
    fused = ir.node(
        "SimplifiedLayerNormalization", [x, weight], {"axis": -1, "epsilon": epsilon, "stash_type": 1}
    )
    fused.metadata_props.update(scaled.metadata_props)
    fused.outputs[0].shape, fused.outputs[0].type = x.shape, x.type  # type: ignore[union-attr]
    graph.insert_before(scaled, fused)
    ir.convenience.replace_all_uses_with(scaled.outputs[0], fused.outputs[0], replace_graph_outputs=True)


def _made_by(value: ir.Value | None, kind: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == kind else None


def _only_use(node: ir.Node) -> ir.Node | None:
    """The product that a node's output goes into, if it goes nowhere else."""
    uses = node.outputs[0].consumers()
    return uses[0] if len(uses) == 1 and uses[0].op_type == "Mul" else None


def _number(node: ir.Node, index: int) -> float | None:
    """The constant of one element that is an input of a node."""
    value = node.inputs[index] if index < len(node.inputs) else None
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return float(tensor.numpy().item()) if tensor is not None and tensor.size == 1 else None
