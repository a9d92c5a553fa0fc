"""`edge-gemma plan` and `devices`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from edge_gemma import artifact as artifacts
from edge_gemma.candidates import Candidate, advise, of_artifact, of_model, rank
from edge_gemma.console import print_bars, print_table
from edge_gemma.devices import UNLIMITED, Device, detect_device, find_device, load_devices
from edge_gemma.errors import BudgetError, PromptError
from edge_gemma.memory import format_bytes, parse_bytes
from edge_gemma.models import MODELS, TEXT
from edge_gemma.planning import BESIDE, KEPT, TURNS
from edge_gemma.recipes import find_recipe, load_recipes

DEFAULT_CONTEXT = 4096
ENCODERS = {KEPT: "stay in memory", BESIDE: "come beside the decoder", TURNS: "take turns with the decoder"}
PHASES = ("load", "text", "audio", "image")
# what the chart calls the parts of a plan
PARTS = {
    "tokenizer and runtime": ("tokenizer", "runtime"),
    "weights": ("weights",),
    "KV cache": ("kv",),
    "scratch": ("scratch",),
    "encoders": ("audio", "image"),
    "loading": ("loading",),
}


@click.command()
@click.argument("artifact", required=False, type=click.Path(path_type=Path))
@click.option("--device", "name", help="Device profile, or FILE.yaml:NAME of your own. [this machine]")
@click.option("--memory", metavar="SIZE", help="Budget, such as 2GiB. [the device's]")
@click.option("--model", type=click.Choice(list(MODELS)), help="Only this model. [both]")
@click.option("--recipe", help="Only this recipe, or a recipe's .yaml file. [all]")
@click.option(
    "--context", type=click.IntRange(1), help="Tokens of prompt and answer. [the device's, or 4096]"
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def plan_command(
    artifact: Path | None,
    name: str | None,
    memory: str | None,
    model: str | None,
    recipe: str | None,
    context: int | None,
    as_json: bool,
) -> None:
    """Show what fits the memory of a device: ARTIFACT, or the models that could be exported for it.

    All figures are estimates of peak resident memory, with both encoders and with the decoder's weights
    mapped from the cache of `edge-gemma prepare`. Exit status 8 where nothing fits."""
    if artifact and (model or recipe):
        raise PromptError("ARTIFACT has its model and recipe: leave --model and --recipe out")
    device = find_device(name) if name else None if memory else detect_device()
    budget = parse_bytes(memory) if memory else device.budget if device else 0
    if budget < 1:
        raise PromptError(f"the budget is {memory}: expected more than 0")
    if artifact:
        manifest = artifacts.read(artifact).manifest
        tokens = _context(context, device, manifest.max_context)
        found = [of_artifact(manifest, context=tokens, budget=budget)]
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
        candidates = [_candidate(c) for c in ranked]
        place = {"device": device.name if device else None, "budget_bytes": budget, "context": tokens}
        click.echo(json.dumps(place | {"candidates": candidates, "advice": advice}))
    else:
        _print_candidates(ranked, device, budget, tokens)
    if advice:
        raise BudgetError(advice)
    if not as_json:
        _print_choice(ranked[0], budget)


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


def _print_candidates(ranked: Sequence[Candidate], device: Device | None, budget: int, tokens: int) -> None:
    place = f"{device.title}, " if device else ""
    rows = []
    for c in ranked:
        peaks = [format_bytes(sum(c.plan.phases[p].values())) if p in c.plan.phases else "-" for p in PHASES]
        fits = "yes" if c.plan.fits else "no"
        peak = format_bytes(c.plan.peak)
        rows.append((_name(c), fits, *peaks, peak, c.plan.global_kv, str(c.longest or "-")))
    header = ("model", "fits", *PHASES, "peak", "global KV", "longest context")
    print_table(f"{place}budget {format_bytes(budget)}, {tokens} tokens of context", rows, header)


def _print_choice(c: Candidate, budget: int) -> None:
    plan = c.plan
    chosen = describe(plan.global_kv, plan.chunk, plan.encoders)
    click.echo(f"\n{_name(c)}: {chosen}, context up to {c.longest} tokens")
    rows: dict[str, dict[str, int]] = {}
    for phase, parts in plan.phases.items():
        rows[phase] = {name: sum(parts.get(part, 0) for part in together) for name, together in PARTS.items()}
    print_bars(f"of {format_bytes(budget)}", rows, budget)


def describe(global_kv: str, chunk: int, encoders: str) -> str:
    """The settings of a plan, for people."""
    return f"global KV in {global_kv}, chunks of {chunk} tokens, encoders {ENCODERS[encoders]}"


def _name(c: Candidate) -> str:
    return f"{c.model or 'this model'} {c.recipe}"


def _candidate(c: Candidate) -> dict[str, Any]:
    return {
        "model": c.model,
        "recipe": c.recipe,
        "fits": c.plan.fits,
        "peak_bytes": c.plan.peak,
        "global_kv": c.plan.global_kv,
        "chunk": c.plan.chunk,
        "encoders": c.plan.encoders,
        "longest_context": c.longest,
        "phases": c.plan.phases,
    }


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
