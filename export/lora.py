"""A LoRA adapter of PEFT, merged into a checkpoint: the rest of the export sees the sum and nothing else.

Of each adapted matrix W [out, in] it passes on W + s·B·A, with A [r, in], B [out, r] and s = alpha/r (Hu et
al., 2021), or alpha/sqrt(r) where it is rank-stabilized (Kalajdzievski, 2023). The sum is computed in
float32 and stays so, one matrix at a time; slicing and quantization come after it.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from edge_gemma.config import read_json
from edge_gemma.errors import CheckpointError
from edge_gemma.export.checkpoint import TEXT_PREFIXES, Checkpoint, DerivedCheckpoint, finite, reading
from edge_gemma.shapes import text_shapes

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<part>[AB])\.weight")
ELSEWHERE = "merge it with peft's merge_and_unload and export the saved model"
# What may be set in adapter_config.json: read below, or without a part in what the trained matrices mean.
READ = {
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "init_lora_weights",
    "bias",
}
TRAINING = {
    *("task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout"),
    *("eva_config", "megatron_core", "qalora_group_size", "ensure_weight_tying"),
}
INITIALIZED = (None, True, False, "gaussian", "orthogonal", "eva")  # others change the base weights, too
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Update:
    """What an adapter adds to one matrix: `scale` · B · A, by the names of both in its file."""

    a: str
    b: str
    scale: float


class LoraAdapter:
    """A folder that PEFT's save_pretrained wrote, of linear layers.

    Raises:
        CheckpointError: it cannot be read, or is no plain LoRA.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.resolve().name
        self.weights = folder / WEIGHTS
        config = read_json(folder / CONFIG)
        if config is None:
            raise CheckpointError(f"{folder} has no {CONFIG}: expected the folder of a PEFT adapter")
        _check_plain(config, folder / CONFIG)
        if not self.weights.is_file():
            raise CheckpointError(f"{folder} has no {WEIGHTS}: save the adapter as safetensors")
        self.base: str | None = config.get("base_model_name_or_path")
        self.modules = self._read_modules(config)

    def tensor(self, name: str) -> torch.Tensor:
        """A or B of a module in float32: [r, in] or [out, r]"""
        with reading(self.weights), safe_open(self.weights, "pt") as file:
            return finite(file.get_tensor(name), name, self.weights).float()

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """Rows first … last-1 of one."""
        with reading(self.weights), safe_open(self.weights, "pt") as file:
            return finite(file.get_slice(name)[first:last], name, self.weights).float()

    def _read_modules(self, config: Mapping[str, Any]) -> dict[str, tuple[Update, tuple[int, ...]]]:
        """Module of the model that was trained → its update, and the shape of the matrix [out, in]."""
        parts: dict[str, dict[str, str]] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        with reading(self.weights), safe_open(self.weights, "pt") as file:
            for key in file.keys():  # noqa: SIM118  # it is no mapping
                match = KEY.fullmatch(key)
                if not match:
                    raise CheckpointError(
                        f"{self.weights} has the tensor {key}: expected lora_A and lora_B of linear layers; "
                        + ELSEWHERE
                    )
                parts.setdefault(match["module"], {})[match["part"]] = key
                shapes[key] = tuple(file.get_slice(key).get_shape())
        if not parts:
            raise CheckpointError(f"{self.weights} has no tensors: save the adapter again")
        modules: dict[str, tuple[Update, tuple[int, ...]]] = {}
        for module, found in parts.items():
            if set(found) != {"A", "B"}:
                raise CheckpointError(
                    f"{self.weights} has only lora_{min(found)} of {module}: save the adapter again"
                )
            a, b = shapes[found["A"]], shapes[found["B"]]
            rank = _by_pattern(config.get("rank_pattern"), module, config.get("r"))
            if len(a) != 2 or len(b) != 2 or not a[0] == b[1] == rank:
                raise CheckpointError(
                    f"{self.weights} has lora_A {list(a)} and lora_B {list(b)} of {module}: expected two "
                    f"matrices of the rank {rank} that {CONFIG} says"
                )
            alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
            scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
            modules[module] = (Update(found["A"], found["B"], scale), (b[0], a[1]))
        return modules


class MergedCheckpoint(DerivedCheckpoint):
    """`source` with an adapter in it.

    Raises:
        CheckpointError: the adapter is of another model, with modules or shapes that the source has not.
    """

    def __init__(self, source: Checkpoint, adapter: LoraAdapter) -> None:
        super().__init__(source)
        self.name = f"{source.name}+lora:{adapter.name}"
        self.config = source.config
        self.config_json = source.config_json
        self._adapter = adapter
        self._updates: dict[str, Update] = {}
        found, described = source.text_shapes(), text_shapes(source.config.text)
        for module, (update, shape) in adapter.modules.items():
            name = self._place(module, described)
            if name in described and name not in found:
                continue  # K and V of a layer that shares another's: not every checkpoint has them
            own = found.get(name) or tuple(source.tensor(name).shape)
            if own != shape:
                raise CheckpointError(
                    f"{adapter.folder} changes {module} of shape {list(shape)} and that of {source.name} is "
                    f"{list(own)}: the adapter was trained on another model ({adapter.base})"
                )
            self._updates[name] = update
        _warn_of_another_base(adapter, source)

    def tensor(self, name: str) -> torch.Tensor:
        whole = self._source.tensor(name)
        if update := self._updates.get(name):
            return (
                whole.float() + self._adapter.tensor(update.b) @ self._adapter.tensor(update.a) * update.scale
            )
        return whole

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        part = self._source.rows(name, first, last)
        if update := self._updates.get(name):
            b = self._adapter.rows(update.b, first, last)
            return part.float() + b @ self._adapter.tensor(update.a) * update.scale
        return part

    def has(self, name: str) -> bool:
        return self._source.has(name)

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        return self._source.text_shapes()

    def _place(self, module: str, described: Iterable[str]) -> str:
        """The checkpoint's name of a module's matrix, whichever class of transformers was trained."""
        for prefix in TEXT_PREFIXES:  # that of towers is among them
            name = f"{module.removeprefix(prefix)}.weight"
            if module.startswith(prefix) and (name in described or self._source.has(name)):
                return name
        raise CheckpointError(
            f"{self._adapter.folder} changes {module}, which {self._source.name} does not have: the adapter "
            f"was trained on another model ({self._adapter.base})"
        )


def _check_plain(config: Mapping[str, Any], path: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{path} describes an adapter of type {config.get('peft_type')!r}: expected LORA; {ELSEWHERE}"
        )
    special = {key: value for key, value in config.items() if value and key not in READ | TRAINING}
    if config.get("init_lora_weights") not in INITIALIZED:
        special["init_lora_weights"] = config["init_lora_weights"]
    if config.get("bias", "none") != "none":
        special["bias"] = config["bias"]
    if special:
        key = min(special)
        raise CheckpointError(
            f"{path} has {key} = {special[key]!r}: expected a plain LoRA of linear layers; {ELSEWHERE}"
        )
    for key, patterns in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        by_module = config.get(patterns) or {}
        if not isinstance(by_module, dict) or not all(map(_is_pattern, by_module)):
            raise CheckpointError(f"{path} has {patterns} = {by_module!r}: expected numbers by module")
        for value in (config.get(key), *by_module.values()):
            kind = int if key == "r" else (int, float)
            if not isinstance(value, kind) or isinstance(value, bool) or not 0 < value < math.inf:
                raise CheckpointError(f"{path} has {value!r} as {key}: expected a number above 0")


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _by_pattern(pattern: Mapping[str, float] | None, module: str, otherwise: Any) -> Any:
    """What rank_pattern or alpha_pattern says of a module, by the rule of PEFT's get_pattern_key."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return otherwise


def _warn_of_another_base(adapter: LoraAdapter, source: Checkpoint) -> None:
    """Shapes fit, but a fine-tuned sibling has the same shapes."""
    base, own = (
        (name or "").rstrip("/").rsplit("/", 1)[-1].casefold() for name in (adapter.base, source.name)
    )
    if base and base != own:
        logger.warning(
            "%s was trained on %s and is merged into %s", adapter.folder, adapter.base, source.name
        )
