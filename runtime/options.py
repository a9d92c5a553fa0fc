"""Options that several commands share: how to generate, how to load, which images and sounds."""

from __future__ import annotations

import functools
import glob
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from edge_gemma.errors import MediaError, PromptError
from edge_gemma.memory import DEFAULT_CHUNK
from edge_gemma.recipes import KV_DTYPES
from edge_gemma.runtime.sampling import SamplingOptions

LOAD_OPTIONS = (
    "context",
    "memory_budget",
    "device",
    "level",
    "global_kv",
    "chunk",
    "threads",
    "keep_encoders",
    "cache",
    "cache_dir",
)
F = TypeVar("F", bound=Callable[..., Any])
DEFAULTS = SamplingOptions()


def generation_options(*, temperature: float = DEFAULTS.temperature) -> Callable[[F], F]:
    """Options that every command that generates takes: passed on to `Model.stream`."""
    return _together(
        click.option(
            "--max-new-tokens", type=click.IntRange(1), help="Longest answer. [what the context holds]"
        ),
        click.option(
            "--temperature", type=float, default=temperature, show_default=True, help="0 is greedy."
        ),
        click.option("--top-k", type=int, default=DEFAULTS.top_k, show_default=True, help="0 turns it off."),
        click.option("--top-p", type=float, default=DEFAULTS.top_p, show_default=True),
        click.option("--min-p", type=float, default=DEFAULTS.min_p, show_default=True),
        click.option(
            "--repetition-penalty", type=float, default=DEFAULTS.repetition_penalty, show_default=True
        ),
        click.option("--seed", type=int, help="Makes sampling repeatable."),
        click.option("--stop", multiple=True, help="Text that ends the answer; may be repeated."),
        click.option(
            "--speculate",
            type=click.Choice(["lookup", "level"]),
            help="Draft tokens and verify several at once, where that is faster: what the text repeats, or "
            "what the narrowest level of an elastic artifact says.",
        ),
    )


def format_options(command: F) -> F:
    """--json-schema, --regex and --choice; the command gets them as `response_format`, for `Model.stream`."""

    @functools.wraps(command)
    def with_format(
        json_schema: str | None, regex: str | None, choices: tuple[str, ...], **options: Any
    ) -> Any:
        formats: list[dict[str, Any]] = []
        if json_schema is not None:
            formats.append({"type": "json_schema", "json_schema": {"schema": _read_schema(json_schema)}})
        if regex is not None:
            formats.append({"type": "regex", "regex": regex})
        if choices:
            formats.append({"type": "choice", "choices": choices})
        if len(formats) > 1:
            raise PromptError("an answer has one form: give one of --json-schema, --regex and --choice")
        return command(response_format=formats[0] if formats else None, **options)

    options = _together(
        click.option(
            "--json-schema",
            metavar="FILE|JSON",
            help="Answer with JSON of this schema: a file, or the schema itself.",
        ),
        click.option("--regex", help="Answer with a text that this regular expression matches as a whole."),
        click.option(
            "--choice", "choices", multiple=True, help="Answer with this text; repeat for each that may be."
        ),
    )
    return cast(F, options(with_format))


def _read_schema(written: str) -> Any:
    """The schema itself where it begins with a brace, otherwise that of a file."""
    place = "--json-schema" if written.lstrip().startswith("{") else written
    try:
        return json.loads(written if place != written else Path(written).read_bytes())
    except OSError as error:
        raise PromptError(f"the JSON Schema {place} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise PromptError(
            f"{place} holds no JSON Schema ({error}): expected a file, or JSON that begins with {{"
        ) from None


cache_dir_option = click.option(
    "--cache-dir", type=click.Path(path_type=Path), help="Folder of that cache. [the user's cache folder]"
)


def global_kv_option(help: str) -> Callable[[F], F]:
    """--global-kv, the dtype of the global layers' KV cache."""
    return click.option("--global-kv", type=click.Choice(KV_DTYPES["global"]), help=help)


threads_option = click.option(
    "--threads", type=click.IntRange(1), help="Threads to compute with. [all cores]"
)


def model_options(command: F) -> F:
    """Options that every command that loads a model takes; the command gets them as `model`, for `load`."""

    @functools.wraps(command)
    def with_model(**options: Any) -> Any:
        return command(model={name: options.pop(name) for name in LOAD_OPTIONS}, **options)

    options = _together(
        click.option("--context", type=click.IntRange(1), help="Tokens of prompt and answer. [4096]"),
        click.option("--memory-budget", metavar="SIZE", help="Most resident memory, such as 2GiB."),
        click.option(
            "--device",
            metavar="NAME",
            help="Take budget, context and threads from a device profile, or auto.",
        ),
        click.option(
            "--level",
            metavar="NAME",
            help="Level of an elastic artifact that answers. [the widest that keeps to the budget]",
        ),
        global_kv_option("KV cache of the full-attention layers. [the recipe's; int8 if only that fits]"),
        click.option(
            "--chunk",
            type=click.IntRange(1),
            help=f"Prompt tokens computed at once. [{DEFAULT_CHUNK}, or what the budget has room for]",
        ),
        threads_option,
        click.option(
            "--keep-encoders", is_flag=True, help="Leave the audio and vision encoders in memory after use."
        ),
        click.option(
            "--cache/--no-cache",
            default=True,
            show_default=True,
            help="Map packed weights from a cache on disk.",
        ),
        cache_dir_option,
    )
    return cast(F, options(with_model))


def media_options(command: F) -> F:
    """--image and --audio, each a tuple of what the user wrote: see `media_parts`."""
    options = _together(
        click.option(
            "--image",
            "images",
            multiple=True,
            metavar="FILE",
            help="Image to ask about; may be repeated or a glob; - is standard input.",
        ),
        click.option(
            "--audio",
            "sounds",
            multiple=True,
            metavar="FILE",
            help="Clip to ask about, as --image; a longer recording is for `transcribe`.",
        ),
    )
    return options(command)


def _together(*options: Callable[[Any], Any]) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def expand(names: Sequence[str]) -> list[Path]:
    """Paths of what the user wrote: globs that the shell left alone are expanded; - stays.

    Raises:
        MediaError: a glob matches nothing.
    """
    paths = []
    for name in names:
        found = sorted(glob.glob(name)) if not Path(name).exists() and glob.has_magic(name) else [name]
        if not found:
            raise MediaError(f"{name} matches no file: check the pattern")
        paths += [Path(path) for path in found]
    return paths


def media_parts(images: Sequence[str], sounds: Sequence[str]) -> list[dict[str, Any]]:
    """Parts of a message for --image and --audio."""
    return [
        {"type": kind, kind: sys.stdin.buffer.read() if str(path) == "-" else path}
        for kind, names in (("image", images), ("audio", sounds))
        for path in expand(names)
    ]
