"""Silence, loudness and noise around a clip (numpy only)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def noise(rng: np.random.Generator, samples: int, colour: float) -> NDArray[np.float32]:
    """float32 [samples] of unit power, its spectrum falling with frequency^-colour: 0 white, 1 pink."""
    size = -(-samples // 4096) * 4096  # a size that the transform likes
    spectrum = np.fft.rfft(rng.standard_normal(size).astype(np.float32))
    spectrum *= np.maximum(np.arange(len(spectrum)), 1.0) ** (-colour / 2)
    wave = np.fft.irfft(spectrum)[:samples].astype(np.float32)
    return wave / np.sqrt(np.mean(wave**2))


def with_noise(
    wave: NDArray[np.float32], rng: np.random.Generator, *, snr_db: float, colour: float
) -> NDArray[np.float32]:
    """float32 [samples] plus noise, `snr_db` below the mean power of the parts that are not silent."""
    power = np.mean(wave[np.abs(wave) > 1e-3] ** 2)
    return wave + noise(rng, len(wave), colour) * np.sqrt(power * 10 ** (-snr_db / 10))


def place(
    clip: NDArray[np.int16], rng: np.random.Generator, *, samples: int, start: int
) -> NDArray[np.float32]:
    """A clip at a random loudness inside `samples` of digital silence, from sample `start` on."""
    wave = np.zeros(samples, np.float32)
    wave[start : start + len(clip)] = clip.astype(np.float32) * (10 ** (rng.uniform(-20, 0) / 20) / 32768)
    return wave
