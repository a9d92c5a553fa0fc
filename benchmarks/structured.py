"""What a response format costs: once in a model's life, once for an answer, and at each token.

    python -m benchmarks.structured [synthetic:E2B]

The tokenizer is that of a checkpoint, the logits are random. In a process of its own; memory is what is added
to an interpreter with numpy, onnxruntime and the tokenizer, times are the processor's in milliseconds,
medians of an answer's steps. `mask` is the grammar's part of a step, `sampling` all that comes behind the
decoder, beside the same without a format.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import click

from benchmarks.command import Benchmark
from benchmarks.report import print_report
from benchmarks.tokenizer import write_tables_of
from edge_gemma.artifact import TOKENIZER, TokenSpec
from edge_gemma.console import print_table
from edge_gemma.memory import peak_resident_bytes, release_free_memory, resident_bytes
from edge_gemma.runtime.fresh_process import Step, call
from edge_gemma.tokenizer_spec import TokenizerSpec

TOKENS = TokenSpec(bos=2, pad=0, stop=(1, 106), media={})
STEPS = 200  # at most, of each answer
TEXT = {"type": "string", "maxLength": 200}
SCHEMAS: dict[str, Any] = {
    "numbers": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9999}},
    "texts to 200": {"type": "array", "items": TEXT},
    "texts to 20000": {"type": "array", "items": TEXT | {"maxLength": 20_000}},
    "texts": {"type": "array", "items": {"type": "string"}},
    "20 fields": {
        "type": "object",
        "properties": {f"field {n}": TEXT for n in range(20)},
        "required": [f"field {n}" for n in range(20)],
        "additionalProperties": False,
    },
}
FORMATS: dict[str, Any] = {
    "choice of 3": {"type": "choice", "choices": ["yes", "no", "unclear"]},
    "regex, a date": {"type": "regex", "regex": r"\d{4}-\d{2}-\d{2}"},
    "any object": {"type": "json_object"},
} | {
    f"schema, {name}": {"type": "json_schema", "json_schema": {"schema": schema}}
    for name, schema in SCHEMAS.items()
}


@click.command(cls=Benchmark)
@click.argument("checkpoint", default="synthetic:E2B")
def main(checkpoint: str) -> None:
    """Measure with the tokenizer of a checkpoint."""
    from benchmarks.structured import measure  # by a name that another process knows, too

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec = write_tables_of(checkpoint, folder)
        found = call(measure, step=lambda: None, warn=print, folder=folder, spec=spec)
    header = ("format", "grammar, ms", "mask, ms", "slowest", "sampling, ms", "without", "memory, MiB")
    rows = [(name, *(f"{value:,.2f}" for value in of.values())) for name, of in found["formats"].items()]
    print_table("once", [(name, f"{value:,.1f}") for name, value in found["once"].items()])
    print_report("benchmarks.structured", header, rows, found)


def measure(step: Step, *, folder: Path, spec: TokenizerSpec) -> dict[str, Any]:
    """What building takes, and each format."""
    import onnxruntime  # noqa: F401

    from edge_gemma.runtime.structured import Grammars
    from edge_gemma.runtime.tokenizer import Tokenizer

    tokenizer = Tokenizer(folder / TOKENIZER, spec)
    release_free_memory()
    before = resident_bytes()
    start = process_time()
    grammars = Grammars(tokenizer, spec.ids, TOKENS)
    grammars.constraint(FORMATS["choice of 3"])
    once = {"tokenizer, ms": _since(start)}
    once["peak, MiB"] = (peak_resident_bytes() - before) / 2**20
    release_free_memory()
    once["stays, MiB"] = (resident_bytes() - before) / 2**20
    formats = {name: _measure(grammars, one, spec.ids, before) for name, one in FORMATS.items()}
    once["estimate, MiB"] = grammars.memory / 2**20
    once["peak of all, MiB"] = (peak_resident_bytes() - before) / 2**20
    return {"once": once, "formats": formats}


def _measure(grammars: Any, wanted: dict[str, Any], vocabulary: int, before: int) -> dict[str, float]:
    import numpy as np

    from edge_gemma.runtime.sampling import SamplingOptions, make_sampler

    start = process_time()
    constraint = grammars.constraint(wanted)
    found = {"grammar": _since(start)}
    timed: Any = _Timed(constraint)
    options = SamplingOptions(seed=0)
    constrained, free = make_sampler(options, timed), make_sampler(options)
    logits = np.random.default_rng(0).normal(0, 3, (8, vocabulary)).astype(np.float32)
    with_format, without = [], []
    for number in range(STEPS):
        row = logits[number % 8]
        start = process_time()
        free(row, ())
        without.append(_since(start))
        start = process_time()
        token = constrained(row, ())
        with_format.append(_since(start))
        if constraint.finished or token in TOKENS.stop:
            break
    found |= {"mask": median(timed.times), "slowest": max(timed.times)}
    found |= {"sampling": median(with_format), "without": median(without)}
    release_free_memory()
    return found | {"memory": (resident_bytes() - before) / 2**20}


def _since(start: float) -> float:
    return (process_time() - start) * 1e3


class _Timed:
    """A constraint with a clock."""

    def __init__(self, constraint: Any) -> None:
        self._constraint = constraint
        self.times: list[float] = []  # ms: allowed tokens and going on

    def mask(self, logits: Any) -> Any:
        start = process_time()
        masked = self._constraint.mask(logits)
        self.times.append(_since(start))
        return masked

    def advance(self, token: int) -> None:
        start = process_time()
        self._constraint.advance(token)
        self.times[-1] += _since(start)


if __name__ == "__main__":
    main()
