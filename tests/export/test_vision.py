"""The vision encoder: soft tokens from the image are those of transformers."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tiny
import torch
from numpy.typing import NDArray
from PIL import Image

from edge_gemma.artifact import VISION_ENCODER, VisionSpec
from edge_gemma.config import parse_config
from edge_gemma.errors import CheckpointError, ExportError
from edge_gemma.export.synthetic import CONFIGS
from edge_gemma.export.vision import PREPARATION, export_vision_encoder, image_size
from edge_gemma.progress import Silent
from edge_gemma.recipes import find_recipe

# timm's shorthand: er, uir, mqa; r repeats, k kernel (of the middle), a kernel (of the start), s stride,
# e expansion, c channels, h heads, d their width, v stride of keys and values
ARCHITECTURES = {
    "as-google": [
        ["er_r1_k3_s2_e4_c16"],
        ["uir_r1_a3_k5_s2_e6_c24", "uir_r1_a5_k0_s1_e4_c24"],
        ["uir_r1_a5_k5_s2_e6_c32", "mqa_r1_k3_h3_v2_s1_d16_c32", "uir_r1_a0_k0_s1_e1_c32"],
        ["uir_r1_a5_k5_s2_e6_c64", "mqa_r1_k3_h4_s1_d24_c64", "uir_r1_a0_k0_s1_e2_c64"],
    ],
    "strided-start": [
        ["er_r2_k3_s2_e2_c16"],
        ["uir_r1_a3_k0_s2_e2_c24"],
        ["uir_r1_a0_k3_s2_e2_c40", "mqa_r1_k5_h2_v2_s1_d8_c40", "uir_r1_a0_k0_s1_e3_c40"],
        ["uir_r1_a3_k0_s2_e2_c40", "mqa_r2_k3_h1_s1_d32_c40", "uir_r1_a5_k0_s1_e2_c40"],
    ],
    "wide-kernels": [
        ["er_r1_k5_s2_e2_c16", "er_r1_k5_s1_e3_c16"],
        ["uir_r1_a7_k7_s2_e2_c16"],
        ["uir_r1_a3_k3_s2_e2_c32", "uir_r2_a5_k3_s1_e2_c32"],
        ["uir_r1_a0_k5_s2_e3_c48"],
    ],
}  # fmt: skip
SMALL = [(32, 32), (96, 96), (1, 1), (3, 500), (333, 222)]  # height, width
IMAGES = [*SMALL, (768, 1024), (1999, 41), (3000, 4000), (4000, 3000)]


def config(architecture: str) -> dict[str, Any]:
    from edge_gemma.export.timm_support import require_timm

    require_timm()
    from timm.models._efficientnet_builder import decode_arch_def

    blocks = decode_arch_def(ARCHITECTURES[architecture])
    whole = copy.deepcopy(CONFIGS["tiny-media"])
    whole["vision_config"]["model_args"] = {"block_args": blocks, "stem_size": 16}
    return whole


class Reference:
    """transformers' vision tower and embedder with random weights, and the checkpoint that holds them."""

    name = "reference"
    revision = None

    def __init__(self, config_json: dict[str, Any], size: int | tuple[int, int], seed: int = 0) -> None:
        from edge_gemma.export.towers import Encoder

        height, width = (size, size) if isinstance(size, int) else size
        self.config_json = config_json
        self.config = parse_config(config_json)
        self.processor = PREPARATION | {"size": {"height": height, "width": width}}
        torch.manual_seed(seed)
        self.encoder = Encoder(config_json, "vision").requires_grad_(False)
        tiny.randomise(self.encoder)
        for name, parameter in self.encoder.named_parameters():
            if parameter.ndim > 2:  # tiny.randomise knows matrices only
                parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * torch.randn_like(parameter))
        self.tensors = dict(self.encoder.named_parameters())

    def tensor(self, name: str) -> torch.Tensor:
        return self.tensors[name].detach().clone()

    def image_processor(self) -> dict[str, Any]:
        return self.processor

    def prepare(self, image: NDArray[np.uint8]) -> torch.Tensor:
        """What transformers makes of an image: float32 [1, 3, height, width]"""
        from transformers import SiglipImageProcessor

        values = {key: value for key, value in self.processor.items() if value is not None}
        pixels = SiglipImageProcessor(**values)(Image.fromarray(image), return_tensors="pt")["pixel_values"]
        assert isinstance(pixels, torch.Tensor)
        return pixels

    def soft_tokens(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What transformers computes: float32 [256, H]"""
        from transformers import Gemma3nModel

        encoder: Any = self.encoder
        model: Any = SimpleNamespace(
            vision_tower=encoder.vision_tower,
            embed_vision=encoder.embed_vision,
            config=SimpleNamespace(
                vision_config=encoder.config, vision_soft_tokens_per_image=256, return_dict=True
            ),
        )
        output: Any = Gemma3nModel.get_image_features(model, self.prepare(image))
        tokens: NDArray[np.float32] = output.pooler_output[0].numpy()
        return tokens


def export(checkpoint: Any, folder: Path, recipe: str = "fp32") -> VisionSpec:
    return export_vision_encoder(checkpoint, find_recipe(recipe), folder, Silent())


def encoder(folder: Path) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """image → soft tokens, by onnxruntime"""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(folder / VISION_ENCODER), options, providers=["CPUExecutionProvider"])

    def encode(image: NDArray[np.uint8]) -> NDArray[np.float32]:
        tokens: NDArray[np.float32] = session.run(["soft_tokens"], {"image": image})[0]
        return tokens

    return encode


def images(shapes: list[tuple[int, int]], seed: int = 0) -> list[NDArray[np.uint8]]:
    """Noise, the hardest case for a resize"""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


def relative_error(ours: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


@pytest.mark.parametrize(
    ("architecture", "size"),
    [("as-google", 96), ("as-google", (64, 96)), ("strided-start", 64), ("wide-kernels", 96)],
    ids=str,
)
def test_soft_tokens_are_those_of_transformers(
    architecture: str, size: int | tuple[int, int], tmp_path: Path
) -> None:
    reference = Reference(config(architecture), size)
    spec = export(reference, tmp_path)
    encode = encoder(tmp_path)
    for image in images(IMAGES):
        ours, theirs = encode(image), reference.soft_tokens(image)
        assert ours.shape == theirs.shape == spec.output.shape == (256, reference.config.text.hidden_size)
        assert relative_error(ours, theirs) < 1e-4, image.shape


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Reference, Path, VisionSpec]:
    reference = Reference(config("as-google"), 96)
    folder = tmp_path_factory.mktemp("vision-int8")
    return reference, folder, export(reference, folder, "int8")


def test_matrices_are_quantized_as_the_recipe_says(quantized: tuple[Reference, Path, VisionSpec]) -> None:
    reference, folder, _ = quantized
    nodes = onnx.load(folder / VISION_ENCODER, load_external_data=False).graph.node
    kinds = Counter(node.op_type for node in nodes)
    matrices = [p for p in reference.encoder.parameters() if p.ndim == 4 and p.shape[2:] == (1, 1)]
    assert kinds["MatMulNBits"] == len(matrices) + 1  # and the embedder's
    assert kinds["MatMul"] == 0
    image = images([(200, 300)])[0]
    ours, theirs = encoder(folder)(image), reference.soft_tokens(image)
    assert 10 * np.log10((theirs**2).sum() / ((ours - theirs) ** 2).sum()) > 20  # dB


def test_channels_stay_last_and_norms_are_single_nodes(quantized: tuple[Reference, Path, VisionSpec]) -> None:
    reference, folder, _ = quantized
    nodes = onnx.load(folder / VISION_ENCODER, load_external_data=False).graph.node
    tower = [node for node in nodes if not node.name.startswith("front_end")]
    kinds = Counter(node.op_type for node in tower)
    norms = [
        name
        for name, _ in reference.encoder.named_parameters()
        if name.endswith(("bn.weight", "norm.weight"))
    ]
    assert kinds["SimplifiedLayerNormalization"] >= len(norms) - 1  # without that of hard embeddings
    assert not kinds.keys() & {"ReduceMean", "Pow", "Sqrt", "Reciprocal", "Softmax", "Pad"}
    assert kinds["Transpose"] <= 2 * (kinds["Conv"] + kinds["Resize"])
    assert kinds["MultiHeadAttention"] == 2


def test_the_file_tells_nothing_of_the_machine(quantized: tuple[Reference, Path, VisionSpec]) -> None:
    _, folder, _ = quantized
    content = (folder / VISION_ENCODER).read_bytes()
    assert b".py" not in content and str(Path.home()).encode() not in content


def test_spec_describes_the_graph(quantized: tuple[Reference, Path, VisionSpec]) -> None:
    reference, folder, spec = quantized
    assert spec.file == VISION_ENCODER
    assert (spec.input.name, spec.input.dtype, spec.input.shape) == ("image", "uint8", ("height", "width", 3))
    assert (spec.output.name, spec.output.dtype) == ("soft_tokens", "float32")
    assert spec.soft_tokens == 256
    largest = 2048 * 16 * 16 * 4  # bytes, of the map that becomes the soft tokens
    weights = (folder / f"{VISION_ENCODER}.data").stat().st_size
    assert spec.memory == pytest.approx(weights + 4 * largest, rel=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_normalize": True}, "do_normalize = True"),
        ({"resample": 3}, "resample = 3"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor"),
        ({"do_center_crop": True}, "do_center_crop"),
        ({"size": {"shortest_edge": 768}}, "expected height and width"),
        ({"size": {"height": "x", "width": 768}}, "expected height and width"),
        ({"size": {"height": 768, "width": None}}, "expected height and width"),
        ({"size": {"height": 1e999, "width": 768}}, "expected height and width"),
    ],
)
def test_another_preparation_is_refused(change: dict[str, Any], message: str) -> None:
    checkpoint: Any = SimpleNamespace(name="other", image_processor=lambda: change)
    with pytest.raises(CheckpointError, match=message):
        image_size(checkpoint)


def test_size_is_that_of_the_image_processor() -> None:
    checkpoint: Any = SimpleNamespace(name="silent", image_processor=dict)
    assert image_size(checkpoint) == (768, 768)
    checkpoint.image_processor = lambda: {"size": {"width": 640, "height": 480}, "do_pad": None}
    assert image_size(checkpoint) == (480, 640)


def test_a_tower_with_other_blocks_is_refused(tmp_path: Path) -> None:
    """Squeeze-and-excitation averages over places that are elsewhere with channels last"""
    other = config("as-google")
    other["vision_config"]["model_args"]["block_args"][0][0]["se_ratio"] = 0.25
    with pytest.raises(ExportError, match="SqueezeExcite"):
        export(Reference(other, 64), tmp_path)


def test_a_wrong_number_of_soft_tokens_is_refused(tmp_path: Path) -> None:
    other = config("strided-start") | {"vision_soft_tokens_per_image": 100}
    with pytest.raises(CheckpointError, match=r"256.*expects \[100, 64\]"):
        export(Reference(other, 64), tmp_path)
