"""Reads embedding records from storage, and keeps the ones used most recently in a bounded cache."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_gemma.artifact import EmbeddingSpec, RowField
from edge_gemma.errors import ArtifactError, EdgeGemmaError, PromptError

CACHE_BYTES = 8 << 20


@dataclass
class RowCounters:
    """Records used and read since the store was opened."""

    rows: int = 0
    rows_read: int = 0  # from storage; the others were in the cache
    bytes_read: int = 0


class EmbeddingStore:
    """embeddings.bin, read one record at a time with pread: nothing is mapped, so that a row costs its own
    bytes of memory and not the pages around it."""

    def __init__(self, path: Path, spec: EmbeddingSpec, *, cache_bytes: int = CACHE_BYTES) -> None:
        self._spec = spec
        self._path = path
        self._capacity = max(cache_bytes // spec.record_bytes, 1)
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self.counters = RowCounters()
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def rows(self, ids: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What the decoder takes for `ids`.

        Returns:
            inputs_embeds float32 [1, S, H] and per_layer_inputs float32 [1, S, L, P].

        Raises:
            PromptError: an id is outside the vocabulary.
            ArtifactError: the file ends before a record.
            EdgeGemmaError: the store is closed.
        """
        if self._file < 0:
            raise EdgeGemmaError(f"{self._path} was closed: load the artifact again")
        spec = self._spec
        joined = b"".join(self._record(i) for i in ids)
        records = np.frombuffer(joined, np.uint8).reshape(len(ids), spec.record_bytes)
        embedding = dequantize(records, spec.field("embedding"))
        per_layer = dequantize(records, spec.field("per_layer"))
        shape = (1, len(ids), spec.layers, spec.per_layer_width)
        return embedding[None], per_layer.reshape(shape)

    def _record(self, token: int) -> bytes:
        self.counters.rows += 1
        record = self._cache.get(token)
        if record is not None:
            self._cache.move_to_end(token)
            return record
        spec = self._spec
        if not 0 <= token < spec.records:
            raise PromptError(f"token id {token} is outside the vocabulary of {spec.records} ids")
        record = self._read(token * spec.record_bytes)
        self.counters.rows_read += 1
        self.counters.bytes_read += len(record)
        self._cache[token] = record
        if len(self._cache) > self._capacity:
            self._cache.popitem(last=False)
        return record

    def _read(self, offset: int) -> bytes:
        size = self._spec.record_bytes
        if hasattr(os, "pread"):
            record = os.pread(self._file, size, offset)
        else:  # Windows
            os.lseek(self._file, offset, os.SEEK_SET)
            record = os.read(self._file, size)
        if len(record) != size:
            raise ArtifactError(
                f"{self._path} ends inside the record at byte {offset:,}: copy or export the artifact again"
            )
        return record


def dequantize(records: NDArray[np.uint8], field: RowField) -> NDArray[np.float32]:
    """One vector of each record: uint8 [R, record_bytes] → float32 [R, values]. See RowField."""
    if field.bits == 32:
        return _view(records, field.offset, field.values, np.float32)
    if field.bits == 8:
        codes: NDArray[Any] = _view(records, field.offset, field.values, np.int8)
    else:
        pairs = _view(records, field.offset, field.values // 2, np.uint8)
        codes = np.empty((len(records), field.values), np.int8)
        codes[:, 0::2] = (pairs & 15).astype(np.int8) - 8
        codes[:, 1::2] = (pairs >> 4).astype(np.int8) - 8
    blocks = field.values // field.block
    scales = _view(records, field.scale_offset, blocks, np.float16).astype(np.float32)
    scaled = codes.reshape(-1, blocks, field.block) * scales[:, :, None]
    return scaled.reshape(len(records), field.values)


def _view(records: NDArray[np.uint8], offset: int, count: int, dtype: Any) -> NDArray[Any]:
    size = count * np.dtype(dtype).itemsize
    return np.ascontiguousarray(records[:, offset : offset + size]).view(dtype)
