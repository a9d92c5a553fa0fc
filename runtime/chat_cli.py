"""`edge-gemma chat`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import click

from edge_gemma.errors import ContextLimitError, EdgeGemmaError, PromptError
from edge_gemma.runtime.cli import _describe
from edge_gemma.runtime.conversation import Session
from edge_gemma.runtime.engine import Model
from edge_gemma.runtime.loading import load
from edge_gemma.runtime.options import generation_options, media_options, media_parts, model_options


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@media_options
@click.option("--system", help="System instruction.")
@click.option(
    "--session",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Go on with the conversation in this file, if it is there, and save it there after each answer.",
)
@generation_options()
@model_options
@click.option("--stats", is_flag=True, help="Report speed and memory after each answer.")
def chat_command(
    artifact: Path,
    images: tuple[str, ...],
    sounds: tuple[str, ...],
    system: str | None,
    file: Path | None,
    model: dict[str, Any],
    stats: bool,
    **generation: Any,
) -> int:
    """Talk with ARTIFACT. Ctrl-C ends an answer, Ctrl-D or /quit the conversation, /new starts afresh.

    --image and --audio go with the first message; /image FILE and /audio FILE with the next one. /save FILE
    writes the conversation to a file for --session.
    """
    if "-" in (*images, *sounds):
        raise PromptError("standard input is for what you say: give --image and --audio a file")
    with load(artifact, **model) as loaded:
        session = _begin(loaded, system, file)
        media = media_parts(images, sounds)
        for line in _lines():
            command, _, rest = line.partition(" ")
            try:
                if line == "/quit":
                    break
                if line == "/new":
                    session, media = loaded.session(system), []
                elif command == "/save":
                    session.save(_named(rest))
                elif command in ("/image", "/audio"):
                    added = media_parts(*(([rest], []) if command == "/image" else ([], [rest])))
                    loaded.encode([{"role": "user", "content": added}])  # refuses what cannot be read, now
                    media += added
                else:
                    content = [*media, {"type": "text", "text": line}] if media else line
                    _turn(session, content, stats, generation)
                    media = []
                    if file:
                        session.save(file)
            except ContextLimitError as error:
                click.echo(f"error: {error}; /new starts afresh", err=True)
            except EdgeGemmaError as error:
                click.echo(f"error: {error}", err=True)
    return 0


def _begin(model: Model, system: str | None, file: Path | None) -> Session:
    """The conversation in a file if there is one, else a new one."""
    if file is None or not file.exists():
        return model.session(system)
    session = model.load_session(file)
    first = (session.messages or [{"role": "user"}])[0]
    if system and first != {"role": "system", "content": system}:
        raise PromptError(
            f"the conversation in {file} did not begin with this --system: leave it out, or name another file"
        )
    return session


def _turn(session: Session, content: Any, stats: bool, generation: dict[str, Any]) -> None:
    """Say something and print the answer as it comes, until Ctrl-C."""
    try:
        with contextlib.closing(session.stream(content, **generation)) as pieces:  # type: ignore[type-var]
            for piece in pieces:
                click.echo(piece.text, nl=False)
        if stats:
            click.echo("\n" + _describe(piece.statistics), err=True, nl=False)
    except KeyboardInterrupt:
        click.echo(" …", nl=False)
    click.echo()


def _named(name: str) -> Path:
    if not name.strip():
        raise PromptError("/save without a file: expected /save FILE")
    return Path(name.strip())


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
