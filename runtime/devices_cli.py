"""`edge-gemma plan` and `devices`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from edge_gemma import artifact as artifacts
from edge_gemma.candidates import advise, of_artifact, of_model, rank
from edge_gemma.console import print_table
from edge_gemma.devices import AUTO, UNLIMITED, Device, detect_device, find_device, load_devices
from edge_gemma.errors import BudgetError, PromptError
from edge_gemma.memory import format_bytes, parse_bytes
from edge_gemma.models import MODELS, TEXT
from edge_gemma.planning import DEFAULT_CONTEXT
from edge_gemma.recipes import DEFAULT_RECIPE, find_recipe, load_recipes
from edge_gemma.runtime.plan_report import (
    candidate_facts,
    print_candidates,
    print_choice,
    print_submodels,
    submodel_facts,
)
from edge_gemma.submodel_choice import SOURCE, Choice, Chooser, explain
from edge_gemma.submodels import as_yaml


@click.command()
@click.argument("artifact", required=False, type=click.Path(path_type=Path))
@click.option("--device", "name", help="Device profile, or FILE.yaml:NAME of your own. [this machine]")
@click.option("--memory", metavar="SIZE", help="Budget, such as 2GiB. [the device's]")
@click.option("--model", type=click.Choice(list(MODELS)), help="Only this model. [both]")
@click.option(
    "--recipe", help="Only this recipe, or a recipe's .yaml file. [all; with --source int4, or the device's]"
)
@click.option(
    "--context", type=click.IntRange(1), help="Tokens of prompt and answer. [the device's, or 4096]"
)
@click.option(
    "--source", type=click.Choice([SOURCE]), help="Rank its published sub-models, for `export --submodel`."
)
@click.option(
    "--propose",
    type=click.Path(path_type=Path),
    metavar="FILE.yaml",
    help="With --source: write the sub-model between two published ones that uses the budget up.",
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def plan_command(
    artifact: Path | None,
    name: str | None,
    memory: str | None,
    model: str | None,
    recipe: str | None,
    context: int | None,
    source: str | None,
    propose: Path | None,
    as_json: bool,
) -> None:
    """Show what fits the memory of a device: ARTIFACT, or the models that could be exported for it.

    All figures are estimates of peak resident memory, with both encoders and with the decoder's weights
    mapped from the cache of `edge-gemma prepare`. Exit status 8 where nothing fits."""
    if artifact and (model or recipe):
        raise PromptError("ARTIFACT has its model and recipe: leave --model and --recipe out")
    if source and (artifact or model):
        raise PromptError("--source ranks sub-models of one model: leave ARTIFACT and --model out")
    if propose and not source:
        raise PromptError(f"--propose is about sub-models: give --source {SOURCE}, too")
    here = name == AUTO or not (name or memory)
    device = detect_device() if here else find_device(name) if name else None
    budget = parse_bytes(memory) if memory else device.budget if device else 0
    if budget < 1:
        raise PromptError(f"the budget is {memory}: expected more than 0")
    if source:
        tokens = _context(context, device, TEXT["max_position_embeddings"])
        named = device.recipe if device and name else DEFAULT_RECIPE
        chooser = Chooser(find_recipe(recipe or named), context=tokens, budget=budget)
        _plan_submodels(chooser, device, propose, as_json)
        return
    if artifact:
        manifest = artifacts.read(artifact).manifest
        tokens = _context(context, device, manifest.max_context)
        found = [
            of_artifact(manifest, context=tokens, budget=budget, level=level)
            for level in manifest.level_indices
        ]
    else:
        recipes = [find_recipe(recipe)] if recipe else list(load_recipes().values())
        tokens = _context(context, device, TEXT["max_position_embeddings"])
        found = [
            of_model(each, chosen, context=tokens, budget=budget)
            for each in ([model] if model else MODELS)
            for chosen in recipes
        ]
    ranked = rank(found, (device.model, device.recipe) if device else None)
    advice = None if ranked[0].plan.fits else advise(ranked)
    if as_json:
        candidates = [candidate_facts(c) for c in ranked]
        place = {"device": device.name if device else None, "budget_bytes": budget, "context": tokens}
        click.echo(json.dumps(place | {"candidates": candidates, "advice": advice}))
    else:
        print_candidates(ranked, device, budget, tokens)
    if advice:
        raise BudgetError(advice)
    if not as_json:
        print_choice(ranked[0], budget)


def _plan_submodels(chooser: Chooser, device: Device | None, file: Path | None, as_json: bool) -> None:
    """The sub-models of one model, ranked; `file` is where to write the one that lies between two of them."""
    ranked = chooser.ranked()
    first = ranked[0]
    advice = None if first.fits else advise([c.candidate for c in ranked])
    reason = explain(ranked) if first.fits else None
    between = chooser.between(ranked) if first.fits else None
    if as_json:
        place = {
            "device": device.name if device else None,
            "budget_bytes": chooser.budget,
            "context": chooser.context,
            "source": SOURCE,
        }
        found = {"candidates": [submodel_facts(c) for c in ranked], "advice": advice, "reason": reason}
        click.echo(json.dumps(place | found | {"proposal": submodel_facts(between) if between else None}))
    else:
        print_submodels(ranked, chooser)
    if advice:
        raise BudgetError(advice)
    if not as_json:
        click.echo(f"\n{reason}")
        if between:
            click.echo(
                f"{between.name} lies between: unpublished, quality interpolated: MMLU {between.mmlu:.1f}, "
                f"{format_bytes(between.candidate.plan.peak)}, relative speed {between.speed:.2f}"
            )
        print_choice(first.candidate, chooser.budget)
    if file:
        _propose(between, file)


def _propose(between: Choice | None, file: Path) -> None:
    if between is None:
        raise PromptError(
            "nothing notable lies between the best that fits and the next better one: leave --propose out"
        )
    if file.suffix not in (".yaml", ".yml"):
        raise PromptError(f"--propose is {file}: expected a file that ends in .yaml, which `export` reads")
    note = f"# Unpublished; its MMLU, {between.mmlu:.1f}, is interpolated.\n"
    try:
        file.write_text(note + as_yaml(between.submodel), "utf-8")
    except OSError as error:
        raise PromptError(f"{file} cannot be written: {error.strerror}") from None


@click.command()
@click.argument("name", required=False)
@click.option(
    "--file",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Profiles of your own, beside the built-in ones; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def devices_command(name: str | None, files: tuple[Path, ...], as_json: bool) -> None:
    """List the device profiles and mark the one of this machine, or show the one called NAME in full."""
    if name:
        device = find_device(name, files)
        if as_json:
            click.echo(json.dumps(asdict(device)))
        else:
            print_table(f"{device.name}: {device.title}", _facts(device))
        return
    # a user's own come first: they are looked at first, and replace built-in ones of the same name
    own = {key: device for file in files for key, device in load_devices(file).items()}
    devices = own | {key: device for key, device in load_devices().items() if key not in own}
    here = detect_device(devices=devices)
    if as_json:
        listed = [asdict(d) for d in devices.values()]
        click.echo(json.dumps({"devices": listed, "this_machine": asdict(here)}))
        return
    rows = [_row(device, "*" if device.name == here.name else "") for device in devices.values()]
    header = ("device", "memory", "budget", "cores", "model", "recipe", "context", "storage")
    print_table("devices (* is this machine)", rows, header)
    print_table(f"this machine: {here.name}", _facts(here))


def _context(asked: int | None, device: Device | None, limit: int) -> int:
    if asked and asked > limit:
        raise PromptError(f"context is {asked}: expected at most the {limit} tokens of this model")
    return asked or min(device.context if device else DEFAULT_CONTEXT, limit)


def _row(device: Device, mark: str) -> tuple[str, ...]:
    return (
        f"{mark:1} {device.name}",
        format_bytes(device.memory),
        format_bytes(device.budget),
        str(device.cores),
        device.model,
        device.recipe,
        str(device.context),
        f"{device.storage.kind} {device.storage.read // 10**6} MB/s",
    )


def _facts(device: Device) -> list[tuple[str, ...]]:
    detect = device.detect
    facts: list[tuple[str, ...]] = [
        ("memory", format_bytes(device.memory)),
        ("budget of the model", format_bytes(device.budget)),
        ("cores", str(device.cores)),
        ("int8 features", ", ".join(device.features) or "none known"),
        ("execution providers", ", ".join(device.providers)),
        ("storage", f"{device.storage.kind}, {device.storage.read / 10**6:.0f} MB/s"),
        ("memory bandwidth", f"{device.memory_bandwidth / 10**9:.1f} GB/s"),
        ("recommended", f"{device.model} {device.recipe}, {device.context} tokens of context"),
    ]
    if detect:
        told = [" or ".join(detect.boards), detect.system, detect.architecture, "CI" if detect.ci else None]
        if detect.memory_from:
            told.append(f"from {format_bytes(detect.memory_from)}")
        if detect.memory_to < UNLIMITED:
            told.append(f"to {format_bytes(detect.memory_to)}")
        facts.append(("recognised by", ", ".join(filter(None, told)) or "anything"))
    return facts
