"""The steps that both encoders share, on a small module in the place of a tower."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from optimum.utils import DummyInputGenerator
from torch.nn import functional

from edge_gemma.errors import CheckpointError, ExportError
from edge_gemma.export.footprint import resident_weights
from edge_gemma.export.splice import Splicer
from edge_gemma.export.synthetic import CONFIGS
from edge_gemma.export.towers import (
    TASK,
    Encoder,
    EncoderConfig,
    exporter_config,
    register,
    tower_shapes,
    trace,
    weightless,
)
from edge_gemma.export.weights import WeightedGraph
from edge_gemma.recipes import find_recipe

MEDIA = CONFIGS["tiny-media"]
WIDTH = 32


class Generator(DummyInputGenerator):
    SUPPORTED_INPUT_NAMES = ("x",)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def generate(self, input_name: str, **_: Any) -> torch.Tensor:
        return torch.zeros(1, 7, WIDTH)


@register("toy", TASK)
class ToyConfig(EncoderConfig):
    DUMMY_INPUT_GENERATOR_CLASSES = (Generator,)

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {"x": {1: "steps"}}


def rms(x: torch.Tensor) -> torch.Tensor:
    return x * torch.pow(x.pow(2).mean(-1, keepdim=True) + 1e-6, -0.5)


class Toy(torch.nn.Module):
    """Norms with and without weight, matrices with and without bias, and what depends on parameters alone."""

    config = SimpleNamespace(model_type="toy")

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.Parameter(torch.ones(WIDTH))
        self.scale = torch.nn.Parameter(torch.ones(48))
        self.up = torch.nn.Linear(WIDTH, 48)
        self.down = torch.nn.Linear(48, WIDTH, bias=False)
        self.table = torch.nn.Linear(3, 48, bias=False)
        self.register_buffer("factor", torch.tensor(0.5), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weighted = rms(x) * self.norm
        scaled = self.up(weighted) * functional.softplus(self.scale)
        places = self.table(torch.arange(3.0).view(1, 1, 3))
        down = functional.linear(torch.tanh(scaled + places), self.down.weight * self.factor)
        power = torch.pow(down.pow(2).mean(-1, keepdim=True) + 1e-3, -0.5)
        return rms(down + x) + down * power + power


@pytest.fixture(scope="module")
def toy() -> Toy:
    torch.manual_seed(0)
    toy = Toy()
    with torch.no_grad():
        toy.norm.copy_(1 + 0.3 * torch.randn(WIDTH))
        toy.scale.copy_(torch.randn(48))
    return toy


@pytest.fixture(scope="module")
def traced() -> Any:
    with weightless():
        empty = Toy()
    return trace(empty)  # type: ignore[arg-type]


def checkpoint_of(module: torch.nn.Module, **replaced: torch.Tensor) -> Any:
    tensors = {**dict(module.named_parameters()), **replaced}
    return SimpleNamespace(name="toy", config=None, tensor=lambda name: tensors[name].detach())


def splice(traced: Any, toy: Toy, path: Path, recipe: str = "fp32", **kwargs: Any) -> onnx.ModelProto:
    with WeightedGraph("toy", path, checkpoint_of(toy), find_recipe(recipe)) as graph:
        x = graph.input("x", "float32", (1, "steps", WIDTH))
        (y,) = Splicer(graph, "audio", **kwargs).splice(traced, {"x": x})
        graph.op("Identity", y, out="y")
        graph.output("y", "float32", (1, "steps", WIDTH))
        graph.save()
    return onnx.load(path, load_external_data=False)


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_spliced_graph_equals_the_module(traced: Any, toy: Toy, tmp_path: Path, steps: int) -> None:
    splice(traced, toy, tmp_path / "toy.onnx")
    x = torch.randn(1, steps, WIDTH)
    (found,) = ort.InferenceSession(str(tmp_path / "toy.onnx")).run(None, {"x": x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, toy(x).numpy(), rtol=0, atol=2e-6)


def test_what_depends_on_parameters_alone_is_computed_now(traced: Any, toy: Toy, tmp_path: Path) -> None:
    model = splice(traced, toy, tmp_path / "toy.onnx")
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("MatMul") == 2 and "Softplus" not in kinds and "Transpose" not in kinds


def test_rms_norms_are_single_nodes_unless_the_power_is_used_elsewhere(
    traced: Any, toy: Toy, tmp_path: Path
) -> None:
    kinds = [node.op_type for node in splice(traced, toy, tmp_path / "toy.onnx").graph.node]
    assert kinds.count("SimplifiedLayerNormalization") == 2 and kinds.count("Pow") == 2


def test_matrices_are_stored_as_the_recipe_says(traced: Any, toy: Toy, tmp_path: Path) -> None:
    model = splice(traced, toy, tmp_path / "toy.onnx", "int8")
    products = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    attributes = [{a.name: a.i for a in node.attribute} for node in products]
    assert [(a["K"], a["N"], a["bits"], a["accuracy_level"]) for a in attributes] == [
        (WIDTH, 48, 8, 4),
        (48, WIDTH, 8, 4),
    ]
    assert not [node for node in model.graph.node if node.op_type == "MatMul"]


def test_graph_holds_names_of_modules_and_nothing_of_this_machine(
    traced: Any, toy: Toy, tmp_path: Path
) -> None:
    model = splice(traced, toy, tmp_path / "toy.onnx")
    raw = (tmp_path / "toy.onnx").read_bytes()
    assert b"pkg.torch" not in raw and b".py" not in raw and len(raw) < 8000
    assert "up/MatMul" in [node.name for node in model.graph.node]
    assert "norm" in [tensor.name for tensor in model.graph.initializer]


def test_every_parameter_is_reported_once(traced: Any, toy: Toy, tmp_path: Path) -> None:
    read: list[None] = []
    splice(traced, toy, tmp_path / "toy.onnx", advance=lambda: read.append(None))
    assert len(read) == len(dict(toy.named_parameters())) == len(traced.graph.inputs) - 1


def test_checkpoint_of_another_shape_is_refused(traced: Any, toy: Toy, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(toy, norm=torch.ones(WIDTH + 1))
    with WeightedGraph("toy", tmp_path / "toy.onnx", checkpoint, find_recipe("fp32")) as graph:
        x = graph.input("x", "float32", (1, "steps", WIDTH))
        with pytest.raises(CheckpointError, match=r"^toy has norm of shape \[33\], its config.json expects"):
            Splicer(graph, "audio").splice(traced, {"x": x})


def test_what_torch_cannot_export_is_an_error() -> None:
    class Branching(Toy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else x + self.norm

    with weightless():
        empty = Branching()
    with pytest.raises(ExportError, match="cannot export the Branching"):
        trace(empty)  # type: ignore[arg-type]


def test_optimum_finds_the_configuration_of_a_tower() -> None:
    from edge_gemma.export.audio import AudioConfig

    with weightless():
        encoder = Encoder(MEDIA, "audio")
    config = exporter_config(encoder)
    assert type(config) is AudioConfig
    assert config.inputs == {"input_features": {1: "frames"}} and list(config.outputs) == ["soft_tokens"]
    assert tuple(config.generate_dummy_inputs()["input_features"].shape) == (1, 400, 128)


@pytest.mark.parametrize("kind", ["audio", "vision"])
def test_shapes_are_those_of_transformers_whole_model(kind: str) -> None:
    import copy

    from transformers import Gemma3nConfig
    from transformers.models.gemma3n.modeling_gemma3n import Gemma3nModel

    with torch.device("meta"):
        model = Gemma3nModel(Gemma3nConfig.from_dict(copy.deepcopy(MEDIA)))
    parts = (f"{kind}_tower.", f"embed_{kind}.")
    theirs = {n: tuple(p.shape) for n, p in model.named_parameters() if n.startswith(parts)}
    assert tower_shapes(MEDIA, kind) == theirs


def test_building_leaves_the_configuration_alone() -> None:
    """timm changes the block arguments that it builds from."""
    before = repr(MEDIA)
    tower_shapes(MEDIA, "vision")
    assert repr(MEDIA) == before


def test_weightless_encoders_have_the_buffers_of_float32() -> None:
    """Also where config.json says bfloat16, in which the timescales would be off by a third of a percent."""
    with weightless():
        audio = MEDIA["audio_config"] | {"dtype": "bfloat16"}
        empty = Encoder(MEDIA | {"audio_config": audio}, "audio")
    whole = Encoder(MEDIA, "audio")
    assert all(parameter.is_meta for parameter in empty.parameters())
    buffers = dict(empty.named_buffers())
    assert len(buffers) > 10
    for name, expected in whole.named_buffers():
        assert torch.equal(buffers[name], expected), name


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("audio", {"audio_config": None}, "^config.json has no audio_config"),
        (
            "audio",
            {"audio_config": {"hidden_size": "wide"}},
            "no audio tower .*: Field 'hidden_size' expected int",
        ),
        ("vision", {"vision_config": {"architecture": "eyes"}}, "no vision tower .*: Unknown model"),
    ],
)
def test_configurations_without_a_tower(kind: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        tower_shapes(MEDIA | changes, kind)


def test_resident_weights(tmp_path: Path) -> None:
    (tmp_path / "x.onnx.data").write_bytes(bytes(133))
    int8 = find_recipe("int8").matrices["audio"]
    assert resident_weights(tmp_path / "x.onnx", int8) == 140
    assert resident_weights(tmp_path / "x.onnx", None) == 133
