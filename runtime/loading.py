"""Opens an artifact: settles the options, then loads the decoder and puts the model together."""

from __future__ import annotations

import functools
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime as ort

from edge_gemma import artifact as artifacts
from edge_gemma.artifact import Artifact, Manifest
from edge_gemma.errors import BudgetError, CacheError, PromptError, check_count
from edge_gemma.machine import CPU
from edge_gemma.memory import format_bytes, parse_bytes
from edge_gemma.planning import DEFAULT_CONTEXT, Needs, Plan, plan, settle
from edge_gemma.runtime import prepared

if TYPE_CHECKING:
    from edge_gemma.devices import Device
    from edge_gemma.runtime.assembly import Language
    from edge_gemma.runtime.engine import Model

logger = logging.getLogger(__name__)


def load(
    path: str | Path,
    *,
    context: int | None = None,
    memory_budget: int | str | None = None,
    device: str | Device | None = None,
    level: str | None = None,
    global_kv: str | None = None,
    chunk: int | None = None,
    threads: int | None = None,
    keep_encoders: bool = False,
    session_memory: int | str | None = None,
    cache: bool = True,
    cache_dir: str | Path | None = None,
    verify: bool = False,
) -> Model:
    """Open an artifact and make it ready to answer.

    Args:
        path: a folder made by `edge-gemma export`.
        context: most tokens of prompt and answer together; 4096, or the model's limit where it is less.
        memory_budget: most resident memory of this process, as "2GiB" or in bytes. It decides global_kv, the
            chunk and whether encoders stay; text, an image and a clip in one conversation keep to it.
        device: the name of a device profile, FILE.yaml:NAME, or "auto" for this machine's. Budget, context
            and threads are the profile's where they are not given, and encoders run on its execution
            provider where this onnxruntime offers it.
        level: of an elastic artifact, the sub-model that answers first. By default the widest, or the widest
            that keeps to the budget.
        global_kv: dtype of the KV cache of the global (full-attention) layers: "float16", or "int8", which is
            half as large. By default the recipe's own, or int8 where only that keeps to the budget.
        chunk: tokens of a prompt computed at once; more are faster and take more memory. By default 128,
            or what the budget has room for.
        threads: threads to compute with; the cores this process may use by default.
        keep_encoders: leave the audio and vision encoders in memory once they were needed; by default
            they stay only where a budget has room for them.
        session_memory: most memory, as "256MiB" or in bytes, for conversations that wait and for what several
            of them begin with; what was not used for longest is dropped. By default 256 MiB, or what a
            budget leaves where that is less. 0: only the latest conversation goes on without being computed
            again.
        cache: keep the decoder's weights as onnxruntime packs them in a cache, and map them from there.
        cache_dir: the folder of that cache, by default the user's own.
        verify: re-hash every file first.

    Raises:
        ArtifactError: the artifact is missing, damaged, or needs a newer onnxruntime.
        BudgetError: the model does not fit the budget, or session_memory does not fit beside it.
        DeviceError: there is no such device profile.
        PromptError: context, chunk, threads or a size of memory are out of range, or the artifact has no such
            global_kv or level.
    """
    for name, value in (("context", context), ("chunk", chunk), ("threads", threads)):
        if value is not None:
            check_count(name, value)
    budget = parse_bytes(memory_budget) if isinstance(memory_budget, str) else memory_budget
    if budget is not None:
        check_count("memory_budget", budget)
    if isinstance(session_memory, str):
        session_memory = parse_bytes(session_memory)
    if session_memory:  # may be 0
        check_count("session_memory", session_memory)
    profile = profile_of(device)
    artifact = artifacts.read(path)
    manifest = artifact.manifest
    limit = manifest.max_context
    if context is None:
        context = min(profile.context if profile else DEFAULT_CONTEXT, limit)
    if context > limit:
        raise PromptError(f"context is {context}: expected at most the {limit} tokens of this model")
    if profile:
        budget, threads = budget or profile.budget, threads or profile.cores
    if verify:
        artifact.verify()
    artifact.decoder(global_kv)  # refuses one that is not there
    settings = functools.partial(
        plan, context=context, budget=budget, chunk=chunk, keep_encoders=keep_encoders
    )
    widest_first = reversed(manifest.level_indices)
    for index in widest_first if level is None else [manifest.level(level)]:  # before anything is loaded
        needs = Needs.of(manifest, index)
        planned = settings(needs, prepared=cache, global_kv=global_kv)
        if planned.fits:
            break
    _check_budget(manifest, planned, index)
    folder = _cache_folder(cache_dir) if cache else None
    if needs.widest and folder and not prepared.find(artifact, folder, global_kv=planned.global_kv):
        _check_preparing(needs, planned)
    with ThreadPoolExecutor(1) as meanwhile:  # onnxruntime loads without holding Python's lock
        language = meanwhile.submit(_open_language, artifact)
        decoder = prepared.open_decoder(
            artifact, folder, global_kv=planned.global_kv, threads=threads, level=index
        )
    planned = settings(needs, prepared=decoder.prepared, global_kv=planned.global_kv)
    _check_budget(manifest, planned, index)

    from edge_gemma.runtime.assembly import assemble

    return assemble(
        artifact,
        language.result(),
        decoder,
        planned,
        context=context,
        threads=threads,
        providers=_providers(profile),
        session_memory=session_memory,
    )


def profile_of(device: str | Device | None) -> Device | None:
    """The profile that `load`'s `device` means.

    Raises:
        DeviceError: there is none of that name.
    """
    if device is None:
        return None
    from edge_gemma.devices import AUTO, Device, detect_device, find_device  # most loads do without them

    if isinstance(device, Device):
        return device
    return detect_device() if device == AUTO else find_device(device)


def _cache_folder(chosen: str | Path | None) -> Path | None:
    """The cache's folder; None, with a warning, where there is none to be had."""
    try:
        return Path(chosen) if chosen else prepared.default_folder()
    except CacheError as error:
        logger.warning(prepared.WITHOUT, error)
        return None


def _open_language(artifact: Artifact) -> Language:
    from edge_gemma.runtime.assembly import open_language  # imports half of the library

    return open_language(artifact)


def _providers(profile: Device | None) -> tuple[str, ...]:
    """Those of a device that this onnxruntime has."""
    wanted = profile.providers if profile else (CPU,)
    offered = ort.get_available_providers()
    if missing := [name for name in wanted if name not in offered]:
        logger.warning("this onnxruntime has no %s: the encoders run on the processor", ", ".join(missing))
    return tuple(name for name in wanted if name in offered)


def _check_preparing(needs: Needs, planned: Plan) -> None:
    """An elastic artifact is written to the cache with all of its levels, whichever will run."""
    preparing = sum(settle(needs, context=planned.context, prepared=False).phases["load"].values())
    if planned.budget and preparing > planned.budget:
        raise BudgetError(
            f"preparing this artifact for this machine, once, takes {format_bytes(preparing)}, as all of its "
            f"levels are, and the budget is {format_bytes(planned.budget)}: run `edge-gemma prepare` before, "
            "without a budget, or on a machine of the same kind with more memory, and copy its --cache-dir"
        )


def _check_budget(manifest: Manifest, planned: Plan, level: int | None) -> None:
    if planned.fits or planned.budget is None:
        return
    from edge_gemma.candidates import advise, of_artifact  # most loads do without them

    candidate = of_artifact(manifest, context=planned.context, budget=planned.budget, level=level)
    if candidate.plan.fits:
        raise BudgetError(
            f"global KV in {planned.global_kv}, a chunk of {planned.chunk} tokens and encoders that are "
            f"{planned.encoders} need {format_bytes(planned.peak)} and the budget is "
            f"{format_bytes(planned.budget)}: leave global_kv, chunk and keep_encoders out"
        )
    raise BudgetError(advise([candidate]))
