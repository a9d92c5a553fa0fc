"""The decoder at work: its graphs run in turn, with bound buffers."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edge_gemma.artifact import Artifact, GraphSpec
from edge_gemma.errors import ArtifactError, EdgeGemmaError
from edge_gemma.machine import usable_memory
from edge_gemma.memory import release_free_memory
from edge_gemma.runtime.kv_cache import KvCache, KvMemory
from edge_gemma.runtime.page_cache import forget
from edge_gemma.runtime.residency import (
    Mapping,
    drop_pages,
    dropping_pages,
    empty,
    fetch_pages,
    mappings_in_use,
)
from edge_gemma.runtime.session import open_together


class Decoder:
    """Runs the decoder's graphs; knows tokens only as embeddings.

    Args:
        artifact: an opened artifact.
        global_kv: dtype of the global layers' KV cache; the recipe's own by default.
        threads: threads for one operator; the cores of this process by default.
        prepared: the folder where `prepared.prepare` wrote the graphs, opened in place of the artifact's.
        level: index of the level of an elastic artifact that computes first; the widest by default.

    Raises:
        ArtifactError: onnxruntime is too old for the artifact, or cannot load the graphs.
        PromptError: the artifact has no such KV cache.
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        global_kv: str | None = None,
        threads: int | None = None,
        prepared: Path | None = None,
        level: int | None = None,
    ) -> None:
        self.spec = artifact.decoder(global_kv)
        self._vocab_size = artifact.manifest.vocab_size
        self._kinds = sorted({buffer.kind for buffer in self.spec.kv})
        self._folder = prepared or artifact.folder
        files = [f"{graph.file}.data" for graph in self.spec.graphs] if prepared else [self.spec.data]
        self._data = {self._folder / file for file in files}
        self.prepared = prepared is not None
        self._threads = threads
        self._elastic = len(artifact.manifest.levels) > 0
        widest = len(artifact.manifest.levels) - 1
        self.level = widest if level is None else level  # conversations stay when it changes
        self._graphs: list[_Graph] = []  # empty while others have the memory
        self._away: list[Mapping] = []  # whose pages made room for them
        self._bound: KvMemory | None = None
        self._closed = False
        _check_version(artifact.manifest.minimum_onnxruntime)
        self._open()

    def close(self) -> None:
        """Release graphs, weights and the KV buffers that are bound; nothing can be computed afterwards."""
        self._closed = True
        self._graphs, self._away, self._bound = [], [], None
        release_free_memory()

    def _open(self) -> list[_Graph]:
        """The graphs, loaded again after `give_way` closed them, or with their pages on the way back."""
        if self._closed:
            raise EdgeGemmaError("this model is closed: load the artifact again")
        fetch_pages(self._away)
        self._away = []
        if not self._graphs:
            self._load()
        return self._graphs

    def _load(self) -> None:
        files = [self._folder / graph.file for graph in self.spec.graphs]
        branches = self.prepared and self._elastic  # whose originals are held until all is loaded
        with dropping_pages(self._data) if branches else contextlib.nullcontext():
            sessions = open_together(files, self._threads, prepared=self.prepared)
        self._graphs = [_Graph(*pair) for pair in zip(self.spec.graphs, sessions, strict=True)]
        self._bound = None
        self._handed: dict[str, int] = {}
        if self.prepared:
            with contextlib.suppress(OSError):  # the files may have been removed since
                if sum(file.stat().st_size for file in self._data) > usable_memory():
                    for file in self._data:  # originals would crowd out what every token reads
                        forget(file)
        # Scales and zero points are read once: the packed matrices have their own.
        drop_pages(self._data)

    def give_way(self) -> None:
        """Leave memory until the next call of `forward`; conversations stay.

        Weights that are mapped from a prepared file only give their pages back. Others are released, and
        loaded again.
        """
        if self.prepared:
            used = mappings_in_use(self._data)  # no scales: nothing read them since loading
            empty(used)
            self._away += used  # another encoder may have had room made for it just before
        else:
            self._graphs = []
            self._bound = None
        release_free_memory()

    def drop_weights(self) -> None:
        """Let weights leave memory where they are mapped; those that are read come back."""
        if self.prepared:
            drop_pages(self._data)

    def forward(
        self,
        embeds: NDArray[np.float32],
        per_layer: NDArray[np.float32],
        cache: KvCache,
        *,
        num_logits: int = 1,
    ) -> NDArray[np.float32]:
        """Append tokens to the cache and return the logits of the last ones.

        Args:
            embeds: float32 [1, S, H], S at most the cache's chunk.
            per_layer: float32 [1, S, L, P].
            cache: the conversation; its KV buffers are written in place.
            num_logits: how many of the S tokens need logits. With 0, only their KV is computed.

        Returns:
            float32 [num_logits, V], a copy.
        """
        logits = self.forward_together(embeds, per_layer, [cache], cache.memory, num_logits=num_logits)
        first: NDArray[np.float32] = logits[0]
        return first

    def forward_together(
        self,
        embeds: NDArray[np.float32],
        per_layer: NDArray[np.float32],
        caches: Sequence[KvCache],
        memory: KvMemory,
        *,
        num_logits: int = 1,
    ) -> NDArray[np.float32]:
        """`forward` for B conversations at once, whose caches lie side by side in `memory`.

        Args:
            embeds: float32 [B, S, H].
            per_layer: float32 [B, S, L, P].

        Returns:
            float32 [B, num_logits, V].
        """
        batch, count = embeds.shape[:2]
        starts = np.array([cache.length for cache in caches], np.int64)
        graphs = self._open()
        rows = [cache.extend(count) for cache in caches]
        self.bind(memory)
        self._hand_on(batch, count)
        logits = np.empty((batch, num_logits, self._vocab_size), np.float32)
        values: dict[str, NDArray[np.generic]] = {
            "inputs_embeds": embeds,
            "per_layer_inputs": per_layer,
            "position_ids": starts[:, None] + np.arange(count),
            "num_logits": np.array([num_logits], np.int64),
            "level": np.array([self.level], np.int64),
            "logits": logits,
        }
        for kind in self._kinds:
            values[f"{kind}_rows"] = np.array([used[kind] for used in rows], np.int32)
        given = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in values.items()}
        for graph in graphs if num_logits else graphs[:1]:
            for name, value in given.items():
                graph.bind(name, value)
            graph.run()
        return logits

    def bind(self, memory: KvMemory) -> None:
        """Bind every KV buffer as input and as output of the same memory, and hold no other any more."""
        if self._bound is memory or not self._graphs:
            return
        for graph in self._graphs:
            for buffer, key, value in memory.bindings:
                for name in (buffer.past_key, *buffer.present_key):
                    graph.bind(name, key)
                for name in (buffer.past_value, *buffer.present_value):
                    graph.bind(name, value)
        self._bound = memory

    def _hand_on(self, batch: int, tokens: int) -> None:
        """Bind memory for what one graph hands to the next, where what is bound has another shape."""
        sizes = {"batch": batch, "tokens": tokens}
        if sizes == self._handed:
            return
        present = {name for buffer in self.spec.kv for name in (*buffer.present_key, *buffer.present_value)}
        for spec in (spec for graph in self.spec.graphs[:-1] for spec in graph.outputs):
            if spec.name not in present:
                shape = [size if isinstance(size, int) else sizes[size] for size in spec.shape]
                tensor = ort.OrtValue.ortvalue_from_numpy(np.empty(shape, spec.dtype))
                for graph in self._graphs:
                    graph.bind(spec.name, tensor)
        self._handed = sizes


class _Graph:
    """A graph, loaded, and what is bound to it."""

    def __init__(self, spec: GraphSpec, session: ort.InferenceSession) -> None:
        self._session, self._binding = session, session.io_binding()
        self._inputs = {tensor.name for tensor in spec.inputs}
        self._outputs = {tensor.name for tensor in spec.outputs}
        self._bound: dict[str, ort.OrtValue] = {}  # whose memory lives as long as they do

    def bind(self, name: str, value: ort.OrtValue) -> None:
        """Bind a value to be read or to be written, where the graph has an input or output of this name."""
        if name in self._inputs:
            self._binding.bind_ortvalue_input(name, value)
        elif name in self._outputs:
            self._binding.bind_ortvalue_output(name, value)
        else:
            return
        self._bound[name] = value

    def run(self) -> None:
        """Write the outputs, from the inputs."""
        self._session.run_with_iobinding(self._binding)


def _check_version(minimum: str) -> None:
    try:
        needed = tuple(int(part) for part in minimum.split(".")[:2])
    except ValueError:
        raise ArtifactError(
            f"the manifest asks for onnxruntime {minimum!r}: expected a version; export the artifact again"
        ) from None
    if tuple(int(part) for part in ort.__version__.split(".")[:2]) < needed:
        raise ArtifactError(
            f"onnxruntime {ort.__version__} is too old for this artifact, which needs {minimum}: "
            f"pip install 'onnxruntime>={minimum}'"
        )
