"""Text to ids and back, and ids to text while they arrive: exactly as the `tokenizers` library does it.

A text is cut at added tokens, its spaces become "▁", then each word is merged (`bpe.py`). Decoding follows
the steps of the manifest, which judge a whole run of byte tokens at once: one bad byte turns every byte of
the run into U+FFFD. `TokenStream` therefore waits for the run to end.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path

from edge_gemma.errors import ArtifactError, PromptError
from edge_gemma.runtime.bpe import BytePairs
from edge_gemma.tokenizer_spec import (
    BYTES,
    JOIN,
    NORMALIZED,
    REPLACE,
    SPACE,
    SPECIAL,
    STRIP,
    DecoderStep,
    TokenizerSpec,
)

WORD = re.compile(f"{SPACE}+[^{SPACE}]*|[^{SPACE}]+")
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")  # the library takes a sign for a digit, too
CACHED_WORDS = 4096  # at most, of CACHED_LENGTH characters: 2 MiB
CACHED_LENGTH = 32


class Tokenizer:
    """The tokenizer of an artifact. Share it between threads freely."""

    def __init__(self, path: Path, spec: TokenizerSpec) -> None:
        """Open a `tokenizer.bin`.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        self._spec = spec
        self._pairs = BytePairs(path, spec)
        self._merge = functools.lru_cache(CACHED_WORDS)(self._pairs.merge)
        flags = dict(zip(self._pairs.table(spec.added), self._pairs.table(spec.added_flags), strict=True))
        try:
            added = self.texts(sorted(flags))
        except ArtifactError:
            raise self._pairs.damaged() from None
        self._special = {i: text for i, text in added.items() if flags[i] & SPECIAL}
        self._raw, self._normalized = (
            _AddedTokens({text: i for i, text in added.items() if flags[i] & NORMALIZED == kind})
            for kind in (0, NORMALIZED)
        )

    @property
    def vocab_size(self) -> int:
        """The number of tokens, added ones included."""
        return self._spec.tokens

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The texts of the control tokens, such as `<end_of_turn>`: `decode` skips them."""
        return tuple(self._special.values())

    @property
    def special_ids(self) -> Set[int]:
        """The ids of the control tokens."""
        return self._special.keys()

    def token_id(self, text: str) -> int | None:
        """The id of the token with exactly this text (`▁` for a space), or None."""
        return self._pairs.find(text)

    def texts(self, ids: Iterable[int]) -> dict[int, str]:
        """The text of each id's token, exactly as the vocabulary holds it.

        Raises ArtifactError if an id is outside the vocabulary.
        """
        found = {i: self._pairs.text(i) for i in ids}
        if missing := [i for i, text in found.items() if text is None]:
            raise ArtifactError(
                f"the tokenizer has no token {missing[0]} that the manifest names: export the artifact again"
            )
        return {i: text for i, text in found.items() if text is not None}

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Nothing is added, but control tokens written in the text are recognised.

        Raises PromptError if the text is not valid Unicode (it holds a lone surrogate), ArtifactError if the
        tables are damaged.
        """
        ids: list[int] = []
        with self._merging():
            for raw, token in self._raw.split(text):
                plain = raw.replace(" ", SPACE) if self._spec.spaces else raw
                for rest, inner in self._normalized.split(plain):
                    for word in WORD.findall(rest) if self._spec.words else [rest]:
                        merge = self._merge if len(word) <= CACHED_LENGTH else self._pairs.merge
                        ids += merge(word)
                    ids += inner
                ids += token
        if max(ids, default=-1) >= self._spec.ids:
            raise self._pairs.damaged()
        return ids

    def encode_plain(self, text: str) -> list[int]:
        """The ids of a text in which nothing is recognised as an added token; raises as `encode`."""
        with self._merging():
            return self._pairs.merge(text.replace(" ", SPACE) if self._spec.spaces else text)

    @contextmanager
    def _merging(self) -> Iterator[None]:
        """What goes wrong there as errors of ours."""
        try:
            yield
        except UnicodeEncodeError as error:
            raise PromptError(
                f"the text is no valid Unicode at character {error.start} (half of a pair, or a byte "
                "that is no UTF-8): expected text in UTF-8"
            ) from error
        except IndexError:
            raise self._pairs.damaged() from None

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to a text, in UTF-8, or the byte that it stands for; b"" for control tokens.

        That is, behind another token: a decoder may treat the first one of a text otherwise.
        """
        text = self._pairs.text(token_id)
        if text is None or token_id in self._special:
            return b""
        if match := BYTE.fullmatch(text):
            return bytes([int(match[1], 16)])
        for step in self._spec.decoder:
            if step.kind == REPLACE:
                text = text.replace(step.pattern, step.content)
            elif step.kind == JOIN:
                text = step.content + text
        return text.encode()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without control tokens; ids outside the vocabulary give nothing."""
        texts = [text for i in ids if i not in self._special and (text := self._pairs.text(i)) is not None]
        for step in self._spec.decoder:
            texts = _decode(step, texts)
        return "".join(texts)

    def stream(self) -> TokenStream:
        """A new stream, for the ids of one answer."""
        return TokenStream(self)

    def _is_silent(self, token_id: int) -> bool:
        return token_id in self._special or self._pairs.text(token_id) is None

    def _is_byte(self, token_id: int) -> bool:
        return BYTE.fullmatch(self._pairs.text(token_id) or "") is not None


class TokenStream:
    """Turns ids into text as they come; the joined pieces are exactly `decode` of all ids.

    Bytes of a character that has no token of its own come as tokens like `<0xE2>`. They are held until
    another token ends the run, so no piece splits a character. Each id costs one or two decodes of a
    few ids, however long the answer is.

    A decoder may strip a space from the start of the text. So after the first token that has text of
    its own, each piece is decoded behind that token (the anchor), whose text is then cut off.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._anchor: list[int] = []
        self._window: list[int] = []  # ids not yet turned into text (before an anchor: all ids)
        self._done = 0  # characters of decode(anchor + window) already given out

    def push(self, token_id: int) -> str:
        """The text that this id completes; empty while bytes are held or for a control token."""
        if self._tokenizer._is_silent(token_id):
            return ""
        self._window.append(token_id)
        if self._tokenizer._is_byte(token_id):
            return ""
        text = self._tokenizer.decode(self._anchor + self._window)
        piece = text[self._done :]
        if not self._anchor:
            self._done = len(text)
            if alone := self._tokenizer.decode([token_id]):
                self._anchor, self._done = [token_id], len(alone)
        if self._anchor:
            self._window.clear()
        return piece

    def flush(self) -> str:
        """The text still held, at the end of the answer; the stream is then as new."""
        text = self._tokenizer.decode(self._anchor + self._window)[self._done :]
        self._anchor, self._window, self._done = [], [], 0
        return text


class _AddedTokens:
    """Tokens that are found in a text as they stand: the leftmost first, and the longest there."""

    def __init__(self, ids: dict[str, int]) -> None:
        self._ids = ids
        self._lengths: dict[str, list[int]] = {}  # by first character, the longest first
        for text in sorted(ids, key=len, reverse=True):
            lengths = self._lengths.setdefault(text[0], [])
            if len(text) not in lengths:
                lengths.append(len(text))
        self._first = re.compile(f"[{re.escape(''.join(self._lengths))}]") if ids else None

    def split(self, text: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The text in parts, and behind each part the token that was found there: none behind the last."""
        done = 0
        for match in self._first.finditer(text) if self._first else ():
            at = match.start()
            if at < done:
                continue
            for length in self._lengths[match[0]]:
                found = self._ids.get(text[at : at + length])
                if found is not None:
                    yield text[done:at], (found,)
                    done = at + length
                    break
        yield text[done:], ()


def _decode(step: DecoderStep, texts: list[str]) -> list[str]:
    if step.kind == JOIN:
        return [step.content.join(texts)]
    if step.kind == BYTES:
        return _join_bytes(texts)
    if step.kind == STRIP:
        return [_strip(text, step) for text in texts]
    assert step.kind == REPLACE, step.kind
    first = [text.replace(step.pattern, step.first) for text in texts[:1]]
    return first + [text.replace(step.pattern, step.content) for text in texts[1:]]


def _strip(text: str, step: DecoderStep) -> str:
    found = len(text) - len(text.lstrip(step.content))
    return text[min(found, step.count) :]


def _join_bytes(texts: list[str]) -> list[str]:
    joined: list[str] = []
    held = bytearray()
    for text in [*texts, ""]:  # the last one ends a run
        match = BYTE.fullmatch(text)
        if match:
            held.append(int(match[1], 16))
            continue
        if held:
            try:
                joined.append(held.decode())
            except UnicodeDecodeError:
                joined += ["\ufffd"] * len(held)
            held.clear()
        joined.append(text)
    return joined[:-1]
