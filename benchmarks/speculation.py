"""Plain decoding beside speculation: tokens a second and how many drafts are right.

    python -m benchmarks.speculation DIR [--rounds 5] [--tokens 256] [--demo]

Replays work with any weights, random ones too: at every step the decoder computes what it computes, and then
a sampler says the next token of a given text, whatever the logits are. Which drafts are right then depends on
the text alone, and how long a step takes does not depend on values; so the speed is real, for an answer that
is this text. The texts: a transcript whose hesitations the answer leaves out and whose sentences it writes
properly; the same transcript with an answer about something else; an answer that repeats its prompt word by
word. The narrowest level of an elastic artifact drafts, too. How often it is right depends on the weights,
and random ones know nothing: it drafts at its real cost, and a given share of its drafts is replaced by what
is right. With --demo the model also answers the demo's questions, greedily, and each choice is compared.

Both ways take turns, on one model; a figure is the median of its rounds. What speculation learns of speed
stays from round to round, as it does from answer to answer, but not from text to text.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

import edge_gemma
from benchmarks.command import Benchmark
from benchmarks.report import print_report
from benchmarks.speculation_texts import SPOKEN, UNRELATED, WRITTEN
from demo.data import TASKS, held_out
from edge_gemma import Model, Statistics
from edge_gemma.console import show_progress
from edge_gemma.export.parity import agrees
from edge_gemma.runtime.generation import Generator
from edge_gemma.runtime.levels import LevelDrafter
from edge_gemma.runtime.sampling import Sampler
from edge_gemma.runtime.speculation import Drafter, PromptLookup, Speculation

TASK = "Write this transcript without hesitations and with punctuation:\n"
# name of the row → prompt, answer
TEXTS = {
    "transcript, edited": (TASK + SPOKEN, WRITTEN),
    "transcript, repeated": ("Repeat:\n" + WRITTEN, WRITTEN),
    "transcript, then unrelated": (TASK + SPOKEN, UNRELATED),
}
SHARES = (0.6, 0.8, 0.9)  # of the narrow level's drafts that are made right
DEMO_ITEMS = 100  # questions of each task
DEMO_TOKENS = 48


@dataclass
class Measured:
    """One workload: tokens a second by round, drafts, and how often the two ways chose differently."""

    plain: list[float]
    speculating: list[float]
    drafted: int = 0
    accepted: int = 0
    tokens: int = 0  # of speculation's answers
    compared: int = 0  # choices, of which differ:
    ties: int = 0  # by a near tie of plain decoding's logits
    others: int = 0  # otherwise

    def row(self, name: str) -> tuple[str, ...]:
        plain, fast = statistics.median(self.plain), statistics.median(self.speculating)
        gain = statistics.median(f / p for f, p in zip(self.speculating, self.plain, strict=True))
        rate = f"{self.accepted / self.drafted:.0%}" if self.drafted else "-"
        share = f"{self.accepted / self.tokens:.0%}"
        differ = f"{self.ties} + {self.others} of {self.compared}" if self.compared else "-"
        return (name, f"{plain:.1f}", f"{fast:.1f}", f"{gain:.2f}", f"{self.drafted}", rate, share, differ)


def replay(prompt: list[int], answer: list[int]) -> Sampler:
    """Says `answer` behind `prompt`, whatever the logits are; it looks at them as a greedy sampler does."""

    def sample(logits: NDArray[np.float32], history: Sequence[int]) -> int:
        logits.argmax()
        return answer[len(history) - len(prompt)]

    return sample


class Scripted:
    """Drafts that cost what a drafter's cost, and are right at a given share of the answer's places."""

    costly = True

    def __init__(self, drafter: Drafter, prompt: list[int], answer: list[int], share: float) -> None:
        self._drafter = drafter
        self._prompt = len(prompt)
        right = np.random.default_rng(0).random(len(answer)) < share  # [answer]
        self._drafts = [token if good else token + 1 for token, good in zip(answer, right, strict=True)]

    def begin(self) -> None:
        self._drafter.begin()

    def draft(self, history: Sequence[int], limit: int) -> list[int]:
        count = len(self._drafter.draft(history, limit))
        at = len(history) - self._prompt
        return self._drafts[at : at + count]


def narrow_level(model: Model) -> LevelDrafter:
    generator = model._open()
    return LevelDrafter(generator.decoder, generator._store, generator.cache)


def say(
    generator: Generator, prompt: list[int], sampler: Sampler, tokens: int, speculation: Speculation | None
) -> Statistics:
    """One answer of exactly `tokens`, on an empty cache."""
    generator.occupy([])
    found = Statistics()
    for _ in generator.generate(
        prompt, sampler, max_new_tokens=tokens, statistics=found, speculation=speculation
    ):
        pass
    return found


def measure_replay(
    model: Model, texts: tuple[str, str], tokens: int, rounds: int, share: float | None = None
) -> Measured:
    """One text; `share` of the narrow level's drafts are right, where that is what drafts."""
    generator = model._open()
    prompt = model.encode(texts[0])
    answer = model.tokenizer.encode(texts[1])[:tokens]
    drafter = PromptLookup() if share is None else Scripted(narrow_level(model), prompt, answer, share)
    sampler, speculation = replay(prompt, answer), Speculation(drafter)
    say(generator, prompt, sampler, min(8, len(answer)), None)  # the first one warms up
    found = Measured([], [])
    for round in range(rounds):
        for drafting in (False, True) if round % 2 else (True, False):
            got = say(generator, prompt, sampler, len(answer), speculation if drafting else None)
            _count(found, got, drafting)
    return found


def _count(found: Measured, got: Statistics, drafting: bool) -> None:
    (found.speculating if drafting else found.plain).append(got.decode_tokens_per_second)
    if drafting:
        found.drafted += got.drafted_tokens
        found.accepted += got.accepted_tokens
        found.tokens += got.generated_tokens


def measure_demo(model: Model, task: str, drafter: Drafter, advance: Callable[[], None]) -> Measured:
    """The model's own greedy answers, a round each, and where speculation would have chosen otherwise."""
    generator, stop = model._open(), frozenset(model.manifest.tokens.stop)
    speculation, found = Speculation(drafter), Measured([], [])
    for number, item in enumerate(held_out(task, DEMO_ITEMS)):
        prompt = model.encode(list(item.messages))
        rows: list[NDArray[np.float32]] = []  # [V] each
        answer = _answer(generator, prompt, rows, stop)
        say(generator, prompt, _judge(prompt, answer, rows, found), len(answer), speculation)
        for drafting in (False, True) if number % 2 else (True, False):
            sampler = replay(prompt, answer)
            got = say(generator, prompt, sampler, len(answer), speculation if drafting else None)
            _count(found, got, drafting)
        advance()
    return found


def _answer(
    generator: Generator, prompt: list[int], rows: list[NDArray[np.float32]], stop: frozenset[int]
) -> list[int]:
    """The greedy answer without speculation; `rows` takes the logits [V] that it was chosen from."""

    def best(logits: NDArray[np.float32], history: Sequence[int]) -> int:
        rows.append(logits)
        return int(logits.argmax())

    answer = []
    for token in generator.generate(prompt, best, max_new_tokens=DEMO_TOKENS, statistics=Statistics()):
        answer.append(token)
        if token in stop:
            break
    return answer


def _judge(prompt: list[int], answer: list[int], rows: list[NDArray[np.float32]], found: Measured) -> Sampler:
    """Compares the greedy choice with plain decoding's and goes on along that: export/parity.py's rule."""

    def sample(logits: NDArray[np.float32], history: Sequence[int]) -> int:
        at = len(history) - len(prompt)
        agreed, tie = agrees(int(logits.argmax()), rows[at])
        found.compared += 1
        found.ties += tie
        found.others += not agreed
        return answer[at]

    return sample


@click.command(cls=Benchmark)
@click.argument("artifact", type=click.Path(exists=True, path_type=Path))
@click.option("--rounds", default=5, show_default=True, help="Answers of each text, each way.")
@click.option("--tokens", default=256, show_default=True, help="Longest answer of a replay.")
@click.option("--demo", is_flag=True, help="ARTIFACT is the demo: let it answer its questions, too.")
@click.option("--threads", type=int, help="[all cores]")
def main(artifact: Path, rounds: int, tokens: int, demo: bool, threads: int | None) -> None:
    """Decoding with and without speculation."""
    found: dict[str, Measured] = {}
    with show_progress() as progress, edge_gemma.load(artifact, context=2048, threads=threads) as model:
        for name, texts in TEXTS.items():
            progress.stage(name, 0)
            found[name] = measure_replay(model, texts, tokens, rounds)
        elastic = bool(model.manifest.levels)
        for share in SHARES if elastic else ():
            progress.stage(name := f"narrow level drafts, {share:.0%} right", 0)
            found[name] = measure_replay(model, TEXTS["transcript, edited"], tokens, rounds, share)
        for task in TASKS if demo else ():
            drafters: dict[str, Drafter] = {"": PromptLookup()}
            if elastic:
                drafters[", narrow level drafts"] = narrow_level(model)
            for way, drafter in drafters.items():
                progress.stage(name := f"demo: {task}{way}", DEMO_ITEMS)
                found[name] = measure_demo(model, task, drafter, lambda: progress.advance(1))
        name = f"{model.manifest.source.name}, {model.manifest.recipe}"
    header = (
        name,
        "plain tok/s",
        "speculating",
        "ratio",
        "drafted",
        "right",
        "of the answer",
        "choices that differ: ties + others",
    )
    print_report(
        "benchmarks.speculation",
        header,
        [measured.row(row) for row, measured in found.items()],
        {row: vars(measured) for row, measured in found.items()},
    )


if __name__ == "__main__":
    main()
