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
from edge_gemma.runtime.chat import ChatTemplate, normalize
from edge_gemma.runtime.tokenizer import Tokenizer

Messages = str | Sequence[Mapping[str, Any]]
KINDS = ("image", "audio")
NAMES = {"image": ("boi", "image", "eoi"), "audio": ("boa", "audio", "eoa")}  # of the ids: begin, soft, end


@dataclass(frozen=True)
class Media:
    """One image or clip, and where its soft tokens are in the prompt."""

    kind: str  # one of KINDS
    data: NDArray[Any]  # image: uint8 [height, width, 3]; audio: float32 [samples]
    fingerprint: bytes
    start: int  # the place of its first soft token
    tokens: int

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

    @cached_property
    def keys(self) -> list[Hashable]:
        keys: list[Hashable] = list(self.ids)
        for item in self.media:
            keys[item.start : item.end] = [(item.fingerprint, number) for number in range(item.tokens)]
        return keys


class PromptBuilder:
    """Makes prompts for one artifact."""

    def __init__(self, manifest: Manifest, template: ChatTemplate, tokenizer: Tokenizer) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._specs = {"image": manifest.vision, "audio": manifest.audio}
        self._ids = manifest.tokens.media
        self._expansions = self._expand(tokenizer.texts(self._ids.values()))

    def build(self, messages: Messages) -> Prompt:
        """Render, encode, and read what the messages show and let hear.

        Raises:
            PromptError: the messages are malformed or empty, or the artifact cannot take their media.
            MediaError: an image or a clip cannot be read, or a clip is too long.
        """
        messages = normalize(messages)
        parts = [
            (part["type"], self._read(part, f"part {number} of message {index}"))
            for index, message in enumerate(messages)
            if not isinstance(message["content"], str)
            for number, part in enumerate(message["content"])
            if part["type"] in KINDS
        ]
        ids = self._template.encode(messages, self._tokenizer, self._expansions)
        media = []
        at = 0
        for kind, data in parts:
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
            tokens = spec.tokens(len(data)) if isinstance(spec, AudioSpec) else spec.soft_tokens
            if isinstance(spec, AudioSpec):
                ids[at + tokens : at + spec.soft_tokens] = [spec.fill_token] * (spec.soft_tokens - tokens)
            fingerprint = (image if kind == "image" else audio).fingerprint(data)
            media.append(Media(kind, data, fingerprint, at, tokens))
            at += spec.soft_tokens
        return Prompt(ids, tuple(media))

    def _expand(self, texts: Mapping[int, str]) -> dict[str, str]:
        """The template's soft token of an image or a clip → all of its places; `texts` by token id."""
        expansions = {}
        for kind, spec in self._specs.items():
            if spec is not None:
                begin, soft, end = (texts[self._ids[name]] for name in NAMES[kind])
                expansions[soft] = f"\n\n{begin}{soft * spec.soft_tokens}{end}\n\n"
        return expansions

    def _read(self, part: Mapping[str, Any], where: str) -> NDArray[Any]:
        kind = part["type"]
        spec = self._specs[kind]
        if spec is None:
            raise PromptError(
                f"{where} is {kind} and this artifact has no encoder for it: export a checkpoint that has one"
            )
        source = part.get(kind, part.get("path"))
        if source is None:
            raise PromptError(
                f"{where} is {kind} without a source: expected a path, bytes or an array under {kind!r}; "
                "nothing is downloaded from a url"
            )
        if not isinstance(spec, AudioSpec):
            return image.read_image(source)
        longest = spec.max_samples / spec.sample_rate
        samples = audio.read_clip(source, longest, spec.sample_rate)
        return np.pad(samples, (0, max(0, spec.min_samples - len(samples))))
