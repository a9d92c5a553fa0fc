"""The work folder of benchmarks.real: parts that run in processes of their own, and are not run twice."""

from __future__ import annotations

import json
import re
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click

from edge_gemma.console import show_progress
from edge_gemma.errors import EdgeGemmaError, PromptError
from edge_gemma.memory import peak_resident_bytes
from edge_gemma.runtime.bench_report import write_html as write_whole
from edge_gemma.runtime.fresh_process import call

DONE, FAILED, NOT_RUN = "done", "failed", "not run"
PROBLEM = "problem"  # in a part's result: why it failed although it came to its end
CHECKPOINT_FILE = "checkpoint.json"
Result = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Part:
    """What became of one part of the work."""

    name: str
    status: str  # DONE, FAILED or NOT_RUN
    reason: str = ""  # one line, where it is not done
    seconds: float = 0.0
    peak_bytes: int = 0  # VmHWM of its process, without the processes that it started
    result: Result = field(default_factory=dict)  # plain data
    notes: tuple[str, ...] = ()  # warnings of the process
    settings: Result = field(default_factory=dict)  # what the result depends on, as plain data

    @property
    def done(self) -> bool:
        return self.status == DONE


class Work:
    """A folder of finished parts. A part that is done, with the same settings, is taken from there."""

    def __init__(self, folder: Path, checkpoint: Result) -> None:
        """Open or make the folder.

        Args:
            folder: where artifacts, records of parts and the report are kept.
            checkpoint: what tells one checkpoint from another, as plain data.

        Raises:
            PromptError: the folder is a file, cannot be written, or is about another checkpoint.
        """
        self.folder = folder
        self.parts: list[Part] = []
        known = folder / CHECKPOINT_FILE
        try:
            (folder / "parts").mkdir(parents=True, exist_ok=True)
            if not known.exists():
                write_whole(known, json.dumps(checkpoint, indent=2))
            found = json.loads(known.read_text("utf-8"))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise PromptError(
                f"{folder} cannot be used as work folder ({why}): choose another --out"
            ) from None
        if found != plain(checkpoint):
            raise PromptError(
                f"{folder} holds the work on {found.get('name')}, as it was then: choose another --out, or "
                "delete that folder"
            )

    def run(
        self,
        name: str,
        task: Callable[..., Result],
        *,
        settings: Result,
        product: Path | None = None,
        **arguments: Any,
    ) -> Part:
        """Run `task(progress, **arguments)` in a fresh process, unless that was done before.

        Args:
            name: of the part.
            task: a function of a module; what it returns can be written as JSON.
            settings: what the result depends on, as plain data.
            product: a folder that the task makes; without it the part is not done.
        """
        path = self._record(name)
        known = _read(path)
        if known and known.done and known.settings == plain(settings) and (not product or product.exists()):
            click.echo(f"{name}: done before", err=True)
            return self._add(known)
        click.echo(f"{name} …", err=True)
        path.unlink(missing_ok=True)  # from here on what it told of may be gone
        began, notes = time.perf_counter(), dict[str, None]()
        fields: Result = {}
        try:
            result, fields["peak_bytes"] = call(
                perform,
                step=lambda: None,
                warn=lambda text: notes.setdefault(_first_line(text)),
                task=task,
                log=path.with_suffix(".log"),
                arguments=arguments,
            )
            reason = result.pop(PROBLEM, "")
            fields |= {"result": plain(result), "status": FAILED if reason else DONE, "reason": reason}
        except (EdgeGemmaError, OSError) as error:
            fields |= {"status": FAILED, "reason": _first_line(str(error))}
        part = Part(
            name=name,
            seconds=time.perf_counter() - began,
            notes=tuple(notes),
            settings=plain(settings),
            **fields,
        )
        write_whole(path, json.dumps(asdict(part), indent=2))
        if not part.done:
            click.echo(f"{name}: failed: {part.reason}", err=True)
        return self._add(part)

    def has(self, name: str) -> bool:
        """Whether a part was done before, with whatever settings."""
        known = _read(self._record(name))
        return known is not None and known.done

    def leave_out(self, name: str, reason: str) -> Part:
        """Note that a part is not run, and why."""
        click.echo(f"{name}: not run: {reason}", err=True)
        return self._add(Part(name=name, status=NOT_RUN, reason=reason))

    def _add(self, part: Part) -> Part:
        self.parts.append(part)
        return part

    def _record(self, name: str) -> Path:
        return self.folder / "parts" / f"{slug(name)}.json"


def perform(
    step: Callable[[], None], task: Callable[..., Result], log: Path, arguments: Result
) -> tuple[Result, int]:
    """In the fresh process: the task's result and the peak memory in bytes; bars on standard error.

    Raises:
        EdgeGemmaError: the task failed; the traceback of an error that nobody foresaw is in `log`.
    """
    try:
        with show_progress() as progress:
            return task(progress, **arguments), peak_resident_bytes()
    except (EdgeGemmaError, OSError):
        raise
    except Exception as error:
        log.write_text(traceback.format_exc(), "utf-8")
        said = _first_line(str(error))
        raise EdgeGemmaError(f"{type(error).__name__}: {said} (parts/{log.name} has more)") from None


def slug(name: str) -> str:
    """A file name of a part's or a recipe's name."""
    return re.sub(r"[^\w.-]+", "-", name)


def plain(data: Any) -> Any:
    """The data as JSON gives it back: lists for tuples, texts for keys."""
    return json.loads(json.dumps(data))


def _read(path: Path) -> Part | None:
    """The record of a part; None where there is none that can be read."""
    try:
        return Part(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason was given"])[0]
