"""A small ONNX graph builder: names nodes by scope and streams initializers to the data file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

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


class Graph:
    """Builds one model file and its external data.

    Weights are written the moment they are added, so that no more than one is in memory. Use as a
    context manager; `save` writes the model.
    """

    def __init__(self, name: str, model_path: Path) -> None:
        self._name = name
        self._path = model_path
        self._data_path = model_path.with_name(model_path.name + ".data")
        self._data = self._data_path.open("wb")
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[TensorProto] = []
        self.inputs: list[TensorSpec] = []
        self.outputs: list[TensorSpec] = []
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

    def input(self, name: str, dtype: str, shape: tuple[int | str, ...]) -> str:
        """Declare a graph input; `dtype` is numpy's name, a string in `shape` a symbolic dimension."""
        self.inputs.append(TensorSpec(name=name, dtype=dtype, shape=shape))
        return name

    def output(self, name: str, dtype: str, shape: tuple[int | str, ...]) -> None:
        """Declare a graph output, by the name of a node's output."""
        self.outputs.append(TensorSpec(name=name, dtype=dtype, shape=shape))

    def op(self, kind: str, *inputs: str, domain: str = "", out: str | None = None, **attributes: Any) -> str:
        """Add a node with one output and return the output's name ("" as an input leaves it out)."""
        return self.ops(kind, *inputs, domain=domain, outputs=[out], **attributes)[0]

    def ops(
        self, kind: str, *inputs: str, outputs: Sequence[str | None], domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node with several outputs: given names, None for a generated one, "" for one left out."""
        name = self._unique(kind)
        names = [f"{name}:{i}" if o is None else o for i, o in enumerate(outputs)]
        self._nodes.append(
            helper.make_node(kind, list(inputs), names, name=name, domain=domain, **attributes)
        )
        return names

    def weight(self, name: str, array: NDArray[Any]) -> str:
        """Add a named initializer; from INLINE_BYTES on its values go to the data file."""
        full = self._unique(name)
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
        self._initializers.append(tensor)
        return full

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """Add a small unnamed constant, shared between all nodes that use the same value."""
        array = np.asarray(value, dtype)
        key = str((array.dtype, array.shape)).encode() + array.tobytes()
        if key not in self._constants:
            scope, self._scope = self._scope, []
            try:
                self._constants[key] = self.weight("constant", array)
            finally:
                self._scope = scope
        return self._constants[key]

    def save(self) -> None:
        """Write the model file; the data file is complete from here on."""
        self._data.close()
        graph = helper.make_graph(
            self._nodes,
            self._name,
            [_value_info(spec) for spec in self.inputs],
            [_value_info(spec) for spec in self.outputs],
            self._initializers,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)],
            ir_version=IR_VERSION,
            producer_name="edge-gemma",
        )
        self._path.write_bytes(model.SerializeToString())

    def _unique(self, name: str) -> str:
        full = "/".join([*self._scope, name])
        count = self._names.get(full, 0)
        self._names[full] = count + 1
        return full if count == 0 else f"{full}.{count}"


def _value_info(spec: TensorSpec) -> onnx.ValueInfoProto:
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    return helper.make_tensor_value_info(spec.name, dtype, spec.shape)
