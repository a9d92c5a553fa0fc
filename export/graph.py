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

from edge_gemma.artifact import TensorSpec

if TYPE_CHECKING:
    from typing_extensions import Self

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
    context manager; `save` writes the model.

    A model may have variants that share its data: what is added inside `only(variant)` is part of that one
    alone, everything else of all of them. Each is saved to a file of its own.

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
        self._variant = ""
        self._scope: list[str] = []
        self._names: dict[str, int] = {}
        self._constants: dict[bytes, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._data.close()

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

    def inputs(self, variant: str = "") -> tuple[TensorSpec, ...]:
        """The inputs declared so far, of a variant where there are any."""
        return tuple(_part(self._inputs, variant))

    def outputs(self, variant: str = "") -> tuple[TensorSpec, ...]:
        """The outputs declared so far, of a variant where there are any."""
        return tuple(_part(self._outputs, variant))

    def input(self, name: str, dtype: str, shape: tuple[int | str, ...]) -> str:
        """Declare a graph input; `dtype` is numpy's name, a string in `shape` a symbolic dimension."""
        self._inputs.append((self._variant, TensorSpec(name=name, dtype=dtype, shape=shape)))
        return name

    def output(self, name: str, dtype: str, shape: tuple[int | str, ...]) -> None:
        """Declare a graph output, by the name of a node's output."""
        self._outputs.append((self._variant, TensorSpec(name=name, dtype=dtype, shape=shape)))

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

    def save(self, variant: str = "", path: Path | None = None) -> None:
        """Write the model file, or that of a variant to `path`; the data file is complete from here on."""
        self._data.close()
        graph = helper.make_graph(
            _part(self._nodes, variant),
            self._name,
            [_value_info(spec) for spec in self.inputs(variant)],
            [_value_info(spec) for spec in self.outputs(variant)],
            _part(self._initializers, variant),
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
            ir_version=IR_VERSION,
            producer_name="edge-gemma",
        )
        (path or self._path).write_bytes(model.SerializeToString())

    def unique(self, name: str) -> str:
        """A name in the current scope that nothing else has."""
        full = "/".join([*self._scope, name])
        count = self._names.get(full, 0)
        self._names[full] = count + 1
        return full if count == 0 else f"{full}.{count}"


def _part(added: list[tuple[str, T]], variant: str) -> list[T]:
    return [item for owner, item in added if owner in ("", variant)]


def _value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    return helper.make_tensor_value_info(spec.name, dtype, spec.shape)
