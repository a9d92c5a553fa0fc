"""Prompts answered together: what each gets is what it gets alone."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edge_gemma
from edge_gemma import Model
from edge_gemma.errors import ContextLimitError, EdgeGemmaError, PromptError
from edge_gemma.runtime.batch import CHUNK, Batch, bytes_of_one
from edge_gemma.runtime.kv_cache import KvCache

CONTEXT = 256
WORDS = "the sky is blue and the fox is red but nobody knows why that is so"
PROMPTS = [WORDS[:n] for n in (3, 66, 17, 40, 9, 28)]  # ragged; the longer ones cross the sliding window


@pytest.fixture(scope="module")
def model(made: Callable[[str], Path]) -> Iterator[Model]:
    """In float32: the kernels of quantized matrices round one row otherwise than many."""
    with edge_gemma.load(made("tiny-fp32"), context=CONTEXT, threads=1) as model:
        yield model


def texts(answers: list[Any]) -> list[str]:
    return [answer.text for answer in answers]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_the_answers_are_those_of_one_by_one(model: Model, size: int) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 36}
    together = model.generate_batch(PROMPTS, size=size, **options)
    alone = [model.generate(prompt, **options) for prompt in PROMPTS]
    assert texts(together) == texts(alone)
    assert [a.finish_reason for a in together] == [a.finish_reason for a in alone]
    assert [a.statistics.prompt_tokens for a in together] == [a.statistics.prompt_tokens for a in alone]
    assert [a.statistics.generated_tokens for a in together] == [36] * len(PROMPTS)


def test_a_seed_gives_what_it_gives_alone(model: Model) -> None:
    options: dict[str, Any] = {"seed": 7, "max_new_tokens": 30, "repetition_penalty": 1.2}
    together = model.generate_batch(PROMPTS, **options)
    assert texts(together) == [model.generate(prompt, **options).text for prompt in PROMPTS]
    assert len(set(texts(together))) > 1


def test_answers_of_unequal_length(model: Model) -> None:
    """A stop string ends each at another place; places that get free are taken by those that wait."""
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 30}
    whole = model.generate(PROMPTS[1], **options).text
    options["stop"] = [whole[4:7]]
    together = model.generate_batch(PROMPTS * 2, size=3, **options)
    alone = [model.generate(prompt, **options) for prompt in PROMPTS]
    assert texts(together) == texts(alone) * 2
    assert [a.finish_reason for a in together] == [a.finish_reason for a in alone] * 2
    assert {"stop", "length"} == {a.finish_reason for a in together}


def test_each_answer_has_its_own_grammar(made: Callable[[str], Path]) -> None:
    pytest.importorskip("llguidance")
    form = {"type": "regex", "regex": "[a-z]{2,6}( [0-9]{1,3}){1,3}"}
    with edge_gemma.load(made("demo-text-fp32"), context=CONTEXT) as model:
        answers = model.generate_batch(PROMPTS, response_format=form, temperature=1.5, top_k=0)
    assert all(re.fullmatch(form["regex"], answer.text) for answer in answers)
    assert {answer.finish_reason for answer in answers} == {"stop"}
    assert len(set(texts(answers))) > 1


def test_a_decoding_pass_serves_all(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    step = Batch.step

    def counted(batch: Batch, tokens: list[int]) -> Any:
        passes.append(len(tokens))
        return step(batch, tokens)

    monkeypatch.setattr(Batch, "step", counted)
    model.generate_batch(PROMPTS[:4], size=4, temperature=0, max_new_tokens=10)
    assert passes == [4] * 9  # the first token comes with the prompt


def test_a_chat_goes_on_behind_a_batch(model: Model) -> None:
    """The conversation before it was stored; what was said in the batch may be continued."""
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 8}
    chat = [{"role": "user", "content": WORDS}]
    chat += [
        {"role": "assistant", "content": model.generate(chat, **options).text},
        {"role": "user", "content": "go on"},
    ]
    alone = model.generate(chat, **options).text
    stored = len(model._open().prefixes)
    model.generate_batch(PROMPTS, **options)
    assert len(model._open().prefixes) == stored + 1  # the chat, and none of the batch
    again = model.generate(chat, **options)
    assert again.text == alone
    assert again.statistics.reused_tokens > 32


def test_cancelling_keeps_what_was_said(model: Model) -> None:
    class After(Event):
        """Set once it was asked 30 times."""

        asked = 0

        def is_set(self) -> bool:
            self.asked += 1
            return self.asked > 30

    answers = model.generate_batch(PROMPTS, size=3, temperature=0, cancel=After())
    assert {answer.finish_reason for answer in answers} == {"cancelled"}
    assert [bool(answer.text) for answer in answers] == [True] * 3 + [False] * 3


def test_its_memory_goes_back(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    made = Batch.__init__

    def noted(batch: Batch, *parts: Any, **options: Any) -> None:
        made(batch, *parts, **options)
        held.append(weakref.ref(batch._together[-1].pairs[0][1]))

    monkeypatch.setattr(Batch, "__init__", noted)
    model.generate_batch(PROMPTS, temperature=0, max_new_tokens=5)
    gc.collect()
    assert len(held) == 1 and held[0]() is None


def test_nothing_to_answer(model: Model) -> None:
    assert model.generate_batch([]) == []


@pytest.mark.parametrize(
    ("prompts", "options", "error"),
    [
        (["a", "a " * CONTEXT], {}, ContextLimitError),
        (["a", ""], {}, PromptError),
        (["a"], {"size": 0}, PromptError),
        (["a"], {"speculate": "lookup"}, PromptError),
    ],
)
def test_refused_before_anything_is_computed(
    model: Model, monkeypatch: pytest.MonkeyPatch, prompts: list[str], options: dict[str, Any], error: Any
) -> None:
    monkeypatch.setattr(model._open().decoder, "forward", lambda *_, **__: pytest.fail("computed"))
    with pytest.raises(error):
        model.generate_batch(prompts, **options)


def test_one_at_a_time(model: Model) -> None:
    answering = model.stream("hello", max_new_tokens=5)
    next(answering)
    with pytest.raises(EdgeGemmaError, match="answering"):
        model.generate_batch(PROMPTS)
    answering.close()


def test_a_budget_limits_how_many_decode_together(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    made = Batch.__init__

    def noted(batch: Batch, *parts: Any, size: int, context: int) -> None:
        sizes.append(size)
        made(batch, *parts, size=size, context=context)

    monkeypatch.setattr(Batch, "__init__", noted)
    longest = max(len(model.encode(prompt)) for prompt in PROMPTS) + 5
    one = bytes_of_one(model.manifest.memory, model._open().decoder.spec, longest)
    answering = int(model.plan.answering * 1.05)
    for left, expected in ((0, 1), (one * 3, 3), (one * 100, 6)):
        plan = model.plan.__class__(**(vars(model.plan) | {"budget": answering + left + 8}))
        monkeypatch.setattr(model._levels, "plan", plan)
        model.generate_batch(PROMPTS, temperature=0, max_new_tokens=5)
        assert sizes.pop() == expected


def test_the_bytes_of_one_are_those_of_its_buffers(model: Model) -> None:
    spec = model._open().decoder.spec
    cache = KvCache(spec, context=100, chunk=CHUNK)
    held = sum(array.nbytes for _, *pair in cache.arrays() for array in pair)
    assert bytes_of_one(model.manifest.memory, spec, 100) == held


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40)), min_size=1, max_size=12))
def test_places_keep_their_conversations(model: Model, moves: list[tuple[int, int]]) -> None:
    """Random comings, goings and steps: every conversation's logits are those of a cache of its own."""
    generator = model._open()
    decoder, store = generator.decoder, model._store
    batch = Batch(decoder, store, size=3, context=CONTEXT)
    mirror: list[KvCache] = []
    rng = np.random.default_rng(0)
    for kind, number in moves:
        if kind == 0 and len(batch) < batch.size:
            cache = KvCache(decoder.spec, context=CONTEXT, chunk=64)
            ids = rng.integers(10, 100, number)
            decoder.forward(*store.rows(ids.tolist()), cache)
            batch.add(cache.length, cache.rows(cache.length))
            mirror.append(cache)
        elif kind == 1 and mirror:
            place = number % len(mirror)
            batch.drop(place)
            last = mirror.pop()
            if place < len(mirror):
                mirror[place] = last
        elif mirror:
            tokens = rng.integers(10, 100, len(mirror)).tolist()
            logits = batch.step(tokens)
            for found, token, cache in zip(logits, tokens, mirror, strict=True):
                expected = decoder.forward(*store.rows([token]), cache)[0]
                np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
        assert len(batch) == len(mirror)
