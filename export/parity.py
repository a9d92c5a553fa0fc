"""The numeric contract: how the logits, and the soft tokens, of two implementations are compared.

Relative error at a position is max |ours - reference| / max |reference|. Greedy tokens agree where the two
take the same token, or where the reference's two best logits lie closer than NEAR_TIE and ours is one of
them. Logits that hold NaN or infinity agree in nothing: their errors are infinite. The same definitions
serve `edge-gemma verify` and every parity test.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

NEAR_TIE = 1e-3
TOP = 10


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """Comparison of logits over a number of positions."""

    positions: int
    argmax_agreement: float  # share of positions, near ties counted as agreeing
    near_ties: int  # positions where the two differ within a near tie of the reference
    max_absolute_error: float
    max_relative_error: float
    mean_relative_error: float
    kl_divergence: float  # mean KL(reference || ours), nats
    snr_db: float  # power of the reference's logits, their mean removed, over that of the error
    top10_overlap: float  # mean share of the reference's ten best tokens among ours

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


NOT_FINITE = ParityReport(
    positions=1,
    argmax_agreement=0.0,
    near_ties=0,
    max_absolute_error=math.inf,
    max_relative_error=math.inf,
    mean_relative_error=math.inf,
    kl_divergence=math.inf,
    snr_db=-math.inf,
    top10_overlap=0.0,
)


def compare(ours: NDArray[np.float32], reference: NDArray[np.float32]) -> ParityReport:
    """Compare logits float32 [T, V] position by position."""
    if ours.shape != reference.shape or ours.ndim != 2 or not len(ours):
        raise ValueError(f"cannot compare logits of shapes {ours.shape} and {reference.shape}")
    reports = [_position(o, r) for o, r in zip(ours, reference, strict=True)]
    return combine(reports)


def combine(reports: list[ParityReport]) -> ParityReport:
    """One report over the positions of several, each weighted by its positions."""
    counts = np.array([r.positions for r in reports])

    def mean(name: str) -> float:
        return float(np.average([getattr(r, name) for r in reports], weights=counts))

    noise = np.average([10 ** (-r.snr_db / 10) for r in reports], weights=counts)
    return ParityReport(
        positions=int(counts.sum()),
        argmax_agreement=mean("argmax_agreement"),
        near_ties=sum(r.near_ties for r in reports),
        max_absolute_error=max(r.max_absolute_error for r in reports),
        max_relative_error=max(r.max_relative_error for r in reports),
        mean_relative_error=mean("mean_relative_error"),
        kl_divergence=mean("kl_divergence"),
        snr_db=float(-10 * np.log10(max(noise, 1e-20))),
        top10_overlap=mean("top10_overlap"),
    )


def agrees(token: int, reference: NDArray[np.float32]) -> tuple[bool, bool]:
    """Whether a greedy token agrees with reference logits float32 [V], and whether only by a near tie."""
    best = int(reference.argmax())
    if token == best:
        return True, False
    second = np.partition(reference, -2)[-2]
    tie = bool(reference[best] - second < NEAR_TIE and reference[token] >= second)
    return tie, tie


def _position(ours: NDArray[np.float32], reference: NDArray[np.float32]) -> ParityReport:
    if not np.isfinite(ours).all():
        return NOT_FINITE
    error = np.abs(ours - reference)
    relative = float(error.max() / np.abs(reference).max())
    agreed, tied = agrees(int(ours.argmax()), reference)
    p, q = _log_softmax(reference), _log_softmax(ours)
    centered = reference.astype(np.float64) - reference.mean(dtype=np.float64)
    noise = (ours.astype(np.float64) - reference) ** 2
    top = min(TOP, len(ours))
    overlap = len(set(np.argpartition(ours, -top)[-top:]) & set(np.argpartition(reference, -top)[-top:]))
    return ParityReport(
        positions=1,
        argmax_agreement=float(agreed),
        near_ties=int(tied),
        max_absolute_error=float(error.max()),
        max_relative_error=relative,
        mean_relative_error=relative,
        kl_divergence=max(float((np.exp(p) * (p - q)).sum()), 0.0),
        snr_db=float(10 * np.log10(max((centered**2).sum(), 1e-30) / max(noise.sum(), 1e-20))),
        top10_overlap=overlap / top,
    )


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max()
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


@dataclass(frozen=True, kw_only=True)
class EncoderReport:
    """Soft tokens of one clip or image against the reference's."""

    max_relative_error: float  # max |ours - reference| / max |reference|, over all soft tokens
    snr_db: float  # power of the reference over that of the error

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def compare_soft_tokens(found: NDArray[np.float32], reference: NDArray[np.float32]) -> EncoderReport:
    """Both float32 [tokens, H]."""
    if found.shape != reference.shape:
        raise ValueError(f"cannot compare soft tokens of shapes {found.shape} and {reference.shape}")
    error = found.astype(np.float64) - reference
    signal = np.square(reference, dtype=np.float64).sum()
    return EncoderReport(
        max_relative_error=float(np.abs(error).max() / np.abs(reference).max()),
        snr_db=float(10 * np.log10(signal / max((error**2).sum(), 1e-20))),
    )
