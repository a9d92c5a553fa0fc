"""What `edge-gemma plan` prints of models and sub-models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from edge_gemma.candidates import Candidate
from edge_gemma.console import print_bars, print_table
from edge_gemma.devices import Device
from edge_gemma.memory import format_bytes
from edge_gemma.planning import BESIDE, KEPT, TURNS
from edge_gemma.submodel_choice import SOURCE, Choice, Chooser

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


def print_candidates(ranked: Sequence[Candidate], device: Device | None, budget: int, tokens: int) -> None:
    place = f"{device.title}, " if device else ""
    rows = []
    for c in ranked:
        peaks = [format_bytes(sum(c.plan.phases[p].values())) if p in c.plan.phases else "-" for p in PHASES]
        fits = "yes" if c.plan.fits else "no"
        peak = format_bytes(c.plan.peak)
        rows.append((c.title, fits, *peaks, peak, c.plan.global_kv, str(c.longest or "-")))
    header = ("model", "fits", *PHASES, "peak", "global KV", "longest context")
    print_table(f"{place}budget {format_bytes(budget)}, {tokens} tokens of context", rows, header)


def print_submodels(ranked: Sequence[Choice], chooser: Chooser) -> None:
    rows = []
    for c in ranked:
        plan = c.candidate.plan
        size = f"{c.submodel.effective:.2f}"
        facts = (f"{c.mmlu:.2f}", size, format_bytes(plan.peak), f"{c.speed:.2f}", plan.global_kv)
        rows.append((c.name, "yes" if c.fits else "no", *facts, str(c.candidate.longest or "-")))
    header = ("sub-model", "fits", "MMLU", "10^9", "peak", "speed", "global KV", "longest context")
    print_table(
        f"{SOURCE} {chooser.recipe.name}, budget {format_bytes(chooser.budget)}, {chooser.context} tokens of "
        "context; MMLU as Google published it, relative speed by bytes read",
        rows,
        header,
    )


def print_choice(c: Candidate, budget: int) -> None:
    plan = c.plan
    chosen = describe(plan.global_kv, plan.chunk, plan.encoders)
    click.echo(f"\n{c.title}: {chosen}, context up to {c.longest} tokens")
    rows: dict[str, dict[str, int]] = {}
    for phase, parts in plan.phases.items():
        rows[phase] = {name: sum(parts.get(part, 0) for part in together) for name, together in PARTS.items()}
    print_bars(f"of {format_bytes(budget)}", rows, budget)


def describe(global_kv: str, chunk: int, encoders: str) -> str:
    """The settings of a plan, for people."""
    return f"global KV in {global_kv}, chunks of {chunk} tokens, encoders {ENCODERS[encoders]}"


def candidate_facts(c: Candidate) -> dict[str, Any]:
    return {
        "model": c.model,
        "submodel": c.submodel,
        "recipe": c.recipe,
        "fits": c.plan.fits,
        "peak_bytes": c.plan.peak,
        "global_kv": c.plan.global_kv,
        "chunk": c.plan.chunk,
        "encoders": c.plan.encoders,
        "longest_context": c.longest,
        "phases": c.plan.phases,
    }


def submodel_facts(c: Choice) -> dict[str, Any]:
    return {
        "submodel": c.name,
        "mmlu": round(c.mmlu, 2),
        "effective_parameters": round((c.submodel.effective or 0.0) * 1e9),
        "relative_speed": round(c.speed, 3),
        "layers": list(c.submodel.layers),
        "widths": list(c.submodel.widths),
    } | {key: value for key, value in candidate_facts(c.candidate).items() if key != "model"}
