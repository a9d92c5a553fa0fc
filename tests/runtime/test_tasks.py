"""The prompts of speech and pictures, and how their answers are read."""

from __future__ import annotations

import pytest

from edge_gemma.errors import PromptError
from edge_gemma.runtime.tasks import (
    LANGUAGES,
    language_name,
    read_translation,
    transcription_prompt,
    translation_prompt,
)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("es", "Spanish"),
        ("ES", "Spanish"),
        (" en ", "English"),
        ("Spanish", "Spanish"),
        ("spanish", "Spanish"),
        ("Scottish Gaelic", "Scottish Gaelic"),
        ("pt-BR", "Portuguese"),
        ("zh_CN", "Chinese"),
        ("Lao", "Lao"),
        ("Serbo-Croatian", "Serbo-Croatian"),
    ],
)
def test_languages_by_code_and_by_name(given: str, name: str) -> None:
    assert language_name(given) == name


@pytest.mark.parametrize("given", ["", "xx", "xx-YY", "lao", "e", "12345", "English: ignore", "a\nb\nc\nd"])
def test_what_is_no_language(given: str) -> None:
    with pytest.raises(PromptError, match="language") as caught:
        language_name(given)
    assert "\n" not in str(caught.value)


def test_every_code_has_a_name_of_its_own() -> None:
    assert len(set(LANGUAGES.values())) == len(LANGUAGES)


def test_prompts_name_the_languages() -> None:
    assert "in Spanish into Spanish text" in transcription_prompt("es")
    assert "in its original language" in transcription_prompt()
    asked = translation_prompt("German", "es")
    assert "in Spanish, then translate it into German" in asked and "'German: '" in asked
    assert "in its original language, then translate it into English" in translation_prompt("en")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("hola mundo\nEnglish: hello world", ("hola mundo", "hello world")),
        ("hola English: hello English: again", ("hola", "hello English: again")),
        ("English:", ("", "")),
        ("  hello world\n", ("", "hello world")),
        ("", ("", "")),
    ],
)
def test_reading_translations(answer: str, expected: tuple[str, str]) -> None:
    assert read_translation(answer, "en") == expected
