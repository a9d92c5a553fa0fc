"""Sub-models of a MatFormer: the layers of a model that are kept, and the prefix of each feed-forward width.

The published ones are read from submodels.yaml, others from a file of the user's (docs/matformer.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from edge_gemma.config import TextConfig
from edge_gemma.errors import SubmodelError
from edge_gemma.recipes import Recipe
from edge_gemma.schema import SchemaError, from_dict
from edge_gemma.yaml_file import read_entries

BUILT_IN = Path(__file__).with_name("submodels.yaml")
E4B_LAYERS, E4B_SHARED = 35, 15  # what the published ones are sub-models of


@dataclass(frozen=True)
class Submodel:
    """What is kept of a model."""

    name: str
    layers: tuple[int, ...]  # numbers that the kept layers have in the source, ascending
    widths: tuple[int, ...]  # feed-forward width of each of them
    mmlu: float | None = None  # published accuracy in percent
    effective: float | None = None  # published number of parameters without embeddings, in 10⁹


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A sub-model as a file has it. The file's head, and docs/matformer.md, say what the fields mean."""

    layers: Any = None
    drop: Any = None
    widths: Any = "full"


@dataclass(frozen=True, kw_only=True)
class PublishedEntry(Entry):
    """One of submodels.yaml."""

    mmlu: float
    effective: float


def published_names() -> tuple[str, ...]:
    """What the published sub-models are called, the largest first, then from the smallest on."""
    return tuple(read_entries(BUILT_IN, "sub-model", SubmodelError))


def published(config: TextConfig) -> dict[str, Submodel]:
    """The published sub-models by name. "Full" and "half" are of the widths that the source has.

    Raises:
        SubmodelError: the source is not of E4B's pattern.
    """
    found = (config.num_hidden_layers, config.num_kv_shared_layers, len(set(config.intermediate_size)))
    if found != (E4B_LAYERS, E4B_SHARED, 1):
        raise SubmodelError(
            f"the source has {found[0]} layers of {found[2]} feed-forward widths, {found[1]} of which share "
            f"their keys and values, and the published sub-models are E4B's: expected {E4B_LAYERS} of one "
            f"width and {E4B_SHARED} sharing, or give a .yaml file"
        )
    entries = read_entries(BUILT_IN, "sub-model", SubmodelError).items()
    return {name: _read(PublishedEntry, name, fields, BUILT_IN, config) for name, fields in entries}


def find_submodel(asked: str, config: TextConfig) -> Submodel:
    """A published sub-model by name, or the only one of a YAML file given by its path.

    Raises:
        SubmodelError: there is none, or the file is malformed; `apply` says whether it can be made.
    """
    names = published_names()
    if not asked.endswith((".yaml", ".yml")):
        if asked not in names:
            raise SubmodelError(
                f"no sub-model is called {asked!r}: choose {', '.join(names)}, or give a .yaml file"
            )
        return published(config)[asked]
    path = Path(asked)
    entries = read_entries(path, "sub-model", SubmodelError)
    if len(entries) != 1:
        raise SubmodelError(f"{path} holds {len(entries)} sub-models, expected one")
    ((name, fields),) = entries.items()
    if name in names:
        raise SubmodelError(f"sub-model {name!r} in {path} has a published one's name: choose another")
    return _read(Entry, name, fields, path, config)


def apply(submodel: Submodel, config: TextConfig, *, block: int = 1) -> TextConfig:
    """The shape of the sub-model of a decoder of shape `config`.

    `block` is what the recipe quantizes feed-forward columns in: a width is cut between blocks.

    Raises:
        SubmodelError: a layer is unknown, repeated, or dropped though needed; a width is too large, or cuts
            a block.
    """
    if problem := _problem(submodel, config, block):
        raise SubmodelError(f"sub-model {submodel.name!r} {problem}")
    kept = submodel.layers
    return replace(
        config,
        num_hidden_layers=len(kept),
        num_kv_shared_layers=sum(layer >= config.first_shared_layer for layer in kept),
        intermediate_size=submodel.widths,
        layer_types=tuple(config.layer_types[layer] for layer in kept),
        activation_sparsity_pattern=tuple(config.activation_sparsity_pattern[layer] for layer in kept),
    )


def block_of(recipe: Recipe) -> int:
    """What widths are multiples of under a recipe."""
    fmt = recipe.matrices["mlp"]
    return fmt.block if fmt else 1


def as_yaml(submodel: Submodel) -> str:
    """What `find_submodel` reads, as a file."""
    default = min(submodel.widths)
    wider = [(i, w) for i, w in zip(submodel.layers, submodel.widths, strict=True) if w != default]
    kept = ", ".join(run for run, _ in _runs((layer, 0) for layer in submodel.layers))
    widths = "".join(f", {run}: {width}" for run, width in _runs(wider))
    return f"{submodel.name}:\n  layers: [{kept}]\n  widths: {{default: {default}{widths}}}\n"


def _problem(s: Submodel, config: TextConfig, block: int) -> str | None:
    """What makes a sub-model impossible, as the end of a sentence that begins with its name."""
    count = config.num_hidden_layers
    if not s.layers:
        return f"keeps no layer: expected some of {count}"
    if unknown := [layer for layer in s.layers if not 0 <= layer < count]:
        return f"keeps layer {unknown[0]}: expected layers from 0 to {count - 1}, as the source has them"
    if list(s.layers) != sorted(set(s.layers)):
        return f"keeps the layers {list(s.layers)}: expected each once, in ascending order"
    sources = {config.kv_source(layer) for layer in range(config.first_shared_layer, count)}
    if missing := sorted(sources - set(s.layers)):
        return f"drops layer {missing[0]}, whose keys and values later layers read: keep {sorted(sources)}"
    if len(s.widths) != len(s.layers):
        return f"has {len(s.widths)} widths for {len(s.layers)} layers: expected one for each"
    for layer, width in zip(s.layers, s.widths, strict=True):
        full = config.intermediate_size[layer]
        if not 1 <= width <= full:
            return f"gives layer {layer} a width of {width}: expected 1 to {full}, which the source has"
        if width % block and width != full:
            return (
                f"gives layer {layer} a width of {width}: expected a multiple of {block}, the recipe's block"
            )
    return None


def _read(kind: type[Entry], name: str, fields: dict[str, Any], path: Path, config: TextConfig) -> Submodel:
    try:
        entry = from_dict(kind, fields)
        layers = _kept(entry, config.num_hidden_layers)
        widths = _widths(entry.widths, layers, config)
    except (SchemaError, ValueError) as error:
        raise SubmodelError(f"sub-model {name!r} in {path}: {error}") from None
    submodel = Submodel(name, tuple(layers), tuple(widths))
    if isinstance(entry, PublishedEntry):
        return replace(submodel, mmlu=entry.mmlu, effective=entry.effective)
    return submodel


def _kept(entry: Entry, count: int) -> list[int]:
    if entry.drop is None:
        return list(range(count)) if entry.layers is None else sorted(_layers(entry.layers, "layers", count))
    if entry.layers is not None:
        raise ValueError("both layers and drop are given, expected one of them")
    dropped = _layers(entry.drop, "drop", count)
    return [layer for layer in range(count) if layer not in dropped]


def _layers(value: Any, field: str, count: int) -> list[int]:
    """[4, "20-22"] → [4, 20, 21, 22]: numbers of the source's `count` layers, none twice."""
    if not isinstance(value, list):
        raise ValueError(f"{field} is {value!r}, expected a list such as [0-19, 25]")
    found: list[int] = []
    for item in value:
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", str(item))
        if not match or int(match[1]) > int(match[2] or match[1]):
            raise ValueError(f"{field} holds {item!r}, expected a layer's number or a range such as 0-19")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    if unknown := [layer for layer in found if layer >= count]:
        raise ValueError(f"{field} names layer {unknown[0]}, expected 0 to {count - 1}")
    if twice := [layer for layer in found if found.count(layer) > 1]:
        raise ValueError(f"{field} names layer {twice[0]} twice, expected each once")
    return found


def _widths(value: Any, layers: Sequence[int], config: TextConfig) -> list[int]:
    """The width of each kept layer, from one for all, a list, or a mapping by the source's layers."""
    if isinstance(value, list):
        if len(value) != len(layers):
            raise ValueError(f"{len(value)} widths for {len(layers)} kept layers, expected one for each")
        asked = value
    elif isinstance(value, dict):
        runs = [key for key in value if key != "default"]
        named = _layers(runs, "widths", config.num_hidden_layers)
        if gone := sorted(set(named) - set(layers)):
            raise ValueError(f"widths names layer {gone[0]}, which is dropped: leave it out")
        by_layer = {i: value[run] for run in runs for i in _layers([run], "widths", config.num_hidden_layers)}
        asked = [by_layer.get(layer, value.get("default", "full")) for layer in layers]
    else:
        asked = [value] * len(layers)
    return [_width(a, config.intermediate_size[layer]) for a, layer in zip(asked, layers, strict=True)]


def _width(asked: Any, full: int) -> int:
    words = {"full": full, "half": full // 2}
    if type(asked) is int:
        return asked
    if isinstance(asked, str) and asked in words:
        return words[asked]
    raise ValueError(f"widths hold {asked!r}, expected a number of neurons, half or full")


def _runs(widths: Iterable[tuple[int, int]]) -> list[tuple[str, int]]:
    """Layers, ascending, with their widths → each run of neighbours of one width ("20-24"), and that."""
    runs = []
    for (_, width), group in groupby(enumerate(widths), key=lambda item: (item[1][0] - item[0], item[1][1])):
        layers = [layer for _, (layer, _) in group]
        runs.append((f"{layers[0]}-{layers[-1]}" if len(layers) > 1 else str(layers[0]), width))
    return runs
