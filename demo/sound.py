"""From a clip to the model: placed in silence, with noise, as log-mel features.

`log_mel` is Gemma3nAudioFeatureExtractor for many clips of one length at once, in torch. Clips of a batch
are placed in silence up to one length, so that nothing is padded or masked and every clip's features are
those that it has when extracted alone.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Gemma3nAudioFeatureExtractor

from demo.noise import place, with_noise

FRAME, HOP, FFT = 512, 160, 1024  # samples
EMPHASIS, FLOOR = 0.97, 1e-5
MULTIPLE = 128  # the extractor pads a clip to a multiple of this
RATE = 16_000


@functools.cache
def _window_and_filters() -> tuple[Tensor, Tensor]:
    """The extractor's own Hann window [512] and mel filters [513, 128], float32."""
    extractor = Gemma3nAudioFeatureExtractor()
    return torch.from_numpy(extractor.window), torch.from_numpy(extractor.mel_filters).float()


def log_mel(waves: Tensor) -> Tensor:
    """waves float32 [B, N] at 16 kHz → float32 [B, T, 128], T = (N padded to 128s − 513) // 160 + 1."""
    window, filters = _window_and_filters()
    waves = torch.nn.functional.pad(waves, (0, -waves.shape[1] % MULTIPLE))
    frames = waves.unfold(1, FRAME + 1, HOP)  # [B, T, 513]
    first = frames[..., :1] * (1 - EMPHASIS)
    emphasised = torch.cat([first, frames[..., 1:-1] - EMPHASIS * frames[..., :-2]], dim=-1)
    spectrum = torch.fft.rfft(emphasised * window, n=FFT).abs()  # [B, T, 513]
    return (spectrum @ filters).clamp(min=FLOOR).log()


def augment(clips: list[NDArray[np.int16]], seed: int) -> Tensor:
    """Training clips as one batch, float32 [B, N]: each somewhere in N samples, most of them with noise.

    N leaves the longest clip at least 0.1 s and at most 0.9 s of silence.
    """
    rng = np.random.default_rng(seed)
    samples = max(map(len, clips)) + int(rng.uniform(0.1, 0.9) * RATE)
    waves = []
    for clip in clips:
        wave = place(clip, rng, samples=samples, start=int(rng.integers(0, samples - len(clip) - 320)))
        if rng.random() < 0.65:
            wave = with_noise(wave, rng, snr_db=rng.uniform(4, 30), colour=rng.uniform(0, 1.2))
        waves.append(wave)
    return torch.from_numpy(np.stack(waves))
