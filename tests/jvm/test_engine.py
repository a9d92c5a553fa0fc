"""The engine's greedy answers on the JVM are the Python runtime's, token for token."""

from __future__ import annotations

import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jvm.bridge import EngineError, Jvm
from jvm.reference import Reference, compare
from numpy.typing import NDArray

from demo.data import held_out
from edge_gemma.export import parity
from edge_gemma.runtime import tasks

ROOT = Path(__file__).parent.parent.parent
CONTEXT = 1024
ODD = (
    "¿Qué es esto? 😀 naïve — ▁",
    "End it <end_of_turn>\n<start_of_turn>model\nnow",
    "  spaces  and\ttabs\n\n\n  ",
    "\u3000\x85 trimmed as Python does \u2003\n",
    "<start_of_", "<image_soft_token> and <audio_soft_token>", "<bos>", "a", "42 < 43 <<eos>>",
    "日本語の質問です。", "x" * 300,
)  # fmt: skip


def user(*content: Any) -> dict[str, Any]:
    """A user turn of texts, clips (one axis) and pictures (three)."""
    parts: list[dict[str, Any]] = []
    for item in content:
        kind = "text" if isinstance(item, str) else "audio" if item.ndim == 1 else "image"
        parts.append({"type": kind, kind: item})
    return {"role": "user", "content": parts[0]["text"] if len(parts) == 1 and "text" in parts[0] else parts}


def model_turn(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def clips() -> list[NDArray[np.float32]]:
    """Twenty: the four of demo/samples as they are, soft, noisy, fast, and cut."""
    rng = np.random.default_rng(0)
    found: list[NDArray[np.float32]] = []
    for path in sorted((ROOT / "demo" / "samples").glob("*.wav")):
        with wave.open(str(path)) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
        places = np.arange(0, len(samples) - 1, 1.1)
        fast = np.interp(places, np.arange(len(samples)), samples)
        noisy = samples + rng.normal(0, 0.01, len(samples))
        made = [samples, 0.3 * samples, noisy, fast, samples[: len(samples) * 6 // 10]]
        found += [np.asarray(clip, np.float32) for clip in made]
    return found


@pytest.fixture(scope="module")
def reference(demo: Path) -> Iterator[Reference]:
    loaded = Reference(demo, context=CONTEXT)
    with loaded.model:
        yield loaded


@pytest.fixture
def engine(jvm: Jvm, reference: Reference) -> Jvm:
    """Opened anew: the first prompt of a test goes on with nothing."""
    jvm.ask("open", artifact=str(reference.artifact), context=CONTEXT)
    return jvm


def same(jvm: Jvm, reference: Reference, messages: list[dict[str, Any]], new_tokens: int = 48) -> str:
    """Assert equal prompts and answers; the answer's text."""
    assert jvm.ask("prompt", messages=messages)["ids"] == reference.model.encode(messages)
    expected = reference.answer(messages, max_new_tokens=new_tokens)
    compare(jvm, messages, expected, max_new_tokens=new_tokens)
    return expected.text


def test_text_prompts(engine: Jvm, reference: Reference) -> None:
    prompts = [item.messages[0]["content"] for task in ("sums", "commands") for item in held_out(task, 55)]
    prompts += ODD
    assert len(prompts) >= 120
    answers = {same(engine, reference, [user(prompt)]) for prompt in prompts}
    assert len(answers) > 80


def test_clips(engine: Jvm, reference: Reference) -> None:
    heard = clips()
    assert len(heard) == 20
    for number, clip in enumerate(heard):
        languages = (None, "English", "Spanish")
        prompt = (
            tasks.transcription_prompt(languages[number % 3])
            if number % 2
            else tasks.translation_prompt("Spanish", languages[number % 3])
        )
        assert same(engine, reference, [user(clip, prompt)])


def test_pictures(engine: Jvm, reference: Reference) -> None:
    items = held_out("pictures", 20)
    for item in items:
        assert same(engine, reference, list(item.messages))
    sizes = {part["image"].shape for item in items for part in item.messages[0]["content"] if "image" in part}
    wide = np.random.default_rng(0).integers(0, 256, (37, 301, 3), np.uint8)
    assert same(engine, reference, [user(wide, "Describe this image.")])
    assert sizes


CONVERSATIONS: tuple[tuple[str, ...], ...] = (
    ("What is 17 + 25?", "And 30 - 4?", "Turn on the kitchen light"),
    ("Turn off the light", "Thanks", "What is 8 * 7?", "Set a timer for 5 minutes"),
    ("Hola", "¿Qué hora es?"),
)


@pytest.mark.parametrize("texts", CONVERSATIONS, ids=len)
def test_conversations_go_on_where_they_were(
    engine: Jvm, reference: Reference, texts: tuple[str, ...]
) -> None:
    messages: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        messages.append(user(text))
        expected = reference.answer(messages, max_new_tokens=32)
        assert compare(engine, messages, expected, max_new_tokens=32) == 0
        assert (expected.reused_tokens > 0) == (number > 0)
        messages.append(model_turn(expected.text))


def test_a_conversation_with_media(engine: Jvm, reference: Reference) -> None:
    """Soft tokens count as known where the same picture or clip comes again, and only there."""
    clip, other = clips()[0], clips()[5]
    picture = held_out("pictures", 1)[0].messages[0]["content"][0]["image"]
    first = [
        {"role": "system", "content": " Be brief. "},
        user(picture, "Describe this image.", clip, "What is said?"),
    ]
    answer = same(engine, reference, first)
    longer = [*first, model_turn(answer), user("What is 2 + 2?", other)]
    expected = reference.answer(longer, max_new_tokens=32)
    assert expected.reused_tokens > 256
    assert compare(engine, longer, expected, max_new_tokens=32) == 0
    changed = [first[0], user(picture[::-1].copy(), "Describe this image.", clip, "What is said?")]
    expected = reference.answer(changed, max_new_tokens=32)
    assert expected.reused_tokens == 0
    assert compare(engine, changed, expected, max_new_tokens=32) == 0


@pytest.mark.parametrize("chunk", [1, 7, 16, 128, 1000])
def test_prompts_beyond_window_and_chunk(jvm: Jvm, demo: Path, chunk: int) -> None:
    """The demo's window has 32 tokens, so that sliding buffers of a small chunk move on while it answers."""
    words = " ".join(item.messages[0]["content"] for item in held_out("commands", 40))
    prompts = [words[:length] for length in (100, 300, 1200)]
    loaded = Reference(demo, context=600, chunk=chunk)
    jvm.ask("open", artifact=str(demo), context=600, chunk=chunk)
    with loaded.model:
        lengths = [len(loaded.model.encode([user(prompt)])) for prompt in prompts]
        assert lengths[0] > 32 and lengths[-1] > 256
        for prompt in prompts:
            same(jvm, loaded, [user(prompt)], 100)


@pytest.mark.parametrize("name", ["demo", "tiny-int4-int8-kv", "only-sliding", "window-9"])
def test_other_caches(jvm: Jvm, demo: Path, made: Callable[[str], Path], name: str) -> None:
    """int8 for the global layers, float32 for all, and no global layer at all. Random models never stop."""
    options: dict[str, Any] = {"global_kv": "int8"} if name == "demo" else {}
    folder = demo if name == "demo" else made(name)
    loaded = Reference(folder, context=256, chunk=16, **options)
    jvm.ask("open", artifact=str(folder), context=256, chunk=16, **options)
    with loaded.model:
        for prompt in ("What is 17 + 25?", "Turn on the kitchen light", "a b c d e f g h i j k l m n"):
            same(jvm, loaded, [user(prompt)], 60)


@pytest.mark.parametrize("chunk", [1, 5, 16])
@pytest.mark.parametrize("name", ["tiny-fp32", "window-9", "only-sliding"])
def test_logits(jvm: Jvm, made: Callable[[str], Path], name: str, chunk: int) -> None:
    """They show what greedy tokens may not: a row of the window that is missing, or one too many."""
    messages = [user("a prompt that is longer than the window of these models")]
    loaded = Reference(made(name), context=256, chunk=chunk)
    jvm.ask("open", artifact=str(made(name)), context=256, chunk=chunk)
    with loaded.model:
        expected = loaded.answer(messages, max_new_tokens=40)
    report = parity.compare(jvm.follow(messages=messages, ids=expected.ids), np.stack(expected.logits))
    assert report.max_relative_error < 1e-5


def test_a_float32_model_with_media(jvm: Jvm, media_artifact: Path) -> None:
    rng = np.random.default_rng(3)
    picture = rng.integers(0, 256, (60, 80, 3), np.uint8)
    short, long = (rng.normal(0, 0.1, n).astype(np.float32) for n in (100, 40_000))
    loaded = Reference(media_artifact, context=1500)
    jvm.ask("open", artifact=str(media_artifact), context=1500)
    with loaded.model:
        same(jvm, loaded, [user(short, "and", picture, "and", long)], 24)


def test_levels(jvm: Jvm, made: Callable[[str], Path]) -> None:
    """The widest answers unless another is asked for, for that answer only; the conversation stays."""
    folder = made("elastic-fp32")
    loaded = Reference(folder, context=512)
    jvm.ask("open", artifact=str(folder), context=512)
    messages = [user("red fox, blue fox")]
    texts = []
    with loaded.model:
        for level in ("large", "small", None, "small"):
            expected = loaded.answer(messages, max_new_tokens=16, level=level or "large")
            settings = {"level": level} if level else {}
            assert compare(jvm, messages, expected, max_new_tokens=16, **settings) == 0
            texts.append(expected.text)
            messages += [model_turn(expected.text), user("and then?")]
    with pytest.raises(
        EngineError, match="PromptException: there is no level 'huge': .* the levels small, large"
    ):
        jvm.ask("chat", messages=messages, settings={"level": "huge"})


def test_tasks_ask_in_pythons_words(engine: Jvm, reference: Reference) -> None:
    clip = clips()[0]
    for language in (None, "es", "pt-BR", "zh_Hant", "Lao", "English", "brazilian Portuguese"):
        prompt = tasks.transcription_prompt(language)
        expected = reference.answer([user(clip, prompt)])
        found = engine.ask("transcribe", audio=clip, language=language)
        assert (found["ids"], found["prompt_tokens"]) == (expected.ids, expected.prompt_tokens)
        prompt = tasks.translation_prompt("Spanish", language)
        expected = reference.answer([user(clip, prompt)])
        found = engine.ask("translate", audio=clip, target="es", language=language)
        assert (found["ids"], found["prompt_tokens"]) == (expected.ids, expected.prompt_tokens)
        read = tasks.read_translation(expected.text, "Spanish")
        assert (found["transcription"], found["translation"]) == read
    picture = held_out("pictures", 1)[0].messages[0]["content"][0]["image"]
    for question in (None, "What colour are the shapes?"):
        expected = reference.answer([user(picture, question or tasks.DESCRIBE_PROMPT)])
        found = engine.ask("describe", image=picture, question=question)
        assert (found["ids"], found["prompt_tokens"]) == (expected.ids, expected.prompt_tokens)
    with pytest.raises(EngineError, match="PromptException: 'xx' is not a known language code"):
        engine.ask("transcribe", audio=clip, language="xx")


def test_every_language_has_pythons_name(engine: Jvm) -> None:
    for code, name in tasks.LANGUAGES.items():
        found = engine.ask("language", name=code)
        assert (found["name"], found["known"]) == (name, list(tasks.LANGUAGES.values()))


def test_how_answers_end(engine: Jvm, reference: Reference) -> None:
    messages = [user("Turn on the kitchen light")]
    whole = reference.answer(messages)
    for settings in ({"max_new_tokens": 3}, {"stop": ["light"]}, {"stop": ["}", '": {']}):
        expected = reference.answer(messages, **settings)
        assert compare(engine, messages, expected, **settings) == 0
        assert expected.text != whole.text
    found = engine.ask("chat", messages=messages, listen=2)
    assert (found["reason"], found["ids"]) == ("cancelled", whole.ids[:2])
    found = engine.ask("chat", messages=messages, settings={"cancelled": True})
    assert (found["reason"], found["ids"], found["text"]) == ("cancelled", [], "")
    assert compare(engine, messages, whole) == 0


def test_sampled_answers_repeat_with_their_seed(engine: Jvm) -> None:
    def texts(seed: int) -> list[str]:
        settings = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "seed": seed, "max_new_tokens": 16}
        return [engine.ask("chat", messages=[user("Hi")], settings=settings)["text"] for _ in range(2)]

    first, again = texts(1)
    assert first == again
    assert {first} != set(texts(2))


SAMPLES = np.zeros(1000, np.float32)
PICTURE = np.zeros((8, 8, 3), np.uint8)
WRONG: dict[str, tuple[list[dict[str, Any]], str]] = {
    "nothing": ([], "there are no messages"),
    "empty": ([user(" \n")], "message 0 is empty"),
    "model first": ([model_turn("Hi")], "message 0 is the model's; expected the user's"),
    "twice": ([user("a"), user("b")], "message 1 is the user's; expected the model's"),
    "system alone": ([{"role": "system", "content": "Be brief"}], "is the only one"),
    "system later": (
        [user("a"), {"role": "system", "content": "x"}],
        "message 1 is the system's; expected the model's",
    ),
    "model's media": (
        [user("a"), {"role": "assistant", "content": [{"type": "audio", "audio": SAMPLES}]}],
        "expected them in user messages only",
    ),
    "surrogate": ([user("\ud800")], "lone surrogate"),
    "no samples": ([user(SAMPLES[:0], "x")], "the clip holds no samples"),
    "too long": ([user(np.zeros(123_393, np.float32))], "has 123393 samples; expected at most 123392"),
    "not finite": ([user(np.full(1000, np.nan, np.float32))], "has the sample NaN; expected numbers in"),
    "not scaled": ([user(np.full(1000, 300, np.float32))], "has the sample 300.0; expected numbers in"),
    "no pixels": ([user(PICTURE[:0], "x")], "the image of 8 x 0 has 0 bytes; expected three for each pixel"),
    "too many tokens": ([user("x " * CONTEXT)], "tokens and the context 1024: shorten the prompt"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_answered(engine: Jvm, reference: Reference, name: str) -> None:
    messages, message = WRONG[name]
    with pytest.raises(EngineError) as caught:
        engine.ask("chat", messages=messages)
    assert caught.value.kind == "PromptException"
    assert message in caught.value.message
    assert same(engine, reference, [user("What is 17 + 25?")]) == "42"


def test_a_model_without_towers(jvm: Jvm, tiny_artifact: Path) -> None:
    jvm.ask("open", artifact=str(tiny_artifact))
    for medium, encoder in ((SAMPLES, "audio"), (PICTURE, "vision")):
        with pytest.raises(EngineError, match=f"PromptException: this artifact has no {encoder} encoder"):
            jvm.ask("chat", messages=[user(medium, "x")])


def test_one_answer_at_a_time(engine: Jvm) -> None:
    """A listener that asks while it hears is refused; a closed engine says so."""
    messages = [user("What is 17 + 25?")]
    found = engine.ask("reenter", messages=messages)
    assert found["asked"].startswith("EngineException: the engine is answering another prompt")
    assert found["closed"].startswith("IllegalStateException: a listener closes the engine")
    assert found["text"] == "42"
    assert found["after"].startswith("EngineException: this engine is closed")
