"""The levels of an elastic artifact: nested sub-models over one set of weights, of which one runs at a time.

MatFormer (Devvrit et al., 2023) trains a model so that prefixes of its feed-forward widths are models, too.
A level keeps every layer of the widest one that owns its KV and some of those that share it, each with a
prefix of its width. So all levels have one KV layout, and a conversation goes on after a switch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from edge_gemma.config import FULL, TextConfig
from edge_gemma.errors import ExportError
from edge_gemma.export.checkpoint import Checkpoint
from edge_gemma.export.matformer import SlicedCheckpoint
from edge_gemma.submodels import Submodel, apply, find_submodel


@dataclass(frozen=True)
class Segment:
    """Columns first … last-1 of a layer's feed-forward width, which levels from `level` on have."""

    first: int
    last: int
    level: int


class Levels:
    """The levels of a graph.

    Args:
        config: shape of the widest level, which is the whole graph.
        levels: sub-models of it, narrowest first; none where it is the only one.

    Raises:
        ExportError: they are not nested, or leave out a layer that owns its KV.
    """

    def __init__(self, config: TextConfig, levels: Sequence[Submodel] = ()) -> None:
        self._config = config
        # feed-forward width by level and layer; 0: the layer is left out
        self.widths = [widths_by_layer(level, config) for level in levels] or [config.intermediate_size]
        names = [level.name for level in levels]
        if levels and self.widths[-1] != config.intermediate_size:
            raise ExportError(f"{names[-1]} is not the whole model: expected a last level that is")
        for i, (small, large) in enumerate(pairwise(self.widths)):
            if any(a > b for a, b in zip(small, large, strict=True)):
                raise ExportError(
                    f"{names[i]} is no part of {names[i + 1]}: expected levels from the narrowest to the "
                    "widest, each with all layers and widths of the one before it"
                )
        owning = range(config.first_shared_layer)
        for level in levels:
            if gone := set(owning).difference(level.layers):
                raise ExportError(
                    f"{level.name} leaves out layer {min(gone)}, which has keys and values of its own: "
                    f"levels may leave out layers from {owning.stop} on; export it alone with --submodel"
                )

    def __len__(self) -> int:
        return len(self.widths)

    def first_level(self, layer: int) -> int:
        """The narrowest level that has a layer."""
        return next(i for i, widths in enumerate(self.widths) if widths[layer])

    def segments(self, layer: int) -> list[Segment]:
        """The parts of a layer's feed-forward width that levels differ in."""
        found: list[Segment] = []
        done = 0
        for i, widths in enumerate(self.widths):
            if widths[layer] > done:
                found.append(Segment(done, widths[layer], i))
                done = widths[layer]
        return found

    @property
    def leave_out_full_attention(self) -> bool:
        """Whether a level has not all layers with full attention."""
        full = [i for i, kind in enumerate(self._config.layer_types) if kind == FULL]
        return any(not widths[layer] for widths in self.widths for layer in full)


def open_levels(
    source: Checkpoint, names: Sequence[str], *, block: int = 1
) -> tuple[Checkpoint, list[Submodel]]:
    """The widest of some sub-models of `source` as a checkpoint, and all of them as its levels.

    Args:
        names: of published sub-models, or paths of .yaml files, the narrowest first.
        block: what the recipe quantizes feed-forward columns in.

    Raises:
        SubmodelError: the source has no such sub-model.
        ExportError: there are less than two, two of one name, or they are not nested.
    """
    config = source.config.text
    found = [find_submodel(name, config) for name in names]
    if len(found) < 2 or len({level.name for level in found}) < len(found):
        raise ExportError(
            f"the levels are {', '.join(level.name for level in found)}: expected two or more, each once"
        )
    for level in found:
        apply(level, config, block=block)
    widest = found[-1]
    levels = [within(level, widest) for level in found]
    if widths_by_layer(widest, config) == config.intermediate_size:
        return source, levels
    return SlicedCheckpoint(source, widest, block=block), levels


def widths_by_layer(level: Submodel, config: TextConfig) -> tuple[int, ...]:
    """Feed-forward width of each layer of the model that `level` is part of; 0: the layer is left out."""
    widths = dict(zip(level.layers, level.widths, strict=True))
    return tuple(widths.get(layer, 0) for layer in range(config.num_hidden_layers))


def within(level: Submodel, widest: Submodel) -> Submodel:
    """A sub-model of the source as one of `widest`, which is a sub-model of it, too.

    Raises:
        ExportError: it has a layer that `widest` has not.
    """
    if missing := set(level.layers).difference(widest.layers):
        raise ExportError(
            f"{level.name} has layer {min(missing)} and {widest.name} has not: expected levels from the "
            "narrowest to the widest, each with all layers and widths of the one before it"
        )
    return replace(level, layers=tuple(widest.layers.index(layer) for layer in level.layers))
