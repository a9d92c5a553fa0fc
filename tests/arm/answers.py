"""Questions, and what one machine's runtime said to them: recorded on x86, compared on ARM.

A folder of test artifacts (tests/arm/record.py writes it) holds, beside the artifacts of tests/made.py,

    questions-SET.json, .npz   the questions (demo.items.Item), their clips and pictures as arrays
    answers-ARTIFACT.npz       for each question the greedy tokens and the logits that they were chosen from

Another machine is led along the recorded tokens, so that its logits are comparable at each place. Where all
its choices agree with the recorded ones, its own greedy answer is the recorded one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demo.items import Item
from edge_gemma.export.parity import agrees
from edge_gemma.runtime.engine import Model
from edge_gemma.runtime.loading import load
from edge_gemma.runtime.statistics import Statistics

RECIPES = ("fp32", "int8", "int4", "int4-hq")
CONTEXT = 1024
MAX_NEW_TOKENS = 48  # the longest held-out answer has fewer


@dataclass(frozen=True)
class Answer:
    """Tokens of an answer, its end included, and the logits before each: float32 [T, V]."""

    tokens: tuple[int, ...]
    logits: NDArray[np.float32]


class Led:
    """A sampler that takes the given tokens, or the likeliest where none are, and keeps the logits."""

    def __init__(self, tokens: Sequence[int] | None) -> None:
        self._given = None if tokens is None else iter(tokens)
        self.tokens: list[int] = []
        self.logits: list[NDArray[np.float32]] = []

    def __call__(self, logits: NDArray[np.float32], history: Sequence[int]) -> int:
        self.logits.append(logits.copy())
        self.tokens.append(int(logits.argmax()) if self._given is None else next(self._given))
        return self.tokens[-1]


def open_model(artifact: Path) -> Model:
    """As all machines load it here: one thread, and nothing left behind."""
    return load(artifact, context=CONTEXT, threads=1, keep_encoders=True, cache=False)


def answer(model: Model, question: Item, tokens: Sequence[int] | None = None) -> Answer:
    """The greedy answer, or the logits along the given one."""
    built, statistics, led = model._prompts.build(list(question.messages)), Statistics(), Led(tokens)
    generator = model._open()
    count = MAX_NEW_TOKENS if tokens is None else len(tokens)
    said = generator.generate(
        built.ids,
        led,
        max_new_tokens=count,
        statistics=statistics,
        keys=built.keys,
        soft=model._soft_tokens(built, statistics),
    )
    stop = set(model.manifest.tokens.stop)
    for token in said:
        if token in stop:
            break
    return Answer(tuple(led.tokens), np.stack(led.logits))


def other_choices(ours: Sequence[Answer], recorded: Sequence[Answer]) -> tuple[int, int]:
    """Of the positions: how many choices differ, and how many of those that agree do by a near tie."""
    judged = [
        agrees(int(row.argmax()), reference)
        for one, other in zip(ours, recorded, strict=True)
        for row, reference in zip(one.logits, other.logits, strict=True)
    ]
    return sum(not same for same, _ in judged), sum(tie for _, tie in judged)


def write_questions(folder: Path, name: str, questions: Sequence[Item]) -> None:
    arrays: dict[str, NDArray[Any]] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            arrays[str(len(arrays))] = value
            return {"array": str(len(arrays) - 1)}
        raise TypeError(type(value))

    rows = [vars(question) for question in questions]
    (folder / f"questions-{name}.json").write_text(json.dumps(rows, default=plain), "utf-8")
    np.savez(folder / f"questions-{name}.npz", **arrays)


def read_questions(folder: Path, name: str) -> list[Item]:
    with np.load(folder / f"questions-{name}.npz") as arrays:

        def array(value: dict[str, Any]) -> Any:
            return arrays[value["array"]] if set(value) == {"array"} else value

        rows = json.loads((folder / f"questions-{name}.json").read_text("utf-8"), object_hook=array)
    return [Item(**row | {"messages": tuple(row["messages"])}) for row in rows]


def write_answers(folder: Path, artifact: str, answers: Sequence[Answer]) -> None:
    arrays: dict[str, NDArray[Any]] = {}
    for number, found in enumerate(answers):
        arrays[f"tokens-{number}"] = np.array(found.tokens, np.int64)
        arrays[f"logits-{number}"] = found.logits
    np.savez(folder / f"answers-{artifact}.npz", **arrays)


def read_answers(folder: Path, artifact: str) -> Iterator[Answer]:
    with np.load(folder / f"answers-{artifact}.npz") as arrays:
        for number in range(len(arrays.files) // 2):
            yield Answer(tuple(arrays[f"tokens-{number}"].tolist()), arrays[f"logits-{number}"])
