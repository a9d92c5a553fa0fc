"""audio_encoder.onnx against transformers' feature extractor, audio tower and embedder."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tiny
import torch
from numpy.typing import NDArray
from transformers.models.gemma3n import Gemma3nAudioFeatureExtractor

from edge_gemma.artifact import AUDIO_ENCODER, AudioSpec
from edge_gemma.errors import CheckpointError
from edge_gemma.export.audio import export_audio_encoder, log_mel, longest_clip
from edge_gemma.export.graph import Graph
from edge_gemma.export.synthetic import CONFIGS, SyntheticCheckpoint
from edge_gemma.export.towers import Encoder
from edge_gemma.progress import Silent
from edge_gemma.recipes import find_recipe

RATE = 16_000
SECONDS = (0.2, 0.5, 1, 1.3, 3, 7.77, 15, 30)
# name → what differs from the audio tower of synthetic:tiny-media
SHAPES: dict[str, dict[str, Any]] = {
    "as-google": {},
    "looks-ahead": {
        "conf_attention_context_left": 5,
        "conf_attention_context_right": 3,
        "conf_conv_kernel_size": 3,
        "sscp_conv_channel_size": [6, 10],
        "sscp_conv_kernel_size": [[5, 3], [3, 5]],
        "input_feat_size": 80,
        "hidden_size": 96,
        "conf_num_attention_heads": 6,
        "conf_attention_logit_cap": 5.0,
    },
    "wide-window": {
        "conf_attention_context_left": 41,
        "conf_num_attention_heads": 1,
        "conf_num_hidden_layers": 1,
        "conf_reduction_factor": 2,
        "conf_residual_weight": 0.25,
    },
    "sees-itself": {
        "conf_attention_context_left": 1,
        "conf_num_hidden_layers": 1,
        "conf_reduction_factor": 1,
    },
}


def noise(n: int) -> NDArray[np.float64]:
    return 0.1 * np.random.default_rng(n).standard_normal(n)


# name → samples → a signal of so many
SIGNALS: dict[str, Callable[[int], NDArray[np.float64]]] = {
    "noise": noise,
    "loud": lambda n: np.clip(10 * noise(n), -1, 1),
    "quiet": lambda n: 1e-3 * noise(n),
    "silence": np.zeros,
    "tone": lambda n: np.sin(2 * np.pi * 440 * np.arange(n) / RATE),
    "chirp": lambda n: np.sin(2 * np.pi * (100 + 100 * np.arange(n) / RATE) * np.arange(n) / RATE),
    "offset": lambda n: np.full(n, 0.5),
    "words": lambda n: noise(n) * (np.arange(n) // 4000 % 2),
}


def signal(name: str, samples: int) -> NDArray[np.float32]:
    return SIGNALS[name](samples).astype(np.float32)


class Checkpoint(SyntheticCheckpoint):
    """synthetic:tiny-media with other audio towers, every weight of which is random."""

    def __init__(self, **audio: Any) -> None:
        config = CONFIGS["tiny-media"]
        config = config | {"audio_config": config["audio_config"] | audio}
        super().__init__("random", config, seed=0)
        torch.manual_seed(1)
        self.encoder = Encoder(config, "audio")
        tiny.randomise(self.encoder)
        self.tensors = dict(self.encoder.named_parameters())

    def tensor(self, name: str) -> torch.Tensor:
        return self.tensors[name].detach()


class Counting(Silent):
    """Stages with what was announced of them and what was done."""

    def __init__(self) -> None:
        self.stages: dict[str, list[int]] = {}

    def stage(self, name: str, total: int) -> None:
        self.stages[name] = [total, 0]

    def advance(self, amount: int = 1) -> None:
        self.stages[list(self.stages)[-1]][1] += amount


@dataclass(frozen=True)
class Exported:
    checkpoint: Checkpoint
    spec: AudioSpec
    path: Path
    progress: Counting

    @functools.cached_property
    def session(self) -> ort.InferenceSession:
        return ort.InferenceSession(str(self.path))

    def run(self, clip: NDArray[np.float32]) -> NDArray[np.float32]:
        (tokens,) = self.session.run(["soft_tokens"], {"waveform": clip})
        return tokens  # type: ignore[no-any-return]

    def reference(self, clip: NDArray[np.float32]) -> NDArray[np.float32]:
        """Gemma3nModel.get_audio_features for a clip alone"""
        encoder: Any = self.checkpoint.encoder
        features = extract(clip, encoder.config.input_feat_size)
        with torch.no_grad():
            mask = ~features["input_features_mask"]
            output = encoder.audio_tower(features["input_features"], mask)
            tokens = encoder.embed_audio(inputs_embeds=output.last_hidden_state)
        return tokens[0].numpy()  # type: ignore[no-any-return]


def extract(clip: NDArray[np.float32], mels: int = 128) -> Any:
    return Gemma3nAudioFeatureExtractor(feature_size=mels)([clip], return_tensors="pt")


def export(folder: Path, checkpoint: Checkpoint, recipe: str = "fp32") -> Exported:
    progress = Counting()
    spec = export_audio_encoder(checkpoint, find_recipe(recipe), folder, progress)
    return Exported(checkpoint, spec, folder / AUDIO_ENCODER, progress)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Exported]:
    @functools.cache
    def make(shape: str, recipe: str = "fp32") -> Exported:
        return export(tmp_path_factory.mktemp("audio"), Checkpoint(**SHAPES[shape]), recipe)

    return make


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SIGNALS)
def test_equals_transformers(exported: Callable[..., Exported], shape: str, name: str) -> None:
    encoder = exported(shape)
    for seconds in SECONDS:
        clip = signal(name, round(seconds * RATE))
        found, expected = encoder.run(clip), encoder.reference(clip)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max(), seconds


@pytest.mark.parametrize("shape", SHAPES)
def test_token_counts(exported: Callable[..., Exported], shape: str) -> None:
    """Of clips of every length modulo the rounding and the hop, and around every change of the count."""
    encoder = exported(shape)
    spec, step = encoder.spec, encoder.spec.hop * encoder.spec.frames_per_token
    around = [n + d for n in range(step, 4 * step, step) for d in range(-130, 520, 10)]
    around = [n for n in around if n >= spec.min_samples]
    for samples in {*range(spec.min_samples, spec.min_samples + 300), *around}:
        assert encoder.run(signal("noise", samples)).shape == (spec.tokens(samples), 64), samples


def test_longest_and_shortest_clip(exported: Callable[..., Exported]) -> None:
    encoder = exported("as-google")
    spec = encoder.spec
    assert (spec.min_samples, spec.max_samples, spec.tokens(spec.max_samples)) == (513, 480_000, 188)
    for samples in (spec.min_samples, spec.max_samples):
        clip = signal("noise", samples)
        assert encoder.run(clip).shape == encoder.reference(clip).shape


def test_specification(exported: Callable[..., Exported]) -> None:
    spec = exported("wide-window").spec
    assert (spec.file, spec.sample_rate, spec.frames_per_token, spec.hop) == (AUDIO_ENCODER, RATE, 8, 160)
    assert (spec.input.name, spec.input.shape) == ("waveform", ("samples",))
    assert (spec.output.name, spec.output.shape) == ("soft_tokens", ("tokens", 64))
    assert (spec.soft_tokens, spec.fill_token) == (188, 1039)
    assert spec.tokens(spec.max_samples) == 188 < spec.tokens(spec.max_samples + 1)
    found = exported("wide-window").session.get_inputs() + exported("wide-window").session.get_outputs()
    assert [(value.name, value.type) for value in found] == [
        ("waveform", "tensor(float)"),
        ("soft_tokens", "tensor(float)"),
    ]


@pytest.mark.parametrize("frames_per_token", [1, 4, 16])
@pytest.mark.parametrize("soft_tokens", [1, 3, 50, 188])
def test_longest_clip_fits_the_soft_tokens(soft_tokens: int, frames_per_token: int) -> None:
    samples = longest_clip(soft_tokens, frames_per_token)

    def tokens(n: int) -> int:
        frames = extract(np.zeros(n, np.float32))["input_features"].shape[1]
        return int(-(-frames // frames_per_token))

    assert samples <= 480_000 and tokens(samples) <= soft_tokens
    assert samples == 480_000 or tokens(samples + 1) > soft_tokens


# -- front end ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[128, 80])
def features(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    mels: int = request.param
    path = tmp_path_factory.mktemp("features") / "log_mel.onnx"
    with Graph("log-mel", path) as graph:
        waveform = graph.input("waveform", "float32", ("samples",))
        graph.output(log_mel(graph, waveform, mels), "float32", (1, "frames", mels))
        graph.save()
    session = ort.InferenceSession(str(path))
    return mels, lambda clip: session.run(None, {"waveform": clip})[0]


@pytest.mark.parametrize("name", SIGNALS)
def test_features_equal_the_extractors(features: Any, name: str) -> None:
    """Also far from a loud tone, where the spectrum must be computed in float64."""
    mels, run = features
    for samples in (513, 20_800, 480_000):
        clip = signal(name, samples)
        np.testing.assert_allclose(run(clip), extract(clip, mels)["input_features"], rtol=0, atol=2e-6)


def test_features_of_all_lengths(features: Any) -> None:
    mels, run = features
    for samples in range(513, 513 + 1280, 7):
        clip = signal("noise", samples)
        expected = extract(clip, mels)
        assert expected[
            "input_features_mask"
        ].all()  # of a clip alone every frame is valid: no mask is needed
        np.testing.assert_allclose(run(clip), expected["input_features"], rtol=0, atol=2e-6)


# -- weights ------------------------------------------------------------------------------------------------


def snr(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(10 * np.log10((expected**2).sum() / ((found - expected) ** 2).sum()))


def test_int8(exported: Callable[..., Exported]) -> None:
    """Every matrix has eight bits, and little is lost."""
    encoder = exported("as-google", "int8")
    model = onnx.load(encoder.path, load_external_data=False)
    quantized = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert len(quantized) == 2 + 10 * 2  # subsampling, embedder, ten for each of two blocks
    assert {a.i for node in quantized for a in node.attribute if a.name == "bits"} == {8}
    clip = signal("words", 80_000)
    assert snr(encoder.run(clip), encoder.reference(clip)) > 25


def test_graph_is_small_and_says_nothing_of_this_machine(exported: Callable[..., Exported]) -> None:
    encoder = exported("as-google")
    raw = encoder.path.read_bytes()
    assert b"pkg.torch" not in raw and b".py" not in raw
    nodes = [node.op_type for node in onnx.load(encoder.path, load_external_data=False).graph.node]
    assert len(nodes) < 60 + 100 * 2 and nodes.count("SimplifiedLayerNormalization") == 9 * 2 + 2


def test_progress_adds_up(exported: Callable[..., Exported]) -> None:
    stages = exported("sees-itself").progress.stages
    assert stages["audio encoder"][0] > 20
    assert all(total == done for total, done in stages.values())


def test_checkpoint_without_audio(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="^text has no audio tower"):
        export(tmp_path, SyntheticCheckpoint("text", CONFIGS["tiny"], 0))  # type: ignore[arg-type]
