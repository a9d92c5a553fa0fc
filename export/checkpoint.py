"""Where tensors come from: a local folder, the Hugging Face hub, or random weights made on the fly.

Every source yields one tensor, or some rows of one, at a time, under the names that transformers'
Gemma3nTextModel gives them ("layers.0.mlp.up_proj.weight"), whatever the checkpoint's prefix is.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from edge_gemma.config import ModelConfig, read_config, read_json
from edge_gemma.errors import CheckpointError, DependencyError
from edge_gemma.export.synthetic import SyntheticCheckpoint

# Gemma3nForConditionalGeneration, Gemma3nForCausalLM, Gemma3nTextModel
TEXT_PREFIXES = ("model.language_model.", "model.", "")
TOWER_PREFIX = "model."
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*config.json", "tokenizer*", "*.jinja"]
WEIGHTS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class Checkpoint(Protocol):
    """One Gemma 3n model's configuration, tensors and tokenizer files."""

    name: str
    revision: str | None
    submodel: str | None  # name of the sub-model of the source that this is; None: all of it
    config: ModelConfig
    config_json: dict[str, Any]  # what config was read from; transformers builds the towers from it

    def tensor(self, name: str) -> torch.Tensor:
        """A whole tensor, in the dtype it is stored in.

        Raises:
            CheckpointError: it is not there, or cannot be read.
        """

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """Rows first … last-1 of a two-dimensional tensor, without reading the others."""

    def has(self, name: str) -> bool: ...

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor of the text model."""

    def tokenizer_json(self) -> bytes:
        """Contents of tokenizer.json."""

    def chat_template(self) -> str:
        """Jinja source of the chat template."""

    def generation_config(self) -> dict[str, Any]:
        """Contents of generation_config.json; empty where there is none."""

    def image_processor(self) -> dict[str, Any]:
        """How images are prepared, under the names of transformers' image processor; empty if not said."""


class DerivedCheckpoint:
    """What a checkpoint that is made of another one has unchanged; its tensors are its own matter."""

    def __init__(self, source: Checkpoint) -> None:
        self._source = source
        self.revision = source.revision
        self.submodel = source.submodel

    def tokenizer_json(self) -> bytes:
        return self._source.tokenizer_json()

    def chat_template(self) -> str:
        return self._source.chat_template()

    def generation_config(self) -> dict[str, Any]:
        return self._source.generation_config()

    def image_processor(self) -> dict[str, Any]:
        return self._source.image_processor()


def open_checkpoint(source: str, *, revision: str | None = None, token: str | None = None) -> Checkpoint:
    """Open a folder, `synthetic:NAME[:SEED]`, or a hub id such as google/gemma-3n-E2B-it.

    Raises:
        CheckpointError: there is no such source, or it is not a Gemma 3n checkpoint.
    """
    if source.startswith("synthetic:"):
        return SyntheticCheckpoint.from_name(source)
    if Path(source).exists():
        return FolderCheckpoint(Path(source))
    if HUB_ID.fullmatch(source):
        snapshot = _download(source, revision, token)  # the cache names it by its commit
        return FolderCheckpoint(snapshot, name=source, revision=snapshot.name)
    raise CheckpointError(
        f"{source!r} does not exist: expected a checkpoint folder, a hub id (owner/name) or synthetic:E2B"
    )


class FolderCheckpoint:
    """A Hugging Face folder of safetensors, sharded or not.

    Files are opened for each read and closed again, so that their mapped pages do not add up in memory.
    """

    submodel: str | None = None

    def __init__(self, folder: Path, *, name: str | None = None, revision: str | None = None) -> None:
        self.folder = folder
        self.name = name or folder.resolve().name
        self.revision = revision
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is a file: expected a checkpoint folder with config.json")
        self.config = read_config(folder / "config.json")
        self.config_json = read_json(folder / "config.json") or {}
        _refuse_quantized(self.config_json, folder)
        self._files = self._index()
        self._prefix = self._text_prefix()

    def tensor(self, name: str) -> torch.Tensor:
        full, path = self._locate(name)
        with reading(path), safe_open(path, "pt") as file:
            return finite(file.get_tensor(full), full, path)

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        full, path = self._locate(name)
        with reading(path), safe_open(path, "pt") as file:
            return finite(file.get_slice(full)[first:last], full, path)

    def has(self, name: str) -> bool:
        return self._prefix + name in self._files or TOWER_PREFIX + name in self._files

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        names = {n: n.removeprefix(self._prefix) for n in self._files if n.startswith(self._prefix)}
        wanted = {full: short for full, short in names.items() if short.split(".")[0] in TEXT_MODULES}
        for path in sorted({self._files[n] for n in wanted}):
            with reading(path), safe_open(path, "pt") as file:
                here = set(file.keys())
                shapes |= {
                    short: tuple(file.get_slice(full).get_shape())
                    for full, short in wanted.items()
                    if full in here
                }
        return shapes

    def tokenizer_json(self) -> bytes:
        path = self.folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{self.folder} has no tokenizer.json: download the checkpoint again")
        return path.read_bytes()

    def chat_template(self) -> str:
        path = self.folder / "chat_template.jinja"
        if path.is_file():
            try:
                return path.read_text("utf-8")
            except UnicodeDecodeError:
                raise CheckpointError(
                    f"{path} is not UTF-8 text: expected a Jinja template, download the checkpoint again"
                ) from None
        template = (read_json(self.folder / "tokenizer_config.json") or {}).get("chat_template")
        if isinstance(template, str):
            return template
        raise CheckpointError(
            f"{self.folder} has no chat template: expected chat_template.jinja, or chat_template in "
            "tokenizer_config.json (an instruction-tuned checkpoint has one)"
        )

    def generation_config(self) -> dict[str, Any]:
        return read_json(self.folder / "generation_config.json") or {}

    def image_processor(self) -> dict[str, Any]:
        nested = (read_json(self.folder / "processor_config.json") or {}).get("image_processor")
        if isinstance(nested, dict):
            return nested
        return read_json(self.folder / "preprocessor_config.json") or {}

    def _index(self) -> dict[str, Path]:
        """Full tensor name → file."""
        index = self.folder / "model.safetensors.index.json"
        if not index.is_file():
            single = self.folder / "model.safetensors"
            if not single.is_file():
                raise CheckpointError(f"{self.folder} has no model.safetensors: expected safetensors weights")
            with reading(single), safe_open(single, "pt") as file:
                return dict.fromkeys(file.keys(), single)
        weight_map = (read_json(index) or {}).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
            raise CheckpointError(f"{index} has no weight_map of file names: download the checkpoint again")
        for name in sorted(set(weight_map.values())):
            path = self.folder / name
            if not path.is_file():
                raise CheckpointError(
                    f"{path} is missing, {index.name} names it: download the checkpoint again"
                )
            with reading(path), safe_open(path, "pt"):  # a truncated shard is found now, not in an hour
                pass
        return {tensor: self.folder / name for tensor, name in weight_map.items()}

    def _text_prefix(self) -> str:
        for prefix in TEXT_PREFIXES:
            if f"{prefix}embed_tokens_per_layer.weight" in self._files:
                return prefix
        raise CheckpointError(
            f"{self.folder} has no embed_tokens_per_layer.weight: expected the weights of a Gemma 3n model"
        )

    def _locate(self, name: str) -> tuple[str, Path]:
        for full in (self._prefix + name, TOWER_PREFIX + name):
            if full in self._files:
                return full, self._files[full]
        raise CheckpointError(
            f"{self.folder} has no tensor {self._prefix + name}: the checkpoint is incomplete"
        )


# top-level modules of transformers' Gemma3nTextModel
TEXT_MODULES = frozenset(
    {
        "embed_tokens",
        "embed_tokens_per_layer",
        "layers",
        "norm",
        "per_layer_model_projection",
        "per_layer_projection_norm",
        "altup_projections",
        "altup_unembed_projections",
    }
)


def _refuse_quantized(config: dict[str, Any], folder: Path) -> None:
    """CheckpointError where tensors are codes: their scales have other names in every method."""
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        if found := part.get("quantization_config"):
            method = found.get("quant_method", "unknown") if isinstance(found, dict) else found
            raise CheckpointError(
                f"{folder} is quantized already (quant_method {method!r}): expected weights in bfloat16, "
                "float16 or float32; export the checkpoint that it was made of"
            )


def finite(tensor: torch.Tensor, name: str, path: Path) -> torch.Tensor:
    """A copy, which does not keep the file mapped; refused if it holds NaN or infinity, or is no weight."""
    if tensor.dtype not in WEIGHTS:
        raise CheckpointError(
            f"{name} in {path} is of {str(tensor.dtype).removeprefix('torch.')}: expected bfloat16, float16 "
            "or float32; a checkpoint that is quantized already cannot be exported"
        )
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"{name} in {path} holds NaN or infinity: download the checkpoint again")
    return tensor.clone()


class reading:
    """Turns what safetensors raises for a damaged file into a CheckpointError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (SafetensorError, OSError)):
            raise CheckpointError(
                f"{self.path} cannot be read ({error}): it is truncated or damaged, download it again"
            ) from None


def _download(repo: str, revision: str | None, token: str | None) -> Path:
    """Fetch a hub repository, or find it in the cache."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:
        raise DependencyError("huggingface_hub is missing: pip install 'edge-gemma[export]'") from None
    try:
        return Path(snapshot_download(repo, revision=revision, token=token, allow_patterns=HUB_FILES))
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"no folder {repo!r} exists and the hub cannot be reached: check the path, or the connection"
        ) from None
    except Exception as error:  # the hub's own, those of its HTTP library, and OSError
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"no folder {repo!r} exists and the hub gave nothing: {reason} "
            "(Gemma is gated: accept its terms on the model page, then pass --token or log in)"
        ) from None
