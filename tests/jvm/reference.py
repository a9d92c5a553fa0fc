"""The Python runtime's greedy answers with ids and logits, and how the JVM's are compared with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from jvm.bridge import Jvm
from numpy.typing import NDArray

import edge_gemma
from edge_gemma.export import parity
from edge_gemma.runtime import engine
from edge_gemma.runtime.said import Answers

counts = {"answers": 0, "near_ties": 0}  # compared so far, and where the two differ: a run reports them


@dataclass(frozen=True)
class Greedy:
    """An answer, its ids, the one that ended it included, and the logits of each, float32 [V]."""

    ids: list[int]
    logits: list[NDArray[np.float32]]
    text: str
    reason: str
    prompt_tokens: int
    reused_tokens: int


class Reference:
    """An artifact in the Python runtime, loaded as Jvm's `open` loads it.

    Java's engine knows one conversation, and reads answers back as text: so does this model.
    """

    def __init__(self, artifact: Path, **options: Any) -> None:
        self.artifact = artifact
        self.model = edge_gemma.load(artifact, threads=1, cache=False, session_memory=0, **options)
        self.model._prompts.answers = Answers(self.model.tokenizer, count=0)

    def answer(self, messages: Sequence[dict[str, Any]], **options: Any) -> Greedy:
        ids: list[int] = []
        rows: list[NDArray[np.float32]] = []

        def sample(logits: NDArray[np.float32], history: Sequence[int]) -> int:
            rows.append(logits.copy())
            ids.append(int(logits.argmax()))
            return ids[-1]

        with mock.patch.object(engine, "make_sampler", lambda *_: sample):
            found = self.model.generate(list(messages), **options)
        statistics = found.statistics
        return Greedy(
            ids, rows, found.text, found.finish_reason, statistics.prompt_tokens, statistics.reused_tokens
        )


def compare(jvm: Jvm, messages: Sequence[dict[str, Any]], expected: Greedy, **settings: Any) -> int:
    """Assert that the JVM's greedy answer is the reference's; the number of near ties that it took otherwise.

    Tokens are equal, or a near tie of the reference; then comparison goes on along the reference's choice.
    """
    found = jvm.ask("chat", messages=messages, settings=settings)
    counts["answers"] += 1
    assert (found["prompt_tokens"], found["reused_tokens"]) == (
        expected.prompt_tokens,
        expected.reused_tokens,
    )
    assert "".join(found["pieces"]) == found["text"]
    if found["ids"] == expected.ids:
        assert (found["text"], found["reason"]) == (expected.text, expected.reason)
        return 0
    pairs = enumerate(zip(found["ids"], expected.ids, strict=False))
    place = next((i for i, (ours, theirs) in pairs if ours != theirs), -1)
    assert place >= 0 and parity.agrees(found["ids"][place], expected.logits[place])[1], (
        f"{found['ids']} instead of {expected.ids}"
    )
    levels = {"level": settings["level"]} if "level" in settings else {}
    logits = jvm.follow(messages=messages, ids=expected.ids, settings=levels)
    report = parity.compare(logits, np.stack(expected.logits))
    assert report.argmax_agreement == 1, f"along {expected.ids}: {report}"
    counts["near_ties"] += report.near_ties
    return report.near_ties
