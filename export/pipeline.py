"""The story of an export: a checkpoint becomes an artifact, in a folder that appears whole or not at all."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from edge_gemma import __version__
from edge_gemma.artifact import (
    CHAT_TEMPLATE,
    DECODER,
    DECODER_INT8_KV,
    EMBEDDINGS,
    FORMAT_VERSION,
    TOKENIZER,
    AudioSpec,
    DecoderSpec,
    FileSpec,
    LevelSpec,
    Manifest,
    ParameterSpec,
    SourceSpec,
    VisionSpec,
    sha256,
)
from edge_gemma.config import FULL, TextConfig
from edge_gemma.errors import CheckpointError, ExportError
from edge_gemma.export.checkpoint import Checkpoint
from edge_gemma.export.decoder import DecoderBuilder
from edge_gemma.export.elastic import Levels, widths_by_layer
from edge_gemma.export.embeddings import embedding_layout, write_embeddings
from edge_gemma.export.staging import staging
from edge_gemma.export.tokenizer import write_tokenizer
from edge_gemma.export.weights import WeightedGraph
from edge_gemma.footprint import decoder_bytes, encoder_bytes, memory_spec
from edge_gemma.memory import ESTIMATE_CONTEXTS, format_bytes
from edge_gemma.planning import Needs, plan
from edge_gemma.progress import Progress, Silent
from edge_gemma.recipes import Recipe
from edge_gemma.shapes import head_shards, is_read, text_shapes
from edge_gemma.submodels import Submodel, apply, block_of

# The oldest onnxruntime whose CPU provider has every operator of the graph: GroupQueryAttention with a
# shared KV, HyperConnectionPostMix.
MINIMUM_ONNXRUNTIME = "1.32"
# A tensor of each tower, by which a checkpoint that has one is known.
TOWERS = {
    "audio": "audio_tower.subsample_conv_projection.input_proj_linear.weight",
    "vision": "vision_tower.timm_model.conv_stem.conv.weight",
}


def export(
    checkpoint: Checkpoint,
    recipe: Recipe,
    target: Path,
    *,
    levels: Sequence[Submodel] = (),
    audio: bool = True,
    vision: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Write the artifact of `checkpoint` under `recipe` to the folder `target`.

    `levels` make it elastic: narrowest first, the last one is the checkpoint itself. `audio` and `vision` ask
    for the encoders, where the checkpoint has them.

    Raises:
        ExportError: the target exists and `overwrite` is false; the disk is full or cannot be written; the
            levels are not nested.
        CheckpointError: a tensor is missing or damaged.
        RecipeError: the recipe does not fit the model's shape.
    """
    progress = progress or Silent()
    _check_shapes(checkpoint)
    asked = {"audio": audio, "vision": vision}
    encoders = [kind for kind in asked if asked[kind] and has_tower(checkpoint, kind)]
    _check_space(checkpoint, recipe, target, encoders)
    with staging(target, overwrite=overwrite) as folder:
        tokens, tokenizer = write_tokenizer(checkpoint, folder)
        decoder, decoder_int8_kv = _write_decoder(checkpoint, recipe, levels, folder, progress)
        hearing, seeing = _write_encoders(checkpoint, recipe, folder, encoders, progress)
        embeddings = write_embeddings(checkpoint, recipe, folder / EMBEDDINGS, progress)
        memory = memory_spec(checkpoint.config.text, recipe, (folder / TOKENIZER).stat().st_size)
        needs = Needs.of_parts(memory, hearing, seeing)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            generator=__version__,
            minimum_onnxruntime=MINIMUM_ONNXRUNTIME,
            source=SourceSpec(name=checkpoint.name, revision=checkpoint.revision),
            submodel=checkpoint.submodel,
            recipe=recipe.name,
            recipe_details=recipe.details(),
            parameters=count_parameters(checkpoint),
            levels=tuple(_level_spec(level, checkpoint.config.text, recipe) for level in levels),
            vocab_size=checkpoint.config.text.vocab_size,
            max_context=checkpoint.config.text.max_position_embeddings,
            tokens=tokens,
            decoder=decoder,
            decoder_int8_kv=decoder_int8_kv,
            audio=hearing,
            vision=seeing,
            embeddings=embeddings,
            tokenizer=tokenizer,
            chat_template=CHAT_TEMPLATE,
            memory=memory,
            memory_estimate={str(n): plan(needs, context=n).peak for n in ESTIMATE_CONTEXTS},
            files=_hash_files(folder, progress),
        )
        manifest.save(folder)
    return manifest


def count_parameters(checkpoint: Checkpoint) -> ParameterSpec:
    """Parameters of the text model as checkpoints hold them, unused K and V of sharing layers included."""
    return _count(checkpoint.text_shapes())


def _count(shapes: Mapping[str, tuple[int, ...]]) -> ParameterSpec:
    text = sum(math.prod(shape) for shape in shapes.values())
    per_layer = math.prod(shapes["embed_tokens_per_layer.weight"])
    embedding = math.prod(shapes["embed_tokens.weight"])
    return ParameterSpec(text=text, per_layer_embeddings=per_layer, effective=text - per_layer - embedding)


def _level_spec(level: Submodel, widest: TextConfig, recipe: Recipe) -> LevelSpec:
    config = apply(level, widest, block=block_of(recipe))
    return LevelSpec(
        name=level.name,
        layers=config.num_hidden_layers,
        widths=widths_by_layer(level, widest),
        effective_parameters=_count(text_shapes(config)).effective,
        weights=memory_spec(config, recipe, 0).weights,
    )


def _check_shapes(checkpoint: Checkpoint) -> None:
    """Refuse before the work a checkpoint whose weights are not those that its config.json describes."""
    config = checkpoint.config.text
    found = checkpoint.text_shapes()
    for name, shape in text_shapes(config).items():
        if not is_read(config, name) or found.get(name) == shape:
            continue
        if name not in found:
            raise CheckpointError(f"{checkpoint.name} has no tensor {name}: download the checkpoint again")
        raise CheckpointError(
            f"{checkpoint.name} has {name} of shape {list(found[name])}, its config.json expects "
            f"{list(shape)}: download the checkpoint again"
        )


def _check_space(checkpoint: Checkpoint, recipe: Recipe, target: Path, encoders: Sequence[str]) -> None:
    """Refuse before the work rather than after it, where the disk plainly cannot hold the result."""
    layout = embedding_layout(checkpoint, recipe, EMBEDDINGS)
    needed = layout.records * layout.record_bytes + decoder_bytes(checkpoint.config.text, recipe)
    for kind in encoders:
        from edge_gemma.export.towers import tower_shapes

        shapes = tower_shapes(checkpoint.config_json, kind).values()
        needed += encoder_bytes(shapes, recipe.matrices[kind])
    parent = Path(os.path.realpath(target)).parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ExportError(
            f"the disk of {parent} has {format_bytes(free)} left and the artifact needs about "
            f"{format_bytes(needed)}: free some space or choose another disk"
        )


def _write_decoder(
    checkpoint: Checkpoint, recipe: Recipe, levels: Sequence[Submodel], folder: Path, progress: Progress
) -> tuple[DecoderSpec, DecoderSpec | None]:
    """The decoder, and the one with global KV in int8 where the recipe has it in float16."""
    c: TextConfig = checkpoint.config.text
    progress.stage("decoder", c.num_hidden_layers + len(head_shards(c.vocab_size)))
    own, *other = recipe.global_kv
    files = {own: DECODER}
    # A cache in int8 comes out of every node that reads it, and a layer that is left out has none.
    fixed = Levels(c, levels).leave_out_full_attention
    if fixed and own == "int8":
        raise ExportError(
            "these levels leave out layers with full attention, whose global KV cannot be int8: choose "
            "--global-kv float16"
        )
    if FULL in c.layer_types and not fixed:
        files |= {dtype: DECODER_INT8_KV for dtype in other}
    with WeightedGraph("gemma3n-decoder", folder / "decoder", checkpoint, recipe) as graph:
        specs = DecoderBuilder(graph, progress.advance, levels).build(files)
    first, *second = specs.values()
    return first, second[0] if second else None


def _write_encoders(
    checkpoint: Checkpoint, recipe: Recipe, folder: Path, kinds: Sequence[str], progress: Progress
) -> tuple[AudioSpec | None, VisionSpec | None]:
    hearing = seeing = None
    if "audio" in kinds:
        from edge_gemma.export.audio import export_audio_encoder  # torch's exporter takes seconds to import

        hearing = export_audio_encoder(checkpoint, recipe, folder, progress)
    if "vision" in kinds:
        from edge_gemma.export.vision import export_vision_encoder

        seeing = export_vision_encoder(checkpoint, recipe, folder, progress)
    return hearing, seeing


def has_tower(checkpoint: Checkpoint, kind: str) -> bool:
    """Whether a checkpoint has the "audio" or "vision" tower, with its weights."""
    return getattr(checkpoint.config, kind) is not None and checkpoint.has(TOWERS[kind])


def _hash_files(folder: Path, progress: Progress) -> dict[str, FileSpec]:
    paths = sorted(folder.iterdir())
    progress.stage("checksums", sum(p.stat().st_size for p in paths))
    return {p.name: FileSpec(bytes=p.stat().st_size, sha256=sha256(p, progress.advance)) for p in paths}
