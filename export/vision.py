"""vision_encoder.onnx: an image in, its soft tokens out.

The front end is written directly, as SiglipImageProcessor of transformers prepares an image for Gemma 3n: a
resize that ignores the aspect, and a rescale. Behind it comes transformers' vision tower with its soft
embedder, traced once with its channels last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx import TensorProto
from optimum.utils import NormalizedConfig

from edge_gemma.artifact import VISION_ENCODER, VisionSpec
from edge_gemma.errors import CheckpointError
from edge_gemma.export.channels_last import channels_last
from edge_gemma.export.checkpoint import Checkpoint
from edge_gemma.export.footprint import resident_weights
from edge_gemma.export.graph import Graph
from edge_gemma.export.resize import resize
from edge_gemma.export.splice import Splicer
from edge_gemma.export.towers import (
    TASK,
    Encoder,
    EncoderConfig,
    FloatGenerator,
    register,
    trace,
    weightless,
)
from edge_gemma.export.weights import WeightedGraph
from edge_gemma.progress import Progress
from edge_gemma.recipes import Recipe

CHANNELS = 3
FLOAT_BYTES = 4
BILINEAR = 2  # as Pillow numbers its filters
# What the front end computes, under the names of transformers' image processor; sizes may differ
PREPARATION: dict[str, Any] = {
    "do_resize": True,
    "size": {"height": 768, "width": 768},
    "resample": BILINEAR,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": False,
    "do_pad": False,
}


class PixelGenerator(FloatGenerator):
    """One image of the size that the tower takes, channels last."""

    SUPPORTED_INPUT_NAMES = ("pixels",)

    def __init__(self, task: str, normalized_config: NormalizedConfig, **_: Any) -> None:
        self.shape = [1, *normalized_config.image_size, CHANNELS]


@register("gemma3n_vision", TASK)
class VisionConfig(EncoderConfig):
    """The vision tower takes pixels, float32 [1, H, W, 3] in [0, 1]: torch traces no other H and W."""

    DUMMY_INPUT_GENERATOR_CLASSES = (PixelGenerator,)

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {"pixels": {}}


class VisionEncoder(Encoder):
    """transformers' vision tower and soft embedder for one image of `image_size`, height and width."""

    def __init__(self, config_json: Mapping[str, Any], image_size: tuple[int, int]) -> None:
        super().__init__(config_json, "vision")
        self.config.image_size = image_size

    @property
    def tower(self) -> Any:
        """timm's model inside that of transformers"""
        return self.get_submodule("vision_tower.timm_model")

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """float32 [1, H, W, 3] → [tokens, text H]; inside `channels_last`"""
        features = self.tower(pixels).flatten(0, 2) * math.sqrt(self.config.hidden_size)
        tokens: torch.Tensor = self.get_submodule("embed_vision")(inputs_embeds=features)
        return tokens


def export_vision_encoder(
    checkpoint: Checkpoint, recipe: Recipe, folder: Path, progress: Progress
) -> VisionSpec:
    """Write VISION_ENCODER and its data file to `folder`.

    Raises:
        CheckpointError: the checkpoint has no vision tower, tensors of it are missing or of other shapes, or
            its image processor does what the graph cannot.
        ExportError: torch cannot export it.
    """
    size = image_size(checkpoint)
    path = folder / VISION_ENCODER
    with weightless():
        encoder = VisionEncoder(checkpoint.config_json, size)
    media = checkpoint.config.vision
    assert media is not None
    with channels_last(encoder.tower):
        traced = trace(encoder)
    progress.stage("vision encoder", len(traced.graph.inputs) - 1)
    found = traced.graph.outputs[0].shape
    expected = (media.soft_tokens, checkpoint.config.text.hidden_size)
    if found is None or found != expected:
        raise CheckpointError(
            f"the vision tower of {checkpoint.name} gives soft tokens of shape {found}, "
            f"its config.json expects {list(expected)}"
        )
    with WeightedGraph("gemma3n-vision-encoder", path, checkpoint, recipe) as graph:
        image = graph.input("image", "uint8", ("height", "width", CHANNELS))
        with graph.scope("front_end"):
            pixels = prepare(graph, image, size)
        (tokens,) = Splicer(graph, "vision", progress.advance).splice(traced, {"pixels": pixels})
        graph.op("Identity", tokens, out="soft_tokens")
        graph.output("soft_tokens", "float32", expected)
        (saved,) = graph.save()
    return VisionSpec(
        file=VISION_ENCODER,
        data=graph.data_file,
        input=saved.inputs[0],
        output=saved.outputs[0],
        soft_tokens=media.soft_tokens,
        memory=resident_weights(path, recipe.matrices["vision"]) + _activations(traced),
    )


def _activations(model: ir.Model) -> int:
    """Bytes that onnxruntime's allocator comes to hold for an image: four of the largest tensor's size.

    At Gemma 3n's size that tensor has 108 MiB and 425 MiB were measured.
    """
    shapes = [
        value.shape.numpy() for node in model.graph for value in node.outputs if value.shape is not None
    ]
    return 4 * FLOAT_BYTES * max(math.prod(shape) for shape in shapes)


def image_size(checkpoint: Checkpoint) -> tuple[int, int]:
    """Height and width that the checkpoint's image processor resizes to.

    Raises:
        CheckpointError: it prepares images in another way than `prepare`.
    """
    found = PREPARATION | {k: v for k, v in checkpoint.image_processor().items() if v is not None}
    size = found["size"]
    for name, expected in PREPARATION.items():
        if name != "size" and found[name] != expected:
            raise CheckpointError(
                f"the image processor of {checkpoint.name} has {name} = {found[name]!r}: "
                f"expected {expected!r}, as in every Gemma 3n"
            )
    if (
        not isinstance(size, dict)
        or set(size) != {"height", "width"}
        or not all(type(side) is int and side > 0 for side in size.values())
    ):
        raise CheckpointError(
            f"the image processor of {checkpoint.name} has size = {size!r}, expected height and width"
        )
    return size["height"], size["width"]


def prepare(g: Graph, image: str, size: tuple[int, int]) -> str:
    """uint8 [height, width, 3] → pixels, float32 [1, *size, 3] in [0, 1]"""
    resized = g.op("Cast", resize(g, image, size), to=TensorProto.FLOAT)
    return g.op("Unsqueeze", g.op("Mul", resized, g.constant(1 / 255)), g.constant([0], np.int64))
