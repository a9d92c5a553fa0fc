"""Sessions of onnxruntime, as this runtime opens them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Barrier, Lock

import onnxruntime as ort

from edge_gemma.errors import ArtifactError
from edge_gemma.machine import CPU
from edge_gemma.memory import keeping_freed_memory, release_free_memory

ADDRESSES = 256 << 20  # for activations, in one piece; pages are taken when they are written
UNUSED = 64 << 10  # of a block that is given out

_opening_together = Lock()


def default_threads() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def open_session(
    path: Path,
    threads: int | None = None,
    *,
    providers: Sequence[str] = (CPU,),
    prepared: bool = False,
    save_to: Path | None = None,
    shared: bool = False,
) -> ort.InferenceSession:
    """Load a graph of an artifact.

    Args:
        providers: onnxruntime's execution providers, the preferred one first.
        prepared: the graph was written by `save_to`: it is optimized already.
        save_to: write the graph as it was optimized, and its matrices as they were packed, here and to
            a file of this name and .data.
        shared: activations lie in the allocator that is registered in this process, not in one of its own.

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
    # Sessions take turns, each with threads of its own: whose turn is over must not wait on another's core.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if shared:
        options.add_session_config_entry("session.use_env_allocators", "1")
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


def open_together(
    paths: Sequence[Path], threads: int | None = None, *, prepared: bool = False
) -> list[ort.InferenceSession]:
    """Load graphs that take turns, side by side: onnxruntime loads a graph on one core.

    They share an allocator for their activations, which lives as long as they do: with one of its own, each
    would keep the most that it ever took.

    Args:
        threads, prepared: as for `open_session`.

    Raises:
        ArtifactError: onnxruntime cannot load one of them.
    """
    with _opening_together, ThreadPoolExecutor(len(paths)) as pool:
        _register_allocator()
        try:
            # of what is prepared, each matrix is packed once more, compared, and let go
            with keeping_freed_memory() if prepared else nullcontext():
                sessions = list(
                    pool.map(lambda path: open_session(path, threads, prepared=prepared, shared=True), paths)
                )
        finally:
            _register_allocator()  # the process itself holds on to one: not to theirs
        list(pool.map(_release_free_memory, [Barrier(len(paths))] * len(paths)))
    return sessions


def _release_free_memory(barrier: Barrier) -> None:
    """On each thread of a pool: none starts with a second one before all have started."""
    barrier.wait()
    release_free_memory()


def _register_allocator() -> None:
    """A new allocator for the sessions that are opened as `shared` from now on.

    Left to itself it would give out blocks up to twice as large as what is asked for, and with chunks of
    different lengths soon need further ones.
    """
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    settings = {"initial_chunk_size_bytes": ADDRESSES, "max_dead_bytes_per_chunk": UNUSED}
    ort.create_and_register_allocator(info, ort.OrtArenaCfg(settings))
