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
folder, cache, *levels = sys.argv[1:]
with edge_gemma.load(folder, context=4096, level=levels[0], cache_dir=cache) as model:
    for level in levels:
        began = time.monotonic()
        model.set_level(level)
        model.generate(question, temperature=0, max_new_tokens=8)
        found.append({"resident": resident_bytes(), "seconds": time.monotonic() - began})
print(json.dumps({"peak": peak_resident_bytes(), "answers": found}))
"""


@pytest.fixture(scope="module")
def elastic(scratch: Path) -> tuple[str, str]:
    """The artifact and its cache: prepared, as it is whenever a device opens it for the second time."""
    target, cache = str(scratch / "elastic"), str(scratch / "cache")
    levels = ["--elastic", "E2B,E4B", "--no-audio", "--no-vision"]
    report = edge_gemma("export", "synthetic:E4B", *levels, "-o", target)
    assert report["peak_memory_bytes"] < 2 * GIB
    edge_gemma("prepare", target, "--cache-dir", cache)
    return target, cache


def test_opened_at_the_narrow_level_it_takes_that_levels_memory(elastic: tuple[str, str]) -> None:
    assert program(ANSWER, *elastic, "E2B")["peak"] <= LIMIT


def test_a_switch_down_gives_memory_back(elastic: tuple[str, str]) -> None:
    wide, narrow = program(ANSWER, *elastic, "E4B", "E2B")["answers"]
    assert narrow["resident"] <= LIMIT < wide["resident"]
    assert narrow["seconds"] <= 60
