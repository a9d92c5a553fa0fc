"""OpenAI's messages become ours: parts with images and sounds in them, from the request alone.

Nothing is fetched: an image_url must be a data: URL.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

from edge_gemma.runtime.image import picture_size
from edge_gemma.runtime.serving.fields import brief, is_text
from edge_gemma.runtime.serving.problems import Problem
from edge_gemma.runtime.serving.settings import Settings

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII)


def read_messages(messages: Any, settings: Settings) -> list[dict[str, Any]]:
    """Messages in the form of `tools.tool_messages`: that of `Model.stream`, with calls and results of tools.

    Several messages of one role in a row become one.

    Raises:
        Problem: they are malformed, too many or too large.
    """
    if not isinstance(messages, list) or not messages:
        raise Problem(400, f"messages is {brief(messages)}: expected a list with a message", param="messages")
    if len(messages) > settings.max_messages:
        raise Problem(
            400,
            f"there are {len(messages):,} messages: expected at most {settings.max_messages:,}",
            param="messages",
        )
    reader = _Reader(settings)
    found = [reader.message(message, f"messages[{index}]") for index, message in enumerate(messages)]
    if found[-1]["role"] not in ("user", "tool"):
        raise Problem(400, "the last message must be of the role user or tool", param="messages")
    return _join(found)


class _Reader:
    """Reads messages one by one, and counts what they hold together."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._chars = 0
        self._pixels = 0

    def message(self, message: Any, where: str) -> dict[str, Any]:
        role = ROLES.get(message["role"]) if _has_text(message, "role") else None
        if role is None:
            raise Problem(
                400,
                f"{where} is {brief(message)}: expected a message of the role {', '.join(ROLES)}",
                param=where,
            )
        read: dict[str, Any] = {"role": role, "content": self._content(message.get("content"), role, where)}
        if role == "assistant" and message.get("tool_calls"):
            read["tool_calls"] = [
                self._tool_call(call, f"{where}.tool_calls") for call in _items(message["tool_calls"], where)
            ]
        elif message.get("content") is None:
            raise Problem(400, f"{where} has no content", param=f"{where}.content")
        if role == "tool":
            if not _has_text(message, "tool_call_id"):
                raise Problem(400, f"{where} has no tool_call_id", param=f"{where}.tool_call_id")
            read |= {name: message[name] for name in ("tool_call_id", "name") if name in message}
        return read

    def _content(self, content: Any, role: str, where: str) -> str | list[dict[str, Any]]:
        """A text; a list of parts only where there is something else, which is in a user's message."""
        if content is None:
            return ""
        if isinstance(content, str):
            return self._text(content, f"{where}.content")
        parts = [
            self._part(part, f"{where}.content[{number}]")
            for number, part in enumerate(_items(content, f"{where}.content"))
        ]
        if role == "user" and any(part["type"] != "text" for part in parts):
            return parts
        if any(part["type"] != "text" for part in parts):
            raise Problem(
                400, f"{where}.content: images and sounds belong into messages of the user", param=where
            )
        return "\n".join(part["text"] for part in parts)

    def _part(self, part: Any, where: str) -> dict[str, Any]:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and _has_text(part, "text"):
            return {"type": "text", "text": self._text(part["text"], where)}
        if kind == "refusal" and _has_text(part, "refusal"):
            return {"type": "text", "text": self._text(part["refusal"], where)}
        if kind == "image_url" and _has_text(part.get("image_url"), "url"):
            return {"type": "image", "image": self._image(part["image_url"]["url"], where)}
        if kind == "input_audio" and _has_text(part.get("input_audio"), "data"):
            return {"type": "audio", "audio": _decode(part["input_audio"]["data"], where)}
        raise Problem(
            400,
            f"{where} is {brief(part)}: expected a part of type text, image_url or input_audio, whole",
            param=where,
        )

    def _text(self, text: str, where: str) -> str:
        if not is_text(text):
            raise Problem(400, f"{where} holds half a character: expected valid Unicode", param=where)
        self._chars += len(text)
        if self._chars > self._settings.max_prompt_chars:
            limit = self._settings.max_prompt_chars
            raise Problem(
                400,
                f"the messages hold more than {limit:,} characters: shorten them",
                param="messages",
                code="context_length_exceeded",
            )
        return text

    def _image(self, url: str, where: str) -> bytes:
        header = DATA_URL.match(url)
        if not header:
            raise Problem(
                400,
                f"{where} is no data:image/…;base64 URL: send the image itself, nothing is downloaded",
                param=where,
            )
        data = _decode(url[header.end() :], where)
        limit = self._settings.max_image_bytes
        if len(data) > limit:
            raise Problem(400, f"{where} has {len(data):,} bytes: expected at most {limit:,}", param=where)
        width, height = picture_size(data)
        self._pixels += width * height
        limit = self._settings.max_image_pixels
        if self._pixels > limit:
            raise Problem(
                400, f"the images have more than {limit:,} pixels: scale them down", param="messages"
            )
        return data

    def _tool_call(self, call: Any, where: str) -> dict[str, Any]:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not (_has_text(call, "id") and _has_text(function, "name") and _has_text(function, "arguments")):
            raise Problem(
                400,
                f"{where} is {brief(call)}: expected an id, and name and arguments of a function",
                param=where,
            )
        assert function is not None
        self._text(function["name"] + function["arguments"], where)
        return {"id": call["id"], "type": "function", "function": dict(function)}


def _join(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Clients may send several messages of one role in a row; the chat template wants turns."""
    joined: list[dict[str, Any]] = []
    for message in messages:
        last = joined[-1] if joined else None
        if last and last["role"] == message["role"] != "tool":
            one, other = last["content"], message["content"]
            if calls := [*last.get("tool_calls", ()), *message.get("tool_calls", ())]:
                last["tool_calls"] = calls
            if not one or not other:
                last["content"] = one or other
            elif isinstance(one, str) and isinstance(other, str):
                last["content"] = f"{one}\n\n{other}"
            else:
                last["content"] = [*_parts(one), *_parts(other)]
        else:
            joined.append(message)
    return joined


def _parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _has_text(value: Any, name: str) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get(name), str)


def _items(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise Problem(400, f"{where} is {brief(value)}: expected a text or a list", param=where)
    return value


def _decode(data: str, where: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem(400, f"{where} is not base64 ({error})", param=where) from None
