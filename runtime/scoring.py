"""How good answers are: each metric over all its answers, with a 95 % interval from resampling them.

    wer       wrong words per word of the reference, by jiwer; both sides without case and punctuation
    exact     share of answers equal to a reference, but for case and white space
    contains  share of answers that hold a reference, likewise
    chrf      chrF2 of the corpus, 0 to 100, by sacrebleu, on the texts as they are
    bleu      BLEU of the corpus, 0 to 100, likewise

With several references the one that suits best counts; BLEU and chrF have their own rules for that.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import zip_longest
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edge_gemma.errors import DependencyError

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric as SacrebleuMetric

RESAMPLES = 1000
Pairs = Sequence[tuple[str, Sequence[str]]]  # answers, each with its references


@dataclass(frozen=True)
class Score:
    """What a metric says of some answers."""

    value: float
    low: float  # of the 95 % interval
    high: float
    items: int
    units: int  # what `value` is per: words of the references, or items
    signature: str | None = None  # sacrebleu's, which says how it was computed


def words_only(text: str) -> str:
    """NFKC, case-folded, punctuation and symbols as spaces, and one space between words."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(" " if unicodedata.category(c)[0] in "PS" else c for c in folded).split())


def same_case(text: str) -> str:
    """NFKC, case-folded, and one space between words."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def word_error_rate(pairs: Pairs) -> Score:
    """Wrong words per word; may pass 1 where answers have words too many.

    Raises:
        DependencyError: jiwer is missing.
    """
    require("wer")
    import jiwer

    def count(answer: str, references: Sequence[str]) -> tuple[int, int]:
        found = []
        for reference in references:
            words = jiwer.process_words(words_only(reference), words_only(answer))
            wrong = words.substitutions + words.deletions + words.insertions
            found.append((wrong, words.hits + words.substitutions + words.deletions))
        return min(found, key=lambda counts: counts[0] / max(counts[1], 1))

    return _ratio([count(answer, references) for answer, references in pairs])


def exact_match(pairs: Pairs) -> Score:
    """Share of answers that are a reference."""
    return _share(pairs, lambda answer, reference: answer == reference)


def contains(pairs: Pairs) -> Score:
    """Share of answers that have a reference in them."""
    return _share(pairs, lambda answer, reference: reference in answer)


def chrf(pairs: Pairs) -> Score:
    """chrF2 of the corpus (Popović, 2016).

    Raises:
        DependencyError: sacrebleu is missing.
    """
    require("chrf")
    from sacrebleu.metrics.chrf import CHRF

    return _corpus(CHRF(), pairs)


def bleu(pairs: Pairs) -> Score:
    """BLEU of the corpus (Papineni et al., 2002), tokenized as mteval-v13a does.

    Raises:
        DependencyError: sacrebleu is missing.
    """
    require("bleu")
    from sacrebleu.metrics.bleu import BLEU

    return _corpus(BLEU(), pairs)


METRICS: dict[str, Callable[[Pairs], Score]] = {
    "wer": word_error_rate,
    "exact": exact_match,
    "contains": contains,
    "chrf": chrf,
    "bleu": bleu,
}


PACKAGES = {"wer": "jiwer", "chrf": "sacrebleu", "bleu": "sacrebleu"}


def require(metric: str) -> None:
    """Find out whether a metric can be computed: now, and not after an hour of answers.

    Raises:
        DependencyError: its package is missing.
    """
    try:
        import_module(PACKAGES.get(metric, __name__))
    except ImportError:
        raise DependencyError(f"{PACKAGES[metric]} is missing: pip install 'edge-gemma[eval]'") from None


def _share(pairs: Pairs, right: Callable[[str, str], bool]) -> Score:
    return _ratio(
        [
            (int(any(right(same_case(answer), same_case(one)) for one in references)), 1)
            for answer, references in pairs
        ]
    )


def _ratio(counts: Sequence[tuple[int, int]]) -> Score:
    """The sum of the first counts by that of the second; its interval are percentiles of resampled items."""
    table: NDArray[np.int64] = np.array(counts)  # [items, 2]
    chosen = np.random.default_rng(0).integers(0, len(table), (RESAMPLES, len(table)))
    above, below = table[chosen].sum(1).T  # [RESAMPLES] each
    low, high = np.percentile(above / np.maximum(below, 1), (2.5, 97.5))
    counted, units = (int(total) for total in table.sum(0))
    return Score(counted / max(units, 1), float(low), float(high), len(table), units)


def _corpus(metric: SacrebleuMetric, pairs: Pairs) -> Score:
    """sacrebleu's score and the interval of its own bootstrap: the mean of resamples ± half their spread."""
    streams = [list(stream) for stream in zip_longest(*(references for _, references in pairs))]
    found = metric.corpus_score([answer for answer, _ in pairs], streams, n_bootstrap=RESAMPLES)
    signature = str(metric.get_signature())
    told = json.loads(found.format(width=4, signature=signature, is_json=True))
    mean, half = told.get("confidence_mean", 0.0), told.get("confidence_var", 0.0)  # not told where all are 0
    return Score(told["score"], mean - half, mean + half, len(pairs), len(pairs), signature)
