"""From logits to a token id: filters, probabilities and a sampler.

The filters are those of transformers 5, in its order: repetition penalty, temperature, top-k, top-p,
min-p (transformers/generation/utils.py `_get_logits_processor`, logits_process.py), so that a run here
can be compared with one there. The penalty is that of CTRL (Keskar et al., 2019, section 4.1). Only the
random numbers differ. `make_sampler` returns a closure, as in mlx-lm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
from numpy.random import default_rng  # numpy itself would import it for the first prompt
from numpy.typing import NDArray

from edge_gemma.errors import EdgeGemmaError, PromptError
from edge_gemma.runtime.structured import Constraint

Sampler = Callable[[NDArray[np.float32], Sequence[int]], int]


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How the next token is chosen; the defaults are those that Gemma 3n recommends.

    Raises PromptError for a value of the wrong type or outside its range.
    """

    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token (after the repetition penalty)."""
    top_k: int = 64
    """Keep the k most likely tokens, and all that tie with the k-th; 0 keeps all (and sorts them all)."""
    top_p: float = 0.95
    """Keep the smallest set of most likely tokens whose probability reaches this; 1 keeps all."""
    min_p: float = 0.0
    """Keep tokens at least this many times as likely as the most likely one."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens of the prompt and the answer less likely; 1 changes nothing."""
    seed: int | None = None
    """The same seed gives the same ids for the same logits; None draws a fresh one."""

    def __post_init__(self) -> None:
        def real(value: object) -> float:
            return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan

        def whole(value: object) -> bool:
            return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 0

        checks = (
            ("temperature", 0 <= real(self.temperature) < math.inf, "a finite number of at least 0"),
            ("top_k", whole(self.top_k), "a whole number of at least 0 (0 turns it off)"),
            ("top_p", 0 <= real(self.top_p) <= 1, "a number from 0 to 1"),
            ("min_p", 0 <= real(self.min_p) <= 1, "a number from 0 to 1"),
            ("repetition_penalty", 0 < real(self.repetition_penalty) < math.inf, "a finite number above 0"),
            ("seed", self.seed is None or whole(self.seed), "a whole number of at least 0, or None"),
        )
        for name, good, expected in checks:
            if not good:
                raise PromptError(f"{name} is {getattr(self, name)!r}; expected {expected}")


def probabilities(
    logits: NDArray[np.float32], history: Sequence[int], options: SamplingOptions
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens that `options` leave in play, and their probabilities.

    `logits` is float32 [V] and is not changed; `history` holds the ids of the prompt and the answer so
    far, and is read only for the repetition penalty (ids of V and above are ignored).

    Returns ids int64 [k] and probabilities float64 [k] that sum to 1, from the most to the least likely,
    the lower id first where two are equal. 1 <= k <= V: a token with a logit of -inf is never among
    them, and tokens that tie with the `top_k`-th stay, as in transformers. At the edge of `top_p` the
    higher id of a tie goes first.

    Raises EdgeGemmaError if the logits hold NaN or +inf, or nothing but -inf.
    """
    scores = np.asarray(logits, dtype=np.float32)
    if options.repetition_penalty != 1.0:
        scores = _penalize(scores, history, options.repetition_penalty)
    best = int(scores.argmax())  # numpy's argmax is the first NaN where there is one
    if not np.isfinite(scores[best]):
        raise EdgeGemmaError(
            f"the model produced {scores[best]} as the best of {scores.size} logits; expected a finite one: "
            "the artifact or the arithmetic of this machine is at fault (run `edge-gemma verify`)"
        )
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        temperature = np.float32(options.temperature)
        # A temperature so low that the division overflows is greedy too.
        if not np.isfinite(scores[best] / temperature):
            return np.array([best], dtype=np.int64), np.ones(1)
        if temperature != 1:
            scores = scores / temperature

    ids = _candidates(scores, options.top_k)
    kept = scores[ids].astype(np.float64)
    order = np.argsort(-kept, kind="stable")
    ids, kept = ids[order], kept[order]

    with np.errstate(under="ignore"):
        probs = np.exp(kept - kept[0])
    probs /= probs.sum()
    keep = probs > 0
    if options.top_p < 1.0:
        tail = np.cumsum(probs[::-1])[::-1]  # [k]: this token and all less likely ones
        keep &= tail > 1.0 - options.top_p
    if options.min_p > 0.0:
        keep &= probs >= options.min_p * probs[0]
    keep[0] = True
    ids, probs = ids[keep], probs[keep]
    return ids, probs / probs.sum()


def make_sampler(options: SamplingOptions, constraint: Constraint | None = None) -> Sampler:
    """A function of (logits float32 [V], ids so far) that gives the next id.

    It owns its random numbers: two samplers made with one seed give the same ids for the same logits,
    one number being drawn per call (none when greedy). It takes the constraint along: each call is for the
    token behind that of the call before. What the constraint rules out goes before all filters. Raises
    EdgeGemmaError as `probabilities` does, PromptError as `Constraint` does.
    """
    rng = default_rng(options.seed)

    def sample(logits: NDArray[np.float32], history: Sequence[int]) -> int:
        ids, probs = probabilities(logits, history, options)
        if options.temperature == 0:
            return int(ids[0])
        drawn = int(np.searchsorted(np.cumsum(probs), rng.random(), side="right"))
        return int(ids[min(drawn, ids.size - 1)])  # the sum may end a hair below 1

    if constraint is None:
        return sample

    def sample_allowed(logits: NDArray[np.float32], history: Sequence[int]) -> int:
        token = sample(constraint.mask(logits), history)
        constraint.advance(token)
        return token

    return sample_allowed


def _penalize(scores: NDArray[np.float32], history: Sequence[int], penalty: float) -> NDArray[np.float32]:
    """A copy of scores [V] with those of the ids in `history` divided (if negative, multiplied)."""
    seen = np.fromiter(set(history), dtype=np.int64)
    seen = seen[seen < scores.size]
    old = scores[seen]
    scores = scores.copy()
    scores[seen] = np.where(old < 0, old * np.float32(penalty), old / np.float32(penalty))
    return scores


def _candidates(scores: NDArray[np.float32], top_k: int) -> NDArray[np.int64]:
    """The ids int64 [k], ascending, of the `top_k` best scores [V] and their ties, without any -inf."""
    ids = np.flatnonzero(scores >= np.finfo(np.float32).min)
    if 0 < top_k < ids.size:
        # Among many of -inf, as a constraint leaves them, the partition would be ten times as slow.
        kept = scores if ids.size == scores.size else scores[ids]
        ids = ids[kept >= np.partition(kept, ids.size - top_k)[ids.size - top_k]]
    return ids
