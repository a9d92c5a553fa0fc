"""What the audio and the vision encoder share: from a tower of transformers to nodes of a `WeightedGraph`.

A tower goes through four steps, none of which holds its weights:

1. `Encoder` is the tower and its soft embedder, built without weights, parameters named as in checkpoints.
2. An `EncoderConfig`, registered with optimum's TasksManager, names inputs, outputs and their dynamic axes.
3. `trace` runs torch's dynamo exporter on fake tensors. In the graph that comes back, every parameter is an
   input; it is folded, freed of repetition, and its RMS norms become single nodes.
4. `splice.Splicer` copies that graph, node by node, into a graph that may have begun with a front end. What
   depends on parameters alone is computed on the way, from one checkpoint tensor at a time, and matrices are
   stored as the recipe says.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import onnx_ir as ir
import torch
from optimum.exporters.base import ExporterConfig
from optimum.exporters.tasks import TasksManager
from optimum.utils import DummyInputGenerator, NormalizedConfig
from torch._subclasses.fake_tensor import FakeTensorMode

from edge_gemma.errors import CheckpointError, ExportError
from edge_gemma.export.graph import OPSET
from edge_gemma.export.simplify import simplify
from edge_gemma.export.timm_support import repair_torchvision, require_timm

TASK = "feature-extraction"

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


class FloatGenerator(DummyInputGenerator):  # type: ignore[misc]
    """Dummy inputs of an encoder: random floats of `shape`, which subclasses set."""

    shape: list[int]

    def generate(
        self, input_name: str, framework: str = "pt", int_dtype: str = "int64", float_dtype: str = "fp32"
    ) -> torch.Tensor:
        tensor: torch.Tensor = self.random_float_tensor(self.shape, framework=framework, dtype=float_dtype)
        return tensor


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
