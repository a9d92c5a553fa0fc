"""The tokenizer's part of the format: tokenizer.bin, tables that are mapped and not read."""

from __future__ import annotations

from dataclasses import dataclass

SPACE = "▁"  # what vocabularies of SentencePiece's kind hold for a space
SEPARATOR = b"\xff"  # around every text of `pieces`: no UTF-8 has this byte
SPECIAL, NORMALIZED = 1, 2  # the bits of `added_flags`
ITEM_BYTES = {"uint8": 1, "uint32": 4, "uint64": 8}
REPLACE, BYTES, JOIN, STRIP = "replace", "bytes", "join", "strip"


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """One array of tokenizer.bin, little-endian."""

    offset: int  # bytes from the start of the file, a multiple of an entry's
    count: int
    dtype: str  # numpy's name


@dataclass(frozen=True, kw_only=True)
class DecoderStep:
    """A step from the texts of tokens to the text that they make; at the end the texts are joined.

    replace: in each text `pattern` becomes `content`, in the first one `first`.
    bytes: a run of texts such as "<0xE2>" becomes the characters that these bytes are in UTF-8; U+FFFD for
    each of its bytes where they are none.
    join: the texts become one, with `content` between them.
    strip: at most `count` times `content` goes from the start of each text.
    """

    kind: str
    pattern: str
    content: str
    first: str
    count: int


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """tokenizer.bin: byte-pair encoding with byte fallback.

    The text of id i is pieces[piece_starts[i] : piece_starts[i + 1] - 1]; an empty one: no token has this id.
    The tokens left and right merge if right is among
    merge_rights[merge_starts[left] : merge_starts[left + 1]], which rises; `merges` at the same place is
    rank · 2³² + the id of the merged token.
    """

    file: str
    original: str  # the tokenizer.json it was made from, for other programs
    ids: int  # one more than the largest
    tokens: int  # how many ids have a token
    spaces: bool  # a space becomes "▁" before merging
    words: bool  # no merge puts "▁" behind another character: words may be merged one by one
    decoder: tuple[DecoderStep, ...]
    byte_ids: TableSpec  # uint32: the id of each byte of a character that has no token
    characters: TableSpec  # uint32, rising: the code points that have a token
    character_ids: TableSpec  # uint32: their ids
    merge_starts: TableSpec  # uint32
    merge_rights: TableSpec  # uint32
    merges: TableSpec  # uint64
    piece_starts: TableSpec  # uint32
    pieces: TableSpec  # uint8: the texts in UTF-8, a byte 0xFF before the first and behind each
    added: TableSpec  # uint32: ids of tokens that are found in a text as they stand, before any merging
    added_flags: TableSpec  # uint8: 1, a control token; 2, found after spaces have become "▁"

    def fits(self, size: int) -> bool:
        """Whether a file of so many bytes can hold these tables, and they agree with one another."""
        expected = (
            (self.byte_ids, 256, "uint32"),
            (self.characters, self.character_ids.count, "uint32"),
            (self.character_ids, self.characters.count, "uint32"),
            (self.merge_starts, self.ids + 1, "uint32"),
            (self.merge_rights, self.merges.count, "uint32"),
            (self.merges, self.merge_rights.count, "uint64"),
            (self.piece_starts, self.ids + 1, "uint32"),
            (self.pieces, self.pieces.count, "uint8"),
            (self.added, self.added_flags.count, "uint32"),
            (self.added_flags, self.added.count, "uint8"),
        )
        for table, count, dtype in expected:
            if (table.count, table.dtype) != (count, dtype) or count < 0:
                return False
            if table.offset % ITEM_BYTES[dtype] or not 0 <= table.offset <= size - count * ITEM_BYTES[dtype]:
                return False
        steps = {step.kind for step in self.decoder}
        return 0 <= self.tokens <= self.ids and steps <= {REPLACE, BYTES, JOIN, STRIP}
