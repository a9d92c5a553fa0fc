"""The story of an export: a checkpoint becomes an artifact, in a folder that appears whole or not at all."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_gemma import __version__
from edge_gemma.artifact import (
    CHAT_TEMPLATE,
    DECODER,
    EMBEDDINGS,
    FORMAT_VERSION,
    TOKENIZER,
    DecoderSpec,
    FileSpec,
    Manifest,
    ParameterSpec,
    SourceSpec,
    TokenSpec,
    sha256,
)
from edge_gemma.config import TextConfig
from edge_gemma.errors import CheckpointError, ExportError
from edge_gemma.export.checkpoint import Checkpoint
from edge_gemma.export.decoder import HEAD_SHARD_ROWS, DecoderBuilder
from edge_gemma.export.embeddings import embedding_layout, write_embeddings
from edge_gemma.export.footprint import decoder_bytes, is_read, memory_spec
from edge_gemma.export.recipes import Recipe
from edge_gemma.export.synthetic import text_shapes
from edge_gemma.export.weights import WeightedGraph
from edge_gemma.memory import ESTIMATE_CONTEXTS, estimate, format_bytes
from edge_gemma.progress import Progress, Silent

# The oldest onnxruntime whose CPU provider has every operator of the graph: GroupQueryAttention with a
# shared KV, HyperConnectionPostMix.
MINIMUM_ONNXRUNTIME = "1.32"
PARTIAL = re.compile(r"\.(?P<name>.+)\.partial-(?P<pid>\d{1,9})(?P<old>\.old)?")
STOP_TOKENS = ("<eos>", "<end_of_turn>")


def export(
    checkpoint: Checkpoint,
    recipe: Recipe,
    target: Path,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Write the artifact of `checkpoint` under `recipe` to the folder `target`.

    Raises:
        ExportError: the target exists and `overwrite` is false; the disk is full or cannot be written.
        CheckpointError: a tensor is missing or damaged.
        RecipeError: the recipe does not fit the model's shape.
    """
    progress = progress or Silent()
    _check_shapes(checkpoint)
    _check_space(checkpoint, recipe, target)
    with staging(target, overwrite=overwrite) as folder:
        tokens = _write_tokenizer(checkpoint, folder)
        decoder = _write_decoder(checkpoint, recipe, folder, progress)
        embeddings = write_embeddings(checkpoint, recipe, folder / EMBEDDINGS, progress)
        memory = memory_spec(checkpoint.config.text, recipe, (folder / TOKENIZER).stat().st_size)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            generator=__version__,
            minimum_onnxruntime=MINIMUM_ONNXRUNTIME,
            source=SourceSpec(name=checkpoint.name, revision=checkpoint.revision),
            submodel=None,
            recipe=recipe.name,
            recipe_details=recipe.details(),
            parameters=count_parameters(checkpoint),
            vocab_size=checkpoint.config.text.vocab_size,
            max_context=checkpoint.config.text.max_position_embeddings,
            tokens=tokens,
            decoder=decoder,
            embeddings=embeddings,
            tokenizer=TOKENIZER,
            chat_template=CHAT_TEMPLATE,
            memory=memory,
            memory_estimate={str(n): estimate(memory, n).total for n in ESTIMATE_CONTEXTS},
            files=_hash_files(folder, progress),
        )
        manifest.save(folder)
    return manifest


def count_parameters(checkpoint: Checkpoint) -> ParameterSpec:
    """Parameters of the text model as checkpoints hold them, unused K and V of sharing layers included."""
    shapes = checkpoint.text_shapes()
    text = sum(math.prod(shape) for shape in shapes.values())
    per_layer = math.prod(shapes["embed_tokens_per_layer.weight"])
    embedding = math.prod(shapes["embed_tokens.weight"])
    return ParameterSpec(text=text, per_layer_embeddings=per_layer, effective=text - per_layer - embedding)


@contextmanager
def staging(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside `target` that becomes `target` if the block ends without an error."""
    target = Path(os.path.abspath(target))
    occupied = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if occupied and not overwrite:
        raise ExportError(f"{target} exists: choose another folder, or pass --overwrite to replace it")
    if occupied and not (target / "manifest.json").is_file():
        raise ExportError(f"{target} is not an artifact: it is not overwritten, choose another folder")
    folder = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(target)
        folder.mkdir()
        yield folder
        _publish(folder, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = format_bytes(shutil.disk_usage(target.parent).free)
            raise ExportError(
                f"the disk of {target.parent} is full ({free} left): nothing was kept; free some space, retry"
            ) from None
        raise ExportError(f"{target} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, target: Path) -> None:
    """Rename the finished folder into place; a previous artifact is replaced, never mixed with."""
    old = folder.with_name(folder.name + ".old")
    try:
        if target.exists():
            target.rename(old)
        folder.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove_stale(target: Path) -> None:
    """Remove what an export of the same target left behind when it was killed."""
    for path in target.parent.iterdir():
        match = PARTIAL.fullmatch(path.name)
        if not match or match["name"] != target.name or _alive(int(match["pid"])):
            continue
        if match["old"] and not target.exists():  # killed between the two renames of _publish
            path.rename(target)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    if pid == os.getpid():  # in a container every run has the same pid
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


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


def _check_space(checkpoint: Checkpoint, recipe: Recipe, target: Path) -> None:
    """Refuse before the work rather than after it, where the disk plainly cannot hold the result."""
    layout = embedding_layout(checkpoint, recipe, EMBEDDINGS)
    needed = layout.records * layout.record_bytes + decoder_bytes(checkpoint.config.text, recipe)
    parent = Path(os.path.abspath(target)).parent
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise ExportError(
            f"the disk of {parent} has {format_bytes(free)} left and the artifact needs about "
            f"{format_bytes(needed)}: free some space or choose another disk"
        )


def _write_decoder(checkpoint: Checkpoint, recipe: Recipe, folder: Path, progress: Progress) -> DecoderSpec:
    c: TextConfig = checkpoint.config.text
    progress.stage("decoder", c.num_hidden_layers + math.ceil(c.vocab_size / HEAD_SHARD_ROWS))
    with WeightedGraph("gemma3n-decoder", folder / DECODER, checkpoint, recipe) as graph:
        spec = DecoderBuilder(graph, progress.advance).build(DECODER)
        graph.save()
    return spec


def _write_tokenizer(checkpoint: Checkpoint, folder: Path) -> TokenSpec:
    """Copy tokenizer and chat template, and read the special ids."""
    from tokenizers import Tokenizer

    raw = checkpoint.tokenizer_json()
    try:
        tokenizer = Tokenizer.from_buffer(raw)
    except Exception as error:  # tokenizers raises bare Exception for a malformed file
        raise CheckpointError(
            f"the tokenizer.json of {checkpoint.name} cannot be read ({error}): download the checkpoint again"
        ) from None
    (folder / TOKENIZER).write_bytes(raw)
    (folder / CHAT_TEMPLATE).write_text(checkpoint.chat_template(), "utf-8")
    generation = checkpoint.generation_config()
    stop = generation.get("eos_token_id")
    if stop is None:
        found = [tokenizer.token_to_id(t) for t in STOP_TOKENS]
        stop = [i for i in found if i is not None]
    stop = stop if isinstance(stop, list) else [stop]
    bos = generation.get("bos_token_id")
    if bos is None:
        bos = tokenizer.token_to_id("<bos>")
    pad = generation.get("pad_token_id")
    if pad is None:
        pad = tokenizer.token_to_id("<pad>")
    if bos is None:
        raise CheckpointError(
            f"the tokenizer of {checkpoint.name} has no <bos>: expected Gemma 3n's tokenizer"
        )
    pad = 0 if pad is None else pad
    if not all(type(i) is int for i in (bos, pad, *stop)):
        raise CheckpointError(
            f"the generation_config.json of {checkpoint.name} has bos {bos!r}, pad {pad!r} and eos {stop!r}: "
            "expected token ids"
        )
    return TokenSpec(
        bos=bos,
        pad=pad,
        stop=tuple(stop),
        media=checkpoint.config.token_ids,
    )


def _hash_files(folder: Path, progress: Progress) -> dict[str, FileSpec]:
    paths = sorted(folder.iterdir())
    progress.stage("checksums", sum(p.stat().st_size for p in paths))
    return {p.name: FileSpec(bytes=p.stat().st_size, sha256=sha256(p, progress.advance)) for p in paths}
