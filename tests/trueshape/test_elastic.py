"""Random weights at E4B's true shape with E2B inside: what the narrow level takes of memory.

Peaks and resident memory are those of a process of its own.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import edge_gemma, program

GIB = 1 << 30
LIMIT = 1.03 * 2 * GIB
pytestmark = [pytest.mark.trueshape, pytest.mark.timeout(2400)]
ANSWER = """
import json, sys, time
import edge_gemma
from edge_gemma.memory import peak_resident_bytes, resident_bytes

question = "Why is the sky blue, and why is it red in the evening? " * 8
found = []
with edge_gemma.load(sys.argv[1], context=4096, level=sys.argv[2]) as model:
    for level in sys.argv[2:]:
        began = time.monotonic()
        model.set_level(level)
        model.generate(question, temperature=0, max_new_tokens=8)
        found.append({"resident": resident_bytes(), "seconds": time.monotonic() - began})
print(json.dumps({"peak": peak_resident_bytes(), "answers": found}))
"""


@pytest.fixture(scope="module")
def elastic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared, as it is whenever a device opens it for the second time."""
    target = tmp_path_factory.mktemp("e4b") / "elastic"
    levels = ["--elastic", "E2B,E4B", "--no-audio", "--no-vision"]
    report = edge_gemma("export", "synthetic:E4B", *levels, "-o", str(target))
    assert report["peak_memory_bytes"] < 2 * GIB
    edge_gemma("prepare", str(target))
    return target


def test_opened_at_the_narrow_level_it_takes_that_levels_memory(elastic: Path) -> None:
    assert program(ANSWER, str(elastic), "E2B")["peak"] <= LIMIT


def test_a_switch_down_gives_memory_back(elastic: Path) -> None:
    wide, narrow = program(ANSWER, str(elastic), "E4B", "E2B")["answers"]
    assert narrow["resident"] <= LIMIT < wide["resident"]
    assert narrow["seconds"] <= 60
