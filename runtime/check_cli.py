"""`edge-gemma check`: does an artifact keep to a memory budget on this machine?"""

from __future__ import annotations

import json
from itertools import accumulate
from pathlib import Path
from typing import Any

import click

from edge_gemma import artifact as artifacts
from edge_gemma.console import print_table, show_progress
from edge_gemma.errors import BudgetError, EdgeGemmaError
from edge_gemma.memory import format_bytes, parse_bytes
from edge_gemma.runtime import hard_limit
from edge_gemma.runtime.check_process import Conversation, hold, phases, problems
from edge_gemma.runtime.control_groups import Support
from edge_gemma.runtime.loading import profile_of
from edge_gemma.runtime.options import model_options
from edge_gemma.runtime.page_cache import evict
from edge_gemma.runtime.plan_report import describe

DEFAULT_BUDGET = "2GiB"
# What takes longer than this under a hard limit does not work there: times of the time without, and seconds.
PATIENCE, LEAST_PATIENCE = 5, 120.0


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--budget", metavar="SIZE", help="Most resident memory. [--memory-budget, the device's, 2GiB]")
@click.option("--no-media", is_flag=True, help="Text alone: neither an image nor a clip.")
@click.option("--hard/--no-hard", default=None, help="Repeat it under a hard limit. [where one can be made]")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@model_options
def check_command(
    artifact: Path,
    budget: str | None,
    no_media: bool,
    hard: bool | None,
    as_json: bool,
    model: dict[str, Any],
) -> int:
    """Hold a fixed conversation with ARTIFACT and tell whether its peak memory keeps to a budget.

    A text that fills most of the context, an image, a clip as long as the encoder takes, and a second text.
    The peak is that of a fresh process (VmHWM), imports and loading included. Then the same again under a
    limit of the budget's size that the kernel enforces (a cgroup). Exits with 8 if the budget was exceeded.
    """
    if not Path("/proc/self/status").exists():
        raise EdgeGemmaError("this system has no /proc, where peak memory is read: run the check on Linux")
    opened = artifacts.read(artifact)
    size = _settle_budget(budget, model)
    support = Support(None, reason="not asked for") if hard is False else hard_limit.available()
    if hard and support.kind is None:
        raise EdgeGemmaError(
            f"no hard limit can be made here ({support.reason}): run the check as root or in a session of "
            "systemd, or without --hard"
        )
    total = len(phases(opened, not no_media))
    limited, stayed = None, 0
    with show_progress() as progress:
        progress.stage("conversation", total)
        measured = hold(opened, model, media=not no_media, advance=progress.advance)
        measured.raise_failure()
        if support.kind is not None:
            files = {opened.path(name) for name in opened.manifest.files} | set(map(Path, measured.files))
            stayed = int((evict(sorted(files)) or 0.0) * sum(path.stat().st_size for path in files))
            progress.stage("under hard limit", total)
            limited = hold(
                opened,
                model,
                media=not no_media,
                advance=progress.advance,
                limit=size,
                support=support,
                timeout=max(LEAST_PATIENCE, PATIENCE * measured.seconds),
            )
    failure: EdgeGemmaError | None = None
    try:
        exceeded = problems(measured, limited, size)
    except EdgeGemmaError as error:  # under the limit and not by it: what was measured is told nevertheless
        failure, exceeded = error, [str(error)]
    report = _report(opened, size, measured, limited, support, not no_media) | {"uncharged_bytes": stayed}
    if as_json:
        click.echo(json.dumps(report | {"within_budget": not exceeded, "problems": exceeded}))
    else:
        _print(report, measured, limited)
    for line in measured.result.stderr.splitlines():
        click.echo(f"warning: {line}", err=True)
    if failure:
        raise failure
    if exceeded:
        raise BudgetError(
            f"{'; '.join(exceeded)}: lower --context or --chunk, take a smaller recipe or model, or raise "
            "the budget"
        )
    return 0


def _settle_budget(budget: str | None, model: dict[str, Any]) -> int:
    """The budget in bytes, which the model is loaded with too.

    Raises:
        PromptError: not a size.
        DeviceError: the device is not known.
    """
    profile = profile_of(model["device"])
    size = budget or model["memory_budget"] or (str(profile.budget) if profile else DEFAULT_BUDGET)
    found = parse_bytes(size)
    model["memory_budget"] = model["memory_budget"] or found
    return found


def _report(
    opened: artifacts.Artifact,
    budget: int,
    measured: Conversation,
    limited: Conversation | None,
    support: Support,
    media: bool,
) -> dict[str, Any]:
    """All that was found; sizes in bytes."""
    hard: dict[str, Any] = {"kind": support.kind, "reason": support.reason}
    if limited:
        hard |= {
            "finished": limited.result.returncode == 0,
            "group_peak_bytes": limited.result.group_peak,
            "oom_kills": limited.result.oom_kills,
            "seconds": limited.seconds,
            "decode_seconds": limited.decode_seconds,
            "phases": limited.phases,
        }
    missing = [name for name in ("image", "audio") if name not in measured.expected]
    why = "the artifact has no encoder" if media else "--no-media"
    return {
        "artifact": str(opened.folder),
        "budget_bytes": budget,
        "left_out": {name: why for name in missing},
        "plan": measured.plan,
        "peak_memory_bytes": measured.peak,
        "vmhwm_bytes": measured.reported_peak,
        "wait4_bytes": measured.result.maxrss,
        "estimate_bytes": measured.plan["peak"],
        "seconds": measured.seconds,
        "decode_seconds": measured.decode_seconds,
        "phases": measured.phases,
        "hard_limit": hard,
    }


def _print(report: dict[str, Any], measured: Conversation, limited: Conversation | None) -> None:
    """The report as tables."""
    header = ("phase", "peak so far", "at its end", "time", "decoding", "records", "from storage")
    estimates = [report["plan"]["phases"].get(_planned(phase["name"]), 0) for phase in measured.phases]
    rows = [
        (*_row(phase), format_bytes(estimate) if estimate else "")
        for phase, estimate in zip(measured.phases, accumulate(estimates, max), strict=True)
    ]
    print_table(f"{report['artifact']}, context {report['plan']['context']}", rows, (*header, "estimate"))
    budget, hard, plan = format_bytes(report["budget_bytes"]), report["hard_limit"], report["plan"]
    reported, waited = format_bytes(measured.reported_peak), format_bytes(measured.result.maxrss)
    facts = [
        ("budget", budget),
        ("settings", describe(plan["global_kv"], plan["chunk"], plan["encoders"])),
        ("peak", f"{reported} (VmHWM; {waited} by wait4)"),
        ("estimate", format_bytes(report["estimate_bytes"])),
    ]
    if limited:
        print_table(f"under a hard limit of {budget}", [_row(phase) for phase in limited.phases], header)
        facts.append(("hard limit", _hard_facts(hard)))
        if hard["finished"]:
            seconds = f"{measured.decode_seconds:.2f} s; {limited.decode_seconds:.2f} s under the limit"
            facts.append(("decoding", seconds))
        if report["uncharged_bytes"]:
            facts.append(("not charged", f"{format_bytes(report['uncharged_bytes'])}, in memory before"))
    else:
        facts.append(("hard limit", f"none: {hard['reason']}"))
    facts += [("left out", f"{name}: {why}") for name, why in report["left_out"].items()]
    print_table("result", facts)


def _planned(name: str) -> str:
    """The name in a plan of a phase of the conversation."""
    return "text" if name == "second text" else name


def _row(phase: dict[str, Any]) -> tuple[str, ...]:
    statistics, storage = phase["statistics"], phase["storage_bytes"]
    return (
        phase["name"],
        format_bytes(phase["peak"]),
        format_bytes(phase["resident"]),
        f"{phase['seconds']:.1f} s",
        f"{statistics['decode_seconds']:.2f} s" if statistics else "",
        f"{statistics['rows_read']} read" if statistics else "",
        "?" if storage is None else format_bytes(storage),
    )


def _hard_facts(hard: dict[str, Any]) -> str:
    peak = hard["group_peak_bytes"]
    charged = f"{format_bytes(peak)} charged at most" if peak is not None else "most charged is not recorded"
    end = "finished" if hard["finished"] else "did not finish"
    return f"{hard['kind']}: {end}, {charged}, killed by it: {hard['oom_kills']}"
