"""audio_encoder.onnx: a clip's waveform in, its soft tokens out.

The log-mel front end is written directly, as Gemma3nAudioFeatureExtractor of transformers computes it for a
clip alone. Behind it comes transformers' audio tower with its soft embedder, traced once in a form that gives
a better graph (`plain_forms`). Of a clip alone every frame is valid, for it begins among the clip's samples:
no more than 127 zeros round it up, and a frame has 513 samples. So there is no mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from optimum.utils import NormalizedConfig

from edge_gemma.artifact import AUDIO_ENCODER, AudioSpec
from edge_gemma.errors import CheckpointError, DependencyError
from edge_gemma.export.checkpoint import Checkpoint
from edge_gemma.export.conformer import plain_forms
from edge_gemma.export.footprint import resident_weights
from edge_gemma.export.graph import Graph
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

SAMPLE_RATE = 16_000
LONGEST = 480_000  # samples, 30 s
ROUNDING = 128  # samples: a clip is filled up with zeros to a multiple
HOP = 160
FRAME = 512
FFT = 1024
PREEMPHASIS = 0.97
LOWEST, HIGHEST = 125.0, 7600.0  # Hz, of the mel filters
FLOOR = 1e-5  # of the mel energies, before their logarithm
FLOAT_BYTES = 4
END = 2**62  # as the end of a slice


class MelGenerator(FloatGenerator):
    """One clip's features; optimum's own generator has channels before frames."""

    SUPPORTED_INPUT_NAMES = ("input_features",)

    def __init__(self, task: str, normalized_config: NormalizedConfig, **_: Any) -> None:
        self.shape = [1, 400, normalized_config.input_feat_size]


@register("gemma3n_audio", TASK)
class AudioConfig(EncoderConfig):
    """The audio tower takes log-mel features, float32 [1, frames, mels]."""

    DUMMY_INPUT_GENERATOR_CLASSES = (MelGenerator,)

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {"input_features": {1: "frames"}}


class AudioEncoder(Encoder):
    """transformers' audio tower and soft embedder for one clip alone, every frame of it valid."""

    def __init__(self, config_json: Mapping[str, Any]) -> None:
        super().__init__(config_json, "audio")

    def forward(self, input_features: torch.Tensor) -> torch.Tensor:
        """float32 [1, frames, mels] → [1, tokens, H]"""
        tower: Any = self.audio_tower
        embedder: Any = self.embed_audio
        x = tower.subsample_conv_projection(input_features)
        for block in tower.conformer:
            x = block(x, None)
        tokens: torch.Tensor = embedder(inputs_embeds=x[:, :: self.config.conf_reduction_factor])
        return tokens


def export_audio_encoder(
    checkpoint: Checkpoint, recipe: Recipe, folder: Path, progress: Progress
) -> AudioSpec:
    """Write AUDIO_ENCODER and its data file to `folder`.

    Raises:
        CheckpointError: the checkpoint has no audio tower, or tensors of it are missing or of other shapes.
        ExportError: torch cannot export it.
    """
    media = checkpoint.config.audio
    if media is None:
        raise CheckpointError(f"{checkpoint.name} has no audio tower: leave the audio encoder out")
    with weightless():
        encoder = AudioEncoder(checkpoint.config_json)
    progress.stage("tracing the audio encoder", 1)
    with plain_forms():
        traced = trace(encoder)
    progress.advance()
    progress.stage("audio encoder", len(traced.graph.inputs) - 1)
    hidden, path = checkpoint.config.text.hidden_size, folder / AUDIO_ENCODER
    with WeightedGraph("gemma3n-audio-encoder", path, checkpoint, recipe) as graph:
        waveform = graph.input("waveform", "float32", ("samples",))
        with graph.scope("front_end"):
            features = log_mel(graph, waveform, encoder.config.input_feat_size)
        (tokens,) = Splicer(graph, "audio", progress.advance).splice(traced, {"input_features": features})
        graph.op("Squeeze", tokens, graph.constant([0], np.int64), out="soft_tokens")
        graph.output("soft_tokens", "float32", ("tokens", hidden))
        (saved,) = graph.save()
    frames_per_token = encoder.config.conf_reduction_factor * math.prod(
        stride[0] for stride in encoder.config.sscp_conv_stride_size
    )
    longest = longest_clip(media.soft_tokens, frames_per_token)
    return AudioSpec(
        file=AUDIO_ENCODER,
        data=graph.data_file,
        input=saved.inputs[0],
        output=saved.outputs[0],
        sample_rate=SAMPLE_RATE,
        min_samples=FRAME + 1,
        max_samples=longest,
        pad_multiple=ROUNDING,
        frame=FRAME + 1,
        hop=HOP,
        frames_per_token=frames_per_token,
        soft_tokens=media.soft_tokens,
        fill_token=checkpoint.config.text.vocab_size - 1,
        memory=resident_weights(path, recipe.matrices["audio"]) + _activations(encoder.config, longest),
    )


def _activations(config: Any, samples: int) -> int:
    """Bytes that the allocator comes to hold for a clip: most are what the first convolution computes, before
    and after its norm, and what that leaves unused between its pieces."""
    (height, width), *_ = config.sscp_conv_stride_size
    frames = (samples - FRAME - 1) // HOP + 1
    values: int = config.sscp_conv_channel_size[0] * (frames // height) * (config.input_feat_size // width)
    return 4 * FLOAT_BYTES * values


def longest_clip(soft_tokens: int, frames_per_token: int) -> int:
    """Samples of the longest clip, of 30 s or less, that takes no more than `soft_tokens` soft tokens."""
    frames = soft_tokens * frames_per_token
    samples = HOP * frames + FRAME  # one more would be another frame
    return min(LONGEST, samples - samples % ROUNDING)


def log_mel(g: Graph, waveform: str, mels: int) -> str:
    """float32 [samples] → [1, frames, mels]

    The spectrum is computed in float64, as numpy does it: in float32 the bins far from a loud tone, which the
    logarithm lifts, would be off by up to 0.14.
    """
    samples = g.op("Shape", waveform)
    rounded = g.op("Add", samples, g.op("Mod", g.op("Neg", samples), _integers(g, ROUNDING)))
    frames = g.op("Div", g.op("Sub", rounded, _integers(g, FRAME + 1 - HOP)), _integers(g, HOP))
    shifted = g.op(
        "Add", frames, _integers(g, FRAME // HOP)
    )  # hops from the first frame to the last one's end
    length = g.op("Add", g.op("Mul", shifted, _integers(g, HOP)), _integers(g, 1))
    padding = g.op("Concat", _integers(g, 0), g.op("Sub", length, samples), axis=0)
    padded = g.op("Pad", waveform, padding)
    # The window begins with 0: a frame's first sample, the only one without predecessor, is lost.
    before = g.op("Slice", padded, _integers(g, 0), _integers(g, -1))
    after = g.op("Slice", padded, _integers(g, 1), _integers(g, END))
    emphasized = g.op("Sub", after, g.op("Mul", before, g.constant(PREEMPHASIS)))
    hops = g.op("Reshape", emphasized, _integers(g, -1, HOP))
    pieces = []
    for i in range(FRAME // HOP + 1):
        end = i - FRAME // HOP or END
        width = min(HOP, FRAME - 1 - i * HOP)
        pieces.append(g.op("Slice", hops, _integers(g, i, 0), _integers(g, end, width)))
    framed = g.op("Mul", g.op("Concat", *pieces, axis=1), g.constant(_window()))
    filters = mel_filters(mels)
    used = np.flatnonzero(filters.any(1))
    angles = 2 * np.pi * np.outer(np.arange(1, FRAME), used) / FFT
    parts = g.weight("dft", np.concatenate([np.cos(angles), np.sin(angles)], 1))
    spectrum = g.op("MatMul", g.op("Cast", framed, to=TensorProto.DOUBLE), parts)
    complex_shape = _integers(g, -1, 2, len(used))
    magnitude = g.op("ReduceL2", g.op("Reshape", spectrum, complex_shape), _integers(g, 1), keepdims=0)
    energies = g.op("MatMul", magnitude, g.weight("mel_filters", filters[used]))
    logarithm = g.op("Log", g.op("Max", energies, g.constant(FLOOR, np.float64)))
    return g.op("Unsqueeze", g.op("Cast", logarithm, to=TensorProto.FLOAT), _integers(g, 0))


def mel_filters(mels: int) -> NDArray[np.float64]:
    """Weights of the spectrum's bins in the mel energies, [FFT / 2 + 1, mels]"""
    try:
        import librosa
    except ImportError:
        raise DependencyError(
            "librosa is missing and the audio front end needs its mel filters: "
            "pip install 'edge-gemma[export]'"
        ) from None
    filters: NDArray[np.float64] = librosa.filters.mel(
        sr=SAMPLE_RATE,
        n_fft=FFT,
        n_mels=mels,
        fmin=LOWEST,
        fmax=HIGHEST,
        htk=True,
        norm=None,
        dtype=np.float64,
    )
    return filters.T


def _window() -> NDArray[np.float32]:
    """The periodic Hann window without its first value, which is 0"""
    angles = 2 * np.pi * np.arange(FRAME, dtype=np.float32) / FRAME
    return (0.5 * (1 - np.cos(angles)))[1:].astype(np.float32)


def _integers(g: Graph, *values: int) -> str:
    return g.constant(values, np.int64)
