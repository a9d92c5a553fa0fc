"""The KV buffers that the decoder reads and writes in place.

A global buffer has a row for each token of the context. A sliding buffer has window - 1 + chunk rows: the
last window - 1 tokens and a chunk of new ones; when it is full, the last window - 1 rows and a margin of
older ones move to the front. Keys are stored after rotation by their absolute position, so a row keeps its
meaning wherever it lies. Tokens are taken back by forgetting their rows, and thanks to the margin a whole
window is left.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edge_gemma.artifact import DecoderSpec, KvBuffer

NUMPY_TYPES = {"float32": np.float32, "float16": np.float16, "int8": np.int8}
MARGIN = 8  # rows: the most tokens that somebody drafts


class KvCache:
    """Buffers for one conversation of up to `context` tokens, fed in chunks of up to `chunk`.

    Memory grows by need: the buffers are reserved, and the system backs a page at its first write.
    """

    def __init__(self, spec: DecoderSpec, *, context: int, chunk: int) -> None:
        self._kept = min(spec.sliding_window - 1, context)
        self.capacity = {"global": context, "sliding": self._kept + chunk}
        self.margin = min(MARGIN, chunk // 2)  # tokens that can be taken back even if fed one by one
        self.length = 0  # tokens of the conversation so far
        self._oldest = 0  # of them, the place of the one in the sliding buffers' first row
        self._buffers: dict[str, list[NDArray[np.generic]]] = {"global": [], "sliding": []}
        self.bindings: list[tuple[KvBuffer, ort.OrtValue, ort.OrtValue]] = []
        for buffer in spec.kv:
            shape = (1, buffer.heads, self.capacity[buffer.kind], buffer.head_dim)
            pair = [np.zeros(shape, NUMPY_TYPES[buffer.dtype]) for _ in range(2)]
            self._buffers[buffer.kind] += pair
            key, value = (ort.OrtValue.ortvalue_from_numpy(a) for a in pair)
            self.bindings.append((buffer, key, value))

    def reset(self) -> None:
        """Forget the conversation; the buffers stay."""
        self.length = self._oldest = 0

    def truncate(self, length: int) -> None:
        """Take back all tokens but the first `length`.

        That goes as far as the sliding buffers still have the window before the new end: to any length since
        before the last `extend`, and by `margin` tokens over calls of one token each since the last cut.

        Raises ValueError, and changes nothing, if it is further back or no earlier length.
        """
        least = self._oldest + self._kept if self._oldest else 0
        if not least <= length <= self.length:
            raise ValueError(
                f"{self.length} tokens cannot be cut to {length}: "
                f"expected a length from {least} to {self.length}"
            )
        self.length = length

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
        return self._rows()

    def _rows(self) -> dict[str, int]:
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
        rows = self._rows()
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
        for buffer, key, value in self.bindings:
            yield buffer, key.numpy(), value.numpy()
