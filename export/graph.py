"""A small ONNX graph builder: names nodes by scope and streams initializers to the data file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edge_gemma.artifact import GraphSpec, TensorSpec

if TYPE_CHECKING:
    from typing import Self

OPSET = 21
IR_VERSION = 10
MICROSOFT = "com.microsoft"  # onnxruntime's contributed operators
ALIGNMENT = 4096  # of external tensors, so that onnxruntime can map them
INLINE_BYTES = 1024  # smaller constants stay in the .onnx file
T = TypeVar("T")
Branch = list[tuple[str, onnx.NodeProto]]  # nodes, each with the variant it is part of


class Graph:
    """Builds one model file and its external data.

    Weights are written the moment they are added, so that no more than one is in memory. Use as a
    context manager; `save` writes the model, the data are in a file of its name and .data.

    A model may have variants that share its data: what is added inside `only(variant)` is part of that one
    alone, everything else of all of them. Each is saved to files of its own.

    `cut` ends a part of the model: what comes behind it is in another file, over the same data.

    Nodes added inside `branch()` wait for `either`, which makes them one side of an `If`. They may read
    everything that was added before; weights stay outside.
    """

    def __init__(self, name: str, model_path: Path) -> None:
        self._name = name
        self._path = model_path
        self._data_path = model_path.with_name(model_path.name + ".data")
        self._data = self._data_path.open("wb")
        # in the order they were added, each with the variant it is part of ("": all)
        self._nodes: Branch = []
        self._initializers: list[tuple[str, TensorProto]] = []
        self._inputs: list[tuple[str, TensorSpec]] = []
        self._outputs: list[tuple[str, TensorSpec]] = []
        self._cuts: list[int] = []  # how many outputs there were at each
        self._variant = ""
        self._scope: list[str] = []
        self._names: dict[str, int] = {}
        self._constants: dict[bytes, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._data.close()

    @property
    def data_file(self) -> str:
        """Name of the file with the weights."""
        return self._data_path.name

    @property
    def current_scope(self) -> tuple[str, ...]:
        return tuple(self._scope)

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of everything added inside with `name/`."""
        self._scope.append(name)
        try:
            yield
        finally:
            self._scope.pop()

    @contextmanager
    def only(self, variant: str) -> Iterator[None]:
        """Make everything added inside part of this variant alone; "" is all of them."""
        before, self._variant = self._variant, variant
        try:
            yield
        finally:
            self._variant = before

    def input(self, name: str, dtype: str, shape: tuple[int | str, ...]) -> str:
        """Declare a graph input; `dtype` is numpy's name, a string in `shape` a symbolic dimension."""
        self._inputs.append((self._variant, TensorSpec(name=name, dtype=dtype, shape=shape)))
        return name

    def output(self, name: str, dtype: str, shape: tuple[int | str, ...]) -> None:
        """Declare a graph output, by the name of a node's output."""
        self._outputs.append((self._variant, TensorSpec(name=name, dtype=dtype, shape=shape)))

    def cut(self, *carried: tuple[str, tuple[int | str, ...]]) -> None:
        """End a part of the model; the next one goes on from the outputs that it declared, and these.

        What nodes behind the cut read of the others before it is computed anew, so `carried` must not leave
        out what takes long.

        Args:
            carried: names and shapes of outputs of nodes, float32.
        """
        for name, shape in carried:
            self.output(name, "float32", shape)
        self._cuts.append(len(self._outputs))

    def op(self, kind: str, *inputs: str, domain: str = "", out: str | None = None, **attributes: Any) -> str:
        """Add a node with one output and return the output's name ("" as an input leaves it out)."""
        return self.ops(kind, *inputs, domain=domain, outputs=[out], **attributes)[0]

    def ops(
        self, kind: str, *inputs: str, outputs: Sequence[str | None], domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node with several outputs: given names, None for a generated one, "" for one left out."""
        name = self.unique(kind)
        names = [f"{name}:{i}" if o is None else o for i, o in enumerate(outputs)]
        node = helper.make_node(kind, list(inputs), names, name=name, domain=domain, **attributes)
        self._nodes.append((self._variant, node))
        return names

    def weight(self, name: str, array: NDArray[Any]) -> str:
        """Add a named initializer; from INLINE_BYTES on its values go to the data file."""
        full = self.unique(name)
        array = np.asarray(array, order="C")
        dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
        if array.nbytes < INLINE_BYTES:
            tensor = helper.make_tensor(full, dtype, array.shape, array.tobytes(), raw=True)
        else:
            offset = -(-self._data.tell() // ALIGNMENT) * ALIGNMENT
            self._data.seek(offset)
            self._data.write(array.data)
            tensor = TensorProto(name=full, data_type=dtype, dims=array.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (
                ("location", self._data_path.name),
                ("offset", offset),
                ("length", array.nbytes),
            ):
                tensor.external_data.add(key=key, value=str(value))
        self._initializers.append((self._variant, tensor))
        return full

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """Add a small unnamed constant, shared between all nodes that use the same value, of all variants."""
        array = np.asarray(value, dtype)
        key = str((array.dtype, array.shape)).encode() + array.tobytes()
        if key not in self._constants:
            scope, self._scope = self._scope, []
            try:
                with self.only(""):
                    self._constants[key] = self.weight("constant", array)
            finally:
                self._scope = scope
        return self._constants[key]

    @contextmanager
    def branch(self) -> Iterator[Branch]:
        """Collect the nodes added inside for `either`."""
        collected: Branch = []
        before, self._nodes = self._nodes, collected
        try:
            yield collected
        finally:
            self._nodes = before

    def add(self, branch: Branch) -> None:
        """Add the nodes of a branch here, unconditionally."""
        self._nodes += branch

    def either(
        self, condition: str, then: tuple[Branch, Sequence[str]], other: tuple[Branch, Sequence[str]]
    ) -> list[str]:
        """The float32 outputs of one branch where `condition` (bool [1]) holds, and else of the other.

        Args:
            then, other: a branch, and names of outputs of its nodes.
        """
        name = self.unique("If")
        outputs = [f"{name}:{i}" for i in range(len(then[1]))]
        for variant in sorted({v for nodes, _ in (then, other) for v, _ in nodes if v}) or [self._variant]:
            sides = {
                side: helper.make_graph(
                    _part(nodes, variant),
                    f"{name}/{side}",
                    [],
                    [helper.make_tensor_value_info(out, TensorProto.FLOAT, None) for out in results],
                )
                for side, (nodes, results) in (("then_branch", then), ("else_branch", other))
            }
            self._nodes.append((variant, helper.make_node("If", [condition], outputs, name=name, **sides)))
        return outputs

    def save(self, variant: str = "", files: Sequence[str] = ()) -> tuple[GraphSpec, ...]:
        """Write the model file, or those of the parts of a variant beside it, and say what is in them.

        The data file is complete from here on.
        """
        self._data.close()
        made: list[TensorSpec] = []  # by the parts before
        specs = []
        ends = [*self._cuts, len(self._outputs)]
        for file, first, last in zip(files or [self._path.name], [0, *ends], ends, strict=False):
            outputs = _part(self._outputs[first:last], variant)
            nodes = _needed(_part(self._nodes, variant), outputs, made)
            read = set().union(*(_reads(node) for node in nodes))
            inputs = [spec for spec in (*_part(self._inputs, variant), *made) if spec.name in read]
            weights = [tensor for tensor in _part(self._initializers, variant) if tensor.name in read]
            graph = helper.make_graph(nodes, self._name, _value_infos(inputs), _value_infos(outputs), weights)
            model = helper.make_model(
                graph,
                opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
                ir_version=IR_VERSION,
                producer_name="edge-gemma",
            )
            self._path.with_name(file).write_bytes(model.SerializeToString())
            specs.append(GraphSpec(file=file, inputs=tuple(inputs), outputs=tuple(outputs)))
            made += outputs
        return tuple(specs)

    def unique(self, name: str) -> str:
        """A name in the current scope that nothing else has."""
        full = "/".join([*self._scope, name])
        count = self._names.get(full, 0)
        self._names[full] = count + 1
        return full if count == 0 else f"{full}.{count}"


def _part(added: list[tuple[str, T]], variant: str) -> list[T]:
    return [item for owner, item in added if owner in ("", variant)]


def _needed(
    nodes: list[onnx.NodeProto], wanted: Sequence[TensorSpec], made: Sequence[TensorSpec]
) -> list[onnx.NodeProto]:
    """Those of `nodes` that `wanted` depends on, where `made` is there already."""
    missing = {spec.name for spec in wanted}
    there = {spec.name for spec in made}
    needed = []
    for node in reversed(nodes):
        if missing.intersection(node.output):
            needed.append(node)
            missing |= _reads(node) - there
    return needed[::-1]


def _reads(node: onnx.NodeProto) -> set[str]:
    """What a node and the nodes of its branches read; that of branches' own nodes is in it, too."""
    names = set(node.input)
    for attribute in node.attribute:
        names.update(*(_reads(inner) for inner in attribute.g.node))
    return names


def _value_infos(specs: Sequence[TensorSpec]) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(
            spec.name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), spec.shape
        )
        for spec in specs
    ]
