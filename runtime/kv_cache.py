"""The KV buffers that the decoder reads and writes in place.

A global buffer has a row for each token of the context. A sliding buffer has window - 1 + chunk rows: the
last window - 1 tokens and a chunk of new ones; when it is full, the last window - 1 rows and a margin of
older ones move to the front. Keys are stored after rotation by their absolute position, so a row keeps its
meaning wherever it lies. Tokens are taken back by forgetting their rows, and thanks to the margin a whole
window is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edge_gemma.artifact import DecoderSpec, KvBuffer

NUMPY_TYPES = {"float32": np.float32, "float16": np.float16, "int8": np.int8}
MARGIN = 8  # rows: the most tokens that somebody drafts


class KvMemory:
    """The buffers of `size` conversations side by side, [size, heads, rows, head_dim] each.

    Memory grows by need: the buffers are reserved, and the system backs a page at its first write.
    """

    def __init__(self, pairs: Sequence[tuple[KvBuffer, NDArray[np.generic], NDArray[np.generic]]]) -> None:
        self.pairs = pairs  # of keys and values
        self.bindings = [
            (buffer, ort.OrtValue.ortvalue_from_numpy(keys), ort.OrtValue.ortvalue_from_numpy(values))
            for buffer, keys, values in pairs
        ]

    @classmethod
    def reserve(cls, spec: DecoderSpec, capacity: Mapping[str, int], size: int = 1) -> KvMemory:
        """`capacity`: rows of a buffer, by its kind."""

        def zeros(buffer: KvBuffer) -> NDArray[np.generic]:
            return np.zeros(
                (size, buffer.heads, capacity[buffer.kind], buffer.head_dim), NUMPY_TYPES[buffer.dtype]
            )

        return cls([(buffer, zeros(buffer), zeros(buffer)) for buffer in spec.kv])

    def part(self, first: int, last: int) -> KvMemory:
        """The conversations from `first` to before `last`, in the same memory."""
        return KvMemory(
            [(buffer, keys[first:last], values[first:last]) for buffer, keys, values in self.pairs]
        )


class KvCache:
    """Buffers for one conversation of up to `context` tokens, fed in chunks of up to `chunk`.

    Memory grows by need; `memory` is for one conversation, with the rows that `capacities` says.
    """

    def __init__(
        self, spec: DecoderSpec, *, context: int, chunk: int, memory: KvMemory | None = None
    ) -> None:
        self.capacity = self.capacities(spec, context, chunk)
        self._kept = self.capacity["sliding"] - chunk
        self.margin = min(MARGIN, chunk // 2)  # tokens that can be taken back even if fed one by one
        self.length = 0  # tokens of the conversation so far
        self._oldest = 0  # of them, the place of the one in the sliding buffers' first row
        self.memory = memory or KvMemory.reserve(spec, self.capacity)
        self._buffers: dict[str, list[NDArray[np.generic]]] = {"global": [], "sliding": []}
        for buffer, *pair in self.memory.pairs:
            self._buffers[buffer.kind] += pair

    @staticmethod
    def capacities(spec: DecoderSpec, context: int, chunk: int) -> dict[str, int]:
        """Rows of a buffer, by its kind."""
        return {"global": context, "sliding": min(spec.sliding_window - 1, context) + chunk}

    def reset(self) -> None:
        """Forget the conversation; the buffers stay."""
        self.length = self._oldest = 0

    def truncate(self, length: int) -> None:
        """Take back all tokens but the first `length`.

        That goes as far as the sliding buffers still have the window before the new end: to any length since
        before the last `extend`, and by `margin` tokens over calls of one token each since the last cut.

        Raises ValueError, and changes nothing, if it is further back or no earlier length.
        """
        self._check_earlier(length)
        self.length = length

    @property
    def least(self) -> int:
        """The shortest length that `truncate` takes now."""
        return self._oldest + self._kept if self._oldest else 0

    def layout(self, length: int) -> dict[str, tuple[np.dtype[np.generic], tuple[int, ...]]]:
        """What `rows` gives at a length: names, types and shapes [heads, rows, head_dim], in its order."""
        rows = {"global": length, "sliding": min(self._kept, length)}
        return {
            f"{buffer.layer}.{name}": (array.dtype, (buffer.heads, rows[buffer.kind], buffer.head_dim))
            for buffer, *pair in self.arrays()
            for name, array in zip(("key", "value"), pair, strict=True)
        }

    def rows(self, length: int) -> list[NDArray[np.generic]]:
        """Views of all that the tokens behind the first `length` depend on, [heads, rows, head_dim] each.

        Of a global buffer those are the rows of all tokens before, of a sliding one those of the window.

        Raises ValueError if the window before `length` is not there any more, as `truncate` does.
        """
        self._check_earlier(length)
        first = {"global": 0, "sliding": length - min(self._kept, length) - self._oldest}
        last = {"global": length, "sliding": length - self._oldest}
        return [
            array[0, :, first[buffer.kind] : last[buffer.kind]]
            for buffer, *pair in self.arrays()
            for array in pair
        ]

    def restore(self, length: int, rows: Iterable[NDArray[np.generic]]) -> None:
        """Hold `length` tokens again, with `rows` as `rows(length)` gave them, taken one by one.

        Where that raises, nothing is held.
        """
        self.reset()
        targets = (array for _, *pair in self.arrays() for array in pair)
        for target, found in zip(targets, rows, strict=True):
            target[0, :, : found.shape[1]] = found
        self._oldest = length - min(self._kept, length)
        self.length = length

    def _check_earlier(self, length: int) -> None:
        if not self.least <= length <= self.length:
            raise ValueError(
                f"{self.length} tokens cannot be cut to {length}: "
                f"expected a length from {self.least} to {self.length}"
            )

    def extend(self, tokens: int) -> dict[str, int]:
        """Make room for `tokens` new ones and return the rows in use after them, by kind.

        Raises ValueError, and changes nothing, if they are more than a chunk or than the context has left.
        """
        sliding = self.capacity["sliding"]
        if tokens > sliding - self._kept or self.length + tokens > self.capacity["global"]:
            raise ValueError(
                f"{tokens} tokens after {self.length} do not fit buffers of {self.capacity} rows"
            )
        # First of all: whoever is interrupted from here on can tell by the length that rows are missing.
        self.length += tokens
        if self.length - self._oldest > sliding:
            self._slide(tokens)
        return self._used()

    def _used(self) -> dict[str, int]:
        """Rows in use, by kind."""
        return {"global": self.length, "sliding": self.length - self._oldest}

    def occupy(self, tokens: int) -> None:
        """Hold rows of ones, as after `tokens` tokens that were never computed: to measure what follows them.

        Raises ValueError if they are more than the context.
        """
        self.reset()
        chunk = self.capacity["sliding"] - self._kept
        for first in range(0, tokens, chunk):
            self.extend(min(chunk, tokens - first))
        rows = self._used()
        for kind, buffers in self._buffers.items():
            for buffer in buffers:  # [1, heads, rows, head_dim]; written, so that memory backs them
                buffer[:, :, : rows[kind]] = 1

    def _slide(self, tokens: int) -> None:
        """Move the window before the last `tokens`, and what the margin has room for, to the front."""
        used = self.length - self._oldest - tokens
        first = used - self._kept - min(self.margin, self.capacity["sliding"] - self._kept - tokens)
        for buffer in self._buffers["sliding"]:
            # [1, heads, rows, head_dim]; numpy copies overlapping slices as if through a temporary
            buffer[:, :, : used - first] = buffer[:, :, first:used]
        self._oldest += first

    def arrays(self) -> Iterator[tuple[KvBuffer, NDArray[np.generic], NDArray[np.generic]]]:
        """Every buffer with its key and value memory, [1, heads, capacity, head_dim] each."""
        yield from self.memory.pairs
