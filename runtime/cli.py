"""`edge-gemma run`, `inspect`, `prepare` and `doctor`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from edge_gemma import artifact as artifacts
from edge_gemma.console import print_table, show_progress
from edge_gemma.errors import PromptError
from edge_gemma.memory import format_bytes
from edge_gemma.planning import Needs, plan
from edge_gemma.runtime.engine import Model, Piece
from edge_gemma.runtime.loading import load
from edge_gemma.runtime.options import (
    cache_dir_option,
    format_options,
    generation_options,
    global_kv_option,
    media_options,
    media_parts,
    model_options,
    threads_option,
)
from edge_gemma.runtime.statistics import Statistics


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@media_options
@click.option("--system", help="System instruction.")
@format_options
@generation_options()
@model_options
@click.option("--stats/--no-stats", default=None, help="Report speed and memory. [on a terminal]")
@click.option("--json", "as_json", is_flag=True, help="Print answer and statistics as JSON.")
def run_command(
    artifact: Path,
    prompt: str | None,
    images: tuple[str, ...],
    sounds: tuple[str, ...],
    system: str | None,
    model: dict[str, Any],
    stats: bool | None,
    as_json: bool,
    **generation: Any,
) -> int:
    """Answer PROMPT with ARTIFACT; without PROMPT, or with -, it is read from standard input."""
    if ["-" if prompt is None else prompt, *images, *sounds].count("-") > 1:
        raise PromptError("standard input can be one thing only: the prompt, an image or a clip")
    if prompt is None or prompt == "-":
        if prompt is None and sys.stdin.isatty():
            raise PromptError("no prompt was given: pass one, or pipe it to standard input")
        prompt = _read_stdin()
    if not prompt.strip() and not (images or sounds):
        raise PromptError("the prompt is empty: expected some text")
    parts = [*media_parts(images, sounds), {"type": "text", "text": prompt}]
    messages = _with_system(system, [{"role": "user", "content": parts}])
    with load(artifact, **model, session_memory=0) as loaded:
        answer(loaded, messages, generation, stats=stats, as_json=as_json)
    return 0


def answer(
    model: Model,
    messages: list[dict[str, Any]],
    generation: dict[str, Any],
    *,
    stats: bool | None,
    as_json: bool,
    **about: str,
) -> None:
    """Answer and print: as it comes, with statistics behind it if asked for or on a terminal; or as JSON,
    which begins with `about`."""
    if as_json:
        whole = model.generate(messages, **generation)
        fields = about | {"text": whole.text, "finish_reason": whole.finish_reason}
        click.echo(json.dumps(fields | {"statistics": whole.statistics.to_dict()}, ensure_ascii=False))
        return
    last = _print_stream(model.stream(messages, **generation))
    if stats or (stats is None and sys.stderr.isatty()):
        click.echo(_describe(last.statistics), err=True)


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Re-hash every file.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON, with memory estimates.")
def inspect_command(artifact: Path, verify: bool, as_json: bool) -> None:
    """Show what is in ARTIFACT, and an estimate of the memory it needs by context length."""
    opened = artifacts.read(artifact)
    if verify:
        with show_progress() as progress:
            progress.stage("checksums", sum(f.bytes for f in opened.manifest.files.values()))
            opened.verify(progress.advance)
    m = opened.manifest
    if as_json:
        from dataclasses import asdict

        click.echo(json.dumps(asdict(m) | {"verified": verify}))
        return
    print_table(str(artifact), _facts(m, verify))
    print_table("files", [(name, format_bytes(f.bytes)) for name, f in m.files.items()], ("name", "size"))
    print_table("matrices", _matrices(m.recipe_details), ("class", "bits", "block", "zero points"))
    contexts = [int(n) for n in m.memory_estimate if int(n) <= m.max_context] or [m.max_context]
    plans = [plan(Needs.of(m), context=n, global_kv=kv) for kv in m.decoders for n in contexts]
    rows = [
        (
            str(p.context),
            p.global_kv,
            *(format_bytes(sum(parts.values())) for parts in p.phases.values()),
            format_bytes(p.peak),
        )
        for p in plans
    ]
    print_table("estimated resident memory", rows, ("context", "global KV", *plans[0].phases, "peak"))


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path), required=False)
@click.option(
    "--remove", is_flag=True, help="Remove what was prepared of ARTIFACT, or without it everything."
)
@global_kv_option("Prepare it with this KV cache of the full-attention layers. [the recipe's]")
@cache_dir_option
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def prepare_command(
    artifact: Path | None,
    remove: bool,
    global_kv: str | None,
    cache_dir: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Write the decoder of ARTIFACT to the cache as this machine's onnxruntime packs it.

    The first command that loads an artifact does so by itself, unless it is told --no-cache; ahead of time
    it makes that first start a fast one.
    """
    from edge_gemma.memory import peak_resident_bytes
    from edge_gemma.runtime import prepared

    folder = cache_dir or prepared.default_folder()
    if remove:
        freed = prepared.forget(folder, artifact)
        report: dict[str, Any] = {"cache": str(folder), "removed_bytes": freed}
        text = f"removed {format_bytes(freed)} from {folder}"
    elif artifact is None:
        raise click.UsageError("Missing argument 'ARTIFACT'.")
    else:
        opened = artifacts.read(artifact)
        entry = prepared.prepare(opened, folder, global_kv=global_kv, threads=threads)
        size, peak = sum(f.stat().st_size for f in entry.iterdir()), peak_resident_bytes()
        report = {
            "prepared": str(entry),
            "global_kv": opened.decoder(global_kv).global_kv,
            "bytes": size,
            "peak_memory_bytes": peak,
        }
        kv = report["global_kv"]
        text = f"{artifact} is prepared, global KV in {kv}: {format_bytes(size)} in {entry}"
    click.echo(json.dumps(report) if as_json else text)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def doctor_command(as_json: bool) -> None:
    """Show this machine's processor, memory and package versions, and what edge-gemma would use."""
    from edge_gemma.runtime.doctor import examine

    facts = examine()
    if as_json:
        click.echo(json.dumps(facts))
        return
    for title, values in facts.items():
        print_table(title, [(name, str(value)) for name, value in values.items()])


def _read_stdin() -> str:
    raw = sys.stdin.buffer.read()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"standard input is not UTF-8 text ({error.reason} at byte {error.start})"
        ) from None


def _with_system(system: str | None, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"role": "system", "content": system}, *messages] if system else messages


def _print_stream(pieces: Iterator[Piece]) -> Piece:
    """Write pieces as they come; the last one is returned."""
    for piece in pieces:
        click.echo(piece.text, nl=False)
    click.echo()
    return piece


def _describe(s: Statistics) -> str:
    media = [f"{s.images} image{'s' * (s.images > 1)}"] if s.images else []
    media += [f"{s.audio_seconds:.1f} s of audio"] if s.audio_seconds else []
    encoding = f"{' and '.join(media)} encoded in {s.encode_seconds:.2f} s; " if media else ""
    new = f"{s.prompt_tokens - s.reused_tokens} of them new, " if s.reused_tokens else ""
    drafts = f" ({s.acceptance_rate:.0%} of {s.drafted_tokens} drafted accepted)" if s.drafted_tokens else ""
    return (
        f"[{encoding}prompt {s.prompt_tokens} tokens, {new}{s.prefill_tokens_per_second:.1f}/s; "
        f"answer {s.generated_tokens} tokens, {s.decode_tokens_per_second:.1f}/s{drafts}; "
        f"first token after {s.time_to_first_token:.2f} s; peak memory {format_bytes(s.peak_memory_bytes)}; "
        f"embedding records {s.rows}, {s.rows_read} read ({format_bytes(s.bytes_read)})]"
    )


def _facts(m: artifacts.Manifest, verified: bool) -> list[tuple[str, ...]]:
    source = m.source.name + (f" at {m.source.revision}" if m.source.revision else "")
    row_bytes = m.embeddings.record_bytes
    return [
        ("source", source),
        ("recipe", f"{m.recipe}: {m.recipe_details.get('description', '')}"),
        ("text parameters", f"{m.parameters.text:,}"),
        ("effective parameters", f"{m.parameters.effective:,}"),
        *_submodels(m),
        ("vocabulary", f"{m.vocab_size:,}"),
        ("audio", _senses(m)[0]),
        ("images", _senses(m)[1]),
        ("longest context", f"{m.max_context:,} tokens"),
        ("embedding record", f"{row_bytes:,} bytes, one read for each new token"),
        ("KV cache", _kv_facts(m)),
        ("format", f"version {m.format_version}, written by edge-gemma {m.generator}"),
        ("onnxruntime", f"{m.minimum_onnxruntime} or newer"),
        ("checksums", "verified" if verified else "not checked (--verify)"),
    ]


def _kv_facts(m: artifacts.Manifest) -> str:
    needs = Needs.of(m)
    tokens = [f"{needs.decoder_with(kv).kv_per_token:,} bytes a token in {kv}" for kv in needs.global_kv]
    return f"{' or '.join(tokens)}, {m.memory.kv_per_window_row:,} a window row"


def _senses(m: artifacts.Manifest) -> tuple[str, str]:
    """What the encoders take and give."""
    audio = vision = "no encoder"
    if m.audio:
        seconds = m.audio.max_samples / m.audio.sample_rate
        audio = f"clips to {seconds:.1f} s, {m.audio.soft_tokens} soft tokens, {format_bytes(m.audio.memory)}"
    if m.vision:
        vision = f"any size, {m.vision.soft_tokens} soft tokens, {format_bytes(m.vision.memory)}"
    return audio, vision


def _submodels(m: artifacts.Manifest) -> list[tuple[str, str]]:
    """What an artifact is a part of, and what parts it has."""
    levels = [f"{level.name} ({level.effective_parameters:,} effective)" for level in m.levels]
    return [("sub-model", m.submodel or "none"), ("levels", ", ".join(levels) or "none")]


def _matrices(recipe: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for kind, fmt in recipe["matrices"].items():
        if fmt is None:
            rows.append((kind, "32", "-", "-"))
        else:
            rows.append(
                (kind, str(fmt["bits"]), str(fmt["block"]), "fitted" if fmt["zero_points"] else "middle")
            )
    rows += [
        (f"{kind} rows", str(f["bits"]), str(f["block"] or "-"), "-") for kind, f in recipe["rows"].items()
    ]
    return rows
