"""A session on disk: one file in safetensors' format.

It begins with the length of its header, 8 bytes, little-endian; then comes the header, JSON; then the tensors
one behind the other, in the header's order: `kv.LAYER.key` and `kv.LAYER.value` as KvCache.rows gives them,
then `media.N`, the soft tokens of images and clips. The header's `__metadata__` holds what `Metadata` says,
as JSON, and the SHA-256 of that text and all tensors. (https://github.com/huggingface/safetensors#format)

The package of that name takes and gives tensors as copies in memory. Here they go straight between the file
and the KV cache, which a memory budget has no second one of.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from edge_gemma.artifact import Manifest
from edge_gemma.errors import PromptError, SessionError
from edge_gemma.runtime.atomic_file import replacing
from edge_gemma.runtime.chat import Message, normalize
from edge_gemma.runtime.kv_state import KvState
from edge_gemma.runtime.prompt import Encoded
from edge_gemma.runtime.said import Said
from edge_gemma.schema import SchemaError, from_dict

FORMAT = "edge-gemma session"
VERSION = 1
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "I8": np.dtype(np.int8),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
BLOCK = 1 << 20  # bytes read at once
Layout = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]  # name → type and shape


@dataclass(frozen=True, kw_only=True)
class StoredPart:
    """A part of a message; an image or a clip is a tensor."""

    type: str
    text: str = ""
    media: int = -1  # number of the tensor
    fingerprint: str = ""  # of what was encoded, hexadecimal


@dataclass(frozen=True, kw_only=True)
class StoredMessage:
    role: str
    content: str | tuple[StoredPart, ...]
    ids: tuple[int, ...] | None = None  # of an answer: those in which it was said


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What the header says besides the tensors."""

    artifact: str  # `identity` of it
    messages: tuple[StoredMessage, ...]
    tokens: int  # of the conversation, whose keys and values are there
    keys: str  # `_digest` of theirs: what the messages have to give again


def identity(manifest: Manifest) -> str:
    """Tells an artifact from every other one: its files' hashes are in its manifest."""
    return hashlib.sha256(json.dumps(dataclasses.asdict(manifest), sort_keys=True).encode()).hexdigest()


def write(
    path: Path, manifest: Manifest, messages: Sequence[Message], layout: Layout, state: KvState | None
) -> None:
    """Write a session whose media are encoded; `layout` is of the arrays of `state`.

    Raises:
        SessionError: it cannot be written; what was there before is still there.
    """
    media: list[NDArray[np.float32]] = []
    metadata = Metadata(
        artifact=identity(manifest),
        messages=tuple(_packed(message, media) for message in messages),
        tokens=len(state) if state else 0,
        keys=_digest(state.keys if state else ()),
    )
    tensors = {f"kv.{name}": array for name, array in zip(layout, state.rows if state else (), strict=True)}
    tensors |= {f"media.{number}": array for number, array in enumerate(media)}
    text = json.dumps(dataclasses.asdict(metadata))
    checksum = hashlib.sha256(text.encode())
    for array in tensors.values():
        for part in array:  # what is contiguous in memory
            checksum.update(np.ascontiguousarray(part).data)
    header: dict[str, Any] = {
        "__metadata__": {
            "format": FORMAT,
            "version": str(VERSION),
            "session": text,
            "sha256": checksum.hexdigest(),
        }
    }
    at = 0
    for name, array in tensors.items():
        place = [at, at + array.nbytes]
        header[name] = {"dtype": NAMES[array.dtype], "shape": list(array.shape), "data_offsets": place}
        at += array.nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    try:
        with replacing(path) as file:
            file.write(len(encoded).to_bytes(8, "little") + encoded)
            for array in tensors.values():
                for part in array:
                    file.write(np.ascontiguousarray(part).data)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SessionError(
                f"the disk of {path.parent} is full: nothing was changed; free some space and save again"
            ) from None
        raise SessionError(f"{path} cannot be written: {error.strerror or error}") from None
    except ValueError as error:  # a null character
        raise SessionError(f"{path!r} cannot be written: {error}") from None


class Stored:
    """A session's file, open and checked."""

    def __init__(self, file: IO[bytes], start: int, tensors: Layout, metadata: Metadata) -> None:
        self._file = file
        self._start = start  # bytes before the first tensor
        self._tensors = tensors
        self._keys = metadata.keys
        self.tokens = metadata.tokens
        media = dict(self._read("media."))
        self.messages = [_unpacked(message, media) for message in metadata.messages]

    def fits(self, keys: Sequence[Hashable], layout: Layout) -> bool:
        """Whether its keys and values are for a prompt with these keys, in a cache of this layout."""
        mine = {name[3:]: kind for name, kind in self._tensors.items() if name.startswith("kv.")}
        return 0 < self.tokens < len(keys) and mine == layout and _digest(keys[: self.tokens]) == self._keys

    def rows(self) -> Iterator[NDArray[Any]]:
        """The arrays of its KV state, each read when it is asked for."""
        return (array for _, array in self._read("kv."))

    def _read(self, prefix: str) -> Iterator[tuple[str, NDArray[Any]]]:
        self._file.seek(self._start)
        for name, (dtype, shape) in self._tensors.items():
            size = int(np.prod(shape)) * dtype.itemsize
            if name.startswith(prefix):
                yield name, np.frombuffer(self._file.read(size), dtype).reshape(shape)
            else:
                self._file.seek(size, os.SEEK_CUR)


@contextmanager
def opened(path: Path, manifest: Manifest) -> Iterator[Stored]:
    """A session that this artifact goes on from.

    Raises:
        SessionError: the file is missing, damaged, no session, another artifact's or a newer version's.
    """
    try:
        with path.open("rb") as file:
            yield _checked(file, path, manifest)
    except OSError as error:
        raise SessionError(f"{path} cannot be read: {error.strerror or error}") from None


def _checked(file: IO[bytes], path: Path, manifest: Manifest) -> Stored:
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    try:
        if length > size - 8:
            raise ValueError
        header = json.loads(file.read(length))
        said = header.pop("__metadata__")
        if said["format"] != FORMAT:
            raise ValueError
        version = int(said["version"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise SessionError(f"{path} is no whole session file: expected one that a session saved") from None
    if version != VERSION:
        raise SessionError(
            f"{path} has version {version} and this edge-gemma reads {VERSION}: upgrade edge-gemma"
        )
    damaged = SessionError(f"{path} is damaged: expected it as a session saved it; take another copy")
    try:
        if _checksum(file, said["session"]) != said["sha256"]:
            raise damaged
        metadata = from_dict(Metadata, json.loads(said["session"]))
        if metadata.artifact != identity(manifest):
            raise SessionError(
                f"{path} is a conversation with another artifact: load the one that it was saved with"
            )
        tensors = _layout(header, size - 8 - length)
        width = manifest.embeddings.hidden_size
        for name, (_, shape) in tensors.items():
            if name.startswith("media.") and (len(shape) != 2 or shape[1] != width):
                raise damaged
        stored = Stored(file, 8 + length, tensors, metadata)
        normalize([*stored.messages, {"role": "user", "content": "?"}])
        said = [i for message in metadata.messages for i in message.ids or ()]
        if not 0 <= min(said, default=0) <= max(said, default=0) < manifest.vocab_size:
            raise damaged
        return stored
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SchemaError, PromptError):
        raise damaged from None


def _checksum(file: IO[bytes], text: str) -> str:
    checksum = hashlib.sha256(text.encode())
    while block := file.read(BLOCK):
        checksum.update(block)
    return checksum.hexdigest()


def _layout(header: dict[str, Any], size: int) -> Layout:
    """The tensors of a header; ValueError unless they fill `size` bytes one behind the other."""
    tensors: Layout = {}
    at = 0
    for name, entry in header.items():
        dtype, shape = DTYPES[entry["dtype"]], tuple(map(int, entry["shape"]))
        begin, at = at, at + int(np.prod(shape)) * dtype.itemsize
        if min(shape, default=0) < 0 or entry["data_offsets"] != [begin, at]:
            raise ValueError
        tensors[name] = (dtype, shape)
    if at != size:
        raise ValueError
    return tensors


def _packed(message: Message, media: list[NDArray[np.float32]]) -> StoredMessage:
    """A message for the header; the soft tokens of its media are appended to `media`."""
    role, content = message["role"], message["content"]
    if isinstance(content, str):
        return StoredMessage(
            role=role, content=str(content), ids=content.ids if isinstance(content, Said) else None
        )
    parts = []
    for part in content:
        encoded = part[part["type"]]
        if isinstance(encoded, Encoded):
            hexadecimal = encoded.fingerprint.hex()
            parts.append(StoredPart(type=encoded.kind, media=len(media), fingerprint=hexadecimal))
            media.append(encoded.rows)
        else:
            parts.append(StoredPart(type="text", text=encoded))
    return StoredMessage(role=role, content=tuple(parts))


def _unpacked(message: StoredMessage, media: dict[str, NDArray[Any]]) -> Message:
    """The message again; KeyError if one of `media` is not there."""
    content: Any = message.content
    if not isinstance(content, str):
        content = [
            {"type": "text", "text": part.text}
            if part.type == "text"
            else {
                "type": part.type,
                part.type: Encoded(part.type, bytes.fromhex(part.fingerprint), media[f"media.{part.media}"]),
            }
            for part in content
        ]
    elif message.ids is not None:
        content = Said(content, message.ids)
    return {"role": message.role, "content": content}


def _digest(keys: Iterable[Hashable]) -> str:
    return hashlib.sha256(repr(list(keys)).encode()).hexdigest()
