"""Images and clips in prompts: ids as transformers' processor makes them, answers as it gives them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_gemma.cli import run
from edge_gemma.errors import ArtifactError, ContextLimitError, MediaError, PromptError
from edge_gemma.export.parity import agrees, compare
from edge_gemma.runtime import assembly, encoders
from edge_gemma.runtime.engine import Model
from edge_gemma.runtime.loading import load
from edge_gemma.runtime.statistics import Statistics

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, shape, dtype=np.uint8) for shape in ((50, 70, 3), (130, 31, 3))]
CLIPS = [0.1 * RNG.standard_normal(n).astype(np.float32) for n in (16_000, 30_123)]


def image(number: int) -> dict[str, Any]:
    return {"type": "image", "image": IMAGES[number]}


def clip(number: int) -> dict[str, Any]:
    return {"type": "audio", "audio": CLIPS[number]}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


CONVERSATIONS = {
    "interleaved": [user(text("look"), image(0), clip(0), text("and\n\n"), image(1), text("hear"), clip(1))],
    "only media": [user(clip(1), image(1))],
    "equal media twice": [user(image(0), image(0), text("same?"), clip(0), clip(0))],
    "over turns": [
        user(image(0), text("what?")),
        {"role": "assistant", "content": "a thing"},
        user(text("and this"), clip(1)),
    ],
}


@pytest.fixture(scope="module")
def model(media_artifact: Path) -> Any:
    with load(media_artifact, threads=1, context=2048, chunk=100, session_memory=0) as loaded:
        yield loaded


class Forced:
    """A sampler that takes given tokens and keeps the logits that it was shown, [V] each."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = iter(tokens)
        self.logits: list[np.ndarray] = []

    def __call__(self, logits: np.ndarray, history: list[int]) -> int:
        self.logits.append(logits.copy())
        return next(self._tokens)


def ask(model: Model, messages: list[dict[str, Any]], sampler: Any, new_tokens: int) -> Statistics:
    """Generate with a sampler of the test's."""
    built, statistics = model._prompts.build(messages), Statistics()
    generator = model._open()
    soft = model._soft_tokens(built, statistics)
    list(
        generator.generate(
            built.ids, sampler, max_new_tokens=new_tokens, statistics=statistics, keys=built.keys, soft=soft
        )
    )
    return statistics


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_answers_are_those_of_transformers(multimodal_checkpoint: Any, model: Model, name: str) -> None:
    """The numeric contract: greedy tokens equal, but for near ties of the reference.

    Logits are as close as a random decoder leaves what soft tokens differ by (tests/export/test_vision.py).
    """
    import multimodal  # here, since it imports transformers

    messages = CONVERSATIONS[name]
    tokens, logits = multimodal.greedy_reference(multimodal_checkpoint, messages, 24)
    sampler = Forced(tokens)
    ask(model, messages, sampler, len(tokens))
    expected = logits[-len(tokens) :]
    assert compare(np.array(sampler.logits), expected).max_relative_error <= 2e-3
    for found, row in zip(sampler.logits, expected, strict=True):
        assert agrees(int(found.argmax()), row)[0]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_ids_are_those_of_transformers(multimodal_checkpoint: Any, model: Model, name: str) -> None:
    """But for the places of a clip behind its own soft tokens, which hold the fill token."""
    import multimodal

    ids = model.encode(CONVERSATIONS[name])
    expected = multimodal.reference_ids(multimodal_checkpoint, CONVERSATIONS[name])
    audio, fill = model.manifest.tokens.media["audio"], model.manifest.audio.fill_token  # type: ignore[union-attr]
    assert [audio if token == fill else token for token in ids] == expected
    clips = str(CONVERSATIONS[name]).count("'audio', 'audio'")
    assert clips == 0 or fill in ids


def test_a_turn_that_follows_costs_no_encoding(model: Model) -> None:
    first = [user(image(0), clip(0), text("what?"))]
    answer = model.generate(first, max_new_tokens=4, temperature=0.0)
    assert (answer.statistics.images, round(answer.statistics.audio_seconds, 3)) == (1, 1.0)
    prompt = model.encode(first)
    follow = [*first, {"role": "assistant", "content": "x"}, user(text("and now?"))]
    # the answer was cut: take it out of the cache, as if the model had said what the conversation has
    model._generator._settled = len(prompt)  # type: ignore[union-attr]
    again = model.generate(follow, max_new_tokens=2, temperature=0.0)
    assert again.statistics.reused_tokens == len(prompt)
    assert (again.statistics.images, again.statistics.audio_seconds) == (0, 0.0)


def test_another_image_in_the_same_place_is_seen(model: Model) -> None:
    """Ids alone would be equal: the cache must not be reused."""
    sampler = [Forced([5] * 3) for _ in range(3)]
    for number, chosen in enumerate((0, 1, 0)):
        statistics = ask(model, [user(image(chosen), text("what?"))], sampler[number], 3)
        assert statistics.reused_tokens == 0
    assert not np.allclose(sampler[0].logits, sampler[1].logits)
    np.testing.assert_allclose(sampler[0].logits, sampler[2].logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("usable", [1 << 60, 0], ids=["plenty", "scarce"])
def test_weights_leave_the_page_cache_where_memory_is_scarce(
    media_artifact: Path, monkeypatch: pytest.MonkeyPatch, usable: int
) -> None:
    """So that what the decoder reads for every token is not crowded out."""
    forgotten: list[str] = []
    monkeypatch.setattr(assembly, "usable_memory", lambda: usable)
    monkeypatch.setattr(encoders, "forget", lambda path: forgotten.append(path.name))
    with load(media_artifact, threads=1, context=1024, cache=False) as loaded:
        loaded.generate([user(image(0))], max_new_tokens=1)
    expected = ["audio_encoder.onnx.data", "vision_encoder.onnx.data"]
    assert forgotten == ([] if usable else expected)


def test_encoders_are_released_or_kept(media_artifact: Path) -> None:
    for keep in (False, True):
        with load(media_artifact, threads=1, context=1024, keep_encoders=keep) as loaded:
            loaded.generate([user(image(0), clip(0))], max_new_tokens=1)
            assert len(loaded._encoders._sessions) == (2 if keep else 0)
        assert not loaded._encoders._sessions


def test_a_soft_token_written_by_the_user_is_text(model: Model) -> None:
    plain = model.encode([user(text("a <image_soft_token> b"), image(0))])
    assert plain.count(model.manifest.tokens.media["image"]) == 256


def test_the_context_counts_soft_tokens(media_artifact: Path) -> None:
    with (
        load(media_artifact, threads=1, context=250) as loaded,
        pytest.raises(ContextLimitError, match="tokens"),
    ):
        loaded.generate([user(image(0))])


def test_media_that_the_artifact_cannot_take(tiny_artifact: Path) -> None:
    with load(tiny_artifact, threads=1) as loaded:
        for part, kind in ((image(0), "image"), (clip(0), "audio")):
            with pytest.raises(PromptError, match=f"and this artifact has no {kind} encoder"):
                loaded.generate([user(part)])
        with pytest.raises(PromptError, match="no audio encoder"):
            loaded.transcribe(CLIPS[0])


@pytest.mark.parametrize("part", [{"type": "image"}, {"type": "audio", "url": "https://example.org/a.wav"}])
def test_media_without_a_source(model: Model, part: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match="without a source"):
        model.generate([user(part)])


@pytest.mark.parametrize("samples", [1, 160, 512, 513, 641])
def test_clips_shorter_than_a_frame(model: Model, samples: int) -> None:
    """Silence is put behind them."""
    short = {"type": "audio", "audio": np.full(samples, 0.1, np.float32)}
    (item,) = model._prompts.build([user(short)]).media
    assert item.tokens == 1 and len(item.data) == max(samples, 513)
    assert model.generate([user(short)], max_new_tokens=1).statistics.images == 0


def test_a_clip_longer_than_the_encoder_takes(model: Model) -> None:
    long = {"type": "audio", "audio": np.zeros(480_001, np.float32)}
    with pytest.raises(MediaError, match="expected at most 30 s"):
        model.encode([user(long)])
    longest = {"type": "audio", "audio": np.zeros(480_000, np.float32)}
    (item,) = model._prompts.build([user(longest)]).media
    assert item.tokens == 188


def test_a_template_without_media(media_artifact: Path, tmp_path: Path) -> None:
    """Some checkpoints come with a template that knows text alone."""
    folder = tmp_path / "artifact"
    shutil.copytree(media_artifact, folder)
    template = "{{ '<bos>' }}{% for m in messages %}turn{% endfor %}"
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["chat_template.jinja"]["bytes"] = len(template)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "chat_template.jinja").write_text(template)
    with load(folder, threads=1) as loaded, pytest.raises(ArtifactError, match="no place for the image"):
        loaded.generate([user(image(0))])


def test_inspect_tells_what_is_there(media_artifact: Path, tiny_artifact: Path, capsys: Any) -> None:
    assert run(["inspect", str(media_artifact)]) == 0
    out = capsys.readouterr().out
    assert "clips to 30.0 s, 188 soft tokens" in out and "any size, 256 soft tokens" in out
    assert run(["inspect", str(tiny_artifact)]) == 0
    assert capsys.readouterr().out.count("no encoder") == 2
