"""The audio and the vision encoder: loaded when a prompt needs them, released before the decoder goes on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edge_gemma.artifact import Artifact, AudioSpec, VisionSpec
from edge_gemma.machine import CPU
from edge_gemma.memory import release_free_memory
from edge_gemma.runtime.page_cache import forget
from edge_gemma.runtime.prompt import Media
from edge_gemma.runtime.session import open_session

REMEMBERED = 8  # results, 2 MiB each at most


class Encoders:
    """Turns images and clips into soft tokens.

    Args:
        artifact: an opened artifact.
        threads: threads for one operator.
        providers: onnxruntime's execution providers, the preferred one first.
        keep: leave an encoder in memory after use; without, it is released, and loaded again when needed.
        make_room: called before an encoder is loaded.
        scarce: memory is: the weights of encoders leave the page cache with them, where they would crowd out
            what every token reads.

    Raises:
        ArtifactError: onnxruntime cannot load a graph (when it is needed).
    """

    def __init__(
        self,
        artifact: Artifact,
        *,
        threads: int | None = None,
        providers: Sequence[str] = (CPU,),
        keep: bool = False,
        make_room: Callable[[], None] = lambda: None,
        scarce: bool = False,
    ) -> None:
        self._artifact = artifact
        self._threads = threads
        self._providers = providers
        self._keep = keep
        self._make_room = make_room
        self._scarce = scarce
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._results: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()

    def encode(self, media: Sequence[Media]) -> list[NDArray[np.float32]]:
        """The soft tokens of each, float32 [tokens, H]; equal images or clips are encoded once.

        All clips go before all images, so that each encoder is loaded once.
        """
        found = {item.fingerprint: self._results.get(item.fingerprint) for item in media}
        manifest = self._artifact.manifest
        for kind, spec in (("audio", manifest.audio), ("image", manifest.vision)):
            try:
                for item in media:
                    if spec and item.kind == kind and found[item.fingerprint] is None:
                        found[item.fingerprint] = self._run(spec, item)
            finally:
                if not self._keep:
                    self.release()
        results = [rows for item in media if (rows := found[item.fingerprint]) is not None]
        for item, rows in zip(media, results, strict=True):
            self._results[item.fingerprint] = rows
            self._results.move_to_end(item.fingerprint)
        while len(self._results) > REMEMBERED:
            self._results.popitem(last=False)
        return results

    def release(self) -> None:
        """Give the memory of loaded encoders back."""
        if not self._sessions:
            return
        self._sessions.clear()
        release_free_memory()
        if self._scarce:
            for spec in self._artifact.manifest.encoders:
                forget(self._artifact.path(spec.data))

    def _run(self, spec: AudioSpec | VisionSpec, item: Media) -> NDArray[np.float32]:
        session = self._sessions.get(spec.file)
        if session is None:
            self._make_room()
            session = open_session(self._artifact.path(spec.file), self._threads, providers=self._providers)
            self._sessions[spec.file] = session
        (rows,) = session.run([spec.output.name], {spec.input.name: item.data})
        return np.array(rows, np.float32)  # a copy: the output lies in the session's memory
