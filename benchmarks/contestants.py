"""Who takes part in benchmarks/compare_llamacpp.py, and how each is measured, in fresh processes.

A contestant's `measure` gives figures by name: LOAD in seconds, "prefill N" and "decode N" in tokens a second
(N is the length of the prompt, or the context at the end), PEAK and ANONYMOUS in bytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import psutil

from edge_gemma.artifact import Artifact
from edge_gemma.errors import DependencyError, EdgeGemmaError
from edge_gemma.memory import peak_resident_bytes
from edge_gemma.runtime import bench_tasks
from edge_gemma.runtime.fresh_process import call

PROGRAM = Path(__file__).with_name("llamacpp_process.py")
LOAD = "load"
PEAK, ANONYMOUS = "peak", "anonymous"  # VmHWM; RssAnon, what no file can give back
INSTALL = "CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python"
NO_ARRAY = 1 << 20  # bytes: the bandwidth is measured elsewhere, and would count as this process's memory


@dataclass(frozen=True, kw_only=True)
class Work:
    """What each contestant does in each round."""

    threads: int
    context: int  # tokens that there is room for
    prefill: tuple[int, ...]  # lengths of prompts
    decode_at: tuple[int, ...]  # contexts that the decoded tokens lead to
    tokens: int  # decoded each time

    @property
    def longest(self) -> int:
        return max(bench_tasks.WARM_UP + 1, *self.prefill, *self.decode_at)


class Contestant(Protocol):
    @property
    def name(self) -> str: ...

    def measure(self, work: Work) -> dict[str, float]:
        """One turn."""


@dataclass(frozen=True)
class EdgeGemma:
    """An artifact."""

    name: str
    artifact: Artifact
    chunk: int | None = None  # tokens of a prompt computed at once; None: edge-gemma's default

    def prepare(self, work: Work) -> None:
        """Load once: the cache of packed weights is there afterwards, and the files are in memory."""
        self._call(bench_tasks.load_model, work)

    def measure(self, work: Work) -> dict[str, float]:
        loaded: bench_tasks.Loaded = self._call(bench_tasks.load_model, work)
        lengths = {"prefill": work.prefill, "decode_at": work.decode_at, "tokens": work.tokens}
        found: dict[str, float] = self._call(speeds, work, **lengths, threads=work.threads)
        return {LOAD: loaded.seconds, **found}

    def _call(self, task: Callable[..., Any], work: Work, **arguments: Any) -> Any:
        model = {"threads": work.threads, "context": work.context, "chunk": self.chunk}
        folder = self.artifact.folder
        return call(task, step=lambda: None, warn=_warn, artifact=folder, model=model, **arguments)


def speeds(step: Callable[[], None], **arguments: Any) -> dict[str, float]:
    """bench_tasks.speeds, and the memory that it took; for fresh_process.call."""
    anonymous = [0]

    def look() -> None:  # called while the model is loaded
        memory = psutil.Process().memory_info()
        anonymous.append(memory.rss - getattr(memory, "shared", 0))
        step()

    found = bench_tasks.speeds(look, array_bytes=NO_ARRAY, **arguments)
    return {
        **{f"prefill {count}": speed for count, speed in found.prefill.items()},
        **{f"decode {end}": decoded.tokens_per_second for end, decoded in found.decode.items()},
        PEAK: peak_resident_bytes(),
        ANONYMOUS: max(anonymous),
    }


@dataclass(frozen=True)
class LlamaCpp:
    """A GGUF file."""

    name: str
    python: str  # an interpreter that has llama_cpp
    model: Path
    ids: tuple[int, ...]  # of the prompts
    flash: bool = True  # flash attention

    def measure(self, work: Work) -> dict[str, float]:
        arguments = asdict(work) | {"model": str(self.model), "flash": self.flash}
        found, _ = run_llamacpp(self.python, "measure", ids=self.ids[: work.longest], **arguments)
        if not found["finite"]:
            raise EdgeGemmaError(f"the logits of {self.model} are not finite: remove it and run this again")
        return {
            LOAD: found["load"],
            **{f"prefill {count}": speed for count, speed in found["prefill"].items()},
            **{f"decode {end}": speed for end, speed in found["decode"].items()},
            PEAK: found["peak"],
            ANONYMOUS: found["anonymous"],
        }

    def faster(self, work: Work, choices: Sequence[bool]) -> tuple[LlamaCpp, dict[str, dict[str, float]]]:
        """This one with the choice of flash attention that takes less time, and what each was measured at.

        The model's file is in memory afterwards.
        """
        trials = {flash: replace(self, flash=flash).measure(work) for flash in choices}
        best = min(trials, key=lambda flash: seconds(trials[flash], work))
        return replace(self, flash=best), {"on" if flash else "off": found for flash, found in trials.items()}


def seconds(figures: Mapping[str, float], work: Work) -> float:
    """How long all prompts and all decoding took together."""
    prompts = sum(count / figures[f"prefill {count}"] for count in work.prefill)
    return prompts + sum(work.tokens / figures[f"decode {end}"] for end in work.decode_at)


def llamacpp_facts(python: str) -> dict[str, str]:
    """Versions and build of llama.cpp.

    Raises:
        DependencyError: this interpreter has none.
    """
    return run_llamacpp(python, "facts")[0]


def run_llamacpp(python: str, task: str, **arguments: Any) -> tuple[dict[str, Any], Sequence[str]]:
    """What a task of llamacpp_process.py returns, and the lines that llama.cpp wrote.

    Raises:
        DependencyError: there is no such interpreter, or it has no llama_cpp.
        EdgeGemmaError: the task failed.
    """
    command = [python, str(PROGRAM), json.dumps({"task": task, **arguments})]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise DependencyError(
            f"--llama-python {python} cannot be run ({error.strerror}): name a Python that has llama_cpp"
        ) from None
    lines = done.stderr.strip().splitlines()
    if done.returncode:
        last = lines[-1] if lines else f"status {done.returncode}"
        if "No module named" in last:
            raise DependencyError(
                f"{python} has no llama_cpp ({last}): install it in an environment of its own with "
                f"`{INSTALL}`, and name its interpreter with --llama-python"
            )
        raise EdgeGemmaError(f"llama.cpp failed at {task}: {last}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result, lines


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)  # click would count as memory of edge-gemma
