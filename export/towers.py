"""What the audio and the vision encoder share: from a tower of transformers to nodes of a `WeightedGraph`.

A tower goes through four steps, none of which holds its weights:

1. `Encoder` is the tower and its soft embedder, built without weights, parameters named as in checkpoints.
2. An `EncoderConfig`, registered with optimum's TasksManager, names inputs, outputs and their dynamic axes.
3. `trace` runs torch's dynamo exporter on fake tensors. In the graph that comes back, every parameter is an
   input; it is folded, freed of repetition, and its RMS norms become single nodes.
4. `Splicer` copies that graph, node by node, into a graph that may have begun with a front end. What
   depends on parameters alone is computed on the way, from one checkpoint tensor at a time, and matrices are
   stored as the recipe says.
"""

from __future__ import annotations

import ast
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from optimum.exporters.base import ExporterConfig
from optimum.exporters.tasks import TasksManager
from optimum.utils import NormalizedConfig
from torch._subclasses.fake_tensor import FakeTensorMode

from edge_gemma.errors import CheckpointError, ExportError
from edge_gemma.export.graph import INLINE_BYTES, OPSET
from edge_gemma.export.quantize import MatrixFormat
from edge_gemma.export.simplify import simplify
from edge_gemma.export.timm_support import repair_torchvision, require_timm
from edge_gemma.export.weights import WeightedGraph

TASK = "feature-extraction"
SCOPES = "pkg.torch.onnx.name_scopes"  # where the exporter notes the modules a node came from

register = TasksManager.create_register("onnx", overwrite_existing=True)
"""Decorator factory: `@register("gemma3n_audio", TASK)` makes `exporter_config` find the class below it."""


class EncoderConfig(ExporterConfig):  # type: ignore[misc]
    """How an encoder is exported: `inputs` and `outputs` map names to their dynamic axes, axis → symbol.

    Subclasses add DUMMY_INPUT_GENERATOR_CLASSES, whose sizes only have to be possible ones.
    """

    NORMALIZED_CONFIG_CLASS = NormalizedConfig

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        return {"soft_tokens": {}}


def exporter_config(encoder: Encoder) -> EncoderConfig:
    """The registered exporter configuration of an encoder's tower."""
    make = TasksManager.get_exporter_config_constructor(
        "onnx", model_type=encoder.config.model_type, task=TASK, library_name="transformers"
    )
    config: EncoderConfig = make(encoder.config)
    return config


class Encoder(torch.nn.Module):
    """A tower and its soft embedder, under the names that a checkpoint gives them. Subclasses add `forward`.

    Args:
        config_json: contents of a checkpoint's config.json.
        kind: "audio" or "vision".

    Raises:
        CheckpointError: config.json does not describe a tower that transformers can build.
    """

    def __init__(self, config_json: Mapping[str, Any], kind: str) -> None:
        super().__init__()
        require_timm() if kind == "vision" else repair_torchvision()
        from transformers import AutoModel, Gemma3nConfig
        from transformers.models.gemma3n.modeling_gemma3n import Gemma3nMultimodalEmbedder

        if not config_json.get(f"{kind}_config"):
            raise CheckpointError(
                f"config.json has no {kind}_config: expected a checkpoint with its {kind} tower"
            )
        try:
            # a copy: timm changes the arguments that it builds from
            whole = Gemma3nConfig.from_dict(copy.deepcopy(dict(config_json)))
            text: Any = whole.text_config
            self.config = getattr(whole, f"{kind}_config")
            build: Any = AutoModel.from_config
            # float32 whatever the checkpoint's dtype is: buffers would be computed in it
            self.add_module(f"{kind}_tower", build(self.config, dtype=torch.float32))
            self.add_module(f"embed_{kind}", Gemma3nMultimodalEmbedder(self.config, text))
        except Exception as error:  # of transformers, timm and torch, without a common base
            raise CheckpointError(
                f"config.json describes no {kind} tower that can be built: {_root(error)}"
            ) from error
        self.eval()


def tower_shapes(config_json: Mapping[str, Any], kind: str) -> dict[str, tuple[int, ...]]:
    """Name, without "model.", and shape of every tensor of a tower and its embedder; `kind` as in Encoder."""
    with weightless():
        encoder = Encoder(config_json, kind)
    return {name: tuple(parameter.shape) for name, parameter in encoder.named_parameters()}


@contextmanager
def weightless() -> Iterator[None]:
    """Modules built inside have parameters on the meta device, while their buffers hold values."""
    register_parameter = torch.nn.Module.register_parameter

    def register_meta(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        if parameter is not None:
            empty = torch.empty_like(parameter, device="meta")
            parameter = torch.nn.Parameter(empty, requires_grad=False)
        register_parameter(module, name, parameter)

    with mock.patch.object(torch.nn.Module, "register_parameter", register_meta):
        yield


def trace(encoder: Encoder) -> ir.Model:
    """Export a weightless encoder with torch's dynamo exporter.

    Returns:
        A model without weights: its inputs are those of the encoder's exporter configuration, then one for
        each parameter that is used, by its checkpoint name.

    Raises:
        ExportError: torch cannot export it.
    """
    config = exporter_config(encoder)
    example = config.generate_dummy_inputs(framework="pt")
    shapes = {
        name: {axis: torch.export.Dim.DYNAMIC for axis in axes} or None
        for name, axes in config.inputs.items()
    }
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        for module in encoder.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    blank = torch.empty(parameter.shape, dtype=torch.float32)
                    module._parameters[name] = torch.nn.Parameter(blank, requires_grad=False)
        example = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in example.items()}
    with fake, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's internals, about torch's internals
        try:
            program = torch.onnx.export(
                encoder,
                kwargs=example,
                dynamo=True,
                optimize=False,  # not before the parameters are inputs: they have no values to fold
                verbose=False,
                opset_version=OPSET,
                dynamic_shapes=shapes,
                input_names=list(config.inputs),
                output_names=list(config.outputs),
            )
        except Exception as error:  # a family without a common base
            raise ExportError(
                f"torch {torch.__version__} cannot export the {type(encoder).__name__}: {_root(error)}"
            ) from error
    assert program is not None
    return simplify(_without_weights(program.model, dict(encoder.named_parameters())))


def _root(error: BaseException) -> str:
    """The first line of what an error was first raised with"""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _without_weights(model: ir.Model, parameters: Mapping[str, torch.nn.Parameter]) -> ir.Model:
    """Turn the initializers that are parameters into inputs."""
    graph = model.graph
    for name in [name for name in graph.initializers if name in parameters]:
        value = graph.initializers.pop(name)
        value.const_value = None
        if value.uses():
            graph.inputs.append(value)
    return model


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


def resident_weights(model: Path, fmt: MatrixFormat | None) -> int:
    """Bytes of memory that the weights of an encoder take once loaded, `fmt` being that of its matrices.

    onnxruntime copies what it reads into its own layout. Beside the codes of a block MatMulNBits keeps three
    floats, where the data file has one and a zero point.
    """
    stored = model.with_name(model.name + ".data").stat().st_size
    if fmt is None:
        return stored
    codes = fmt.block * fmt.bits // 8
    return int(stored * (codes + 12) / (codes + 4 + fmt.bits / 8))


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
