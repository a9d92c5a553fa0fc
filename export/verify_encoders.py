"""Compares an artifact's encoders with transformers' towers, preprocessing included."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edge_gemma.artifact import Artifact, AudioSpec, VisionSpec
from edge_gemma.export.checkpoint import Checkpoint
from edge_gemma.export.parity import EncoderReport, compare_soft_tokens
from edge_gemma.export.timm_support import require_timm
from edge_gemma.export.towers import Encoder
from edge_gemma.export.vision import PREPARATION
from edge_gemma.progress import Progress
from edge_gemma.runtime.session import open_session

SECONDS = 3  # of the clip
HEIGHT, WIDTH = 480, 640  # of the image


def verify_encoders(
    artifact: Artifact, checkpoint: Checkpoint, progress: Progress
) -> dict[str, EncoderReport]:
    """A report for each encoder that the artifact has: "audio", "vision".

    Raises:
        ArtifactError: a graph cannot be loaded.
        CheckpointError: the checkpoint has no such tower.
    """
    reports = {}
    specs: dict[str, AudioSpec | VisionSpec | None] = {
        "audio": artifact.manifest.audio,
        "vision": artifact.manifest.vision,
    }
    progress.stage("encoders", sum(spec is not None for spec in specs.values()))
    for kind, spec in specs.items():
        if spec is None:
            continue
        data = probe_clip() if kind == "audio" else probe_image()
        session = open_session(artifact.path(spec.file))
        (found,) = session.run([spec.output.name], {spec.input.name: data})
        del session
        reports[kind] = compare_soft_tokens(found, reference_soft_tokens(checkpoint, kind, data))
        progress.advance()
    return reports


def reference_soft_tokens(checkpoint: Checkpoint, kind: str, data: NDArray[Any]) -> NDArray[np.float32]:
    """transformers' soft tokens, float32 [tokens, H], of a clip (float32 [samples]) or an image (uint8)."""
    encoder: Any = load_encoder(checkpoint, kind)
    with torch.no_grad():
        if kind == "audio":
            from transformers.models.gemma3n import Gemma3nAudioFeatureExtractor

            features = Gemma3nAudioFeatureExtractor(feature_size=encoder.config.input_feat_size)(
                [data], return_tensors="pt"
            )
            output = encoder.audio_tower(features["input_features"], ~features["input_features_mask"])
            soft = encoder.embed_audio(inputs_embeds=output.last_hidden_state)
        else:
            pixels = image_processor(checkpoint)(data, return_tensors="pt")["pixel_values"]
            features = encoder.vision_tower(pixel_values=pixels, do_pooling=False).last_hidden_state
            width = encoder.config.hidden_size  # [1, width, 16, 16] → [1, 256, width]
            features = features.reshape(1, width, -1).permute(0, 2, 1) * width**0.5
            soft = encoder.embed_vision(inputs_embeds=features)
    result: NDArray[np.float32] = soft[0].numpy()
    return result


def load_encoder(checkpoint: Checkpoint, kind: str) -> Encoder:
    """transformers' tower and embedder with the checkpoint's weights in float32."""
    from transformers.initialization import no_init_weights

    require_timm()
    with no_init_weights():
        encoder = Encoder(checkpoint.config_json, kind)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            parameter.copy_(checkpoint.tensor(name).float())
    return encoder


def image_processor(checkpoint: Checkpoint) -> Any:
    """transformers' image processor as the checkpoint describes it; Gemma 3n's where it does not."""
    require_timm()
    from transformers import SiglipImageProcessor

    said = {name: value for name, value in checkpoint.image_processor().items() if value is not None}
    return SiglipImageProcessor(**{name: said.get(name, value) for name, value in PREPARATION.items()})


def probe_clip(seconds: int = SECONDS) -> NDArray[np.float32]:
    """A rising tone in noise, float32 [samples] at 16 kHz."""
    times = np.arange(seconds * 16_000) / 16_000
    tone = np.sin(2 * np.pi * (200 + 500 * times) * times)
    noise = np.random.default_rng(0).standard_normal(len(times))
    return (0.3 * tone + 0.03 * noise).astype(np.float32)


def probe_image() -> NDArray[np.uint8]:
    """Colour gradients with noise, uint8 [HEIGHT, WIDTH, 3]."""
    y, x = np.mgrid[0 : 1 : HEIGHT * 1j, 0 : 1 : WIDTH * 1j]
    picture = np.stack([x, y, np.sin(20 * x * y) ** 2], -1) * 215
    noise = np.random.default_rng(0).integers(0, 40, picture.shape)
    return (picture + noise).astype(np.uint8)
