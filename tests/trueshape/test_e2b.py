"""Random weights at E2B's true shape: what the export and the runtime need in memory.

Peaks are those of a process of its own (VmHWM), read from the commands' own reports.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from processes import edge_gemma

from edge_gemma import artifact as artifacts
from edge_gemma.memory import estimate

GIB = 1 << 30
CONTEXT = 4096
pytestmark = [pytest.mark.trueshape, pytest.mark.timeout(2400)]


def test_export_never_holds_the_model(exported: dict[str, Any]) -> None:
    assert exported["text_parameters"] == 4_456_156_768
    assert exported["effective_parameters"] == 1_905_495_648
    assert exported["peak_memory_bytes"] < 2 * GIB


def test_generates_within_two_gib_at_4096_tokens(exported: dict[str, Any]) -> None:
    """A prompt that fills the context but for 16 tokens, then those."""
    folder = Path(exported["output"])
    prompt = _fit(folder, "light kitchen bedroom window garden " * 1000, CONTEXT - 16)
    report = edge_gemma("run", str(folder), "-", "--context", str(CONTEXT), stdin=prompt)
    statistics = report["statistics"]
    assert statistics["prompt_tokens"] + statistics["generated_tokens"] == CONTEXT
    assert statistics["generated_tokens"] >= 16
    assert statistics["peak_memory_bytes"] <= 2 * GIB
    predicted = estimate(artifacts.read(folder).manifest.memory, CONTEXT).total
    assert predicted == pytest.approx(statistics["peak_memory_bytes"], rel=0.1)


def _fit(folder: Path, text: str, tokens: int) -> str:
    """The longest beginning of `text`, in words, whose prompt has at most `tokens` tokens."""
    from edge_gemma.runtime.chat import ChatTemplate
    from edge_gemma.runtime.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_file(folder / artifacts.TOKENIZER)
    template = ChatTemplate.from_file(folder / artifacts.CHAT_TEMPLATE)
    words = text.split()
    low, high = 1, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        size = len(template.encode(" ".join(words[:middle]), tokenizer))
        low, high = (middle, high) if size <= tokens else (low, middle - 1)
    return " ".join(words[:low])
