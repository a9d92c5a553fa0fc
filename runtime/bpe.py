"""Byte-pair encoding over the tables of tokenizer.bin, which are mapped: opening them reads nothing.

The `tokenizers` library makes hash maps of the same tables whenever it loads them, which takes longer than
all else of a start, and memory of the budget (docs/memory.md has the figures of both).
"""

from __future__ import annotations

import mmap
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Literal

from edge_gemma.errors import ArtifactError
from edge_gemma.tokenizer_spec import ITEM_BYTES, SEPARATOR, TableSpec, TokenizerSpec

FORMATS: dict[str, Literal["B", "I", "Q"]] = {"uint8": "B", "uint32": "I", "uint64": "Q"}
LOW = (1 << 32) - 1  # the id in an entry of `merges`, the position in one of the queue


class BytePairs:
    """The vocabulary and its merges."""

    def __init__(self, path: Path, spec: TokenizerSpec) -> None:
        """Map the file.

        Raises:
            ArtifactError: it is missing, or ends before its tables do.
        """
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: it is empty
            raise ArtifactError(
                f"{path} cannot be mapped ({error}): copy or export the artifact again"
            ) from None
        if not spec.fits(len(self._map)):
            raise ArtifactError(f"{path} does not hold its tables: copy or export the artifact again")
        self._path, self._spec = path, spec
        self._byte_ids = self.table(spec.byte_ids)
        self._points, self._point_ids = self.table(spec.characters), self.table(spec.character_ids)
        self._starts, self._rights = self.table(spec.merge_starts), self.table(spec.merge_rights)
        self._merges = self.table(spec.merges)
        self._piece_starts, self._pieces = self.table(spec.piece_starts), self.table(spec.pieces)
        self._known: dict[str, int] = {}  # character → id, of those met: at most `characters`

    def table(self, spec: TableSpec) -> memoryview:
        """The entries of one table, as integers."""
        view = memoryview(self._map)[spec.offset : spec.offset + spec.count * ITEM_BYTES[spec.dtype]]
        return view.cast(FORMATS[spec.dtype])

    def damaged(self) -> ArtifactError:
        return ArtifactError(f"{self._path} is damaged: copy or export the artifact again")

    def text(self, token_id: int) -> str | None:
        """The text of a token; None where there is none.

        Raises:
            ArtifactError: the file is damaged.
        """
        if not 0 <= token_id < self._spec.ids:
            return None
        first, last = self._piece_starts[token_id], self._piece_starts[token_id + 1] - 1
        try:
            return str(self._pieces[first:last], "utf-8") or None
        except UnicodeDecodeError:
            raise self.damaged() from None

    def find(self, text: str) -> int | None:
        """The id of the token with exactly this text."""
        spec = self._spec.pieces
        wanted = SEPARATOR + text.encode("utf-8", "surrogatepass") + SEPARATOR
        at = self._map.find(wanted, spec.offset, spec.offset + spec.count) if text else -1
        return None if at < 0 else bisect_left(self._piece_starts, at + 1 - spec.offset)

    def merge(self, text: str) -> list[int]:
        """The ids of a text: of its characters, merged by rank and then from the left.

        As in the library's Word::merge_all (tokenizers/src/models/bpe/word.rs), with the same queue.

        Raises:
            UnicodeEncodeError: the text holds a lone surrogate.
            IndexError: the file is damaged.
        """
        ids = list(self._characters(text))
        count = len(ids)
        found = self._merged
        queue = [
            entry << 32 | at for at in range(count - 1) if (entry := found(ids[at], ids[at + 1])) is not None
        ]
        if not queue:
            return ids
        heapify(queue)
        following = array("q", range(1, count + 1))
        previous = array("q", range(-1, count - 1))
        while queue:
            top = heappop(queue)
            at, merged = top & LOW, top >> 32 & LOW
            right = following[at]
            if ids[at] < 0 or right == count or found(ids[at], ids[right]) != top >> 32:
                continue  # its tokens have merged with others
            ids[at], ids[right] = merged, -1
            right = following[at] = following[right]
            if right < count:
                previous[right] = at
                if (entry := found(merged, ids[right])) is not None:
                    heappush(queue, entry << 32 | at)
            left = previous[at]
            if left >= 0 and (entry := found(ids[left], merged)) is not None:
                heappush(queue, entry << 32 | left)
        return [token for token in ids if token >= 0]

    def _merged(self, left: int, right: int) -> int | None:
        """rank · 2³² + the id of the merged token, if two tokens merge."""
        last = self._starts[left + 1]
        at = bisect_left(self._rights, right, self._starts[left], last)
        return self._merges[at] if at < last and self._rights[at] == right else None

    def _characters(self, text: str) -> Iterable[int]:
        """The id of each character, or those of its bytes."""
        for character in text:
            known = self._known.get(character)
            if known is not None:
                yield known
                continue
            point = ord(character)
            at = bisect_left(self._points, point)
            if at < len(self._points) and self._points[at] == point:
                self._known[character] = self._point_ids[at]
                yield self._point_ids[at]
            else:
                yield from (self._byte_ids[byte] for byte in character.encode())
