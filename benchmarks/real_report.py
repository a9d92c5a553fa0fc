"""The report of benchmarks.real: report.md for people and report.json with everything."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.demo_accuracy import Scores, excess
from benchmarks.real_measures import Asked
from benchmarks.real_work import DONE, Part, Work
from edge_gemma.export.pipeline import count_parameters
from edge_gemma.memory import format_bytes
from edge_gemma.runtime.bench_report import write_html as write_whole
from edge_gemma.runtime.doctor import environment

Row = tuple[str, ...]
ABSENT = "–"
WORDS = {"written": "as written", "spoken": "case and punctuation aside"}
FIGURES = ("positions", "argmax_agreement", "max_relative_error", "kl_divergence", "snr_db", "top10_overlap")


def write_report(work: Work, asked: Asked, command: str) -> Path:
    """Write both files into the work folder; returns the one for people.

    Raises:
        OSError: they cannot be written.
    """
    facts = _facts(asked, command)
    data = facts | {"parts": [asdict(part) for part in work.parts]}
    write_whole(work.folder / "report.json", json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    path = work.folder / "report.md"
    write_whole(path, "\n".join(markdown(facts, work.parts)))
    return path


def markdown(facts: dict[str, Any], parts: Sequence[Part]) -> Iterator[str]:
    """The lines of the report; a part that has no figures is in the first table, with its reason."""
    yield f"# {facts['checkpoint']} with edge-gemma\n"
    yield from _table(("", ""), [(name, str(value)) for name, value in _flat(facts)])
    yield "## Parts\n"
    yield from _table(("part", "outcome", "time", "peak memory"), [_outcome(part) for part in parts])
    named = {part.name: part for part in parts if part.result}
    sections = (
        ("Artifacts", ("recipe", "files", "weights in memory", "export"), _artifacts(named)),
        ("Against transformers in float32", ("what", *_figure_names()), _verified(named)),
        ("Encoders against transformers", ("encoder", "relative error, max", "SNR (dB)"), _towers(named)),
        (_loss_title(named), ("recipe", *_figure_names(), "weights in memory"), _losses(named)),
        ("Words wrong", ("recipe", *WORDS.values(), "more than the first [95 %]"), _words(named)),
        *_memory(named),
        *_speed(named),
    )
    for title, header, rows in sections:
        if found := list(rows):
            yield f"## {title}\n"
            yield from _table(header, found)
    notes = [f"- {part.name}: {note}" for part in parts for note in _notes(part)]
    if notes:
        yield "## Notes\n"
        yield from (*notes, "")


def _facts(asked: Asked, command: str) -> dict[str, Any]:
    counts = count_parameters(asked.checkpoint)
    return {
        "checkpoint": asked.checkpoint.name,
        "revision": asked.checkpoint.revision,
        "text_parameters": counts.text,
        "effective_parameters": counts.effective,
        "layers": asked.checkpoint.config.text.num_hidden_layers,
        "recipes": [recipe.details() for recipe in asked.recipes],
        "texts": len(asked.texts),
        "new_tokens": asked.new_tokens,
        "clips": len(asked.clips),
        "language": asked.language,
        "free_memory_bytes": asked.memory,
        "command": command,
        "written": datetime.now(UTC).isoformat(timespec="minutes"),
        "environment": environment("torch", "transformers", "onnx", "tokenizers"),
    }


def _flat(facts: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "checkpoint", facts["checkpoint"]
    yield "revision", facts["revision"] or "a local folder, or random weights"
    yield (
        "parameters of the text model",
        f"{facts['text_parameters']:,}, {facts['effective_parameters']:,} effective",
    )
    yield "compared on", f"{facts['texts']} texts, answers of at most {facts['new_tokens']} tokens"
    yield "clips", facts["clips"]
    yield "command", f"`{facts['command']}`"
    yield "written", facts["written"]
    yield "memory that parts may take", format_bytes(facts["free_memory_bytes"])
    yield from facts["environment"].items()


def _outcome(part: Part) -> Row:
    said = part.status if part.status == DONE else f"**{part.status}**: {part.reason}"
    time = f"{part.seconds:.0f} s" if part.seconds else ABSENT
    elsewhere = part.name.startswith(("memory ", "speed "))  # measured in processes of their own
    peak = format_bytes(part.peak_bytes) if part.peak_bytes and not elsewhere else ABSENT
    return part.name, said, time, peak


def _artifacts(named: dict[str, Part]) -> Iterator[Row]:
    for name, part in _of(named, "export"):
        size, weights = (format_bytes(part.result[key]) for key in ("bytes", "weights"))
        yield name, size, weights, f"{part.seconds:.0f} s, {format_bytes(part.peak_bytes)}"


def _figure_names() -> Row:
    return "positions", "argmax equal", "relative error, max", "KL (nats)", "SNR (dB)", "top 10 shared"


def _figures(result: dict[str, Any]) -> Row:
    formats = ("{:d}", "{:.2%}", "{:.2e}", "{:.2e}", "{:.1f}", "{:.1%}")
    values = [result[name] for name in FIGURES]
    return tuple(
        f.format(value) if value is not None else "not finite"
        for f, value in zip(formats, values, strict=True)
    )


def _verified(named: dict[str, Part]) -> Iterator[Row]:
    for name, part in _of(named, "verify"):
        if name != "encoders":
            yield name, *_figures(part.result)


def _towers(named: dict[str, Part]) -> Iterator[Row]:
    part = named.get("verify encoders")
    for kind, found in part.result.items() if part else ():
        yield kind, f"{found['max_relative_error']:.2e}", f"{found['snr_db']:.1f}"


def _loss_title(named: dict[str, Part]) -> str:
    reference = "".join(name for name, _ in _of(named, "reference"))
    return f"Quantization loss against {reference}"


def _losses(named: dict[str, Part]) -> Iterator[Row]:
    for name, part in _of(named, "loss"):
        yield name, *_figures(part.result), format_bytes(part.result["weights"])


def _words(named: dict[str, Part]) -> Iterator[Row]:
    found = [
        (name, {kind: _scores(part.result[kind]) for kind in WORDS}) for name, part in _of(named, "words")
    ]
    for name, scores in found:
        more, low, high = excess(scores["spoken"], found[0][1]["spoken"])
        interval = f"{more:+.2%} [{low:+.2%}, {high:+.2%}]" if name != found[0][0] else ""
        yield name, *(_rate(scores[kind]) for kind in WORDS), interval


def _scores(counts: dict[str, list[int]]) -> Scores:
    return Scores(np.array(counts["wrong"], np.int64), np.array(counts["of"], np.int64))


def _rate(scores: Scores) -> str:
    return f"{scores.rate:.2%} ({scores.errors.sum()} of {scores.units.sum()})"


def _memory(named: dict[str, Part]) -> Iterator[tuple[str, Row, list[Row]]]:
    """The conversation of `edge-gemma check`: one table."""
    found = _of(named, "memory")
    if not found:
        return
    phases = list(dict.fromkeys(phase for _, part in found for phase in part.result["phases"]))
    context = found[0][1].result["context"]
    rows = [
        (
            name,
            *(format_bytes(part.result[key]) for key in ("peak", "estimate")),
            *(format_bytes(sizes[p]) if p in (sizes := part.result["phases"]) else ABSENT for p in phases),
        )
        for name, part in found
    ]
    title = f"Peak memory of a conversation of {context} tokens (peak so far by phase)"
    yield title, ("recipe", "peak", "estimate", *phases), rows


def _speed(named: dict[str, Part]) -> Iterator[tuple[str, Row, list[Row]]]:
    """What `edge-gemma bench` measures: medians, a table for each of its quantities."""
    found = [(name, part.result) for name, part in _of(named, "speed")]
    tables: tuple[tuple[str, str, Callable[[dict[str, Any]], str]], ...] = (
        ("Prefill, tokens a second by length of the prompt", "prefill", lambda v: f"{v['median']:.1f}"),
        (
            "Decoding, tokens a second by context (of what memory bandwidth allows)",
            "decode",
            lambda v: f"{v['tokens_per_second']['median']:.1f} ({v['share']['median']:.0%})",
        ),
        ("Seconds to the first token", "first_token", lambda v: f"{v['seconds']['median']:.2f}"),
        ("Seconds to load", "load", lambda v: f"{v['median']:.2f}"),
    )
    for title, key, cell in tables:
        columns = list(dict.fromkeys(column for _, result in found for column in result[key]))
        rows = [
            (name, *(cell(result[key][c]) if c in result[key] else ABSENT for c in columns))
            for name, result in found
        ]
        if columns:
            yield title, ("recipe", *columns), rows


def _notes(part: Part) -> list[str]:
    return [*part.notes, *part.result.get("notes", ())]


def _of(named: dict[str, Part], kind: str) -> list[tuple[str, Part]]:
    """Parts of a kind that have figures, by what they are of."""
    return [(n.removeprefix(f"{kind} "), part) for n, part in named.items() if n.startswith(f"{kind} ")]


def _table(header: Row, rows: Sequence[Row]) -> Iterator[str]:
    """A table of Markdown, and a blank line."""
    for row in (header, ("---",) * len(header), *rows):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""
