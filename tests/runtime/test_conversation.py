"""Sessions: a turn costs its new tokens, whoever took turns meanwhile, and answers are a fresh model's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edge_gemma
from edge_gemma import Answer, EdgeGemmaError, Model, Session
from edge_gemma.errors import BudgetError, ContextLimitError, PromptError
from edge_gemma.runtime.prefixes import Prefixes
from edge_gemma.runtime.prompt import Encoded
from edge_gemma.runtime.said import Said

GREEDY: dict[str, Any] = {"temperature": 0, "max_new_tokens": 10}
SYSTEM = "You are brief and you answer in one word, whatever is asked of you. "
QUESTION = "Why is the sky blue? " * 3
DOCUMENT = "The sky is blue, as all know. " * 4
OTHER = "Something that has nothing to do with it, and takes a while to say. "
OPTIONS: dict[str, Any] = {"context": 1024, "chunk": 24, "threads": 1}
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (50, 70, 3), dtype=np.uint8)
CLIP = 0.1 * RNG.standard_normal(16_000).astype(np.float32)


@pytest.fixture(scope="module")
def artifact(made: Callable[[str], Path]) -> Path:
    """In float32: the kernels of quantized matrices round one row otherwise than many."""
    return made("tiny-fp32")


@pytest.fixture
def model(artifact: Path) -> Iterator[Model]:
    with edge_gemma.load(artifact, **OPTIONS) as model:
        yield model


@pytest.fixture(scope="module")
def fresh(artifact: Path) -> Iterator[Callable[[Session, Any], str]]:
    """What a model that has computed nothing before answers to a session's next message."""
    with edge_gemma.load(artifact, **OPTIONS, session_memory=0) as model:

        def answer(session: Session, content: Any) -> str:
            model._open().occupy([])
            found = model.generate([*session._messages, {"role": "user", "content": content}], **GREEDY)
            assert found.statistics.reused_tokens == 0
            return found.text

        yield answer


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def drop(model: Model) -> Prefixes:
    """Drop all states, and store no more."""
    model._session_memory = model._open().prefixes.limit = 0
    return model._open().prefixes


def new_tokens(answer: Answer) -> int:
    """Of the prompt, those that were computed: a record was read for each, and each said but one."""
    found = answer.statistics
    count = found.prompt_tokens - found.reused_tokens
    assert found.rows == count + found.generated_tokens - 1
    return count


def turn_tokens(model: Model, words: str) -> int:
    """What a turn adds to a prompt: the end of the last answer, and the question in its markers."""
    empty = [{"role": "user", "content": "?"}, {"role": "assistant", "content": Said("a", [70])}]
    asked = [*empty, {"role": "user", "content": words}]
    return len(model.encode(asked)) - len(model.encode(empty[:1])) - 1


def test_a_turn_after_a_long_document_costs_its_own_tokens(made: Callable[[str], Path]) -> None:
    """And the last token of the answer before, which was said and never fed."""
    with edge_gemma.load(made("long-context"), threads=1, context=3000) as model:
        document = "word " * 500
        session = model.session()
        first = session.generate([text(document), text("What is it about?")], **GREEDY)
        assert first.statistics.prompt_tokens == new_tokens(first) > 2000
        assert new_tokens(session.generate("And who?", **GREEDY)) == turn_tokens(model, "And who?") + 1
        model.generate(OTHER, **GREEDY)
        assert new_tokens(session.generate("When?", **GREEDY)) == turn_tokens(model, "When?") + 1
        # another conversation about the document computes its question
        again = model.session().generate([text(document), text("Is it any good?")], **GREEDY)
        assert new_tokens(again) < 40


def test_a_system_text_is_computed_once(model: Model, fresh: Callable[..., str]) -> None:
    length = len(model.encode([{"role": "system", "content": SYSTEM}, {"role": "user", "content": "?"}]))
    for number, question in enumerate((QUESTION, OTHER, "And?")):
        session = model.session(SYSTEM)
        expected = fresh(session, question)
        answer = session.generate(question, **GREEDY)
        assert answer.text == expected
        assert answer.statistics.reused_tokens in (range(length - 12, length) if number else [0])


def test_where_prompts_turn_out_to_part_the_third_goes_on(model: Model, fresh: Callable[..., str]) -> None:
    """A document and a question in one text; that the first two begin alike does not matter."""
    reused = []
    for question in ("What is it?", "Who says so?", "Oh?"):
        session = model.session()
        expected = fresh(session, DOCUMENT + question)
        answer = session.generate(DOCUMENT + question, **GREEDY)
        assert answer.text == expected
        reused.append(answer.statistics.reused_tokens)
    assert reused[:2] == [0, 0] and reused[2] > 60


def test_sessions_that_take_turns_go_on_where_they_were(model: Model, fresh: Callable[..., str]) -> None:
    sessions = [model.session(), model.session("Be kind."), model.session()]
    costs = []
    for round in range(3):
        for number, session in enumerate(sessions):
            question = f"{QUESTION} {number} {round}"
            expected = fresh(session, question)
            answer = session.generate(question, **GREEDY)
            assert answer.text == expected
            if round:
                costs.append(new_tokens(answer) - turn_tokens(model, question))
    assert costs == [1] * 6


def test_forks_go_on_by_themselves(model: Model, fresh: Callable[..., str]) -> None:
    trunk = model.session()
    trunk.generate(QUESTION, **GREEDY)
    branches = [trunk, trunk.fork(), trunk.fork()]
    for question in ("And at night?", "Why not?"):
        for number, branch in enumerate(branches):
            expected = fresh(branch, f"{question} {number}")
            answer = branch.generate(f"{question} {number}", **GREEDY)
            assert answer.text == expected
            assert new_tokens(answer) == turn_tokens(model, f"{question} {number}") + 1
    assert [len(branch.messages) for branch in branches] == [6] * 3
    assert len({branch.messages[2]["content"] for branch in branches}) == 3


@given(
    turns=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["go on", QUESTION, OTHER]), st.booleans()), max_size=7
    ),
    limit=st.sampled_from([0, 100_000, 300_000, 1 << 28]),
)
@settings(
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
def test_whatever_came_between_answers_are_a_fresh_model_s(
    turns: list[tuple[int, str, bool]], limit: int, model: Model, fresh: Callable[..., str]
) -> None:
    """Also where states were dropped for want of room, which is never exceeded."""
    prefixes = drop(model)
    model._session_memory = limit
    sessions = [model.session(), model.session(SYSTEM)]
    for which, question, fork in turns:
        session = sessions[which % len(sessions)]
        expected = fresh(session, question)
        if fork:
            sessions.append(session.fork())
        assert session.generate(question, **GREEDY).text == expected
        assert prefixes.bytes <= limit


@pytest.mark.parametrize(
    ("name", "global_kv"),
    [("tiny-int4", "float16"), ("tiny-int4", "int8"), ("window-9", None), ("only-sliding", None)],
)
def test_a_restored_state_is_the_one_that_was_left(
    name: str, global_kv: str | None, made: Callable[[str], Path]
) -> None:
    """Bit for bit: with quantized weights too an answer is as if nobody had come between."""
    context = 400
    answers = []
    for between in (False, True):
        with edge_gemma.load(made(name), threads=1, context=context, chunk=24, global_kv=global_kv) as model:
            session = model.session()
            for question in (QUESTION, "And at night?", "Why?"):
                answers.append(session.generate(question, **GREEDY).text)
                if between:
                    model.generate(OTHER, **GREEDY)
    assert answers[:3] == answers[3:]


def test_what_the_limit_has_no_room_for_is_computed_again(artifact: Path, fresh: Callable[..., str]) -> None:
    with edge_gemma.load(artifact, **OPTIONS, session_memory="0") as model:
        session = model.session()
        session.generate(QUESTION, **GREEDY)
        assert new_tokens(session.generate("And?", **GREEDY)) == turn_tokens(model, "And?") + 1
        model.generate(OTHER, **GREEDY)
        expected = fresh(session, "Why?")
        answer = session.generate("Why?", **GREEDY)
        assert (answer.text, answer.statistics.reused_tokens) == (expected, 0)
        assert len(model._open().prefixes) == 0


def test_what_is_seen_and_heard_is_encoded_once(
    media_artifact: Path, tmp_path: Path, encoded: list[str]
) -> None:
    """No later turn, no other conversation about it and no eviction needs the encoder or the file."""
    path = tmp_path / "image.png"
    pytest.importorskip("PIL.Image").fromarray(IMAGE).save(path)
    media = [{"type": "image", "image": str(path)}, {"type": "audio", "audio": CLIP}]
    with edge_gemma.load(media_artifact, threads=1, context=1024) as model:
        one = model.session()
        first = one.generate([*media, text("What?")], **GREEDY)
        assert (first.statistics.images, first.statistics.audio_seconds) == (1, 1.0)
        two = model.session()
        again = two.generate([*media, text("Why?")], **GREEDY)
        assert new_tokens(again) < 20
        path.unlink()
        drop(model)
        model._encoders._results.clear()
        for session in (one, two):
            answer = session.generate("And?", **GREEDY)
            assert answer.statistics.reused_tokens == 0
            assert answer.statistics.images == 0
        (part, *_) = one.messages[0]["content"]
        assert isinstance(part["image"], Encoded) and part["image"].rows.shape[0] == 256
        # encoded parts are taken in place of sources
        found = model.generate([{"role": "user", "content": [*one.messages[0]["content"]]}], **GREEDY)
        assert found.text == first.text
    assert encoded == ["audio", "image"]


def test_a_part_of_another_artifact_is_refused(model: Model, media_artifact: Path) -> None:
    wrong = Encoded("image", b"0" * 16, np.zeros((256, 63), np.float32))
    part = {"type": "image", "image": wrong}
    with (
        edge_gemma.load(media_artifact, threads=1, context=512) as seeing,
        pytest.raises(
            PromptError, match="is image in 256 soft tokens of 63 values: expected image that this"
        ),
    ):
        seeing.session().generate([part])


def test_an_answer_that_is_interrupted_is_part_of_it(model: Model, fresh: Callable[..., str]) -> None:
    def close(session: Session) -> str:
        pieces = session.stream(QUESTION, temperature=0)
        said = "".join(next(pieces).text for _ in range(4))
        pieces.close()  # type: ignore[attr-defined]
        return said

    def cancel(session: Session) -> str:
        event, said = Event(), ""
        for piece in session.stream(QUESTION, temperature=0, cancel=event):
            said += piece.text
            event.set()
        return said

    def interrupt(session: Session) -> str:
        said = ""
        with pytest.raises(KeyboardInterrupt):
            for piece in session.stream(QUESTION, temperature=0):
                said += piece.text
                if len(said) > 5:
                    model._open().decoder.forward = stopped  # type: ignore[method-assign]
        del model._open().decoder.forward
        return said

    def stopped(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    for way in (close, cancel, interrupt):
        session = model.session()
        said = way(session)
        assert said and [m["content"] for m in session.messages] == [QUESTION, said]
        expected = fresh(session, "Go on")
        assert session.generate("Go on", **GREEDY).text == expected


def test_an_answer_that_never_began_is_not(model: Model) -> None:
    session, cancel = model.session(), Event()
    cancel.set()
    assert session.generate(QUESTION, cancel=cancel).finish_reason == "cancelled"
    session.stream(QUESTION).close()  # type: ignore[attr-defined]
    assert session.messages == []


def test_after_an_error_it_is_as_before(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    session = model.session(SYSTEM)
    session.generate(QUESTION, **GREEDY)
    before = session.messages
    with pytest.raises(ContextLimitError):
        session.generate("word " * 1000)
    with pytest.raises(PromptError, match="'temprature'"):
        session.generate("And?", temprature=0)
    for wrong in ("", None, 7, [], [{"type": "video"}], [{"type": "image"}], ["text"]):
        with pytest.raises(PromptError, match="message 3"):
            session.generate(wrong)  # type: ignore[arg-type]
    pieces = session.stream("And?", **GREEDY)
    next(pieces)
    monkeypatch.setattr(model._open().decoder, "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(pieces)
    assert session.messages == before


def test_a_question_from_before_another_turn(model: Model) -> None:
    session = model.session()
    late = session.stream("late", **GREEDY)
    session.generate(QUESTION, **GREEDY)
    with pytest.raises(EdgeGemmaError, match="the session went on since this was asked: ask again"):
        next(late)
    assert [m["content"] for m in session.messages[:1]] == [QUESTION]


def test_a_stop_string_costs_nothing_later(model: Model, fresh: Callable[..., str]) -> None:
    session = model.session()
    whole = session.fork().generate(QUESTION, **GREEDY).text
    answer = session.generate(QUESTION, stop=[whole[5:8]], **GREEDY)
    assert answer.text == whole[:5] == session.messages[-1]["content"]
    expected = fresh(session, "And?")
    follow = session.generate("And?", **GREEDY)
    assert follow.text == expected
    assert new_tokens(follow) <= turn_tokens(model, "And?") + 5


def test_callers_without_a_session_send_text(model: Model) -> None:
    """As OpenAI's API has it: all messages each time, of which the model knows the ids it said."""
    asked = [{"role": "user", "content": QUESTION}]
    first = model.generate(asked, **GREEDY)
    model.generate(OTHER, **GREEDY)
    answer = {"role": "assistant", "content": [text(f" {first.text}\n")]}
    follow = model.generate([*asked, answer, {"role": "user", "content": "And?"}], **GREEDY)
    assert new_tokens(follow) == turn_tokens(model, "And?") + 1


def test_messages_are_plain_and_begin_a_session(model: Model) -> None:
    session = model.session(SYSTEM)
    session.generate(QUESTION, **GREEDY)
    messages = json.loads(json.dumps(session.messages))
    assert [m["role"] for m in messages] == ["system", "user", "assistant"]
    assert {type(m["content"]) for m in session.messages} == {str}
    other = model.session(messages=messages)
    assert other.messages == messages
    assert new_tokens(other.generate("And?", **GREEDY)) == turn_tokens(model, "And?") + 1
    session.messages.clear()
    assert session.messages == messages
    with pytest.raises(PromptError, match="user and assistant alternate"):
        model.session(messages=messages[:2])
    with pytest.raises(PromptError, match="message 1 has the role 'system'"):
        model.session(SYSTEM, messages)


def test_a_closed_model_has_no_sessions(artifact: Path) -> None:
    with edge_gemma.load(artifact, **OPTIONS) as model:
        session = model.session()
    with pytest.raises(EdgeGemmaError, match="this model is closed"):
        session.generate("hello")


def test_the_budget_holds_them(artifact: Path, made: Callable[[str], Path]) -> None:
    with edge_gemma.load(artifact, **OPTIONS) as model:
        assert model._open().prefixes.limit == 256 << 20
        needed = model.plan.answering
    for budget, expected in ((2 * needed, needed), (10 * needed, 256 << 20)):
        with edge_gemma.load(artifact, **OPTIONS, memory_budget=budget) as model:
            limit = model._open().prefixes.limit
            assert limit <= expected and limit + model.plan.answering <= budget
    with pytest.raises(
        BudgetError, match="session_memory is 1.00 GiB and the budget .* ask for less, or load"
    ):
        edge_gemma.load(artifact, **OPTIONS, memory_budget=2 * needed, session_memory="1GiB")
    for wrong in (-1, 2.5, "lots", True):
        with pytest.raises(PromptError, match=r"session_memory is|'lots' is not a size"):
            edge_gemma.load(artifact, **OPTIONS, session_memory=wrong)  # type: ignore[arg-type]


def test_a_wider_level_leaves_less_of_the_budget(made: Callable[[str], Path]) -> None:
    with edge_gemma.load(made("elastic-fp32"), threads=1, context=256) as model:
        budget = int(model.plan.peak * 1.5)
    with edge_gemma.load(
        made("elastic-fp32"), threads=1, context=256, memory_budget=budget, level="small"
    ) as m:
        small = m._open().prefixes.limit
        m.set_level("large")
        assert 0 < m._open().prefixes.limit < small


def test_what_is_transcribed_takes_no_room_of_chats(media_artifact: Path) -> None:
    """A recording's segments are prompts that nobody comes back to."""
    noise = np.random.default_rng(0).normal(0, 0.3, 16_000 * 70).astype(np.float32)
    with edge_gemma.load(media_artifact, context=1500, threads=1) as model:
        session = model.session()
        session.generate("hello " * 40, temperature=0, max_new_tokens=4)
        stored = len(model._open().prefixes)
        segments = model.transcribe(noise, max_new_tokens=3).segments
        assert len(segments) > 1
        assert len(model._open().prefixes) == stored + 1  # the chat's
        assert session.generate("go on", temperature=0, max_new_tokens=4).statistics.reused_tokens > 40
