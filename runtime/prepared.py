"""The decoder as onnxruntime packs it for this machine: written to a cache once, mapped from then on.

onnxruntime rearranges every matrix for the kernels of the processor it runs on. Held in memory of its own,
packed weights can neither be shared nor leave; mapped from a file they can do both, and load faster. The
form depends on the processor and on the build of onnxruntime, so it belongs to a machine, not to an artifact.
Each of an artifact's decoders has an entry of its own, from its first use on.
While loading, onnxruntime packs each matrix once more and compares: a file that does not fit costs memory,
never a wrong answer. That is why the file holds the original matrices too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import onnxruntime as ort

from edge_gemma.artifact import Artifact, DecoderSpec
from edge_gemma.errors import ArtifactError, CacheError
from edge_gemma.machine import FEATURES, processor
from edge_gemma.memory import format_bytes, release_free_memory
from edge_gemma.runtime.decoder import Decoder
from edge_gemma.runtime.session import open_session

logger = logging.getLogger(__name__)
LAYOUT = 2  # of an entry in the cache
RECORD = "prepared.json"
LOCK = "lock"
WITHOUT = "%s; going on without a cache, which takes longer to load"


def default_folder() -> Path:
    """Where this user's caches are: $XDG_CACHE_HOME, or what the system has in its place.

    Raises:
        CacheError: the user has no home.
    """
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "edge-gemma"
    try:
        home = Path.home()
    except RuntimeError:
        raise CacheError(
            "this user has no home folder for a cache: name one with --cache-dir, or in XDG_CACHE_HOME"
        ) from None
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home)) / "edge-gemma" / "cache"
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "edge-gemma"


def find(artifact: Artifact, folder: Path, *, global_kv: str | None = None) -> Path | None:
    """The folder of an artifact's prepared graphs, or None if they are not whole and of this machine.

    Raises:
        PromptError: the artifact has no such KV cache.
    """
    entry = folder / _key(artifact, artifact.decoder(global_kv))
    try:
        record = json.loads((entry / RECORD).read_text("utf-8"))
        whole = all((entry / name).stat().st_size == size for name, size in record["files"].items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return entry if whole else None


def prepare(
    artifact: Artifact, folder: Path, *, global_kv: str | None = None, threads: int | None = None
) -> Path:
    """The folder of an artifact's prepared graphs, written first where there is none.

    Several processes may call this at once: one writes, the others wait for it. An entry appears when it is
    whole; what a killed process left is removed by the next one, and so are entries of an older export to the
    same folder and, where the disk is short, those of artifacts that are no longer there.

    Args:
        artifact: an opened artifact.
        folder: of the cache.
        global_kv: dtype of the global layers' KV cache; the recipe's own by default.
        threads: threads to prepare with; the cores of this process by default.

    Raises:
        CacheError: the cache cannot be written; nothing was left behind.
        ArtifactError: onnxruntime cannot load the artifact.
        PromptError: the artifact has no such KV cache.
    """
    spec = artifact.decoder(global_kv)
    if found := find(artifact, folder, global_kv=global_kv):
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if found := find(artifact, folder, global_kv=global_kv):  # another process wrote it meanwhile
                return found
            for left in folder.glob("*.tmp"):
                shutil.rmtree(left, ignore_errors=True)
            forget(folder, artifact.folder, keep=_others(artifact, spec))
            _make_room(artifact, spec, folder)
            logger.info("preparing %s for this machine, once, in %s …", artifact.folder, folder)
            return _write(artifact, spec, folder, threads)
    except OSError as error:
        raise CacheError(f"the cache {folder} cannot be written: {error.strerror or error}") from None


def open_decoder(
    artifact: Artifact,
    folder: Path | None,
    *,
    global_kv: str | None = None,
    threads: int | None = None,
    level: int | None = None,
) -> Decoder:
    """The decoder, mapped from the cache in `folder`; without it where there is none or it fails, with a
    warning in the log. The options are those of `Decoder`.

    Raises:
        ArtifactError: onnxruntime cannot load the artifact.
        PromptError: the artifact has no such KV cache.
    """
    if folder:
        try:
            entry = prepare(artifact, folder, global_kv=global_kv, threads=threads)
            return Decoder(artifact, global_kv=global_kv, threads=threads, prepared=entry, level=level)
        except CacheError as error:
            logger.warning(WITHOUT, error)
        except ArtifactError as error:
            if not find(artifact, folder, global_kv=global_kv):
                raise
            forget(folder, artifact.folder, keep=_others(artifact, artifact.decoder(global_kv)))
            logger.warning("%s; it was removed from the cache", error)
    return Decoder(artifact, global_kv=global_kv, threads=threads, level=level)


def forget(folder: Path, source: Path | None = None, *, keep: Collection[str] = ()) -> int:
    """Remove what was prepared on this machine of the artifact at `source`, or everything; return the bytes.

    Entries of the names in `keep` stay. A process that uses an entry keeps its pages: only their names go.
    """
    mine = (str(source.resolve()), _host()) if source else None
    found = [entry for entry, *origin in _entries(folder) if not mine or tuple(origin) == mine]
    return sum(_remove(entry) for entry in found if entry.name not in keep)


def _entries(folder: Path) -> Iterator[tuple[Path, str | None, str | None]]:
    """A cache's entries, each with its artifact's folder and the host that prepared it, where it says so."""
    for file in folder.glob("*/" + RECORD):
        try:
            record = json.loads(file.read_text("utf-8"))
            yield file.parent, record.get("source"), record.get("host")
        except (OSError, ValueError, AttributeError):
            yield file.parent, None, None


def _remove(entry: Path) -> int:
    size = sum(file.stat().st_size for file in entry.iterdir())
    shutil.rmtree(entry, ignore_errors=True)
    return size


def _key(artifact: Artifact, spec: DecoderSpec) -> str:
    """Names an entry: the decoder's contents, the build of onnxruntime, what its kernels are chosen by."""
    decoder = [(name, artifact.manifest.files[name].sha256) for name in spec.files]
    _, flags = processor()
    features = [platform.machine(), *(name for name in FEATURES if name in flags)]
    facts = [LAYOUT, decoder, ort.__version__, ort.get_build_info(), features]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _others(artifact: Artifact, spec: DecoderSpec) -> set[str]:
    """Names of the entries of an artifact's other decoders, as they are now."""
    return {_key(artifact, other) for other in artifact.manifest.decoders.values() if other != spec}


def _host() -> str:
    return platform.node()


def _write(artifact: Artifact, spec: DecoderSpec, folder: Path, threads: int | None) -> Path:
    staging = Path(tempfile.mkdtemp(suffix=".tmp", dir=folder))
    try:
        try:
            for graph in spec.graphs:
                open_session(artifact.path(graph.file), threads, save_to=staging / graph.file)
                release_free_memory()
        except ArtifactError as error:
            if shutil.disk_usage(folder).free < _bytes_needed(artifact, spec) // 20:
                raise CacheError(f"the disk of {folder} is full") from None
            raise error
        record: dict[str, Any] = {
            "source": str(artifact.folder.resolve()),
            "host": _host(),
            "onnxruntime": ort.__version__,
            "files": {file.name: file.stat().st_size for file in staging.iterdir()},
        }
        (staging / RECORD).write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        entry = folder / _key(artifact, spec)
        shutil.rmtree(entry, ignore_errors=True)  # one that is not whole
        staging.rename(entry)
        return entry
    except BaseException:  # Ctrl-C too
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _bytes_needed(artifact: Artifact, spec: DecoderSpec) -> int:
    manifest = artifact.manifest
    stored = sum(manifest.files[name].bytes for name in spec.files)
    return stored + manifest.memory.weights


def _make_room(artifact: Artifact, spec: DecoderSpec, folder: Path) -> None:
    """Where the disk is short, entries of artifacts that are no longer there go first."""
    needed = _bytes_needed(artifact, spec)
    for entry, source, host in _entries(folder):
        if shutil.disk_usage(folder).free >= needed:
            return
        if host == _host() and source and not Path(source).exists():
            logger.info("removing what was prepared of %s, which is no longer there", source)
            _remove(entry)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CacheError(
            f"{folder} has {format_bytes(free)} free and {format_bytes(needed)} are needed: make room, or "
            "name another folder with --cache-dir"
        )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the cache's lock; the system lets go of it when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows: two writers write two stagings, and the second rename replaces the first
        yield
        return
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another process that is preparing a model in %s …", folder)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
