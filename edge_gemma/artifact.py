"""The artifact: a folder of graphs, embedding records, a tokenizer and one manifest.json.

The manifest holds every geometry, name, dtype and offset that a client needs; nothing is inferred from
file or tensor names. `read` opens a folder and checks it against its manifest; `Manifest.save` writes one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_gemma.errors import ArtifactError, FormatVersionError, PromptError
from edge_gemma.schema import SchemaError, from_dict
from edge_gemma.tokenizer_spec import TokenizerSpec

FORMAT_VERSION = 6
MANIFEST = "manifest.json"
EMBEDDINGS = "embeddings.bin"
DECODER = ("decoder_kv.onnx", "decoder_logits.onnx")
DECODER_INT8_KV = ("decoder_kv_int8.onnx", "decoder_logits_int8.onnx")
AUDIO_ENCODER = "audio_encoder.onnx"
VISION_ENCODER = "vision_encoder.onnx"
TOKENIZER = "tokenizer.bin"
TOKENIZER_JSON = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"
HASH_CHUNK = 1 << 20
SCALE_BYTES = 2  # float16, of embedding records


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """A graph input or output."""

    name: str
    dtype: str  # numpy's name
    shape: tuple[int | str, ...]  # a string is a symbolic dimension


@dataclass(frozen=True, kw_only=True)
class KvBuffer:
    """The KV buffer of one layer that owns its keys and values: [batch, heads, rows, head_dim] each."""

    layer: int
    kind: str  # "sliding": rows of the window; "global": rows of the context
    dtype: str  # float32, float16 or int8
    heads: int
    head_dim: int
    past_key: str  # graph input
    past_value: str
    present_key: tuple[str, ...]  # graph outputs, all bound to the memory of the input
    present_value: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """One of the graphs of a decoder."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True)
class DecoderSpec:
    """A decoder: graphs that run in turn.

    One call takes S tokens and returns the logits of the last `num_logits` of them. The first graph writes
    the tokens' KV; those behind it are there for the logits alone, and need not run where none are wanted.

    Inputs, besides the KV buffers: inputs_embeds [B, S, H], per_layer_inputs [B, S, L, P], position_ids
    [B, S] (absolute), num_logits [1], sliding_rows / global_rows [B]: how many rows the KV buffers of that
    kind hold after this call, and, of an elastic artifact, level [1]: which of its levels computes. An input
    of any other name is the output of that name of a graph before. A sliding buffer needs room for
    sliding_window - 1 + S rows.
    """

    graphs: tuple[GraphSpec, ...]
    data: str  # the file with the weights of them all
    kv: tuple[KvBuffer, ...]
    sliding_window: int

    @property
    def files(self) -> tuple[str, ...]:
        """The graphs and their weights."""
        return (*(graph.file for graph in self.graphs), self.data)

    @property
    def global_kv(self) -> str:
        """dtype of the global layers' KV cache; where no layer is global, that of all of them."""
        return next((buffer.dtype for buffer in self.kv if buffer.kind == "global"), self.kv[0].dtype)


@dataclass(frozen=True, kw_only=True)
class RowField:
    """One vector inside an embedding record.

    bits 32: float32 values at `offset`. bits 8: int8 values. bits 4: two values a byte, low nibble first,
    each stored plus 8. For 8 and 4 bits, float16 scales at `scale_offset`, one for `block` values:
    value = code · scale. The result is what the graph takes: no further factor.
    """

    name: str  # "embedding" or "per_layer"
    offset: int  # bytes from the start of the record
    values: int
    bits: int
    block: int
    scale_offset: int


@dataclass(frozen=True, kw_only=True)
class EmbeddingSpec:
    """embeddings.bin: `records` records of `record_bytes` each; id i starts at i·record_bytes."""

    file: str
    records: int
    record_bytes: int
    hidden_size: int
    layers: int
    per_layer_width: int
    fields: tuple[RowField, ...]

    def field(self, name: str) -> RowField:
        return next(f for f in self.fields if f.name == name)


@dataclass(frozen=True, kw_only=True)
class AudioSpec:
    """The audio encoder: one clip in, its soft tokens out; the log-mel front end is inside the graph.

    `input` is the waveform, float32 [samples] in [-1, 1], mono; `output` its soft tokens, float32
    [tokens(samples), H]. In a prompt a clip always takes `soft_tokens` places: its own soft tokens first,
    then ordinary ids `fill_token`.
    """

    file: str
    data: str  # the file with its weights
    input: TensorSpec
    output: TensorSpec
    sample_rate: int  # Hz
    min_samples: int  # shorter clips need silence behind them
    max_samples: int  # longer ones must be cut
    pad_multiple: int  # the graph pads a clip to a multiple of this with zeros
    frame: int  # samples of a frame of the spectrogram
    hop: int  # samples from one frame to the next
    frames_per_token: int
    soft_tokens: int
    fill_token: int
    memory: int  # bytes that encoding the longest clip adds to resident memory, an estimate

    def tokens(self, samples: int) -> int:
        """How many soft tokens a clip of so many samples has."""
        padded = -(-samples // self.pad_multiple) * self.pad_multiple
        return -(-((padded - self.frame) // self.hop + 1) // self.frames_per_token)


@dataclass(frozen=True, kw_only=True)
class VisionSpec:
    """The vision encoder: one image in, its soft tokens out; resize and rescale are inside the graph.

    `input` is the image, uint8 [height, width, 3] RGB of any size; `output` float32 [soft_tokens, H].
    """

    file: str
    data: str  # the file with its weights
    input: TensorSpec
    output: TensorSpec
    soft_tokens: int
    memory: int  # bytes that encoding an image adds to resident memory, an estimate


@dataclass(frozen=True, kw_only=True)
class TokenSpec:
    """Special token ids."""

    bos: int
    pad: int
    stop: tuple[int, ...]  # any of them ends an answer
    media: dict[str, int]  # boi, eoi, image, boa, eoa, audio, where the checkpoint has them


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """Where the weights came from."""

    name: str
    revision: str | None


@dataclass(frozen=True, kw_only=True)
class ParameterSpec:
    """Parameter counts of the text model, as in the checkpoint."""

    text: int
    per_layer_embeddings: int  # stay on storage
    effective: int  # text without the tables that stay on storage


@dataclass(frozen=True, kw_only=True)
class LevelSpec:
    """One of the nested sub-models of an elastic artifact; the decoder's input `level` is its index."""

    name: str
    layers: int
    widths: tuple[int, ...]  # feed-forward width by layer of the widest level; 0: the layer is left out
    effective_parameters: int
    weights: int  # bytes of the matrices that a token reads, as onnxruntime packs them


@dataclass(frozen=True, kw_only=True)
class MemorySpec:
    """What the decoder needs in memory, in bytes; edge_gemma.memory adds it up for a context length."""

    weights: int  # matrices as onnxruntime packs them, and everything else in the graph
    scales: int  # in the file, which only loading reads
    largest_matrix: int  # packed; loading peaks by about this much
    logits: int  # of one position
    scratch_per_token: int  # activations of one token of a prefill chunk
    scores_per_pair: int  # attention scores of one token of a chunk and one of the context
    keys_per_token: int  # of the context, one head's: each thread copies those of a global layer
    kv_per_token: int  # global layers, as `decoder` has them; with an int8 cache, a byte for each value
    kv_per_window_row: int  # sliding layers
    sliding_window: int
    tokenizer: int  # tokenizer.bin, which is mapped


@dataclass(frozen=True, kw_only=True)
class FileSpec:
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """manifest.json"""

    format_version: int
    generator: str  # the edge-gemma version that wrote it
    minimum_onnxruntime: str
    source: SourceSpec
    submodel: str | None
    recipe: str
    recipe_details: dict[str, Any]
    parameters: ParameterSpec
    levels: tuple[LevelSpec, ...]  # narrowest first, the last is the whole model; empty: not elastic
    vocab_size: int
    max_context: int
    tokens: TokenSpec
    decoder: DecoderSpec
    # the same over the same weights, with global KV in int8; None where that of `decoder` is not float16
    decoder_int8_kv: DecoderSpec | None
    audio: AudioSpec | None  # None where the checkpoint has no audio tower
    vision: VisionSpec | None
    embeddings: EmbeddingSpec
    tokenizer: TokenizerSpec
    chat_template: str
    memory: MemorySpec
    memory_estimate: dict[str, int]  # context → bytes of peak resident memory, text, image and clip included
    files: dict[str, FileSpec]

    @property
    def decoders(self) -> dict[str, DecoderSpec]:
        """The decoder graphs by dtype of the global layers' KV cache; the first is the recipe's own."""
        return {spec.global_kv: spec for spec in (self.decoder, self.decoder_int8_kv) if spec}

    @property
    def encoders(self) -> tuple[AudioSpec | VisionSpec, ...]:
        """The encoders that there are, audio first."""
        return tuple(spec for spec in (self.audio, self.vision) if spec)

    @property
    def level_indices(self) -> tuple[int | None, ...]:
        """Indices of the levels, narrowest first; None alone where the artifact is not elastic."""
        return tuple(range(len(self.levels))) or (None,)

    def level(self, name: str) -> int:
        """The index of a level of an elastic artifact.

        Raises:
            PromptError: there is none of that name.
        """
        names = [level.name for level in self.levels]
        if name not in names:
            known = f"has the levels {', '.join(names)}" if names else "is not elastic and has no levels"
            raise PromptError(f"there is no level {name!r}: this artifact {known}")
        return names.index(name)

    def weights_of(self, level: str | None) -> int:
        """Bytes of packed weights that the decoder reads for a token, at a level where there are any."""
        return self.memory.weights if level is None else self.levels[self.level(level)].weights

    def save(self, folder: Path) -> None:
        (folder / MANIFEST).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", "utf-8")


@dataclass(frozen=True)
class Artifact:
    """An artifact on disk whose manifest has been read and whose files are there in full."""

    folder: Path
    manifest: Manifest

    def path(self, file: str) -> Path:
        return self.folder / file

    def decoder(self, global_kv: str | None = None) -> DecoderSpec:
        """The decoder graph with this dtype of the global layers' KV cache; by default the recipe's own.

        Raises:
            PromptError: there is none.
        """
        decoders = self.manifest.decoders
        if global_kv is None:
            return self.manifest.decoder
        if global_kv not in decoders:
            raise PromptError(
                f"global_kv is {global_kv!r}: {self.folder} has {' and '.join(decoders)}, choose of these or "
                "export it again with --global-kv"
            )
        return decoders[global_kv]

    def verify(self, progress: Callable[[int], None] | None = None) -> None:
        """Re-hash every file; `progress` is called with the bytes just read.

        Raises:
            ArtifactError: the contents of a file are not those that were exported.
        """
        for name, spec in self.manifest.files.items():
            found = sha256(self.path(name), progress)
            if found != spec.sha256:
                raise ArtifactError(
                    f"{self.path(name)} is damaged: sha256 {found[:16]}…, expected {spec.sha256[:16]}…; "
                    "copy or export the artifact again"
                )


def read(folder: str | Path) -> Artifact:
    """Open an artifact: parse its manifest and check that every file is there with its size.

    Raises:
        ArtifactError: not an artifact, a malformed manifest, a missing file, a wrong size.
        FormatVersionError: written by a newer edge-gemma.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    for name, spec in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{path} is missing: copy or export the artifact again")
        size = path.stat().st_size
        if size != spec.bytes:
            raise ArtifactError(
                f"{path} has {size:,} bytes, expected {spec.bytes:,}: copy or export the artifact again"
            )
    return Artifact(folder, manifest)


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder: expected an artifact made by `edge-gemma export`")
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder} has no {MANIFEST}: expected an artifact made by `edge-gemma export`"
        ) from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}; export the artifact again") from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not valid JSON ({error}): export the artifact again") from None
    version = data.get("format_version") if isinstance(data, dict) else None
    if type(version) is not int:
        raise ArtifactError(f"{path} has no format_version: expected an artifact made by `edge-gemma export`")
    if version != FORMAT_VERSION:
        advice = "upgrade edge-gemma" if version > FORMAT_VERSION else "export it again with this edge-gemma"
        raise FormatVersionError(
            f"{path} has format version {version}, this edge-gemma reads {FORMAT_VERSION}: {advice}"
        )
    try:
        manifest = from_dict(Manifest, data)
    except SchemaError as error:
        raise ArtifactError(f"{path}: {error}; export the artifact again") from None
    needed = [manifest.embeddings.file, manifest.chat_template]
    needed += [manifest.tokenizer.file, manifest.tokenizer.original]
    for encoder in manifest.encoders:
        needed += [encoder.file, encoder.data]
    decoders = [decoder for decoder in (manifest.decoder, manifest.decoder_int8_kv) if decoder]
    for decoder in decoders:
        needed += decoder.files
    for name in (*manifest.files, *needed):
        if name in ("", ".", "..") or Path(name).name != name or "\\" in name:
            raise ArtifactError(f"{path} names the file {name!r}: expected a plain name inside the folder")
        if name not in manifest.files:
            raise ArtifactError(
                f"{path} uses {name!r} and does not list it under files; export the artifact again"
            )
    if not all(decoder.graphs and decoder.kv for decoder in decoders):
        raise ArtifactError(f"{path}: its decoder cannot be right; copy or export the artifact again")
    if not _records_fit(manifest):
        raise ArtifactError(f"{path}: its embeddings cannot be right; copy or export the artifact again")
    if not manifest.tokenizer.fits(manifest.files[manifest.tokenizer.file].bytes):
        raise ArtifactError(f"{path}: its tokenizer cannot be right; copy or export the artifact again")
    return manifest


def _records_fit(manifest: Manifest) -> bool:
    """Whether the embedding records make up their file, and their fields lie inside a record."""
    spec = manifest.embeddings
    if (spec.records, spec.records * spec.record_bytes) != (
        manifest.vocab_size,
        manifest.files[spec.file].bytes,
    ):
        return False
    expected = {"embedding": spec.hidden_size, "per_layer": spec.layers * spec.per_layer_width}
    if {f.name: f.values for f in spec.fields} != expected:
        return False
    for field in spec.fields:
        places = [(field.offset, field.values * field.bits // 8)]
        if field.bits != 32:
            if field.block < 1 or field.values % field.block:
                return False
            places.append((field.scale_offset, field.values // field.block * SCALE_BYTES))
        if field.bits not in (4, 8, 32) or not all(
            0 <= first <= spec.record_bytes - size for first, size in places
        ):
            return False
    return True


def sha256(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(HASH_CHUNK):
            digest.update(piece)
            if progress:
                progress(len(piece))
    return digest.hexdigest()
