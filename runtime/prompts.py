"""Prompts for common tasks. Each function gives messages, for `Model.stream` and all that takes its messages.

model.generate(prompts.translation("Where is the station?", "German", register="formal"))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from edge_gemma.errors import PromptError
from edge_gemma.runtime.chat import Message
from edge_gemma.runtime.tasks import language_name

REGISTERS = {
    "formal": "Use the formal register: polite forms of address, no slang.",
    "informal": "Use the informal register: familiar forms of address, everyday words.",
}


def translation(
    text: str,
    target: str,
    source: str | None = None,
    *,
    register: Literal["formal", "informal"] | None = None,
    region: str | None = None,
) -> list[Message]:
    """Translate a text.

    >>> translation("How are you?", "pt", "en", register="informal", region="Brazil")[0]["content"]
    'Translate the following text from English into Portuguese as it is spoken in Brazil. Use the informal \
register: familiar forms of address, everyday words. Only output the translation.\\n\\nHow are you?'

    Args:
        text: what to translate.
        target: a language by name or ISO 639-1 code.
        source: the language of the text; by default the model finds out.
        register: how to address the reader.
        region: whose variety of the language, such as "Brazil" or "Switzerland".

    Raises:
        PromptError: a language or the register is unknown.
    """
    if register is not None and register not in REGISTERS:
        raise PromptError(f"the register is {register!r}; expected {' or '.join(REGISTERS)}")
    origin = f" from {language_name(source)}" if source else ""
    where = f" as it is spoken in {region}" if region else ""
    task = f"Translate the following text{origin} into {language_name(target)}{where}."
    manner = [REGISTERS[register]] if register else []
    return [_user(" ".join([task, *manner, "Only output the translation."]) + f"\n\n{text}")]


def image_analysis(image: Any, question: str | None = None, *, aspects: Sequence[str] = ()) -> list[Message]:
    """Look at one image closely.

    >>> image_analysis("street.jpg", aspects=["weather", "vehicles"])[0]["content"][1]["text"]
    'Analyse this image. Say what you see of each of these: weather; vehicles. Say so where something cannot \
be seen.'

    Args:
        image: as in a message of `Model.stream`: a path, bytes, an open file or a numpy array.
        question: what to answer by it.
        aspects: what to go through, one by one.
    """
    task = ["Analyse this image."]
    if aspects:
        task.append(f"Say what you see of each of these: {'; '.join(aspects)}.")
    if question:
        task.append(
            f"Then answer this question: {question}" if aspects else f"Answer this question: {question}"
        )
    task.append("Say so where something cannot be seen.")
    return [_user([_image(image), _text(" ".join(task))])]


def image_comparison(images: Sequence[Any], question: str | None = None) -> list[Message]:
    """Compare several images, which the model is told to call "image 1", "image 2" and so on.

    >>> [part["type"] for part in image_comparison(["before.png", "after.png"])[0]["content"]]
    ['text', 'image', 'text', 'image', 'text']

    Raises:
        PromptError: there are fewer than two.
    """
    if len(images) < 2:
        raise PromptError(f"there are {len(images)} images to compare; expected two or more")
    shown = [part for n, image in enumerate(images, 1) for part in (_text(f"Image {n}:"), _image(image))]
    task = question or "What do these images have in common, and how do they differ?"
    return [_user([*shown, _text(f"Compare these {len(images)} images. {task}")])]


def tool_request(question: str, context: Mapping[str, str]) -> list[Message]:
    """Ask for what functions can do, with facts that their arguments may need.

    `tool_loop.run_tools` and `tools.tool_messages` add the functions.

    >>> tool_request("Too bright!", {"room": "kitchen", "time": "21:40"})[0]["content"]
    'What is known now:\\n- room: kitchen\\n- time: 21:40\\nUse it for what the user leaves out. Ask where \
something is still missing; do not make it up.'
    """
    facts = "".join(f"- {name}: {value}\n" for name, value in context.items())
    rule = "Use it for what the user leaves out. Ask where something is still missing; do not make it up."
    return [_system(f"What is known now:\n{facts}{rule}"), _user(question)]


def answer_in(language: str, question: str | list[Any]) -> list[Message]:
    """Answer in one language, whatever the language of the question.

    >>> answer_in("es", "What is the capital of Peru?")[0]["content"]
    'Answer in Spanish, whatever language the question is in. Leave names and code as they are.'

    Args:
        language: by name or ISO 639-1 code.
        question: a text, or parts as in a message of `Model.stream`.

    Raises:
        PromptError: the language is unknown.
    """
    rule = f"Answer in {language_name(language)}, whatever language the question is in."
    return [_system(f"{rule} Leave names and code as they are."), _user(question)]


def _system(text: str) -> Message:
    return {"role": "system", "content": text}


def _user(content: str | list[Any]) -> Message:
    return {"role": "user", "content": content}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _image(image: Any) -> dict[str, Any]:
    return {"type": "image", "image": image}
