"""Loading and speed of the runtime's tokenizer and of the `tokenizers` library, with one vocabulary.

    python -m benchmarks.tokenizer [synthetic:E2B]

Each runs in a process of its own; memory is what it adds to an interpreter with numpy and onnxruntime, times
are the processor's. The texts are this repository's documents, and megabytes of what may be hard to encode.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from benchmarks.command import Benchmark
from benchmarks.report import print_report
from edge_gemma.artifact import TOKENIZER, TOKENIZER_JSON
from edge_gemma.export.checkpoint import open_checkpoint
from edge_gemma.memory import peak_resident_bytes, release_free_memory, resident_bytes
from edge_gemma.runtime.fresh_process import Step, call
from edge_gemma.tokenizer_spec import TokenizerSpec

ROOT = Path(__file__).parent.parent
PROMPT = 14_000  # characters of the documents: at least 4096 tokens
MEGABYTE = 10**6
HARD = {
    "one letter": "a",
    "spaces": " ",
    "line ends": "\n",
    "one emoji": "😀",
    "combining characters": "\u0301",
    "starts of control tokens": "<",
    "control tokens": "<end_of_turn>",
}


@click.command(cls=Benchmark)
@click.argument("checkpoint", default="synthetic:E2B")
def main(checkpoint: str) -> None:
    """Compare the two on a checkpoint's tokenizer."""
    from benchmarks.tokenizer import measure  # by a name that another process knows, too

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec = write_tables_of(checkpoint, folder)
        found = {
            which: call(measure, step=lambda: None, warn=print, folder=folder, spec=tables)
            for which, tables in (("tables", spec), ("library", None))
        }
    rows = [(key, *(f"{found[which][key]:,.1f}" for which in found)) for key in found["tables"]]
    print_report("benchmarks.tokenizer", ("", *found), rows, found)


def write_tables_of(checkpoint: str, folder: Path) -> TokenizerSpec:
    """Write the tokenizer of a checkpoint to a folder, in both forms."""
    from tokenizers import Tokenizer

    from edge_gemma.export.tokenizer_tables import write_tables

    raw = open_checkpoint(checkpoint).tokenizer_json()
    (folder / TOKENIZER_JSON).write_bytes(raw)
    return write_tables(Tokenizer.from_buffer(raw), folder / TOKENIZER, checkpoint)


def measure(step: Step, *, folder: Path, spec: TokenizerSpec | None) -> dict[str, float]:
    """Milliseconds, MiB and kB/s by what was measured; the library without a `spec`."""
    import numpy  # noqa: F401
    import onnxruntime  # noqa: F401

    text = "".join(path.read_text("utf-8") for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]))
    before = resident_bytes()
    start = time.process_time()
    encode, decode = _open(folder, spec)
    found = {"load, ms": (time.process_time() - start) * 1e3}
    found["peak while loading, MiB"] = (peak_resident_bytes() - before) / 2**20
    release_free_memory()
    found["loaded, MiB"] = (resident_bytes() - before) / 2**20
    ids = encode(text[:PROMPT])[:4096]
    decode(ids)
    release_free_memory()
    found["after 4096 tokens, MiB"] = (resident_bytes() - before) / 2**20
    found["documents, kB/s"] = _speed(encode, text)
    for name, unit in HARD.items():
        found[f"1 MB of {name}, kB/s"] = _speed(encode, unit * (MEGABYTE // len(unit.encode())))
    found["peak, MiB"] = (peak_resident_bytes() - before) / 2**20
    return found


def _open(folder: Path, spec: TokenizerSpec | None) -> tuple[Callable[[str], list[int]], Callable[..., str]]:
    if spec is None:
        from tokenizers import Tokenizer as Library

        library: Any = Library.from_file(str(folder / TOKENIZER_JSON))
        encode = functools.partial(library.encode, add_special_tokens=False)
        return lambda text: encode(text).ids, library.decode
    from edge_gemma.runtime.tokenizer import Tokenizer

    tokenizer = Tokenizer(folder / TOKENIZER, spec)
    return tokenizer.encode, tokenizer.decode


def _speed(encode: Callable[[str], list[int]], text: str) -> float:
    start = time.process_time()
    encode(text)
    return len(text.encode()) / (time.process_time() - start) / 1e3


if __name__ == "__main__":
    main()
