"""`edge-gemma serve`."""

from __future__ import annotations

import logging
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import click

from edge_gemma.errors import DependencyError, PromptError
from edge_gemma.runtime.loading import load
from edge_gemma.runtime.options import model_options


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one."
)
@click.option("--model-name", help="Name of the model for clients. [the folder's]")
@click.option(
    "--api-key",
    "keys",
    multiple=True,
    envvar="EDGE_GEMMA_API_KEY",
    help="Key that clients must send; may be repeated. Other users of this machine can see it: better is "
    "--api-key-file or the variable EDGE_GEMMA_API_KEY.",
)
@click.option(
    "--api-key-file", type=click.Path(path_type=Path, dir_okay=False), help="File with a key on each line."
)
@click.option(
    "--insecure-no-key", is_flag=True, help="Serve other machines without a key: whoever reaches it may ask."
)
@click.option(
    "--rate-limit",
    type=click.IntRange(0),
    default=300,
    show_default=True,
    help="Requests a minute of each key, or of each address without keys; 0 is no limit.",
)
@click.option(
    "--max-waiting",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Prompts that may wait; more are refused.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(1),
    default=300,
    show_default=True,
    help="Seconds for waiting and answering.",
)
@click.option("--log-content", is_flag=True, help="Write prompts and answers to the log, too.")
@model_options
def serve_command(
    artifact: Path,
    host: str,
    port: int,
    model_name: str | None,
    keys: tuple[str, ...],
    api_key_file: Path | None,
    insecure_no_key: bool,
    rate_limit: int,
    max_waiting: int,
    timeout: float,
    log_content: bool,
    model: dict[str, Any],
) -> int:
    """Serve ARTIFACT to clients of OpenAI's API, and a web page to people.

    The log, on standard error, has a line for each request. Ctrl-C or SIGTERM end it: what is being answered
    has ten seconds more.
    """
    try:
        from edge_gemma.runtime.serving.app import create_app
        from edge_gemma.runtime.serving.process import Server, listen
        from edge_gemma.runtime.serving.settings import Settings
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"a server needs the package {error.name}: pip install 'edge-gemma[server]'"
        ) from None
    keys = _read_keys(keys, api_key_file)
    if not (keys or insecure_no_key or _is_loopback(host)):
        raise PromptError(
            f"--host {host} would let other machines ask, and there is no key: give --api-key-file FILE, or "
            "--insecure-no-key if that is what you want"
        )
    settings = Settings(
        host=host,
        port=port,
        api_keys=keys,
        requests_per_minute=rate_limit,
        max_waiting=max_waiting,
        timeout=timeout,
        log_content=log_content,
    )
    with listen(settings) as bound, load(artifact, **model) as loaded:
        _log_to_stderr()
        app = create_app(loaded, settings, model_name or artifact.resolve().name)
        name = f"[{host}]" if ":" in host else host
        click.echo(f"http://{name}:{bound.getsockname()[1]} serves {app.state.service.model_id}", err=True)
        Server(app).run(sockets=[bound])
    return 0


def _read_keys(keys: tuple[str, ...], file: Path | None) -> tuple[str, ...]:
    try:
        lines = file.read_text("utf-8").splitlines() if file else []
    except OSError as error:
        raise PromptError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PromptError(f"{file} is no text: expected a key on each line") from None
    found = tuple(key.strip() for key in (*keys, *lines) if key.strip())
    if file and not any(line.strip() for line in lines):
        raise PromptError(f"{file} is empty: expected a key on each line")
    if any(not key.isascii() or not key.isprintable() or " " in key for key in found):
        raise PromptError("a key has spaces or characters that are not ASCII: headers cannot carry it")
    return found


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _log_to_stderr() -> None:
    """Requests are not notes of the command line: every line is shown, and as it is."""
    log = logging.getLogger("edge_gemma.runtime.serving")
    log.handlers = [logging.StreamHandler()]
    log.propagate = False
    log.setLevel(logging.INFO)
