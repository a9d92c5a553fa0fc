"""All that there is to measure of a checkpoint with real weights, in one report: `make real CHECKPOINT=…`.

    python -m benchmarks.real CHECKPOINT [--out DIR] [--recipes int4,int4-hq,int8] [--clips DIR]

Exports, comparison with transformers, quantization loss, word error rate, memory and speed. Each part runs
in a process of its own and is recorded when it is done: the same command goes on where it stopped. What
fails or cannot be done is in the report with its reason, and the rest is still done. docs/real-weights.md
says what it takes and what the report holds.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import click
import psutil
from rich.console import Console

from benchmarks.real_inputs import PROMPTS, read_clips, read_texts
from benchmarks.real_measures import KINDS, Asked, Measures
from benchmarks.real_report import write_report
from benchmarks.real_work import FAILED, Work, slug
from edge_gemma import __version__
from edge_gemma.cli import INTERRUPTED
from edge_gemma.errors import EdgeGemmaError, PromptError
from edge_gemma.export.checkpoint import Checkpoint, FolderCheckpoint, open_checkpoint
from edge_gemma.export.cli import DEFAULT_RECIPE
from edge_gemma.machine import this_machine
from edge_gemma.memory import parse_bytes
from edge_gemma.recipes import Recipe, find_recipe
from edge_gemma.runtime import bench
from edge_gemma.runtime.tasks import transcription_prompt

WORK = Path("artifacts/real")


@click.command()
@click.argument("checkpoint")
@click.option("--out", type=click.Path(path_type=Path), help=f"Work folder. [{WORK}/NAME]")
@click.option("--recipes", default=DEFAULT_RECIPE, show_default=True, help="Names, or .yaml files.")
@click.option("--texts", type=click.Path(path_type=Path), default=PROMPTS, help="Prompts, one a line.")
@click.option("--clips", type=click.Path(path_type=Path), help="Folder or list of clips with transcripts.")
@click.option("--language", help="Spoken in the clips. [the model finds out]")
@click.option("--revision", help="Branch, tag or commit of a hub id; HF_TOKEN is the token.")
@click.option("--new-tokens", type=click.IntRange(1), default=32, show_default=True, help="Of an answer.")
@click.option(
    "--runs", type=click.IntRange(1), default=bench.RUNS, show_default=True, help="Times speed is measured."
)
@click.option("--memory", metavar="SIZE", help="Most memory that a part may need. [what is free]")
@click.option("--skip", multiple=True, type=click.Choice(KINDS), help="Leave a kind of parts out.")
def main(
    checkpoint: str,
    out: Path | None,
    recipes: str,
    texts: Path,
    clips: Path | None,
    language: str | None,
    revision: str | None,
    new_tokens: int,
    runs: int,
    memory: str | None,
    skip: tuple[str, ...],
) -> int:
    """Measure CHECKPOINT, a folder or a hub id, and write a report."""
    transcription_prompt(language)  # refuses a language that is not known
    free = min(psutil.virtual_memory().available, this_machine().memory)
    chosen = _recipes(recipes)
    prompts, recordings = read_texts(texts), read_clips(clips) if clips else ()
    opened = open_checkpoint(checkpoint, revision=revision)
    asked = Asked(
        checkpoint=opened,
        recipes=chosen,
        texts=prompts,
        clips=recordings,
        language=language,
        new_tokens=new_tokens,
        runs=runs,
        memory=parse_bytes(memory) if memory else free,
        skip=frozenset(skip),
    )
    work = Work(out or WORK / slug(opened.name), _identity(opened))
    command = shlex.join(["python", "-m", "benchmarks.real", *sys.argv[1:]])
    Measures(asked, work).run()
    report = write_report(work, asked, command)
    click.echo(report)
    failed = [part.name for part in work.parts if part.status == FAILED]
    if failed:
        click.echo(f"failed: {', '.join(failed)}", err=True)
    return 1 if failed else 0


def _recipes(names: str) -> tuple[Recipe, ...]:
    """Those named, separated by commas or spaces."""
    found = [find_recipe(name) for name in re.split(r"[,\s]+", names) if name]
    if not found or len({recipe.name for recipe in found}) < len(found):
        raise PromptError(f"--recipes is {names!r}: expected one or more names, each once")
    return tuple(found)


def _identity(checkpoint: Checkpoint) -> dict[str, Any]:
    """What tells a checkpoint from another one, or from what it was before."""
    files = []
    if isinstance(checkpoint, FolderCheckpoint) and checkpoint.revision is None:
        for path in sorted(checkpoint.folder.iterdir()):
            if path.is_file():
                files.append([path.name, path.stat().st_size, path.stat().st_mtime_ns])
    return {
        "name": checkpoint.name,
        "revision": checkpoint.revision,
        "files": files,
        "edge-gemma": __version__,
    }


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status; errors are one line."""
    try:
        return int(main.main(args=arguments, prog_name="benchmarks.real", standalone_mode=False))
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        Console(stderr=True).show_cursor()  # a part's bars were hiding it when they ended
        click.echo("interrupted: the same command goes on from here", err=True)
        return INTERRUPTED
    except EdgeGemmaError as error:
        click.echo(f"error: {error}", err=True)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(run())
