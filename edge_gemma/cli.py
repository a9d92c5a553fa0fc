"""The `edge-gemma` command. Subcommands are imported when used; errors become one line here."""

from __future__ import annotations

import logging
import os
import sys
from importlib import import_module
from io import TextIOWrapper
from typing import Any

import click

from edge_gemma import __version__
from edge_gemma.errors import DependencyError, EdgeGemmaError

# name → module, one-line help. The help stands here so that `--help` imports nothing.
COMMANDS = {
    "export": ("edge_gemma.export.cli", "Make an artifact of a Gemma 3n checkpoint."),
    "verify": ("edge_gemma.export.cli", "Compare an artifact with transformers on its checkpoint."),
    "run": ("edge_gemma.runtime.cli", "Answer one prompt."),
    "chat": ("edge_gemma.runtime.chat_cli", "Talk with the model."),
    "transcribe": ("edge_gemma.runtime.media_cli", "Write down what is said in recordings."),
    "translate": ("edge_gemma.runtime.media_cli", "Translate what is said in recordings."),
    "describe": ("edge_gemma.runtime.media_cli", "Answer a question about images."),
    "serve": ("edge_gemma.runtime.serve_cli", "Serve clients of OpenAI's API, and a web page."),
    "prepare": ("edge_gemma.runtime.cli", "Pack an artifact's weights for this machine, ahead of time."),
    "plan": ("edge_gemma.runtime.devices_cli", "Show which model fits a device or a memory budget."),
    "devices": ("edge_gemma.runtime.devices_cli", "List device profiles; say which one this machine is."),
    "inspect": ("edge_gemma.runtime.cli", "Show what is in an artifact and the memory it needs."),
    "check": ("edge_gemma.runtime.check_cli", "Tell whether an artifact keeps to a memory budget."),
    "bench": ("edge_gemma.runtime.bench_cli", "Measure speed, loading and memory on this machine."),
    "eval": ("edge_gemma.runtime.eval_cli", "Score answers to a dataset's questions."),
    "doctor": ("edge_gemma.runtime.cli", "Show what this machine offers and what would be used."),
}
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class LazyGroup(click.Group):
    """A group whose commands live in modules that are imported only when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        try:
            module = import_module(COMMANDS[name][0])
        except ModuleNotFoundError as error:
            extra = "edge-gemma[export]" if ".export." in COMMANDS[name][0] else "edge-gemma"
            raise DependencyError(
                f"`edge-gemma {name}` needs the package {error.name}: pip install '{extra}'"
            ) from None
        command = getattr(module, f"{name}_command")
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader of our output went away, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


class Notes(logging.Handler):
    """The log on standard error, a line each: warnings, and on a terminal what takes a while."""

    def emit(self, record: logging.LogRecord) -> None:
        mark = "warning: " if record.levelno >= logging.WARNING else ""
        click.echo(mark + record.getMessage(), err=True)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edge-gemma")
def cli() -> None:
    """Export Gemma 3n to quantized ONNX, and run it on small machines.

    Exit status: 0 success, 1 other errors, 2 bad usage or prompt, 3 checkpoint, 4 export, 5 artifact,
    6 missing package, 7 verification failed, 8 over the memory budget, 130 interrupted.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    if isinstance(sys.stdout, TextIOWrapper):  # a terminal of few characters shows "?" for the others
        sys.stdout.reconfigure(errors="replace")
    if sys.stdin is None:  # closed, as cron may leave it
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    log = logging.getLogger("edge_gemma")
    if not log.handlers:
        log.addHandler(Notes(logging.INFO if sys.stderr.isatty() else logging.WARNING))
        log.setLevel(logging.INFO)
    try:
        result: Any = cli.main(args=arguments, prog_name="edge-gemma", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt, ImportError) as error:
        # a package that is being imported makes an ImportError of Ctrl-C
        if isinstance(error, ImportError) and not _interrupted(error):
            raise
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except EdgeGemmaError as error:
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        click.echo(f"error: {error.strerror or error}{place}", err=True)
        return 1


def _interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is at the root of an error."""
    while error and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


if __name__ == "__main__":
    main()
