"""From messages to what the decoder takes: ids, and the sounds and images that have some of their places.

Every image or clip of a message is one soft token in the rendered chat template. It becomes a blank line, a
marker, as many soft tokens as the manifest says, a marker and a blank line, as in transformers'
Gemma3nProcessor.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_gemma.artifact import AudioSpec, Manifest
from edge_gemma.errors import ArtifactError, PromptError
from edge_gemma.runtime import audio, image
from edge_gemma.runtime.chat import ChatTemplate, Message, normalize
from edge_gemma.runtime.prefixes import common
from edge_gemma.runtime.said import Answers
from edge_gemma.runtime.tokenizer import Tokenizer

Messages = str | Sequence[Mapping[str, Any]]
KINDS = ("image", "audio")
WHAT = {"image": "an image", "audio": "a clip"}
NAMES = {"image": ("boi", "image", "eoi"), "audio": ("boa", "audio", "eoa")}  # of the ids: begin, soft, end


@dataclass(frozen=True, eq=False)
class Encoded:
    """An image or a clip that went through its encoder. In a message it may take the source's place."""

    kind: str  # one of KINDS
    fingerprint: bytes
    rows: NDArray[np.float32]  # [tokens, H]


@dataclass(eq=False)
class Media:
    """One image or clip, and where its soft tokens are in the prompt."""

    kind: str  # one of KINDS
    data: NDArray[Any] | None  # image: uint8 [height, width, 3]; audio: float32 [samples]; or else there are
    fingerprint: bytes
    start: int  # the place of its first soft token
    tokens: int
    rows: NDArray[np.float32] | None = None  # [tokens, H], once it is encoded

    @property
    def end(self) -> int:
        return self.start + self.tokens


@dataclass(frozen=True)
class Prompt:
    """A prompt ready for the decoder.

    `keys` tells what is at each place: an id, or a fingerprint with the number of the soft token. Prompts
    that begin with equal keys have equal keys and values there.
    """

    ids: list[int]
    media: tuple[Media, ...] = ()
    partings: tuple[int, ...] = ()  # places that other prompts are likely to have in common, and no more
    keep_media: bool = False  # encode also what need not be computed, as somebody keeps the rows
    passing: bool = False  # nobody goes on from it: its end is not stored

    @cached_property
    def keys(self) -> list[Hashable]:
        keys: list[Hashable] = list(self.ids)
        for item in self.media:
            keys[item.start : item.end] = [(item.fingerprint, number) for number in range(item.tokens)]
        return keys


class PromptBuilder:
    """Makes prompts for one artifact."""

    def __init__(self, manifest: Manifest, template: ChatTemplate, tokenizer: Tokenizer) -> None:
        self.answers = Answers(tokenizer)
        self._template = template
        self._tokenizer = tokenizer
        self._specs = {"image": manifest.vision, "audio": manifest.audio}
        self._hidden_size = manifest.embeddings.hidden_size
        self._ids = manifest.tokens.media
        self._expansions = self._expand(tokenizer.texts(self._ids.values()))

    def build(self, messages: Messages | Prompt, *, keep_media: bool = False) -> Prompt:
        """Render, encode, and read what the messages show and let hear. A prompt is what it is.

        Answers are taken in the ids in which they were given, where that is known.

        Raises:
            PromptError: the messages are malformed or empty, or the artifact cannot take their media.
            MediaError: an image or a clip cannot be read, or a clip is too long.
        """
        if isinstance(messages, Prompt):
            return messages
        said = [self._recall(message) for message in normalize(messages)]
        parts = [
            (part["type"], self._read(part, f"part {number} of message {index}"))
            for index, message in enumerate(said)
            if not isinstance(message["content"], str)
            for number, part in enumerate(message["content"])
            if part["type"] in KINDS
        ]
        ids = self._encode(said)
        partings = self._partings(said, ids)
        media = []
        at = 0
        for kind, found in parts:
            soft = self._ids[kind]
            try:
                at = ids.index(soft, at)
            except ValueError:
                raise ArtifactError(
                    f"the chat template has no place for the {kind} of a message: expected the template of "
                    "an instruction-tuned Gemma 3n"
                ) from None
            spec = self._specs[kind]
            assert spec is not None  # _read has looked
            if isinstance(found, Encoded):
                tokens = len(found.rows)
                media.append(Media(kind, None, found.fingerprint, at, tokens, found.rows))
            else:
                tokens = spec.tokens(len(found)) if isinstance(spec, AudioSpec) else spec.soft_tokens
                fingerprint = (image if kind == "image" else audio).fingerprint(found)
                media.append(Media(kind, found, fingerprint, at, tokens))
            if isinstance(spec, AudioSpec):
                ids[at + tokens : at + spec.soft_tokens] = [spec.fill_token] * (spec.soft_tokens - tokens)
            at += spec.soft_tokens
        return Prompt(ids, tuple(media), partings, keep_media)

    def _encode(self, messages: list[Message]) -> list[int]:
        return self._template.encode(messages, self._tokenizer, self._expansions)

    def _recall(self, message: Message) -> Message:
        """An answer with its ids, where they are known."""
        content = message["content"]
        if message["role"] != "assistant":
            return message
        if not isinstance(content, str) and len(content) == 1:
            content = content[0]["text"]
        if type(content) is str:
            return {**message, "content": self.answers.recall(content)}
        return message

    def _partings(self, messages: list[Message], ids: list[int]) -> tuple[int, ...]:
        """The places behind the system's message and before the last part of the user's, in a first turn."""
        system = messages[0]["role"] == "system"
        *before, user = messages[: 2 if system else 1]
        parts = [] if isinstance(user["content"], str) else user["content"][:-1]
        if len(messages) > len(before) + 1:
            return ()
        other = {"type": "text", "text": "?"}
        begun = [[other]] if system else []
        begun += [[*parts, other]] if parts else []
        return tuple(common(self._encode([*before, {**user, "content": c}]), ids) for c in begun)

    def _expand(self, texts: Mapping[int, str]) -> dict[str, str]:
        """The template's soft token of an image or a clip → all of its places; `texts` by token id."""
        expansions = {}
        for kind, spec in self._specs.items():
            if spec is not None:
                begin, soft, end = (texts[self._ids[name]] for name in NAMES[kind])
                expansions[soft] = f"\n\n{begin}{soft * spec.soft_tokens}{end}\n\n"
        return expansions

    def _read(self, part: Mapping[str, Any], where: str) -> NDArray[Any] | Encoded:
        kind = part["type"]
        spec = self._specs[kind]
        if spec is None:
            raise PromptError(
                f"{where} is {WHAT[kind]} and this artifact has no {kind} encoder: export a checkpoint that "
                "has one"
            )
        source = part.get(kind, part.get("path"))
        if source is None:
            raise PromptError(
                f"{where} is {kind} without a source: expected a path, bytes or an array under {kind!r}; "
                "nothing is downloaded from a url"
            )
        if isinstance(source, Encoded):
            tokens, width = source.rows.shape
            fits = tokens <= spec.soft_tokens if kind == "audio" else tokens == spec.soft_tokens
            if (source.kind, width) != (kind, self._hidden_size) or not fits:
                raise PromptError(
                    f"{where} is {source.kind} in {tokens} soft tokens of {width} values: expected {kind} "
                    f"that this artifact encoded, in {spec.soft_tokens} of {self._hidden_size}"
                )
            return source
        if not isinstance(spec, AudioSpec):
            return image.read_image(source)
        longest = spec.max_samples / spec.sample_rate
        samples = audio.read_clip(source, longest, spec.sample_rate)
        return np.pad(samples, (0, max(0, spec.min_samples - len(samples))))
