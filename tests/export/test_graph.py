"""The graph builder: parts of a model, each in a file of its own over the same data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from edge_gemma.artifact import GraphSpec
from edge_gemma.export.graph import INLINE_BYTES, Graph

WIDTH = 20
FILES = ("first.onnx", "second.onnx")
assert WIDTH * WIDTH * 4 > INLINE_BYTES  # so that weights are outside


def matrix(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((WIDTH, WIDTH), np.float32)


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, tuple[GraphSpec, ...]]:
    """out = ((x² · A) · B) + x² where `wide`, else (x² · A) + x², cut behind A; variants differ behind it."""
    with Graph("test", tmp_path / "both") as graph:
        x = graph.input("x", "float32", ("rows", WIDTH))
        wide = graph.input("wide", "bool", (1,))
        square = graph.op("Mul", x, x)
        state = graph.op("MatMul", square, graph.weight("A", matrix(0)))
        graph.op("Neg", state, out="kept")
        graph.output("kept", "float32", ("rows", WIDTH))
        graph.cut((state, ("rows", WIDTH)))
        weight = graph.weight("B", matrix(1))
        with graph.branch() as there:
            product = graph.op("MatMul", state, weight)
        with graph.branch() as left_out:
            same = graph.op("Identity", state)
        (mixed,) = graph.either(wide, (there, [product]), (left_out, [same]))
        for variant, kind in (("sum", "Add"), ("difference", "Sub")):
            with graph.only(variant):
                graph.op(kind, mixed, square, out="out")
        graph.output("out", "float32", ("rows", WIDTH))
        return {v: graph.save(v, [f"{v}.{file}" for file in FILES]) for v in ("sum", "difference")}


@pytest.mark.parametrize("variant", ["sum", "difference"])
@pytest.mark.parametrize("wide", [True, False])
def test_parts_compute_what_the_whole_would(
    parts: dict[str, tuple[GraphSpec, ...]], tmp_path: Path, variant: str, wide: bool
) -> None:
    x = np.random.default_rng(2).standard_normal((3, WIDTH), np.float32)
    values = {"x": x, "wide": np.array([wide])}
    for spec in parts[variant]:
        session = ort.InferenceSession(tmp_path / spec.file, providers=["CPUExecutionProvider"])
        assert {i.name for i in session.get_inputs()} == {tensor.name for tensor in spec.inputs}
        given = {tensor.name: values[tensor.name] for tensor in spec.inputs}
        names = [tensor.name for tensor in spec.outputs]
        values |= dict(zip(names, session.run(names, given), strict=True))
    state = x * x @ matrix(0)
    expected = (state @ matrix(1) if wide else state) + (x * x if variant == "sum" else -x * x)
    np.testing.assert_allclose(values["kept"], -state, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(values["out"], expected, rtol=1e-5, atol=1e-3)


def test_each_part_has_what_it_needs_and_no_more(
    parts: dict[str, tuple[GraphSpec, ...]], tmp_path: Path
) -> None:
    first, second = parts["sum"]
    assert [tensor.name for tensor in first.inputs] == ["x"]
    carried = first.outputs[-1]
    assert (carried.dtype, carried.shape) == ("float32", ("rows", WIDTH))
    assert [tensor.name for tensor in second.inputs] == ["x", "wide", carried.name]
    models = [onnx.load(tmp_path / spec.file, load_external_data=False) for spec in (first, second)]
    assert [[t.name for t in m.graph.initializer] for m in models] == [["A"], ["B"]]
    # x² takes no time and is computed again; the product with A is not
    assert [n.op_type for n in models[0].graph.node] == ["Mul", "MatMul", "Neg"]
    assert [n.op_type for n in models[1].graph.node] == ["Mul", "If", "Add"]
    for spec, model in zip((first, second), models, strict=True):
        onnx.checker.check_model(str(tmp_path / spec.file))
        assert all(t.data_location == TensorProto.EXTERNAL for t in model.graph.initializer)
        assert {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"} == {
            "both.data"
        }


def test_a_model_without_cuts_is_one_file(tmp_path: Path) -> None:
    with Graph("test", tmp_path / "one.onnx") as graph:
        graph.op("Neg", graph.input("x", "float32", ("n",)), out="y")
        graph.op("Abs", "x", out="nobody's")
        graph.output("y", "float32", ("n",))
        (spec,) = graph.save()
    assert (spec.file, graph.data_file) == ("one.onnx", "one.onnx.data")
    assert [n.op_type for n in onnx.load(tmp_path / "one.onnx").graph.node] == ["Neg"]
