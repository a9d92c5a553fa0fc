"""Text to ids and back, and ids to text while they arrive.

A thin layer over the `tokenizers` library. Its own `DecodeStream` is not used: against `decode` it was
wrong or raised "Invalid prefix encountered" on most random id sequences (tokenizers 0.23.3), because it
gives out a character as soon as its bytes are there. `decode` judges a whole run of byte tokens at once:
one bad byte turns every byte of the run into U+FFFD. `TokenStream` therefore waits for the run to end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_gemma.errors import ArtifactError, PromptError

if TYPE_CHECKING:
    import tokenizers


class Tokenizer:
    """The tokenizer of an artifact. Make one with `Tokenizer.from_file`; share it between threads freely."""

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        """Wrap a `tokenizers.Tokenizer`; ArtifactError if its decoder cannot be followed piece by piece."""
        inner.no_truncation()
        inner.no_padding()
        _check_decoder(inner.decoder)
        added = inner.get_added_tokens_decoder()
        self._inner = inner
        self._special = {i: token.content for i, token in added.items() if token.special}

    @classmethod
    def from_file(cls, path: str | PathLike[str]) -> Tokenizer:
        """Read a `tokenizer.json`.

        Raises ArtifactError if the file is missing or damaged, or if its decoder is not of the
        SentencePiece kind that Gemma has.
        """
        import tokenizers

        path = Path(path)
        if not path.is_file():
            raise ArtifactError(f"{path} is missing; expected the tokenizer of the artifact: export it again")
        try:
            inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ArtifactError(
                f"{path} cannot be read ({error}); expected a tokenizer.json: export the artifact again"
            ) from error
        return cls(inner)

    @property
    def vocab_size(self) -> int:
        """The number of tokens, added ones included."""
        return self._inner.get_vocab_size(with_added_tokens=True)

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """The texts of the control tokens, such as `<end_of_turn>`: `decode` skips them."""
        return tuple(self._special.values())

    def token_id(self, text: str) -> int | None:
        """The id of the token with exactly this text (`▁` for a space), or None."""
        return self._inner.token_to_id(text)

    def texts(self, ids: Iterable[int]) -> dict[int, str]:
        """The text of each id's token, exactly as the vocabulary holds it.

        Raises ArtifactError if an id is outside the vocabulary.
        """
        found = {i: text for i in ids if (text := self._inner.id_to_token(i)) is not None}
        if missing := [i for i in ids if i not in found]:
            raise ArtifactError(
                f"the tokenizer has no token {missing[0]} that the manifest names: export the artifact again"
            )
        return found

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Nothing is added, but control tokens written in the text are recognised.

        Raises PromptError if the text is not valid Unicode (it holds a lone surrogate).
        """
        try:
            return self._inner.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            raise PromptError(
                f"the text cannot be encoded ({error}); expected a str of valid Unicode, no lone surrogate"
            ) from error

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without control tokens; ids outside the vocabulary give nothing."""
        return self._inner.decode(ids, skip_special_tokens=True)

    def stream(self) -> TokenStream:
        """A new stream, for the ids of one answer."""
        return TokenStream(self)

    def _is_silent(self, token_id: int) -> bool:
        return token_id in self._special or self._inner.id_to_token(token_id) is None

    def _is_byte(self, token_id: int) -> bool:
        token = self._inner.id_to_token(token_id) or ""
        return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


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


def _check_decoder(decoder: Any) -> None:
    """ArtifactError unless each token's text depends only on itself, its byte run and on being first."""
    if decoder is None:  # tokens are joined by spaces
        return
    state = json.loads(decoder.__getstate__())
    fused = False
    for step in state["decoders"] if state["type"] == "Sequence" else [state]:
        kind = step["type"]
        fine = kind in ("Fuse", "Metaspace")
        fine |= kind in ("Replace", "ByteFallback") and not fused
        fine |= kind == "Strip" and not (fused and step["stop"])
        if not fine:
            raise ArtifactError(
                f"the tokenizer's decoder has the step {kind}{' after Fuse' if fused else ''}; expected "
                "the SentencePiece kind (Replace, ByteFallback, Fuse): is this a Gemma tokenizer?"
            )
        fused |= kind == "Fuse"
