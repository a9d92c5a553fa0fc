"""Speech recognition, speech translation and picture description: the prompts, and how answers are read.

The wordings are those that Google recommends for Gemma's audio (ai.google.dev/gemma/docs/capabilities/audio):
the language is named in full, and a translation comes after a transcription and a marker.
"""

from __future__ import annotations

import re

from edge_gemma.errors import PromptError

DESCRIBE_PROMPT = "Describe this image."

LANGUAGES = {
    "ar": "Arabic",
    "bn": "Bengali",
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "fa": "Persian",
    "fi": "Finnish",
    "fr": "French",
    "he": "Hebrew",
    "hi": "Hindi",
    "hu": "Hungarian",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "nl": "Dutch",
    "no": "Norwegian",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "sv": "Swedish",
    "sw": "Swahili",
    "ta": "Tamil",
    "te": "Telugu",
    "th": "Thai",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "ur": "Urdu",
    "vi": "Vietnamese",
    "zh": "Chinese",
}
ORIGINAL = "its original language"


def language_name(language: str) -> str:
    """The English name of a language given by name or by ISO 639-1 code: "es" → "Spanish", so "es-MX".

    Raises:
        PromptError: a code that is not known; a name is taken as it is.
    """
    text = language.strip()
    code = re.split("[-_]", text)[0].lower()
    if code in LANGUAGES:
        return LANGUAGES[code]
    if len(code) <= 3 and not (len(text) == 3 and text.istitle()):  # Lao is a name
        raise PromptError(
            f"{language!r} is not a known language code: give the language's English name, such as "
            f"Spanish, or one of {', '.join(LANGUAGES)}"
        )
    if not text.replace(" ", "").replace("-", "").isalpha():
        raise PromptError(f"{language!r} is not a language: give its English name, such as Spanish")
    return text[0].upper() + text[1:]


def transcription_prompt(language: str | None = None) -> str:
    """What to ask beside a clip for its transcription; None leaves the language to the model."""
    if language is None:
        where = f"in {ORIGINAL}"
    else:
        name = language_name(language)
        where = f"in {name} into {name} text"
    return (
        f"Transcribe the following speech segment {where}. Only output the transcription, with no newlines."
    )


def translation_prompt(target: str, source: str | None = None) -> str:
    """What to ask beside a clip for its translation; the answer is read by `read_translation`."""
    spoken = ORIGINAL if source is None else language_name(source)
    name = language_name(target)
    return (
        f"Transcribe the following speech segment in {spoken}, then translate it into {name}. When "
        f"formatting the answer, first output the transcription in {spoken}, then one newline, then output "
        f"the string '{name}: ', then the translation in {name}."
    )


def with_hint(prompt: str, hint: str | None) -> str:
    """A prompt beside a clip, and words that help to understand it: names, terms, what was said before."""
    return f"{prompt} These words may help: {hint.strip()}" if hint and hint.strip() else prompt


def read_translation(answer: str, target: str) -> tuple[str, str]:
    """Transcription and translation from an answer to `translation_prompt`.

    An answer without the marker is all translation: better than to lose it.
    """
    before, marker, after = answer.partition(f"{language_name(target)}:")
    if not marker:
        return "", answer.strip()
    return before.strip(), after.strip()
