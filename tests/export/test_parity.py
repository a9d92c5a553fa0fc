"""The measures that compare logits, on logits whose comparison is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge_gemma.export.parity import NEAR_TIE, combine, compare

logits = arrays(
    np.float32, (3, 12), elements=st.floats(-30, 30, width=32), unique=True
)  # unique: no exact ties
REFERENCE = np.array([[1, 2, 4, 0], [8, -2, 3, 1]], np.float32)


@given(logits)
def test_equal_logits_agree_in_every_measure(values: np.ndarray) -> None:
    report = compare(values, values)
    assert (report.positions, report.argmax_agreement, report.near_ties) == (3, 1.0, 0)
    assert report.max_absolute_error == report.max_relative_error == report.kl_divergence == 0
    assert report.top10_overlap == 1.0


@given(logits, logits)
def test_bounds(ours: np.ndarray, reference: np.ndarray) -> None:
    report = compare(ours, reference)
    assert 0 <= report.argmax_agreement <= 1 and 0 <= report.top10_overlap <= 1
    assert report.kl_divergence >= 0
    assert report.mean_relative_error <= report.max_relative_error * (1 + 1e-6)
    assert report.max_absolute_error == np.abs(ours - reference).max()


def test_known_errors() -> None:
    ours = REFERENCE.copy()
    ours[0, 1] += 1
    ours[1, 0] -= 6  # now id 2 is the best of the second position
    report = compare(ours, REFERENCE)
    assert report.argmax_agreement == 0.5 and report.near_ties == 0
    assert report.max_absolute_error == 6
    assert report.top10_overlap == 1.0  # of a vocabulary smaller than ten
    assert report.max_relative_error == 0.75
    assert report.mean_relative_error == 0.5  # of 1/4 and 6/8
    power = [((r - r.mean()) ** 2).sum() for r in REFERENCE]
    noise = (1 / power[0] + 36 / power[1]) / 2
    assert report.snr_db == pytest.approx(-10 * np.log10(noise))


def test_divergence_is_that_of_the_distributions() -> None:
    ours = np.log(np.array([[0.5, 0.25, 0.25]], np.float32))
    reference = np.log(np.array([[0.125, 0.125, 0.75]], np.float32)) + 5  # a constant changes nothing
    assert compare(ours, reference).kl_divergence == pytest.approx(
        0.75 * np.log(3) - 0.375 * np.log(2), abs=1e-6
    )


@pytest.mark.parametrize(("gap", "agreement"), [(NEAR_TIE / 2, 1.0), (NEAR_TIE * 2, 0.0)])
def test_near_ties_count_as_agreeing(gap: float, agreement: float) -> None:
    reference = np.array([[1.0, 1.0 - gap, 0.0]], np.float32)
    report = compare(np.array([[1.0, 1.1, 0.0]], np.float32), reference)
    assert (report.argmax_agreement, report.near_ties) == (agreement, int(agreement))
    third = compare(np.array([[1.0, 1.0, 2.0]], np.float32), reference)
    assert (third.argmax_agreement, third.near_ties) == (0.0, 0)


@given(logits, logits)
def test_combining_is_comparing_all_at_once(ours: np.ndarray, reference: np.ndarray) -> None:
    parts = combine([compare(ours[:1], reference[:1]), compare(ours[1:], reference[1:])])
    whole = compare(ours, reference)
    assert parts.to_dict() == pytest.approx(whole.to_dict(), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("shape", [(2, 5), (3, 4), (8,), (0, 4)])
def test_logits_of_other_shapes_cannot_be_compared(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cannot compare logits of shapes"):
        compare(np.zeros(shape, np.float32), REFERENCE if shape[0] else np.zeros(shape, np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_a_number_never_passes(bad: float) -> None:
    """A comparison with NaN must fail whatever limit it is held to."""
    ours = REFERENCE.copy()
    ours[0, 0] = bad
    report = compare(ours, REFERENCE)
    assert report.max_relative_error == np.inf
    assert (report.argmax_agreement, report.positions) == (0.5, 2)
