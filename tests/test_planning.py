"""What a memory budget allows."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_gemma import artifact as artifacts
from edge_gemma.artifact import MemorySpec
from edge_gemma.cli import run
from edge_gemma.errors import BudgetError, PromptError
from edge_gemma.memory import estimate
from edge_gemma.planning import AWAY_BYTES, BESIDE, CHUNKS, KEPT, TURNS, Needs, longest, plan, settle
from edge_gemma.runtime.loading import load

MIB, GIB = 1 << 20, 1 << 30
# About E2B's, int4.
DECODER = MemorySpec(
    weights=1464 * MIB,
    scales=0,
    largest_matrix=88 * MIB,
    logits=2 * MIB,
    scratch_per_token=MIB // 2,
    scores_per_pair=32,
    keys_per_token=1024,
    kv_per_token=8192,
    kv_per_window_row=32_768,
    sliding_window=512,
    tokenizer=7 * MIB,
)
NEEDS = Needs(
    decoder=DECODER, global_kv=("float16", "int8"), encoders={"audio": 880 * MIB, "image": 750 * MIB}
)
LONG = 32_768  # tokens: 256 MiB of global KV in float16, 128 in int8


def test_phases_add_up() -> None:
    """Text is what memory.estimate says; an encoder comes beside the decoder, or in its place."""
    beside = settle(NEEDS, context=4096, encoders=BESIDE)
    text = sum(beside.phases["text"].values())
    assert text == sum(size for part, size in estimate(DECODER, 4096).items() if part != "loading")
    assert sum(beside.phases["audio"].values()) == text + 880 * MIB == beside.peak
    turns = settle(NEEDS, context=4096, encoders=TURNS)
    assert sum(turns.phases["audio"].values()) == text - DECODER.weights + AWAY_BYTES + 880 * MIB
    kept = settle(NEEDS, context=4096, encoders=KEPT)
    assert sum(kept.phases["text"].values()) == text + (880 + 750) * MIB == kept.peak


def test_a_prepared_decoder_is_packed_beside_its_original() -> None:
    loading = [settle(NEEDS, context=512, prepared=p).phases["load"]["loading"] for p in (False, True)]
    assert loading == [88 * MIB, 176 * MIB]


@pytest.mark.parametrize(
    ("budget", "encoders", "chunk"),
    [(8 * GIB, KEPT, 128), (3 * GIB, BESIDE, 128), (2 * GIB, TURNS, 128), (1693 * MIB, TURNS, 64)],
)
def test_the_fastest_that_fits(budget: int, encoders: str, chunk: int) -> None:
    found = plan(NEEDS, context=4096, budget=budget, prepared=False)
    assert (found.encoders, found.chunk) == (encoders, chunk)
    assert found.fits and found.peak <= budget


def in_turns(global_kv: str, chunk: int) -> int:
    """Bytes that a long context takes."""
    return settle(NEEDS, context=LONG, global_kv=global_kv, chunk=chunk, encoders=TURNS, prepared=False).peak


@pytest.mark.parametrize(
    ("global_kv", "chunk"), [("float16", 128), ("float16", 16), ("int8", 64), ("int8", 16)]
)
def test_int8_where_nothing_else_fits(global_kv: str, chunk: int) -> None:
    found = plan(NEEDS, context=LONG, budget=in_turns(global_kv, chunk), prepared=False)
    assert (found.global_kv, found.chunk, found.encoders) == (global_kv, chunk, TURNS)


def test_quality_comes_before_speed() -> None:
    """The budget has room for int8 and a larger chunk, too."""
    budget = in_turns("float16", 16)
    assert in_turns("int8", 128) < budget
    found = plan(NEEDS, context=LONG, budget=budget, prepared=False)
    assert (found.global_kv, found.chunk) == ("float16", 16)


def test_int8_takes_half() -> None:
    """Of the global layers' share: the window stays as it is."""
    kv = [settle(NEEDS, context=LONG, global_kv=dtype).phases["text"]["kv"] for dtype in NEEDS.global_kv]
    assert kv[0] - kv[1] == LONG * 8192 // 2
    assert kv[0] == settle(NEEDS, context=LONG).phases["text"]["kv"] == LONG * 8192 + 639 * 32_768


@given(budget=st.integers(1 * GIB, 6 * GIB), context=st.integers(1, 32_768), prepared=st.booleans())
def test_never_over_the_budget(budget: int, context: int, prepared: bool) -> None:
    """Or else the settings that take least, and they do not fit."""
    found = plan(NEEDS, context=context, budget=budget, prepared=prepared)
    least = settle(
        NEEDS, context=context, global_kv="int8", chunk=CHUNKS[-1], encoders=TURNS, prepared=prepared
    )
    assert found.fits == (found.peak <= budget)
    assert found.fits or found.peak == least.peak > budget


def test_what_the_user_chose_stays() -> None:
    assert plan(NEEDS, context=512, budget=8 * GIB, chunk=17).chunk == 17
    assert plan(NEEDS, context=512, budget=8 * GIB, keep_encoders=True).encoders == KEPT
    assert not plan(NEEDS, context=512, budget=3 * GIB, keep_encoders=True).fits
    assert plan(NEEDS, context=512, budget=8 * GIB, global_kv="int8").global_kv == "int8"
    small = in_turns("int8", 64)
    assert not plan(NEEDS, context=LONG, budget=small, prepared=False, global_kv="float16").fits


def test_without_a_budget() -> None:
    """Pages of a mapped file leave at no cost; a decoder in memory of its own stays."""
    assert plan(NEEDS, context=4096).encoders == TURNS
    assert plan(NEEDS, context=4096, prepared=False).encoders == BESIDE
    assert plan(NEEDS, context=4096, keep_encoders=True).encoders == KEPT
    assert plan(NEEDS, context=4096).budget is None and plan(NEEDS, context=10**9).fits
    assert plan(NEEDS, context=10**9).global_kv == "float16"
    assert plan(NEEDS, context=4096, global_kv="int8").global_kv == "int8"


@given(bound=st.integers(0, 5000), limit=st.integers(0, 4096))
def test_longest(bound: int, limit: int) -> None:
    assert longest(lambda tokens: tokens <= bound, limit) == min(bound, limit)


def test_needs_of_an_artifact(media_artifact: Path, tiny_artifact: Path) -> None:
    manifest = artifacts.read(media_artifact).manifest
    assert manifest.audio and manifest.vision
    needs = Needs.of(manifest)
    assert needs.encoders == {"audio": manifest.audio.memory, "image": manifest.vision.memory}
    assert needs.decoder == manifest.memory == needs.decoder_with("float32")
    assert needs.global_kv == ("float32",)
    both = Needs.of(artifacts.read(tiny_artifact).manifest)
    assert both.global_kv == ("float16", "int8")
    assert both.decoder_with("int8").kv_per_token * 2 == both.decoder.kv_per_token > 0
    assert both.decoder_with("float16") == both.decoder and both.decoder.keys_per_token > 0
    # its kernel has neither scores of all pairs nor copies
    assert both.decoder_with("int8").keys_per_token == both.decoder_with("int8").scores_per_pair == 0


def test_load_keeps_to_a_budget(tiny_artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with load(tiny_artifact, context=64, memory_budget="1GiB", threads=1) as model:
        assert model.plan.budget == GIB and model.plan.encoders == KEPT
    with pytest.raises(BudgetError, match="nothing fits 50 MiB at 64 tokens .*, this model int4 needs"):
        load(tiny_artifact, context=64, memory_budget=50 * MIB)
    with pytest.raises(BudgetError, match="a chunk of 60000 tokens and .* need .*: leave global_kv, chunk"):
        load(tiny_artifact, context=64, memory_budget=200 * MIB, chunk=60_000)
    with pytest.raises(PromptError, match="'much' is not a size"):
        load(tiny_artifact, memory_budget="much")
    with pytest.raises(PromptError, match="memory_budget is 0"):
        load(tiny_artifact, memory_budget=0)
    assert run(["run", str(tiny_artifact), "hi", "--memory-budget", "50MiB"]) == 8
    assert "error: nothing fits 50 MiB" in capsys.readouterr().err


def test_load_takes_int8_where_only_that_fits(tiny_artifact: Path) -> None:
    needs = Needs.of(artifacts.read(tiny_artifact).manifest)
    tight = settle(needs, context=2048, global_kv="int8", chunk=16, encoders=TURNS).peak
    with load(tiny_artifact, memory_budget=tight, threads=1) as model:
        assert (model.plan.global_kv, model.plan.chunk) == ("int8", 16)
        assert model.generate("hello", max_new_tokens=3).statistics.generated_tokens == 3
    with pytest.raises(BudgetError, match="global KV in float16, a chunk of 16 .* need .*: leave global_kv"):
        load(tiny_artifact, memory_budget=tight, global_kv="float16")
