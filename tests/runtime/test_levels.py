"""Levels of an elastic artifact while it runs: switching, choosing, drafting, memory."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from made import needs

import edge_gemma
from edge_gemma import artifact as artifacts
from edge_gemma import cli
from edge_gemma.artifact import LevelSpec
from edge_gemma.errors import BudgetError, EdgeGemmaError, PromptError
from edge_gemma.planning import Needs, plan
from edge_gemma.runtime import bench_tasks, prepared
from edge_gemma.runtime.levels import DecodingSpeed, widest

PROMPT = "red fox, blue fox, red fox, blue fox"
GREEDY = {"temperature": 0, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def elastic(made: Callable[[str], Path]) -> Path:
    return made("elastic-fp32")


@pytest.fixture
def model(elastic: Path) -> Iterator[edge_gemma.Model]:
    with edge_gemma.load(elastic, context=256, threads=1, cache=False) as loaded:
        yield loaded


def answer(elastic: Path, level: str, prompt: str = PROMPT) -> str:
    with edge_gemma.load(elastic, context=256, threads=1, cache=False, level=level) as loaded:
        assert loaded.level == level
        return loaded.generate(prompt, **GREEDY).text


def test_the_widest_answers_unless_told_otherwise(elastic: Path, model: edge_gemma.Model) -> None:
    assert model.level == "large"
    large, small = answer(elastic, "large"), answer(elastic, "small")
    assert large != small
    assert model.generate(PROMPT, **GREEDY).text == large
    model.set_level("small")
    assert (model.level, model.generate("Hello", **GREEDY).text) == (
        "small",
        answer(elastic, "small", "Hello"),
    )


def test_a_level_for_an_answer_stays(elastic: Path, model: edge_gemma.Model) -> None:
    assert model.generate(PROMPT, level="small", **GREEDY).text == answer(elastic, "small")
    assert model.level == "small"


def test_a_conversation_goes_on_after_a_switch(model: edge_gemma.Model) -> None:
    """Nothing is computed again but what is new."""
    first = model.generate(
        PROMPT, temperature=0, max_new_tokens=1
    )  # it is not in the cache: no text is read back
    turns = [
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": "x"},
        {"role": "user", "content": "And then?"},
    ]
    found = model.generate(turns, level="small", **GREEDY).statistics
    assert found.reused_tokens == first.statistics.prompt_tokens


def test_a_narrow_level_drafts(elastic: Path, model: edge_gemma.Model) -> None:
    """Greedy answers are the large level's own."""
    plain = model.generate(PROMPT, temperature=0, max_new_tokens=60)
    fast = model.generate(PROMPT, temperature=0, max_new_tokens=60, speculate="level")
    assert fast.text == plain.text and fast.statistics.drafted_tokens > 0
    assert model.level == "large"
    small = model.generate(PROMPT, level="small", speculate="level", **GREEDY)
    assert small.statistics.drafted_tokens == 0  # it would draft for itself


def test_refusals(elastic: Path, model: edge_gemma.Model, tiny_artifact: Path) -> None:
    with pytest.raises(PromptError, match="no level 'medium': this artifact has the levels small, large"):
        model.set_level("medium")
    with pytest.raises(PromptError, match="no level 'medium'"):
        edge_gemma.load(elastic, level="medium")
    stream = model.stream(PROMPT, **GREEDY)
    next(stream)
    with pytest.raises(EdgeGemmaError, match="answering another prompt"):
        model.set_level("small")
    stream.close()
    with edge_gemma.load(tiny_artifact, threads=1, cache=False) as plain:
        assert plain.level is None
        with pytest.raises(PromptError, match="is not elastic and has no levels"):
            plain.set_level("small")
        with pytest.raises(PromptError, match="not elastic"):
            plain.choose_level()
        with pytest.raises(PromptError, match="this artifact can have 'lookup'"):
            plain.stream(PROMPT, speculate="level")


def test_a_budget_chooses_the_level(elastic: Path, tmp_path: Path) -> None:
    """The widest that keeps to it; a wider one is refused later, too."""
    manifest = artifacts.read(elastic).manifest
    peaks = [
        max(sum(parts.values()) for name, parts in found.phases.items() if name != "load")
        for found in (plan(Needs.of(manifest, i), context=256, chunk=16) for i in (0, 1))
    ]
    budget = sum(peaks) // 2
    options = {"context": 256, "chunk": 16, "threads": 1, "cache_dir": tmp_path / "cache"}
    # a model this small loads in more than it answers in: without that, the budget is what decides
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edge_gemma.planning.LOADED_BYTES", 0)
        with edge_gemma.load(elastic, memory_budget=budget, **options) as loaded:
            assert loaded.level == "small"
            assert loaded.choose_level() == loaded.choose_level(memory="100GiB") == "small"
            with pytest.raises(BudgetError, match="the level large needs .* stay with small"):
                loaded.set_level("large")
            assert loaded.level == "small"
        with edge_gemma.load(elastic, memory_budget="1GiB", **options) as loaded:
            assert loaded.level == "large"
            assert loaded.choose_level(memory=budget) == "small"
            assert loaded.choose_level() == "large"


def test_preparing_takes_what_all_levels_take(elastic: Path, tmp_path: Path) -> None:
    """A budget for the narrow level alone is kept to once the cache is there."""
    large = 1 << 30
    spec = artifacts.read(elastic)
    memory = dataclasses.replace(spec.manifest.memory, weights=large)
    wide = dataclasses.replace(spec.manifest.levels[1], weights=large)
    manifest = dataclasses.replace(spec.manifest, memory=memory, levels=(spec.manifest.levels[0], wide))
    manifest.save(copy := Path(shutil.copytree(elastic, tmp_path / "copy")))
    options = {"context": 256, "threads": 1, "level": "small", "cache_dir": tmp_path / "cache"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edge_gemma.planning.LOADED_BYTES", 0)
        with pytest.raises(BudgetError, match="preparing this artifact .* run `edge-gemma prepare` before"):
            edge_gemma.load(copy, memory_budget="512MiB", **options)
        prepared.prepare(artifacts.read(copy), tmp_path / "cache")
        with edge_gemma.load(copy, memory_budget="512MiB", **options) as loaded:
            assert loaded.plan.prepared


def test_a_benchmark_reads_the_weights_of_the_level(elastic: Path) -> None:
    levels = artifacts.read(elastic).manifest.levels
    for name, spec in (("small", levels[0]), ("large", levels[1])):
        model = {"context": 256, "threads": 1, "cache": False, "level": name}
        assert bench_tasks.load_model(lambda: None, elastic, model).weights == spec.weights


def test_speed_chooses_the_level(model: edge_gemma.Model) -> None:
    assert model.choose_level(tokens_per_second=1e9) == "large"  # nothing is known before the first answer
    found = model.generate(PROMPT, **GREEDY).statistics.decode_tokens_per_second
    small, large = (spec.weights for spec in model.manifest.levels)
    assert model.choose_level(tokens_per_second=found * 0.9) == "large"
    assert model.choose_level(tokens_per_second=found * (1 + large / small) / 2) == "small"
    assert model.choose_level(tokens_per_second=1e9) == "small"  # none is fast enough


def test_speed_grows_with_fewer_weights() -> None:
    wide, narrow = (
        LevelSpec(name=n, layers=1, widths=(1,), effective_parameters=1, weights=w)
        for n, w in (("wide", 200), ("narrow", 100))
    )
    speed = DecodingSpeed()
    assert speed.of(wide) is None
    speed.note(wide, 10, 2.0)
    assert (speed.of(wide), speed.of(narrow)) == (5.0, 10.0)
    speed.note(wide, 0, 0.0)
    speed.note(narrow, 10, 1.0 / 3)
    assert speed.of(wide) == 10.0
    assert widest([narrow, wide], lambda level: True) is wide
    assert widest([narrow, wide], lambda level: level is narrow) is narrow
    assert widest([narrow, wide], lambda level: False) is narrow


def test_the_command_line(elastic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--temperature",
        "0",
        "--max-new-tokens",
        "12",
        "--threads",
        "1",
        "--context",
        "256",
        "--no-cache",
    ]
    assert cli.run(["run", str(elastic), PROMPT, *options, "--level", "small", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == answer(elastic, "small")
    assert cli.run(["run", str(elastic), PROMPT, *options, "--level", "huge"]) == 2
    assert "no level 'huge'" in capsys.readouterr().err
    assert cli.run(["inspect", str(elastic)]) == 0
    small, large = (f"{level.effective_parameters:,}" for level in artifacts.read(elastic).manifest.levels)
    assert f"small ({small} effective), large ({large} effective)" in " ".join(
        capsys.readouterr().out.split()
    )


def test_plan_shows_each_level(elastic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plan", str(elastic), "--memory", "1GiB", "--context", "256", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["candidates"]
    assert [(c["submodel"], c["fits"]) for c in found] == [("large", True), ("small", True)]
    assert cli.run(["plan", str(elastic), "--memory", "64MiB", "--context", "256"]) == 8
    assert "small fp32 needs" in " ".join(capsys.readouterr().err.split())


def test_a_budget_too_small_for_any(elastic: Path) -> None:
    with pytest.raises(BudgetError, match="small fp32 needs"):
        edge_gemma.load(elastic, memory_budget="64MiB", context=256)


def test_export_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs("torch")
    import tiny

    levels = tmp_path / "narrow.yaml"
    levels.write_text("narrow: {widths: {default: half}}\n", "utf-8")
    whole = tmp_path / "whole.yaml"
    whole.write_text("whole: {widths: full}\n", "utf-8")
    source = str(tiny.make(tmp_path / "checkpoint", intermediate_size=256).folder)
    arguments = ["export", source, "-o", str(tmp_path / "out"), "--recipe", "fp32"]
    assert cli.run([*arguments, "--elastic", f"{levels},{whole}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["levels"] == ["narrow", "whole"]
    for asked, message in (
        (f"{whole},{levels}", "whole is no part of narrow"),
        (f"{whole}", "expected two or more"),
        ("E2B,E4B", "published sub-models are E4B's"),
    ):
        assert cli.run([*arguments, "--overwrite", "--elastic", asked]) != 0
        assert message in capsys.readouterr().err
    assert cli.run([*arguments, "--elastic", f"{levels},{whole}", "--submodel", str(whole)]) == 2
