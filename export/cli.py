"""`edge-gemma export` and `edge-gemma verify`."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_gemma.artifact import Artifact, Manifest, read
from edge_gemma.candidates import advise
from edge_gemma.console import print_table, show_progress
from edge_gemma.devices import find_device
from edge_gemma.errors import BudgetError, EdgeGemmaError, PromptError, SubmodelError
from edge_gemma.export.checkpoint import Checkpoint, open_checkpoint
from edge_gemma.export.elastic import open_levels
from edge_gemma.export.lora import LoraAdapter, MergedCheckpoint
from edge_gemma.export.matformer import SlicedCheckpoint
from edge_gemma.export.pipeline import export, has_tower
from edge_gemma.export.verify import PROMPTS, verify
from edge_gemma.memory import format_bytes, parse_bytes, peak_resident_bytes
from edge_gemma.models import TOWERS, model_name
from edge_gemma.planning import DEFAULT_CONTEXT
from edge_gemma.progress import Progress
from edge_gemma.recipes import DEFAULT_RECIPE, KV_DTYPES, Recipe, find_recipe
from edge_gemma.submodel_choice import SOURCE, Chooser, explain
from edge_gemma.submodels import Submodel, block_of, find_submodel, published_names

if TYPE_CHECKING:
    from edge_gemma.export.parity import EncoderReport

# recipe → largest relative error and smallest argmax agreement that pass without options
TOLERANCES = {"fp32": (1e-4, 1.0)}
ENCODER_TOLERANCE = 1e-3  # largest relative error of an fp32 encoder


class VerificationError(EdgeGemmaError):
    """The artifact differs from its checkpoint by more than was allowed."""

    exit_code = 7


lora_option = click.option(
    "--lora",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="PEFT LoRA adapter to merge into the checkpoint, before anything else.",
)


@click.command()
@click.argument("source")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to create.")
@click.option("--recipe", help="fp32, int8, int4, int4-hq, or a recipe's .yaml file. [int4, or the device's]")
@click.option("--device", help="Device profile, or FILE.yaml:NAME, whose recipe to take by default.")
@click.option(
    "--global-kv",
    type=click.Choice(KV_DTYPES["global"]),
    help="KV cache of the full-attention layers. [as the recipe says]",
)
@click.option("--audio/--no-audio", default=True, help="Export the audio encoder, where there is one. [yes]")
@click.option(
    "--vision/--no-vision", default=True, help="Export the vision encoder, where there is one. [yes]"
)
@click.option(
    "--submodel",
    metavar="NAME|FILE.yaml",
    help="MatFormer sub-model to export: a published one of E4B, such as E2.98B-layer, or one of your own.",
)
@click.option(
    "--elastic",
    metavar="NAME,NAME,…",
    help="Export nested sub-models as levels of one artifact, the narrowest first: E2B,E3.39B-layer,E4B.",
)
@click.option(
    "--memory",
    metavar="SIZE",
    help="Export the published sub-model that is best of those that fit this much memory, such as 2GiB.",
)
@click.option(
    "--context",
    type=click.IntRange(1),
    help=f"With --memory: tokens of prompt and answer. [{DEFAULT_CONTEXT}]",
)
@lora_option
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--token", envvar="HF_TOKEN", help="Hub token, for gated models. [env: HF_TOKEN]")
@click.option("--overwrite", is_flag=True, help="Replace an artifact that is already there.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def export_command(
    source: str,
    output: Path,
    recipe: str | None,
    device: str | None,
    global_kv: str | None,
    audio: bool,
    vision: bool,
    submodel: str | None,
    elastic: str | None,
    memory: str | None,
    context: int | None,
    lora: Path | None,
    revision: str | None,
    token: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Make an artifact of SOURCE: a checkpoint folder, a hub id such as google/gemma-3n-E2B-it, or
    synthetic:E2B, synthetic:E4B, synthetic:tiny, synthetic:tiny-media (random weights of that shape)."""
    began = time.perf_counter()
    if sum(1 for option in (submodel, elastic, memory) if option) > 1:
        raise PromptError("--submodel, --elastic and --memory each say what to export: give one of them")
    if context and not memory:
        raise PromptError("--context is about --memory: give both or neither")
    profile = find_device(device) if device else None
    chosen = find_recipe(recipe or (profile.recipe if profile else DEFAULT_RECIPE))
    if global_kv:
        chosen = replace(chosen, kv_cache=chosen.kv_cache | {"global": global_kv})
    checkpoint = _with_lora(open_checkpoint(source, revision=revision, token=token), lora)
    if memory:
        media = [kind for kind, asked in (("audio", audio), ("vision", vision)) if asked]
        submodel = _best_submodel(checkpoint, chosen, parse_bytes(memory), context or DEFAULT_CONTEXT, media)
    levels: list[Submodel] = []
    if submodel:
        part = find_submodel(submodel, checkpoint.config.text)
        checkpoint = SlicedCheckpoint(checkpoint, part, block=block_of(chosen))
    elif elastic:
        names = [name.strip() for name in elastic.split(",") if name.strip()]
        checkpoint, levels = open_levels(checkpoint, names, block=block_of(chosen))
    if profile and (found := model_name(checkpoint.config.text)) != profile.model:
        click.echo(
            f"warning: {source} is {found or 'neither E2B nor E4B'}, and {profile.model} is recommended for "
            f"{profile.name}: `edge-gemma plan --device {device}` shows what fits",
            err=True,
        )
    with show_progress() as progress:
        manifest = export(
            checkpoint,
            chosen,
            output,
            levels=levels,
            audio=audio,
            vision=vision,
            overwrite=overwrite,
            progress=progress,
        )
    seconds = time.perf_counter() - began
    if as_json:
        click.echo(json.dumps(_summary(manifest, output, seconds)))
    else:
        total = sum(f.bytes for f in manifest.files.values())
        click.echo(
            f"{output}: {format_bytes(total)} in {len(manifest.files)} files, recipe {manifest.recipe}"
            + (f", sub-model {manifest.submodel}" if manifest.submodel else "")
            + (f", levels {', '.join(level.name for level in manifest.levels)}" if manifest.levels else "")
        )
        click.echo(f"exported in {seconds:.0f} s, peak memory {format_bytes(peak_resident_bytes())}")


def _with_lora(checkpoint: Checkpoint, lora: Path | None) -> Checkpoint:
    return MergedCheckpoint(checkpoint, LoraAdapter(lora)) if lora else checkpoint


def _best_submodel(
    checkpoint: Checkpoint, recipe: Recipe, budget: int, context: int, media: Sequence[str]
) -> str:
    """Name of the published sub-model that `edge-gemma plan --source` ranks first, with these encoders."""
    if (found := model_name(checkpoint.config.text)) != SOURCE:
        raise SubmodelError(
            f"{checkpoint.name} is {found or 'neither E2B nor E4B'}, and --memory chooses among published "
            f"sub-models of {SOURCE}: leave --memory out"
        )
    limit = checkpoint.config.text.max_position_embeddings
    if context > limit:
        raise PromptError(f"context is {context}: expected at most the {limit} tokens of this model")
    encoders = [kind for kind, tower in TOWERS.items() if tower in media and has_tower(checkpoint, tower)]
    ranked = Chooser(recipe, context=context, budget=budget, encoders=encoders).ranked()
    if not ranked[0].fits:
        raise BudgetError(advise([choice.candidate for choice in ranked]))
    click.echo(explain(ranked), err=True)
    return ranked[0].name


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--against", required=True, help="The checkpoint: a folder, hub id or synthetic:NAME.")
@click.option(
    "--submodel",
    metavar="NAME|FILE.yaml",
    help="Sub-model of the checkpoint to compare with. [the one that ARTIFACT names, if it is published]",
)
@lora_option
@click.option("--revision", help="Branch, tag or commit of a hub id.")
@click.option("--token", envvar="HF_TOKEN", help="Hub token, for gated models. [env: HF_TOKEN]")
@click.option("--prompt", "prompts", multiple=True, help="Prompt to compare on; may be repeated.")
@click.option(
    "--new-tokens", type=click.IntRange(1), default=32, show_default=True, help="Greedy tokens per prompt."
)
@click.option("--max-relative-error", type=float, help="Fail above this. [fp32: 1e-4]")
@click.option("--min-agreement", type=float, help="Fail below this share of equal argmax. [fp32: 1]")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def verify_command(
    artifact: Path,
    against: str,
    submodel: str | None,
    lora: Path | None,
    revision: str | None,
    token: str | None,
    prompts: tuple[str, ...],
    new_tokens: int,
    max_relative_error: float | None,
    min_agreement: float | None,
    as_json: bool,
) -> None:
    """Compare ARTIFACT with transformers on its checkpoint, logits by logits.

    The reference holds the whole checkpoint in float32: four bytes of memory for each parameter."""
    opened = read(artifact)
    recipe = opened.manifest.recipe
    checkpoint = _with_lora(open_checkpoint(against, revision=revision, token=token), lora)
    own = opened.manifest.submodel
    if own and not submodel and own not in published_names():
        raise SubmodelError(
            f"{artifact} holds {own!r}, which is not published: give its file with --submodel"
        )
    if part := submodel or own:
        checkpoint = SlicedCheckpoint(checkpoint, find_submodel(part, checkpoint.config.text))
    with show_progress() as progress:
        report = verify(
            artifact, checkpoint, prompts=prompts or PROMPTS, new_tokens=new_tokens, progress=progress
        )
        encoders = _verify_encoders(opened, checkpoint, progress)
    if as_json:
        measures = {k: v if math.isfinite(v) else None for k, v in report.to_dict().items()}
        soft = {kind: found.to_dict() for kind, found in encoders.items()}
        names = {"artifact": str(artifact), "against": against, "recipe": recipe}
        click.echo(json.dumps(names | measures | {"encoders": soft}))
    else:
        rows = [
            ("positions compared", str(report.positions)),
            ("argmax agreement", f"{report.argmax_agreement:.2%} ({report.near_ties} near ties)"),
            ("max absolute error", f"{report.max_absolute_error:.3g}"),
            ("relative error, max", f"{report.max_relative_error:.3g}"),
            ("relative error, mean", f"{report.mean_relative_error:.3g}"),
            ("KL divergence", f"{report.kl_divergence:.3g} nats"),
            ("signal to noise", f"{report.snr_db:.1f} dB"),
            ("top-10 overlap", f"{report.top10_overlap:.1%}"),
        ]
        for kind, found in encoders.items():
            rows.append((f"{kind}: relative error, max", f"{found.max_relative_error:.3g}"))
            rows.append((f"{kind}: signal to noise", f"{found.snr_db:.1f} dB"))
        print_table(f"{artifact} (recipe {recipe}) against {against}", rows)
    exact = set(opened.manifest.recipe_details["kv_cache"].values()) == {"float32"}
    default_error, default_agreement = TOLERANCES.get(recipe, (None, None)) if exact else (None, None)
    limit = default_error if max_relative_error is None else max_relative_error
    floor = default_agreement if min_agreement is None else min_agreement
    if limit is not None and report.max_relative_error > limit:
        raise VerificationError(f"relative error {report.max_relative_error:.3g} is above {limit:g}")
    if floor is not None and report.argmax_agreement < floor:
        raise VerificationError(f"argmax agreement {report.argmax_agreement:.2%} is below {floor:.2%}")

    for kind, found in encoders.items():
        if recipe == "fp32" and found.max_relative_error > ENCODER_TOLERANCE:
            raise VerificationError(
                f"relative error {found.max_relative_error:.3g} of the {kind} encoder is above "
                f"{ENCODER_TOLERANCE:g}"
            )


def _verify_encoders(
    opened: Artifact, checkpoint: Checkpoint, progress: Progress
) -> dict[str, EncoderReport]:
    if not (opened.manifest.audio or opened.manifest.vision):
        return {}
    from edge_gemma.export.verify_encoders import verify_encoders  # imports torch's exporter

    return verify_encoders(opened, checkpoint, progress)


def _summary(manifest: Manifest, output: Path, seconds: float) -> dict[str, object]:
    return {
        "output": str(output),
        "source": manifest.source.name,
        "submodel": manifest.submodel,
        "levels": [level.name for level in manifest.levels],
        "recipe": manifest.recipe,
        "files": {name: spec.bytes for name, spec in manifest.files.items()},
        "text_parameters": manifest.parameters.text,
        "effective_parameters": manifest.parameters.effective,
        "memory_estimate": manifest.memory_estimate,
        "seconds": round(seconds, 1),
        "peak_memory_bytes": peak_resident_bytes(),
    }
