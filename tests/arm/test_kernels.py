"""Quantized matrix products are what the format says, with float32 activations or ones rounded to int8."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from made import folder

sys.path.insert(0, str(Path(__file__).parent))

import kernels  # noqa: E402

SHELF = folder()
LEAST = 85.0  # dB against the nearer of the two; int8 against float32 is 44


@pytest.mark.skipif(SHELF is None, reason="nothing was recorded: make test-artifacts")
def test_products(capsys: pytest.CaptureFixture[str]) -> None:
    """With zero points, as exported. What comes of none is told: it is why they are there."""
    assert SHELF is not None
    for product in kernels.read(SHELF):
        found = product.run()
        exact, rounded = (kernels.snr(found, expected) for expected in (product.exact(), product.rounded()))
        with capsys.disabled():
            print(f"{product.name}: {exact:.0f} dB from float32, {rounded:.0f} dB from int8 activations")
        assert kernels.ABSENT in product.name or max(exact, rounded) >= LEAST, product.name
