from __future__ import annotations

import sys

import jiwer
import pytest
import sacrebleu

from edge_gemma.errors import DependencyError
from edge_gemma.runtime.scoring import METRICS, require, same_case, words_only

SAID = ["Turn on the lights", "Set a timer for ten minutes", "Close the door"]
HEARD = ["turn on the light", "Set timer for ten minutes!", "Close the door now"]
PAIRS = [(heard, [said]) for heard, said in zip(HEARD, SAID, strict=True)]


def test_word_error_rate_is_that_of_jiwer() -> None:
    found = METRICS["wer"](PAIRS)
    expected = jiwer.wer([s.lower() for s in SAID], [h.lower().rstrip("!") for h in HEARD])
    assert found.value == expected == 3 / 13
    assert (found.items, found.units) == (3, 13)
    assert found.low < found.value < found.high


@pytest.mark.parametrize("metric", ["chrf", "bleu"])
def test_corpus_scores_are_those_of_sacrebleu(metric: str) -> None:
    found = METRICS[metric](PAIRS)
    compute = {"chrf": sacrebleu.corpus_chrf, "bleu": sacrebleu.corpus_bleu}[metric]
    assert found.value == pytest.approx(compute(HEARD, [SAID]).score, abs=1e-3)
    assert found.low < found.high and found.items == 3
    assert found.signature and "nrefs:1" in found.signature


def test_several_references() -> None:
    """Each answer by the one that suits it, also where others have fewer."""
    pairs = [("a big dog", ["a large dog", "a big dog"]), ("no", ["no"])]
    assert METRICS["wer"](pairs).value == 0 and METRICS["wer"](pairs).units == 4
    assert METRICS["exact"](pairs).value == 1
    assert METRICS["chrf"](pairs).value == 100


def test_exact_and_contains() -> None:
    pairs = [("  Forty-Two ", ["forty-two"]), ("it is 42.", ["42"]), ("-5", ["5"]), ("ﬁve", ["FIVE"])]
    assert METRICS["exact"](pairs).value == 0.5
    assert METRICS["contains"](pairs).value == 1.0
    assert METRICS["exact"](pairs).low < 0.5 < METRICS["exact"](pairs).high


def test_normalisation() -> None:
    assert words_only(" Don't — STOP!\n(now)  €5 ") == "don t stop now 5"
    assert words_only("हिंदी में।") == "हिंदी में"
    assert same_case(" A  b\nC. ") == "a b c."
    assert same_case("ﬁ e\u0301") == "fi é"


@pytest.mark.parametrize("metric", list(METRICS))
def test_empty_answers_have_a_score(metric: str) -> None:
    found = METRICS[metric]([("", ["one two"]), ("", ["three"])])
    assert found.value == (1 if metric == "wer" else 0)
    assert (found.low, found.high) == (found.value, found.value)


def test_an_interval_repeats_and_narrows() -> None:
    few, many = METRICS["wer"](PAIRS), METRICS["wer"](PAIRS * 30)
    assert few == METRICS["wer"](PAIRS)
    assert few.value == many.value and many.high - many.low < (few.high - few.low) / 3


@pytest.mark.parametrize(
    ("metric", "package"), [("wer", "jiwer"), ("chrf", "sacrebleu"), ("bleu", "sacrebleu")]
)
def test_a_missing_package(metric: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for action in (lambda: require(metric), lambda: METRICS[metric](PAIRS)):
        with pytest.raises(DependencyError, match=rf"^{package} is missing: .*edge-gemma\[eval\]"):
            action()
    require("exact")
