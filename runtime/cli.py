"""`edge-gemma run`, `chat`, `inspect` and `doctor`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TypeVar

import click

from edge_gemma import artifact as artifacts
from edge_gemma.console import print_table, show_progress
from edge_gemma.errors import ContextLimitError, PromptError
from edge_gemma.memory import DEFAULT_CHUNK, estimate, format_bytes
from edge_gemma.runtime.engine import Model, Piece, load
from edge_gemma.runtime.sampling import SamplingOptions
from edge_gemma.runtime.statistics import Statistics

F = TypeVar("F", bound=Callable[..., Any])
DEFAULTS = SamplingOptions()


def generation_options(command: F) -> F:
    """Options that every command that generates takes."""
    options = [
        click.option(
            "--max-new-tokens", type=click.IntRange(1), help="Longest answer. [what the context holds]"
        ),
        click.option(
            "--temperature", type=float, default=DEFAULTS.temperature, show_default=True, help="0 is greedy."
        ),
        click.option("--top-k", type=int, default=DEFAULTS.top_k, show_default=True, help="0 turns it off."),
        click.option("--top-p", type=float, default=DEFAULTS.top_p, show_default=True),
        click.option("--min-p", type=float, default=DEFAULTS.min_p, show_default=True),
        click.option(
            "--repetition-penalty", type=float, default=DEFAULTS.repetition_penalty, show_default=True
        ),
        click.option("--seed", type=int, help="Makes sampling repeatable."),
        click.option("--stop", multiple=True, help="Text that ends the answer; may be repeated."),
        click.option("--system", help="System instruction."),
        click.option("--context", type=click.IntRange(1), help="Tokens of prompt and answer. [4096]"),
        click.option(
            "--chunk",
            type=click.IntRange(1),
            default=DEFAULT_CHUNK,
            show_default=True,
            help="Prompt tokens computed at once.",
        ),
        click.option("--threads", type=click.IntRange(1), help="Threads to compute with. [all cores]"),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@generation_options
@click.option("--stats/--no-stats", default=None, help="Report speed and memory. [on a terminal]")
@click.option("--json", "as_json", is_flag=True, help="Print answer and statistics as JSON.")
def run_command(
    artifact: Path,
    prompt: str | None,
    system: str | None,
    context: int | None,
    chunk: int,
    threads: int | None,
    stats: bool | None,
    as_json: bool,
    **generation: Any,
) -> int:
    """Answer PROMPT with ARTIFACT; without PROMPT, or with -, it is read from standard input."""
    if prompt is None or prompt == "-":
        if prompt is None and sys.stdin.isatty():
            raise PromptError("no prompt was given: pass one, or pipe it to standard input")
        prompt = _read_stdin()
    messages = _with_system(system, [{"role": "user", "content": prompt}])
    with load(artifact, context=context, chunk=chunk, threads=threads) as model:
        if as_json:
            answer = model.generate(messages, **generation)
            click.echo(
                json.dumps(
                    {
                        "text": answer.text,
                        "finish_reason": answer.finish_reason,
                        "statistics": answer.statistics.to_dict(),
                    },
                    ensure_ascii=False,
                )
            )
            return 0
        last = _print_stream(model.stream(messages, **generation))
        if stats or (stats is None and sys.stderr.isatty()):
            click.echo(_describe(last.statistics), err=True)
    return 0


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@generation_options
@click.option("--stats", is_flag=True, help="Report speed and memory after each answer.")
def chat_command(
    artifact: Path,
    system: str | None,
    context: int | None,
    chunk: int,
    threads: int | None,
    stats: bool,
    **generation: Any,
) -> int:
    """Talk with ARTIFACT. Ctrl-C ends an answer, Ctrl-D or /quit the conversation, /new starts afresh."""
    with load(artifact, context=context, chunk=chunk, threads=threads) as model:
        history: list[dict[str, Any]] = []
        for line in _lines():
            if line == "/quit":
                break
            if line == "/new":
                history = []
                continue
            try:
                history = _turn(model, system, history, line, stats, generation)
            except ContextLimitError as error:
                click.echo(f"error: {error}; /new starts afresh", err=True)
            except PromptError as error:
                click.echo(f"error: {error}", err=True)
    return 0


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
    rows = []
    for n in contexts:
        parts = estimate(m.memory, n)
        rows.append((str(n), *(format_bytes(v) for v in parts.parts().values()), format_bytes(parts.total)))
    header = ("context", *estimate(m.memory, 1).parts(), "peak")
    print_table("estimated resident memory", rows, header)


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


def _turn(
    model: Model,
    system: str | None,
    history: list[dict[str, Any]],
    line: str,
    stats: bool,
    generation: dict[str, Any],
) -> list[dict[str, Any]]:
    """Answer one line and return the conversation with both turns added; as it was if interrupted early."""
    asked = [*history, {"role": "user", "content": line}]
    text = ""
    try:
        for piece in model.stream(_with_system(system, asked), **generation):
            click.echo(piece.text, nl=False)
            text += piece.text
        if stats:
            click.echo("\n" + _describe(piece.statistics), err=True, nl=False)
    except KeyboardInterrupt:
        click.echo(" …", nl=False)
    click.echo()
    return [*asked, {"role": "assistant", "content": text}] if text.strip() else history


def _lines() -> Iterator[str]:
    """Lines the user types (with editing and history where readline exists), or those piped in.

    Bytes that are no text come as lone surrogates, so that the line is refused and the chat goes on.
    """
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    if not sys.stdin.isatty():
        for line in sys.stdin:
            if line.strip():
                yield line.strip()
        return
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # importing it gives input() line editing
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            click.echo()
            return
        if line:
            yield line


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
    return (
        f"[prompt {s.prompt_tokens} tokens, {s.prefill_tokens_per_second:.1f}/s; "
        f"answer {s.generated_tokens} tokens, {s.decode_tokens_per_second:.1f}/s; "
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
        ("vocabulary", f"{m.vocab_size:,}"),
        ("longest context", f"{m.max_context:,} tokens"),
        ("embedding record", f"{row_bytes:,} bytes, one read for each new token"),
        ("KV cache", f"{m.memory.kv_per_token:,} bytes a token, {m.memory.kv_per_window_row:,} a window row"),
        ("format", f"version {m.format_version}, written by edge-gemma {m.generator}"),
        ("onnxruntime", f"{m.minimum_onnxruntime} or newer"),
        ("checksums", "verified" if verified else "not checked (--verify)"),
    ]


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
