"""Speculation changes the speed and nothing else: not a token, not what the next turn finds in the cache."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edge_gemma
from demo.data import TASKS, held_out
from edge_gemma import artifact as artifacts
from edge_gemma import cli
from edge_gemma.errors import PromptError
from edge_gemma.export.parity import agrees
from edge_gemma.runtime.cli import _describe as describe
from edge_gemma.runtime.decoder import Decoder
from edge_gemma.runtime.embeddings import EmbeddingStore
from edge_gemma.runtime.generation import Generator
from edge_gemma.runtime.kv_cache import KvCache
from edge_gemma.runtime.sampling import SamplingOptions, make_sampler
from edge_gemma.runtime.speculation import MAX_DRAFT, PROBE, RECENT, Pace, PromptLookup, Speculation
from edge_gemma.runtime.statistics import Statistics

CONTEXT = 120
VOCABULARY = 384
GREEDY = SamplingOptions(temperature=0)
# Everything that looks at the history or draws numbers, and few enough tokens for drafts to be right.
SAMPLED = SamplingOptions(temperature=0.4, top_k=4, repetition_penalty=1.3, seed=7)


class Eager(Pace):
    """Always drafts as much as it may."""

    def best(self, limit: int) -> int:
        return limit


class Oracle:
    """Knows the answer, and drafts it with random mistakes, more tokens than asked for or none."""

    costly = False

    def __init__(self, answer: Sequence[int], start: int, seed: int = 0, mistakes: float = 0.3) -> None:
        self._answer, self._start, self._mistakes = answer, start, mistakes
        self._random = random.Random(seed)
        self.limits: list[int] = []

    def begin(self) -> None:
        pass

    def draft(self, history: Sequence[int], limit: int) -> list[int]:
        self.limits.append(limit)
        said = len(history) - self._start
        following = [*self._answer[said:], 1, 2, 3][: self._random.randint(0, limit + 2)]
        wrong = [self._random.random() < self._mistakes for _ in following]
        return [self._random.randrange(VOCABULARY) if w else t for t, w in zip(following, wrong, strict=True)]


class Level:
    """Drafts with the decoder itself, on the generator's cache, as a drafter of a smaller level does."""

    costly = True

    def __init__(self, decoder: Decoder, store: EmbeddingStore, cache: KvCache) -> None:
        self._decoder, self._store, self._cache = decoder, store, cache

    def begin(self) -> None:
        pass

    def draft(self, history: Sequence[int], limit: int) -> list[int]:
        start, tokens = self._cache.length, [history[-1]]
        for _ in range(limit):
            logits = self._decoder.forward(*self._store.rows(tokens[-1:]), self._cache)
            tokens.append(int(logits[-1].argmax()))
        self._cache.truncate(start)
        return tokens[1:]


def speculate(drafter: Any) -> Speculation:
    return Speculation(drafter, Eager())


@pytest.fixture(scope="module", params=["window-9", "only-sliding"])
def parts(
    request: pytest.FixtureRequest, made: Callable[[str], Path]
) -> Iterator[tuple[Decoder, EmbeddingStore]]:
    """In float32: the kernels of quantized matrices round one row otherwise than many."""
    artifact = artifacts.read(made(request.param))
    store = EmbeddingStore(artifact.path("embeddings.bin"), artifact.manifest.embeddings)
    yield Decoder(artifact, threads=1), store
    store.close()


@pytest.fixture
def make(parts: tuple[Decoder, EmbeddingStore]) -> Callable[..., Generator]:
    def make(*, context: int = CONTEXT, chunk: int = 6) -> Generator:
        return Generator(*parts, context=context, chunk=chunk)

    return make


def prompt_of(seed: int, length: int | None = None) -> list[int]:
    rng = np.random.default_rng(seed)
    return [int(i) for i in rng.integers(6, VOCABULARY, length or int(rng.integers(1, 40)))]


def answer(
    generator: Generator,
    prompt: list[int],
    count: int = 40,
    *,
    options: SamplingOptions = GREEDY,
    statistics: Statistics | None = None,
    **more: Any,
) -> list[int]:
    return list(
        generator.generate(
            prompt,
            make_sampler(options),
            max_new_tokens=count,
            statistics=statistics or Statistics(),
            **more,
        )
    )


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("chunk", [2, 6, 7, 40])
def test_not_a_token_changes(options: SamplingOptions, chunk: int, make: Callable[..., Generator]) -> None:
    """Whatever is drafted; on one cache, which goes from prompt to prompt."""
    speculating, total = make(chunk=chunk), Statistics()
    for seed in range(12):
        prompt, statistics = prompt_of(seed), Statistics()
        expected = answer(make(), prompt, options=options)
        drafter = Oracle(expected, len(prompt), seed)
        found = answer(
            speculating, prompt, options=options, statistics=statistics, speculation=speculate(drafter)
        )
        assert found == expected
        assert max(drafter.limits) == speculating.cache.margin
        total.drafted_tokens += statistics.drafted_tokens
        total.accepted_tokens += statistics.accepted_tokens
    assert 0.3 < total.acceptance_rate < 0.9


def test_a_drafter_that_uses_the_cache(
    make: Callable[..., Generator], parts: tuple[Decoder, EmbeddingStore]
) -> None:
    """Its drafts come one by one, over slides of the window; being the same model, it is always right."""
    for chunk in (6, 16):
        generator = make(chunk=chunk)
        speculation = speculate(Level(*parts, generator.cache))
        for seed in range(4):
            prompt, statistics = prompt_of(seed), Statistics()
            found = answer(generator, prompt, statistics=statistics, speculation=speculation)
            assert found == answer(make(), prompt)
            assert statistics.accepted_tokens == statistics.drafted_tokens > 0


def drafted(
    generator: Generator, prompt: list[int], expected: list[int], *, mistakes: float
) -> Iterator[int]:
    """An answer as it is said, to be left at any token."""
    return generator.generate(
        prompt,
        make_sampler(GREEDY),
        max_new_tokens=40,
        statistics=Statistics(),
        speculation=speculate(Oracle(expected, len(prompt), mistakes=mistakes)),
    )


@pytest.mark.parametrize("left", range(1, 12))
def test_the_conversation_goes_on(left: int, make: Callable[..., Generator]) -> None:
    """Left after any token, among them accepted drafts, it holds what it would hold without speculation."""
    prompt = prompt_of(3, 30)
    expected = answer(make(), prompt)
    generator = make()
    tokens = drafted(generator, prompt, expected, mistakes=0.1)
    said = [next(tokens) for _ in range(left)]
    if left % 2:
        tokens.close()  # type: ignore[attr-defined]
    assert said == expected[:left]
    longer, statistics = prompt + said + [9, 8, 7], Statistics()
    assert generator.reusable(longer) == len(prompt) + left - 1  # the last token was never fed
    again = answer(generator, longer, statistics=statistics)
    assert again == answer(make(), longer)
    assert statistics.reused_tokens == len(prompt) + left - 1


def test_another_answer_than_the_one_drafted(make: Callable[..., Generator]) -> None:
    """A turn that contradicts an accepted draft behind the last token said."""
    prompt = prompt_of(4, 30)
    expected = answer(make(), prompt)
    generator = make()
    tokens = drafted(generator, prompt, expected, mistakes=0)
    said = [next(tokens) for _ in range(5)]
    longer = prompt + said[:-1] + [said[-1] ^ 1, 9]
    assert generator.reusable(longer) == len(prompt) + 4
    assert answer(generator, longer) == answer(make(), longer)


@pytest.mark.parametrize("at", [1, 4, 9])
def test_cancelled_among_accepted_drafts(at: int, make: Callable[..., Generator]) -> None:
    prompt, cancel, said = prompt_of(5), Event(), []
    expected = answer(make(), prompt)
    drafter = Oracle(expected, len(prompt), mistakes=0)
    generator = make(chunk=16)
    for token in generator.generate(
        prompt,
        make_sampler(GREEDY),
        max_new_tokens=40,
        statistics=Statistics(),
        cancel=cancel,
        speculation=speculate(drafter),
    ):
        said.append(token)
        if len(said) == at:
            cancel.set()
    assert said == expected[:at]
    assert answer(generator, prompt + said) == answer(make(), prompt + said)


@pytest.mark.parametrize("count", [1, 2, 3, 9, 20])
def test_neither_the_limit_nor_the_context_is_passed(count: int, make: Callable[..., Generator]) -> None:
    prompt = prompt_of(6, 20)
    expected = answer(make(), prompt)
    for context in (len(prompt) + count, CONTEXT):
        drafter = Oracle([*expected, *range(20)], len(prompt), mistakes=0)
        found = answer(make(context=context, chunk=16), prompt, count, speculation=speculate(drafter))
        assert found == expected[:count]


def test_a_failure_leaves_it_usable(
    make: Callable[..., Generator], parts: tuple[Decoder, EmbeddingStore]
) -> None:
    """While drafting on the cache, and in the sampler behind accepted drafts."""
    prompt = prompt_of(7, 25)
    expected = answer(make(), prompt)

    class Failing(Level):
        def draft(self, history: Sequence[int], limit: int) -> list[int]:
            self._decoder.forward(*self._store.rows([5]), self._cache)
            raise KeyboardInterrupt

    generator = make()
    with pytest.raises(KeyboardInterrupt):
        answer(generator, prompt, speculation=speculate(Failing(*parts, generator.cache)))
    longer = [*prompt, expected[0], 7]
    assert answer(generator, longer) == answer(make(), longer)

    def sampler(logits: Any, history: Sequence[int]) -> int:
        if len(history) == len(prompt) + 5:
            raise ZeroDivisionError
        return int(logits.argmax())

    generator = make()
    oracle = Oracle(expected, len(prompt), mistakes=0)
    with pytest.raises(ZeroDivisionError):
        list(
            generator.generate(
                prompt,
                sampler,
                max_new_tokens=20,
                statistics=Statistics(),
                speculation=speculate(oracle),
            )
        )
    longer = prompt + expected[:5] + [7]
    assert answer(generator, longer) == answer(make(), longer)


def lookup_slowly(history: list[int], limit: int, longest: int, shortest: int) -> list[int]:
    for size in range(longest, shortest - 1, -1):
        for end in range(len(history) - 1, size - 1, -1):
            if size <= len(history) and history[end - size : end] == history[-size:]:
                following = list(history)
                for _ in range(limit):
                    following.append(following[end + len(following) - len(history)])
                return following[len(history) :]
    return []


@given(
    tokens=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    first=st.integers(1, 40),
    limit=st.integers(1, 6),
    shortest=st.integers(1, 3),
)
def test_lookup(tokens: list[int], first: int, limit: int, shortest: int) -> None:
    drafter = PromptLookup(longest=3, shortest=shortest)
    for _ in range(2):
        drafter.begin()
        for end in range(min(first, len(tokens)), len(tokens) + 1):
            history = tokens[:end]
            assert drafter.draft(history, limit) == lookup_slowly(history, limit, 3, shortest)


def test_lookup_prefers_the_longest_and_then_the_latest() -> None:
    drafter = PromptLookup(longest=3, shortest=2)
    assert drafter.draft([1, 2, 3, 50, 9, 2, 3, 60, 9, 2, 3, 70, 1, 2, 3], 2) == [50, 9]
    drafter.begin()
    assert drafter.draft([9, 2, 3, 60, 9, 2, 3, 70, 1, 2, 3], 2) == [70, 1]
    drafter.begin()
    assert drafter.draft([2, 3, 60, 9, 3], 2) == []


def run(pace: Pace, cost: Callable[[int], float], right: float, steps: int, limit: int = 8) -> float:
    """Tokens for each unit of time of the last half, where drafts are right as often as that."""
    chance, tokens, seconds = random.Random(0), 0, 0.0
    for step in range(steps):
        drafted = pace.best(limit) if step % PROBE else 0
        hits = [chance.random() < right for _ in range(max(drafted, 1))]
        accepted = (hits + [False]).index(False)
        for hit in hits[: accepted + 1]:
            pace.judged(hit)
        pace.passed(drafted, cost(drafted))
        if step >= steps // 2:
            tokens += 1 + min(accepted, drafted)
            seconds += cost(drafted)
    return tokens / seconds


def test_the_pace_follows_what_pays() -> None:
    def cost(drafted: int) -> float:
        return 1 + 0.3 * drafted

    assert run(Pace(), cost, 0.0, 200) > 0.99
    assert run(Pace(), cost, 0.2, 1000) > 0.95
    assert run(Pace(), cost, 0.9, 200) > 1.6  # (1 + .9 + … + .9⁶) / 2.8 = 1.86 at best
    assert run(Pace(), lambda drafted: 1 + drafted, 0.7, 400) > 0.95  # whoever computes for it gains nothing


def test_drafts_grow_and_shrink_with_what_is_right() -> None:
    pace = Pace()
    assert pace.best(8) == 0  # nothing is known yet
    for _ in range(RECENT):
        pace.passed(0, 1.0)
    first = pace.best(8)
    lengths = []
    for right in (True, False):
        for _ in range(20):
            pace.judged(right)
            pace.passed(pace.best(8), 1 + 0.1 * pace.best(8))
        lengths.append(pace.best(8))
    assert 0 < first < lengths[0] == 8 and lengths[1] == 0


def test_one_slow_pass_is_not_the_end() -> None:
    pace = Pace()
    for seconds in (50.0, 1.0, 1.0):  # the first one as it may be, on a cold machine
        pace.passed(0, seconds)
    for _ in range(20):
        pace.judged(True)
    pace.passed(8, 100.0)
    assert 0 < pace.best(8) < 8
    pace.passed(7, 1.7)
    assert pace.best(8) == 7


def test_a_free_drafter_is_watched_and_a_costly_one_tried_sometimes() -> None:
    """Where drafts stopped paying, and then are right again."""
    for costly in (False, True):
        history, calls = [5], 0

        class Right:
            def begin(self) -> None:
                pass

            def draft(self, history: Sequence[int], limit: int) -> list[int]:
                nonlocal calls
                calls += 1
                return [history[-1] + 1] * limit

        drafter = Right()
        drafter.costly = costly  # type: ignore[attr-defined]
        pace = Pace()
        pace.acceptance = 0.0
        speculation = Speculation(drafter, pace)  # type: ignore[arg-type]
        drafted = []
        for _ in range(2 * PROBE):
            drafted.append(len(speculation.draft(history, 8)))
            speculation.fed()
            history.append(history[-1] + 1)
        if costly:
            assert drafted[:PROBE] == [0] * PROBE and drafted[PROBE] == 1
            assert calls <= PROBE
        else:
            assert any(drafted[:PROBE]) and calls == 2 * PROBE


def test_drafts_are_bounded() -> None:
    speculation = speculate(Oracle(range(100), 0, mistakes=0))
    assert max(len(speculation.draft([1] * n, 50)) for n in range(1, 60)) == MAX_DRAFT
    assert speculation.draft([1], 0) == []


@pytest.fixture(scope="module")
def demo(made: Callable[[str], Path]) -> Iterator[edge_gemma.Model]:
    with edge_gemma.load(made("demo-text-fp32"), context=256, threads=1) as model:
        yield model


def test_the_demo_says_the_same(demo: edge_gemma.Model) -> None:
    """By the rule for near ties, along the choice of plain decoding; benchmarks/speculation.py asks more."""
    generator = demo._open()
    ties = drafted = 0
    speculation = speculate(PromptLookup(shortest=1))
    for item in (item for task in TASKS for item in held_out(task, 30)):
        prompt = demo.encode(list(item.messages))
        rows: list[Any] = []  # float32 [V] each

        def choose(logits: Any, history: Sequence[int], rows: list[Any] = rows) -> int:
            rows.append(logits)
            return int(logits.argmax())

        statistics = Statistics()
        expected = list(generator.generate(prompt, choose, max_new_tokens=24, statistics=Statistics()))
        judged: list[tuple[bool, bool]] = []

        def judge(
            logits: Any,
            history: Sequence[int],
            prompt: list[int] = prompt,
            rows: list[Any] = rows,
            expected: list[int] = expected,
            judged: list[tuple[bool, bool]] = judged,
        ) -> int:
            at = len(history) - len(prompt)
            judged.append(agrees(int(logits.argmax()), rows[at]))
            return expected[at]

        for _ in generator.generate(
            prompt, judge, max_new_tokens=24, statistics=statistics, speculation=speculation
        ):
            pass
        assert all(agreed for agreed, _ in judged) and len(judged) == len(expected)
        ties += sum(tie for _, tie in judged)
        drafted += statistics.drafted_tokens
    assert ties <= 1
    assert drafted > 500


ECHO = "red fox, blue fox, red fox, blue fox, red fox, blue"


def test_the_public_option(demo: edge_gemma.Model) -> None:
    for options in ({"temperature": 0}, {"seed": 3}):
        plain = demo.generate(ECHO, max_new_tokens=40, **options)
        fast = demo.generate(ECHO, max_new_tokens=40, speculate="lookup", **options)
        assert (fast.text, fast.finish_reason) == (plain.text, plain.finish_reason)
        assert fast.statistics.generated_tokens == plain.statistics.generated_tokens
        assert plain.statistics.drafted_tokens == 0
        figures = fast.statistics.to_dict()
        assert figures["acceptance_rate"] == round(fast.statistics.acceptance_rate, 4)
    with pytest.raises(PromptError, match="speculate is 'off': this artifact can have 'lookup'"):
        demo.stream("hello", speculate="off")


def test_the_command_line(tiny_artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--temperature", "0", "--threads", "1", "--context", "256", "--max-new-tokens", "20"]
    assert cli.run(["run", str(tiny_artifact), ECHO, *settings, "--speculate", "lookup", "--json"]) == 0
    assert "acceptance_rate" in json.loads(capsys.readouterr().out)["statistics"]
    described = describe(Statistics(drafted_tokens=8, accepted_tokens=2))
    assert "0.0/s (25% of 8 drafted accepted);" in described
    assert "drafted" not in describe(Statistics())


def test_a_stop_token_inside_a_draft(demo: edge_gemma.Model) -> None:
    """What was drafted behind it is neither said nor kept: the next turn goes on as without speculation."""
    item = held_out("commands", 1)[0]
    asked = list(item.messages)
    plain = demo.generate(asked, temperature=0)
    assert plain.finish_reason == "stop"
    prompt = demo.encode(asked)
    ids = [*demo.tokenizer.encode(plain.text), demo.manifest.tokens.stop[-1]]
    demo._speculations["lookup"] = speculate(Oracle(ids + [6] * 20, len(prompt), mistakes=0))
    fast = demo.generate(asked, temperature=0, speculate="lookup")
    demo._speculations["lookup"] = Speculation(PromptLookup())
    assert (fast.text, fast.finish_reason) == (plain.text, "stop")
    assert fast.statistics.accepted_tokens > 5
    turns = [
        *asked,
        {"role": "assistant", "content": fast.text},
        {"role": "user", "content": "What is 3 + 4?"},
    ]
    second = demo.generate(turns, temperature=0)
    assert second.statistics.reused_tokens == len(prompt) + len(ids) - 1
    demo.generate("something else", max_new_tokens=1)
    assert second.text == demo.generate(turns, temperature=0).text
