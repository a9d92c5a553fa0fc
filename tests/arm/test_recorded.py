"""What this machine's runtime computes, beside what was recorded on x86-64 (tests/arm/record.py).

Runs where EDGE_GEMMA_TEST_ARTIFACTS names the recordings: by `make test-arm` and `make test-device`.
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import pytest
from made import folder

sys.path.insert(0, str(Path(__file__).parent))

import answers  # noqa: E402

from demo import data  # noqa: E402
from edge_gemma.export.parity import combine, compare  # noqa: E402

SHELF = folder()
pytestmark = pytest.mark.skipif(SHELF is None, reason="nothing was recorded: make test-artifacts")
QUESTIONS = 5  # of each recipe but int4, which answers all 40
# model → recipe → largest relative error, least signal to noise in dB, on every core; docs/arm.md has what
# was measured. Float32 is equal up to the order of additions. Elsewhere the smallest difference moves some
# activation over an edge of its rounding to int8, and logits then differ by as much as that rounding: most
# with random weights, whose tokens may differ therefore. tests/arm/test_kernels.py has sharper bounds.
EXACT = (2e-5, 100.0)
RANDOM, TRAINED = (0.5, 22.0), (0.04, 33.0)
TOLERANCES = {
    "tiny": {"fp32": EXACT, "int8": RANDOM, "int4": RANDOM, "int4-hq": RANDOM},
    "demo": {"fp32": EXACT, "int8": TRAINED, "int4": TRAINED, "int4-hq": TRAINED},
}


@pytest.mark.parametrize("recipe", answers.RECIPES)
@pytest.mark.parametrize("model", ["tiny", "demo"])
def test_answers_are_those_of_x86(model: str, recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Logits within the tolerance; the demo's tokens equal but for near ties. Random weights' need not be."""
    assert SHELF is not None
    name = f"{model}-{recipe}"
    questions = answers.read_questions(SHELF, model)
    if model == "demo" and recipe not in ("fp32", "int4"):
        questions = [question for question in questions if question.task in data.TASKS]
    if name != "demo-int4":
        questions = questions[:QUESTIONS]
    recorded = list(islice(answers.read_answers(SHELF, name), len(questions)))
    with answers.open_model(SHELF / name) as opened:
        found = [answers.answer(opened, q, r.tokens) for q, r in zip(questions, recorded, strict=True)]
    report = combine([compare(f.logits, r.logits) for f, r in zip(found, recorded, strict=True)])
    others, ties = answers.other_choices(found, recorded)
    with capsys.disabled():
        print(
            f"{name}: {len(questions)} questions, {report.positions} positions, {others} other tokens, "
            f"{ties} near ties, largest error {report.max_relative_error:.1e}, {report.snr_db:.1f} dB"
        )
    largest, least_snr = TOLERANCES[model][recipe]
    assert report.max_relative_error <= largest
    assert report.snr_db >= least_snr
    assert model == "tiny" or others == 0
