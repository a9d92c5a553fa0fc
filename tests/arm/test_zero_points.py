"""Every matrix of every recipe has zero points: without them onnxruntime's ARM kernels are less exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made import needs

RECIPES = ("int8", "int4", "int4-hq")


def nodes(graph: Any) -> Iterator[Any]:
    """Those of branches too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes(attribute.g)


@pytest.mark.parametrize("recipe", RECIPES)
def test_matrices_have_zero_points(recipe: str, made: Callable[[str], Path]) -> None:
    onnx = needs("onnx")
    graphs = sorted(made(f"tiny-{recipe}").glob("*.onnx"))
    matrices = [
        node
        for path in graphs
        for node in nodes(onnx.load(path, load_external_data=False).graph)
        if node.op_type == "MatMulNBits"
    ]
    assert len(matrices) > 90
    assert all(len(node.input) > 3 and node.input[3] for node in matrices)
