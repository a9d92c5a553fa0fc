"""From ids to ids: whatever happened before, an answer is the one that a fresh cache gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from edge_gemma import artifact as artifacts
from edge_gemma.runtime.decoder import Decoder
from edge_gemma.runtime.embeddings import EmbeddingStore
from edge_gemma.runtime.generation import Generator
from edge_gemma.runtime.kv_cache import KvCache
from edge_gemma.runtime.sampling import SamplingOptions, make_sampler
from edge_gemma.runtime.statistics import Statistics

WINDOW = 16  # of the tiny model
PROMPT = [int(i) for i in np.random.default_rng(0).integers(6, 1000, 50)]
CONTEXT = 160
GREEDY = SamplingOptions(temperature=0)


class Watched:
    """The decoder, with a hook before each call that may extend the cache, raise or set an event."""

    def __init__(self, decoder: Decoder) -> None:
        self.spec = decoder.spec
        self._decoder = decoder
        self.calls: list[int] = []  # tokens of each call
        self.logits: list[int] = []  # and how many logits were asked for
        self.hook: Callable[[KvCache, int], None] = lambda cache, tokens: None

    def forward(self, embeds: Any, per_layer: Any, cache: KvCache, *, num_logits: int = 1) -> Any:
        self.hook(cache, embeds.shape[1])
        self.calls.append(embeds.shape[1])
        self.logits.append(num_logits)
        return self._decoder.forward(embeds, per_layer, cache, num_logits=num_logits)


@pytest.fixture(scope="module")
def parts(made: Callable[[str], Path]) -> Iterator[tuple[Decoder, EmbeddingStore]]:
    """In float32: the kernels of quantized matrices round one row otherwise than many."""
    artifact = artifacts.read(made("tiny-fp32"))
    store = EmbeddingStore(artifact.path("embeddings.bin"), artifact.manifest.embeddings)
    yield Decoder(artifact, threads=1), store
    store.close()


@pytest.fixture
def decoder(parts: tuple[Decoder, EmbeddingStore]) -> Watched:
    return Watched(parts[0])


@pytest.fixture
def make(decoder: Watched, parts: tuple[Decoder, EmbeddingStore]) -> Callable[..., Generator]:
    def make(*, context: int = CONTEXT, chunk: int = 8) -> Generator:
        return Generator(decoder, parts[1], context=context, chunk=chunk)  # type: ignore[arg-type]

    return make


def answer(
    generator: Generator,
    prompt: list[int],
    count: int = 12,
    statistics: Statistics | None = None,
    options: SamplingOptions = GREEDY,
    cancel: Event | None = None,
) -> list[int]:
    return list(
        generator.generate(
            prompt,
            make_sampler(options),
            max_new_tokens=count,
            statistics=statistics or Statistics(),
            cancel=cancel,
        )
    )


def test_every_token_is_the_best_after_those_before_it(make: Callable[..., Generator]) -> None:
    """Chunks, window slides and decoding change nothing: each token is also that of one whole prefill."""
    found = answer(make(), PROMPT, 5 * WINDOW)
    for length in (0, 1, WINDOW - 1, WINDOW, 3 * WINDOW + 1, 5 * WINDOW - 1):
        assert answer(make(chunk=CONTEXT), PROMPT + found[:length], 1) == [found[length]]


@pytest.mark.parametrize("chunk", [1, 3, 16, 49, 50, 128, 1000])
def test_the_chunk_does_not_change_the_answer(chunk: int, make: Callable[..., Generator]) -> None:
    assert answer(make(chunk=chunk), PROMPT, 24) == answer(make(), PROMPT, 24)


def test_the_prompt_is_fed_in_chunks(make: Callable[..., Generator], decoder: Watched) -> None:
    answer(make(chunk=16), PROMPT, 3)
    assert decoder.calls == [16, 16, 16, 2, 1, 1]
    assert decoder.logits == [0, 0, 0, 1, 1, 1]  # of a prompt, only the last chunk's are read


@pytest.mark.parametrize("tokens", [1, 7])
def test_as_many_tokens_as_asked_for(tokens: int, make: Callable[..., Generator]) -> None:
    assert len(answer(make(), PROMPT, tokens)) == tokens


def test_the_context_can_be_filled_to_its_end(make: Callable[..., Generator]) -> None:
    assert len(answer(make(context=60), PROMPT, 10)) == 10


def test_a_continued_conversation_is_not_computed_again(make: Callable[..., Generator]) -> None:
    generator = make()
    first = answer(generator, PROMPT)
    longer = PROMPT + first + [77, 78, 79]
    statistics = Statistics()
    second = answer(generator, longer, statistics=statistics)
    assert statistics.reused_tokens == len(PROMPT) + len(first) - 1  # the last token was never fed
    assert statistics.rows == len(longer) - statistics.reused_tokens + len(second) - 1
    assert second == answer(make(), longer)


UNRELATED = {
    "same": PROMPT,
    "shorter": PROMPT[:20],
    "other": [9, 9, 9],
    "longer": list(range(100, 180)),
    "branch": PROMPT + list(range(100, 130)),
}


@pytest.mark.parametrize("prompt", UNRELATED.values(), ids=UNRELATED)
@pytest.mark.parametrize("said", [1, 12])
def test_an_unrelated_prompt_starts_afresh(
    prompt: list[int], said: int, make: Callable[..., Generator]
) -> None:
    generator = make()
    answer(generator, PROMPT, said)
    statistics = Statistics()
    assert answer(generator, prompt, statistics=statistics) == answer(make(), prompt)
    goes_on = said == 1 and prompt == UNRELATED["branch"]  # the one token said was never fed
    assert statistics.reused_tokens == (len(PROMPT) if goes_on else 0)


def test_states_are_stored_at_partings(make: Callable[..., Generator]) -> None:
    """Where each saves enough; the prompt is fed in the same chunks."""
    generator = make()
    generator.prefixes.limit = 1 << 30
    places = (-3, 5, 31, 37, 40, 49, 50, 99)
    sampler, statistics = make_sampler(GREEDY), Statistics()
    list(generator.generate(PROMPT, sampler, max_new_tokens=3, statistics=statistics, partings=places))
    assert [len(state) for state in generator.prefixes._states.values()] == [37]
    branch = PROMPT[:37] + list(range(200, 240))
    assert generator.reusable(branch) == 37
    statistics = Statistics()
    assert answer(generator, branch, statistics=statistics) == answer(make(), branch)
    assert statistics.reused_tokens == 37


def test_the_end_of_an_answer_may_be_taken_back(make: Callable[..., Generator], decoder: Watched) -> None:
    """As far as the sliding window is still there, and no further than what was said."""
    generator = make()
    said = answer(generator, PROMPT, 12)
    for kept, reused in ((11, 61), (9, 59), (7, 57), (2, 0)):
        prompt = PROMPT + said[:kept] + [900, 901]
        assert generator.reusable(prompt) == reused
    prompt = PROMPT + said[:9] + [900, 901]
    assert answer(generator, prompt) == answer(make(), prompt)


def test_a_state_is_held_in_place_of_a_conversation_that_is_stored(make: Callable[..., Generator]) -> None:
    first, second = make(), make()
    second.prefixes.limit = 1 << 30
    said = answer(first, PROMPT)
    other = answer(second, [*PROMPT, 7])
    longer = PROMPT + said + [77]
    state = first.state(longer)
    assert state and len(state) == len(PROMPT) + len(said) - 1
    second.restore(state.keys, state.rows)
    statistics = Statistics()
    assert answer(second, longer, statistics=statistics) == answer(first, longer)
    assert statistics.reused_tokens == len(state)
    answer(second, [*PROMPT, 7, *other, 78], statistics=statistics)
    assert statistics.reused_tokens == len(PROMPT) + len(other)
    assert second.state([1, 2, 3]) is None


def fail_before(cache: KvCache, tokens: int) -> None:
    raise KeyboardInterrupt


def fail_with_the_cache_extended(cache: KvCache, tokens: int) -> None:
    cache.extend(tokens)
    raise RuntimeError("in the middle")


@pytest.mark.parametrize("fail", [fail_before, fail_with_the_cache_extended])
@pytest.mark.parametrize("call", [0, 2, 6, 9], ids=["first-chunk", "third-chunk", "last-chunk", "decoding"])
def test_a_failure_leaves_it_usable(
    fail: Callable[[KvCache, int], None], call: int, make: Callable[..., Generator], decoder: Watched
) -> None:
    """Also for a prompt that goes on from what the cache held when the call failed."""
    generator = make()
    prompt = [*PROMPT, 70]  # 51 tokens: seven chunks

    def hook(cache: KvCache, tokens: int) -> None:
        if len(decoder.calls) == call:
            decoder.hook = lambda cache, tokens: None
            fail(cache, tokens)

    decoder.hook = hook
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        answer(generator, prompt)
    expected = answer(make(), prompt)
    assert answer(generator, prompt) == expected
    assert answer(generator, prompt + expected) == answer(make(), prompt + expected)


def test_a_failing_sampler_leaves_it_usable(make: Callable[..., Generator]) -> None:
    generator = make()

    def sampler(logits: Any, history: Any) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        next(generator.generate(PROMPT, sampler, max_new_tokens=5, statistics=Statistics()))
    statistics = Statistics()
    longer = [*PROMPT, 70]
    assert answer(generator, longer, statistics=statistics) == answer(make(), longer)
    assert statistics.reused_tokens == len(PROMPT)  # the prompt itself had been fed


def test_an_abandoned_answer_leaves_it_usable(make: Callable[..., Generator]) -> None:
    generator = make()
    tokens = generator.generate(PROMPT, make_sampler(GREEDY), max_new_tokens=50, statistics=Statistics())
    said = [next(tokens) for _ in range(20)]
    tokens.close()  # type: ignore[attr-defined]
    assert answer(generator, PROMPT + said) == answer(make(), PROMPT + said)


@pytest.mark.parametrize("call", [0, 1, 6], ids=["at-once", "in-the-prompt", "in-its-last-chunk"])
def test_cancelled_in_the_prompt(call: int, make: Callable[..., Generator], decoder: Watched) -> None:
    generator, cancel, statistics = make(), Event(), Statistics()

    def hook(cache: KvCache, tokens: int) -> None:
        if len(decoder.calls) == call - 1:
            cancel.set()

    if call == 0:
        cancel.set()
    decoder.hook = hook
    assert answer(generator, PROMPT, statistics=statistics, cancel=cancel) == []
    assert len(decoder.calls) == call
    assert statistics.rows == call * 8 and statistics.generated_tokens == 0
    decoder.hook = lambda cache, tokens: None
    resumed = Statistics()
    assert answer(generator, PROMPT, statistics=resumed) == answer(make(), PROMPT)
    assert resumed.reused_tokens == call * 8  # what was fed is kept


def test_cancelled_in_the_answer(make: Callable[..., Generator]) -> None:
    generator, cancel, said = make(), Event(), []
    for token in generator.generate(
        PROMPT, make_sampler(GREEDY), max_new_tokens=50, statistics=Statistics(), cancel=cancel
    ):
        said.append(token)
        if len(said) == 5:
            cancel.set()
    assert said == answer(make(), PROMPT, 5)
    assert answer(generator, PROMPT + said) == answer(make(), PROMPT + said)


def test_the_penalty_sees_prompt_and_answer(make: Callable[..., Generator]) -> None:
    seen: list[list[int]] = []

    def sampler(logits: np.ndarray[Any, Any], history: list[int]) -> int:
        assert logits.shape == (1040,) and logits.dtype == np.float32
        seen.append(list(history))
        return 100 + len(seen)

    list(make().generate(PROMPT, sampler, max_new_tokens=3, statistics=Statistics()))
    assert seen == [PROMPT, [*PROMPT, 101], [*PROMPT, 101, 102]]


def test_a_context_that_was_never_computed(make: Callable[..., Generator], decoder: Watched) -> None:
    generator, statistics = make(), Statistics()
    generator.occupy(PROMPT)
    assert decoder.calls == []
    answer(generator, [*PROMPT, 7], 4, statistics)
    assert decoder.calls == [1] * 4 and statistics.reused_tokens == len(PROMPT)
    generator.occupy([])
    assert answer(generator, PROMPT) == answer(make(), PROMPT)
