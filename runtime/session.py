"""onnxruntime sessions; the decoder's is opened from the manifest and run with bound buffers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edge_gemma.artifact import Artifact
from edge_gemma.devices import CPU
from edge_gemma.errors import ArtifactError
from edge_gemma.memory import keeping_freed_memory, release_free_memory
from edge_gemma.runtime.kv_cache import KvCache, KvMemory
from edge_gemma.runtime.residency import drop_pages, dropping_pages


def default_threads() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Decoder:
    """Runs the decoder graph; knows tokens only as embeddings.

    Args:
        artifact: an opened artifact.
        global_kv: dtype of the global layers' KV cache; the recipe's own by default.
        threads: threads for one operator; the cores of this process by default.
        prepared: the graph as `prepared.prepare` wrote it, opened in place of the artifact's.
        level: index of the level of an elastic artifact that computes first; the widest by default.

    Raises:
        ArtifactError: onnxruntime is too old for the artifact, or cannot load the graph.
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
        self._graph = prepared or artifact.path(self.spec.file)
        self._data = (
            prepared.with_name(f"{prepared.name}.data") if prepared else artifact.path(self.spec.data)
        )
        self.prepared = prepared is not None
        self._threads = threads
        self._elastic = len(artifact.manifest.levels) > 0
        widest = len(artifact.manifest.levels) - 1
        self.level = widest if level is None else level  # conversations stay when it changes
        self._session: ort.InferenceSession | None = None
        _check_version(artifact.manifest.minimum_onnxruntime)
        self._open()

    def _open(self) -> ort.InferenceSession:
        """The session, loaded again after `give_way` closed it."""
        if self._session is None:
            with contextlib.ExitStack() as stack:
                if self.prepared:  # each matrix is packed once more, compared, and let go
                    stack.enter_context(keeping_freed_memory())
                else:
                    stack.callback(release_free_memory)
                if self.prepared and self._elastic:  # of branches, originals are held until all is loaded
                    stack.enter_context(dropping_pages({self._data}))
                self._session = open_session(self._graph, self._threads, prepared=self.prepared)
            # Scales and zero points are read once: the packed matrices have their own.
            drop_pages({self._data})
            self._binding = self._session.io_binding()
            self._bound: KvMemory | None = None
        return self._session

    def give_way(self) -> None:
        """Leave memory until the next call of `forward`; conversations stay.

        Weights that are mapped from a prepared file only give their pages back. Others are released, and
        loaded again.
        """
        if self.prepared:
            drop_pages({self._data})
        elif self._session is not None:
            self._session = self._bound = None
            del self._binding
        release_free_memory()

    def drop_weights(self) -> None:
        """Let weights leave memory where they are mapped; those that are read come back."""
        if self.prepared:
            drop_pages({self._data})

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
            num_logits: how many of the S tokens need logits, at least 1.

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
        session = self._open()
        rows = [cache.extend(count) for cache in caches]
        binding = self._binding
        self.bind(memory)
        binding.bind_cpu_input("inputs_embeds", embeds)
        binding.bind_cpu_input("per_layer_inputs", per_layer)
        binding.bind_cpu_input("position_ids", starts[:, None] + np.arange(count))
        binding.bind_cpu_input("num_logits", np.array([num_logits], np.int64))
        if self._elastic:
            binding.bind_cpu_input("level", np.array([self.level], np.int64))
        for kind in self._kinds:
            binding.bind_cpu_input(f"{kind}_rows", np.array([used[kind] for used in rows], np.int32))
        logits = np.empty((batch, num_logits, self._vocab_size), np.float32)
        binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(logits))
        session.run_with_iobinding(binding)
        return logits

    def bind(self, memory: KvMemory) -> None:
        """Bind every KV buffer as input and as output of the same memory, and hold no other any more."""
        if self._session is None or self._bound is memory:
            return
        for buffer, key, value in memory.bindings:
            self._binding.bind_ortvalue_input(buffer.past_key, key)
            self._binding.bind_ortvalue_input(buffer.past_value, value)
            for name in buffer.present_key:
                self._binding.bind_ortvalue_output(name, key)
            for name in buffer.present_value:
                self._binding.bind_ortvalue_output(name, value)
        self._bound = memory


def open_session(
    path: Path,
    threads: int | None = None,
    *,
    providers: Sequence[str] = (CPU,),
    prepared: bool = False,
    save_to: Path | None = None,
) -> ort.InferenceSession:
    """Load a graph of an artifact.

    Args:
        providers: onnxruntime's execution providers, the preferred one first.
        prepared: the graph was written by `save_to`: it is optimized already.
        save_to: write the graph as it was optimized, and its matrices as they were packed, here and to
            a file of this name and .data.

    Raises:
        ArtifactError: onnxruntime cannot load it, or cannot save it.
    """
    options = ort.SessionOptions()
    if prepared:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if save_to:
        options.optimized_model_filepath = str(save_to)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", f"{save_to.name}.data"
        )
        options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    options.intra_op_num_threads = threads or default_threads()
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # shapes change with every chunk
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:  # onnxruntime raises a family of exceptions without a common base
        reason = str(error).strip().splitlines()[0]
        raise ArtifactError(
            f"onnxruntime {ort.__version__} cannot load {path}: {reason}; "
            "check the artifact with `edge-gemma inspect --verify`"
        ) from None


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
