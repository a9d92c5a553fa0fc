"""What benchmarks.real measures, one function for each part; each runs in a fresh process (see real_work).

Every function takes the progress to report to, then what it needs, and returns plain data: bytes, seconds,
shares from 0 to 1.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.demo_accuracy import score
from benchmarks.real_inputs import Clip, spoken
from benchmarks.real_work import PROBLEM, Result
from demo.items import Item
from edge_gemma import artifact as artifacts
from edge_gemma.errors import PromptError
from edge_gemma.export.checkpoint import Checkpoint
from edge_gemma.export.cli import ENCODER_TOLERANCE, TOLERANCES
from edge_gemma.export.parity import ParityReport, combine, compare
from edge_gemma.export.pipeline import export
from edge_gemma.export.verify import forced_logits, verify
from edge_gemma.progress import Progress
from edge_gemma.recipes import Recipe
from edge_gemma.runtime import bench, check_process
from edge_gemma.runtime.decoder import Decoder
from edge_gemma.runtime.embeddings import EmbeddingStore
from edge_gemma.runtime.loading import load

LONGEST_TEXT = 1024  # tokens of a prompt: a row of logits of E2B takes 1 MiB
CHUNK = 128  # tokens of a prompt computed at once
IDS = "ids.json"


def export_recipe(
    progress: Progress, checkpoint: Checkpoint, recipe: Recipe, target: Path, media: bool = True
) -> Result:
    """The artifact of a checkpoint; one that is there already is replaced."""
    manifest = export(
        checkpoint, recipe, target, audio=media, vision=media, overwrite=True, progress=progress
    )
    return {
        "bytes": sum(file.bytes for file in manifest.files.values()),
        "weights": manifest.memory.weights,
        "memory_estimate": manifest.memory_estimate,
    }


def verify_text(progress: Progress, checkpoint: Checkpoint, artifact: Path, new_tokens: int) -> Result:
    """Logits against transformers in float32 on the checkpoint, held to verify's own limits."""
    report = verify(artifact, checkpoint, new_tokens=new_tokens, progress=progress)
    largest, least = TOLERANCES.get(artifacts.read(artifact).manifest.recipe, (math.inf, 0.0))
    problem = ""
    if not report.max_relative_error <= largest:
        problem = f"relative error {report.max_relative_error:.3g} is above {largest:g}"
    elif report.argmax_agreement < least:
        problem = f"argmax agreement {report.argmax_agreement:.2%} is below {least:.2%}"
    return _measures(report) | {PROBLEM: problem}


def verify_towers(progress: Progress, checkpoint: Checkpoint, artifact: Path) -> Result:
    """Soft tokens of a clip and of an image against transformers' towers."""
    from edge_gemma.export.verify_encoders import verify_encoders  # imports torch's exporter

    opened = artifacts.read(artifact)
    found = verify_encoders(opened, checkpoint, progress)
    exact = opened.manifest.recipe in TOLERANCES
    wrong = [k for k, v in found.items() if exact and not v.max_relative_error <= ENCODER_TOLERANCE]
    problem = f"relative error of {' and '.join(wrong)} is above {ENCODER_TOLERANCE:g}" if wrong else ""
    return {kind: report.to_dict() for kind, report in found.items()} | {PROBLEM: problem}


def reference_logits(
    progress: Progress, artifact: Path, texts: Sequence[str], new_tokens: int, folder: Path
) -> Result:
    """Answer each text greedily; keep the ids of both and their logits, float32 [tokens - 1, V] each.

    Raises:
        PromptError: a text is too long.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    limit = artifacts.read(artifact).manifest.max_context
    context = min(LONGEST_TEXT + new_tokens, limit)
    pairs = []
    progress.stage("answers", len(texts))
    with load(artifact, context=context, cache=False) as model:
        for number, text in enumerate(texts, 1):
            prompt = model.encode(text)
            if len(prompt) > context - new_tokens:
                raise PromptError(
                    f"text {number} has {len(prompt)} tokens: expected at most {context - new_tokens}"
                )
            answer = model.generate(text, max_new_tokens=new_tokens, temperature=0)
            ids = model.tokenizer.encode(answer.text)
            stops = model.manifest.tokens.stop if answer.finish_reason == "stop" else ()
            pairs.append((prompt, [*ids, *stops[-1:]]))
            progress.advance()
    for number, logits in enumerate(_logits(progress, artifact, pairs)):
        np.save(folder / f"{number}.npy", logits)
    (folder / IDS).write_text(json.dumps(pairs), "utf-8")
    positions = sum(len(prompt) + max(len(answer) - 1, 0) for prompt, answer in pairs)
    return {"texts": len(texts), "positions": positions}


def loss(progress: Progress, artifact: Path, folder: Path) -> Result:
    """Logits of the same ids against those of the reference in `folder`."""
    pairs = json.loads((folder / IDS).read_text("utf-8"))
    reports = [
        compare(logits, np.load(folder / f"{number}.npy"))
        for number, logits in enumerate(_logits(progress, artifact, pairs))
    ]
    return _measures(combine(reports)) | {"weights": artifacts.read(artifact).manifest.memory.weights}


def loss_of_variant(
    progress: Progress, checkpoint: Checkpoint, recipe: Recipe, target: Path, folder: Path
) -> Result:
    """`loss` of a recipe that nothing else is measured of: its artifact, without encoders, is not kept."""
    try:
        export_recipe(progress, checkpoint, recipe, target, media=False)
        return loss(progress, target, folder)
    finally:
        shutil.rmtree(target, ignore_errors=True)


def words(
    progress: Progress, artifact: Path, clips: Sequence[Clip], language: str | None, cache: Path
) -> Result:
    """Transcripts of clips; of each wrong words and words said, as written and as `spoken`."""
    heard = []
    progress.stage("clips", len(clips))
    with load(artifact, cache_dir=cache) as model:
        for clip in clips:
            heard.append(model.transcribe(clip.path, language).text)
            progress.advance()
    said = [clip.text for clip in clips]
    result: Result = {"clips": [clip.path.name for clip in clips], "said": said, "heard": heard}
    for kind, change in (("written", str.strip), ("spoken", spoken)):
        items = [Item("transcription", (), "", "", reference=change(text)) for text in said]
        found = score(items, [change(text) for text in heard])
        result[kind] = {"wrong": found.errors.tolist(), "of": found.units.tolist()}
    return result


def memory(progress: Progress, artifact: Path, cache: Path) -> Result:
    """The conversation of `edge-gemma check`, without a budget: its peak and that of each phase."""
    opened = artifacts.read(artifact)
    progress.stage("conversation", len(check_process.phases(opened, True)))
    held = check_process.hold(opened, {"cache_dir": cache}, media=True, advance=progress.advance)
    held.raise_failure()
    return {
        "peak": held.peak,
        "estimate": held.plan["peak"],
        "context": held.plan["context"],
        "phases": {phase["name"]: phase["peak"] for phase in held.phases},
    }


def speed(progress: Progress, artifact: Path, runs: int, cache: Path) -> Result:
    """What `edge-gemma bench` measures."""
    report = bench.measure(artifact, runs=runs, model={"cache_dir": str(cache)}, progress=progress)
    return asdict(report)


def _logits(progress: Progress, artifact: Path, pairs: Sequence[tuple[list[int], list[int]]]) -> Any:
    """Logits over each prompt and answer, float32 [tokens - 1, V], one after the other."""
    opened = artifacts.read(artifact)
    spec = opened.manifest.embeddings
    decoder, store = Decoder(opened), EmbeddingStore(opened.path(spec.file), spec)
    progress.stage("logits", len(pairs))
    for prompt, answer in pairs:
        yield forced_logits(decoder, store, prompt, answer, chunk=CHUNK)
        progress.advance()
    store.close()


def _measures(report: ParityReport) -> Result:
    """Its fields; None for what is not finite, which JSON has no number for."""
    return {name: value if math.isfinite(value) else None for name, value in report.to_dict().items()}
