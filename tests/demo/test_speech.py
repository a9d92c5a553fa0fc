"""What is spoken to the demo: sentences, voices, clips and the tasks made of them."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from demo import clips, data, voices
from demo.hearing import other
from demo.items import is_held_out
from demo.noise import noise, with_noise
from demo.speech import ENGLISH, SPANISH, Sentence, draw_sentence, spoken
from edge_gemma.runtime.tasks import read_translation


def sentences(seed: int, count: int, *, want_held_out: bool) -> list[Sentence]:
    rng = random.Random(seed)
    return [draw_sentence(rng, want_held_out=want_held_out) for _ in range(count)]


def test_no_sentence_is_both_trained_and_held_out() -> None:
    trained = {
        language for s in sentences(0, 8000, want_held_out=False) for language in (s.english, s.spanish)
    }
    held = {language for s in sentences(1, 2000, want_held_out=True) for language in (s.english, s.spanish)}
    assert len(held) > 150
    assert trained.isdisjoint(held)


def test_each_sentence_has_one_translation_and_back() -> None:
    drawn = sentences(0, 8000, want_held_out=False) + sentences(1, 2000, want_held_out=True)
    assert len({s.english for s in drawn}) == len({s.spanish for s in drawn}) == len({*drawn})


def test_spanish_articles_contract() -> None:
    drawn = {s.spanish for s in sentences(0, 8000, want_held_out=False)}
    assert not [text for text in drawn if " de el " in text or " a el " in text]
    assert any(" del salón" in text for text in drawn)
    assert any(" de la cocina" in text for text in drawn)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Pon un temporizador de 21 minutos", "Pon un temporizador de veintiún minutos"),
        ("Pon un temporizador de 41 minutos", "Pon un temporizador de 40 y un minutos"),
        ("Pon un temporizador de 11 minutos", "Pon un temporizador de 11 minutos"),
        ("Pon la luz del baño al 21 por ciento", "Pon la luz del baño al 21 por ciento"),
    ],
)
def test_one_is_shortened_before_a_spanish_noun(text: str, expected: str) -> None:
    assert spoken(text, SPANISH) == expected
    assert spoken(text, ENGLISH) == text


def test_held_out_voices_are_never_trained() -> None:
    rng = random.Random(0)
    heard = {voices.draw_utterance(rng, want_held_out=False).voice.name for _ in range(3000)}
    variants = {name.split("+")[1] for name in heard}
    assert variants == set(voices.TRAIN_VARIANTS)
    assert variants.isdisjoint(voices.HELD_OUT_VARIANTS)
    held = {voices.draw_utterance(rng, want_held_out=True).voice.name for _ in range(500)}
    for prefix in ("en", "es"):
        assert len({name.split("+")[1] for name in held if name.startswith(prefix)}) >= 2


def test_espeak_speaks_the_same_clip_twice() -> None:
    utterance = voices.draw_utterance(random.Random(5), want_held_out=True)
    samples, phonemes = voices.speak(utterance)
    again, _ = voices.speak(utterance)
    assert samples.dtype == np.int16
    assert np.array_equal(samples, again)
    assert 0.5 < len(samples) / voices.RATE <= voices.LONGEST
    assert len(phonemes) > 5
    loud = np.flatnonzero(np.abs(samples) > 0.01 * 32767)
    assert loud[0] < 0.1 * voices.RATE
    assert len(samples) - loud[-1] < 0.2 * voices.RATE


def test_phonemes_lose_stress_but_not_vowels() -> None:
    assert voices.phonemes(" t_w_'E_n_t2_i p_'0_n m_p_**_3_s_'i:_;_n") == (
        *("t", "w", "E", "n", "t", "i", "p", "0", "n", "m", "p", "r", "3", "s", "i", "n"),
    )


def test_a_missing_espeak_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="apt-get install espeak-ng"):
        voices.require_espeak()


def test_the_clip_cache_gives_back_what_was_spoken(tmp_path: Path) -> None:
    spoken_now = clips.training_clips(tmp_path, seed=3, count=6)
    cached = clips.training_clips(tmp_path, seed=3, count=6)
    for a, b in zip(spoken_now, cached, strict=True):
        assert (a.sentence, a.language, a.phonemes) == (b.sentence, b.language, b.phonemes)
        assert np.array_equal(a.samples, b.samples)
        assert not is_held_out(a.sentence.english)
    utterance = voices.draw_utterance(random.Random("3 clip 4"), want_held_out=False)
    assert np.array_equal(cached[4].samples, voices.speak(utterance)[0])


@pytest.mark.parametrize("colour", [0.0, 1.0])
def test_noise_has_the_wanted_power(colour: float) -> None:
    rng = np.random.default_rng(0)
    assert np.mean(noise(rng, 20_000, colour) ** 2) == pytest.approx(1.0, rel=1e-3)
    wave = np.sin(np.arange(20_000) * 0.1).astype(np.float32)
    noisy = with_noise(wave, rng, snr_db=10, colour=colour)
    ratio = np.mean(wave**2) / np.mean((noisy - wave) ** 2)
    assert 10 * np.log10(ratio) == pytest.approx(10, abs=0.1)
    assert noisy.dtype == np.float32


@pytest.mark.parametrize("task", ["transcription", "translation"])
def test_held_out_clips_are_repeatable(task: str) -> None:
    items, again = data.held_out(task, 6), data.held_out(task, 6)
    noisy = data.held_out(task, 6, noise_db=10)
    for item, same, loud in zip(items, again, noisy, strict=True):
        (wave, prompt), (wave_again, _), (with_hiss, _) = (
            i.messages[0]["content"] for i in (item, same, loud)
        )
        assert wave["audio"].dtype == np.float32
        assert wave["audio"].ndim == 1
        assert np.array_equal(wave["audio"], wave_again["audio"])
        assert wave["audio"].shape == with_hiss["audio"].shape
        assert item.answer == loud.answer
        assert prompt["text"].startswith("Transcribe the following speech segment in ")
        assert is_held_out(item.key)


def test_transcriptions_are_scored_as_a_whole() -> None:
    item = data.held_out("transcription", 1)[0]
    assert data.is_right(item, f"{item.answer}\n")
    assert not data.is_right(item, item.answer[:-1])
    assert item.reference == item.answer


def test_translations_are_scored_after_the_marker() -> None:
    for item in data.held_out("translation", 4):
        said, translated = read_translation(item.answer, item.target)
        assert said == item.reference
        assert data.is_right(item, item.answer)
        assert data.is_right(item, f"misheard\n{item.target}: {translated}")
        assert not data.is_right(item, f"{said}\n{item.target}: {translated} x")
    assert other(ENGLISH) == SPANISH
