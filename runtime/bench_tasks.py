"""What `edge-gemma bench` measures, one function for each fresh process: see fresh_process.call.

Values do not change times: prompts of a stated length are random ids, images and clips are noise, and a long
context is rows of the KV cache that were written, not computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_gemma import artifact as artifacts
from edge_gemma.artifact import Manifest
from edge_gemma.errors import ContextLimitError
from edge_gemma.memory import peak_resident_bytes
from edge_gemma.runtime.bandwidth import read_bandwidth
from edge_gemma.runtime.embeddings import EmbeddingStore
from edge_gemma.runtime.generation import Generator
from edge_gemma.runtime.loading import load
from edge_gemma.runtime.page_cache import mapped_files
from edge_gemma.runtime.sampling import SamplingOptions, make_sampler
from edge_gemma.runtime.statistics import Statistics

Step = Callable[[], None]
QUESTIONS = {"text": "Why is the sky blue?", "image": "What is this?", "audio": "What is said here?"}
HEIGHT, WIDTH = 1080, 1920
CLIP_SECONDS = 30  # or the longest that the artifact takes
WARM_UP = 128  # tokens
GREEDY = SamplingOptions(temperature=0)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model was loaded."""

    seconds: float  # in `load`; starting Python and importing the libraries came before
    peak_bytes: int  # VmHWM
    context: int  # tokens
    global_kv: str  # dtype of the global layers' KV cache
    weights: int  # bytes that decoding a token reads
    files: tuple[Path, ...]  # that loading mapped


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The first prompt of a process was answered."""

    prompt_tokens: int
    encode_seconds: float
    prefill_seconds: float
    seconds: float  # to the first token, encoding included
    peak_bytes: int  # VmHWM, the answer included


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Tokens were decoded, with the read bandwidth measured before and after."""

    tokens_per_second: float
    bytes_per_second: float  # mean of the two


@dataclass(frozen=True, kw_only=True)
class Speeds:
    prefill: dict[int, float]  # tokens of the prompt → tokens a second
    decode: dict[int, Decoded]  # context at the end → what was measured


def load_model(step: Step, artifact: Path, model: Mapping[str, Any]) -> Loaded:
    """Load, and nothing else."""
    before = mapped_files()
    began = time.perf_counter()
    with load(artifact, **model) as loaded:
        seconds = time.perf_counter() - began
        peak = peak_resident_bytes()
        step()
        files = tuple(sorted(mapped_files() - before))
        return Loaded(
            seconds=seconds,
            peak_bytes=peak,
            context=loaded.context,
            global_kv=loaded.plan.global_kv,
            weights=loaded.manifest.weights_of(loaded.level),
            files=files,
        )


def answer(
    step: Step, artifact: Path, model: Mapping[str, Any], kind: str, tokens: int
) -> Answered | ContextLimitError:
    """Load, and answer one prompt: a short question, behind an image or a clip if `kind` says so.

    Returns the error where the prompt does not fit the context.
    """
    with load(artifact, **model) as loaded:
        content = [*_media(loaded.manifest, kind), {"type": "text", "text": QUESTIONS[kind]}]
        try:
            pieces = loaded.stream(
                [{"role": "user", "content": content}], max_new_tokens=tokens, temperature=0
            )
        except ContextLimitError as error:
            step()
            return error
        for piece in pieces:
            statistics = piece.statistics
        step()
        return Answered(
            prompt_tokens=statistics.prompt_tokens,
            encode_seconds=statistics.encode_seconds,
            prefill_seconds=statistics.prefill_seconds,
            seconds=statistics.time_to_first_token,
            peak_bytes=statistics.peak_memory_bytes,
        )


def speeds(
    step: Step,
    artifact: Path,
    model: Mapping[str, Any],
    prefill: Sequence[int],
    decode_at: Sequence[int],
    tokens: int,
    threads: int,
    array_bytes: int,
) -> Speeds:
    """Load, then prefill and decode after an untimed warm-up."""
    ids = _random_ids(artifact, max([WARM_UP, *prefill, *decode_at]))
    with load(artifact, **model) as loaded:
        generator = loaded._open()  # ids in: a text's length would depend on the tokenizer
        warm_up = ids[: max(min(WARM_UP, loaded.context - 1), 1)]
        generate(generator, warm_up, min(2, loaded.context - len(warm_up) + 1))
        prefilled, decoded = {}, {}
        for count in prefill:
            generator.occupy([])
            prefilled[count] = generate(generator, ids[:count], 1).prefill_tokens_per_second
            step()
        before = read_bandwidth(threads, array_bytes) if decode_at else 0.0
        for end in decode_at:
            speed = decode(generator, ids, end, tokens)
            after = read_bandwidth(threads, array_bytes)
            decoded[end] = Decoded(tokens_per_second=speed, bytes_per_second=(before + after) / 2)
            before = after
            step()
        return Speeds(prefill=prefilled, decode=decoded)


def decode(generator: Generator, ids: Sequence[int], end: int, tokens: int) -> float:
    """Tokens a second of the `tokens` decoding steps that lead to a context of `end` tokens.

    One token is computed before them, untimed; where `end` has no room for both, they lead to 1 + tokens.
    """
    held = max(end - tokens - 1, 0)
    generator.occupy(ids[:held])
    return generate(generator, ids[: held + 1], tokens + 1).decode_tokens_per_second


def generate(generator: Generator, ids: Sequence[int], count: int) -> Statistics:
    """Choose `count` tokens behind `ids`, greedily."""
    statistics = Statistics()
    for _ in generator.generate(ids, make_sampler(GREEDY), max_new_tokens=count, statistics=statistics):
        pass
    return statistics


def _random_ids(artifact: Path, count: int) -> list[int]:
    """Ids whose records have just been read: in the page cache, as those of frequent tokens are."""
    opened = artifacts.read(artifact)
    spec = opened.manifest.embeddings
    ids: list[int] = np.random.default_rng(0).integers(0, spec.records, count).tolist()
    store = EmbeddingStore(opened.path(spec.file), spec, cache_bytes=0)
    for token in ids:
        store.rows([token])
    store.close()
    return ids


def _media(manifest: Manifest, kind: str) -> list[dict[str, Any]]:
    """Noise to see, uint8 [height, width, 3], or to hear, float32 [samples]; nothing for text."""
    random = np.random.default_rng(0)
    if kind == "image":
        return [{"type": kind, kind: random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)}]
    if kind == "audio":
        return [{"type": kind, kind: 0.1 * random.standard_normal(clip_samples(manifest), np.float32)}]
    return []


def clip_samples(manifest: Manifest) -> int:
    """Samples of the clip to measure with: 30 s, or the longest that the encoder takes; 0 without one."""
    audio = manifest.audio
    return min(CLIP_SECONDS * audio.sample_rate, audio.max_samples) if audio else 0
