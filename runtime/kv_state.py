"""A conversation's keys and values outside of the KV cache: what is needed to go on from some place of it."""

from __future__ import annotations

import mmap
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ALIGNED = 64  # bytes: where an array of a copy begins


@dataclass(frozen=True, eq=False)
class KvState:
    """What the cache held after `len(keys)` tokens, as `KvCache.rows` gives it: views into it, or a copy."""

    keys: tuple[Hashable, ...]  # one for each token: an id, or a soft token's
    rows: tuple[NDArray[np.generic], ...]  # [heads, rows, head_dim] each

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def bytes(self) -> int:
        """Memory of a copy."""
        return sum(_padded(array.nbytes) for array in self.rows)

    def copy(self) -> KvState:
        """The same in memory of its own, mapped from the system: it goes back to it in full, at once."""
        memory, at, copies = mmap.mmap(-1, self.bytes), 0, []
        for array in self.rows:
            copy = np.frombuffer(memory, array.dtype, array.size, at).reshape(array.shape)
            copy[...] = array
            copies.append(copy)
            at += _padded(array.nbytes)
        return KvState(self.keys, tuple(copies))


def _padded(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED
