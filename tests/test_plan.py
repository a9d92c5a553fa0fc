"""edge-gemma plan: what fits comes first, what it says adds up, and its advice works."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from edge_gemma import artifact as artifacts
from edge_gemma.candidates import Candidate, of_model, rank
from edge_gemma.cli import run
from edge_gemma.devices import find_device
from edge_gemma.export import cli as export_cli
from edge_gemma.memory import format_bytes, parse_bytes
from edge_gemma.models import foretell
from edge_gemma.planning import CHUNKS, TURNS, Needs, plan, settle
from edge_gemma.recipes import BUILT_IN, load_recipes
from edge_gemma.runtime import devices_cli

Capture = pytest.CaptureFixture[str]
MIB, GIB = 1 << 20, 1 << 30
RECIPES = load_recipes()
BARS = re.compile(r"  (load|text|audio|image) +([^ ]+)  ")


def ask(capsys: Capture, *arguments: str, status: int = 0) -> dict[str, Any]:
    assert run(["plan", *arguments, "--json"]) == status
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and (err == "") == (status == 0)
    found: dict[str, Any] = json.loads(out)
    return found


def candidate(model: str, recipe: str, budget: int, context: int = 4096) -> Candidate:
    return of_model(model, RECIPES[recipe], context=context, budget=budget)


def sparing(global_kv: str) -> int:
    """Bytes that E2B int4 takes at its longest context with the settings that take least."""
    needs = foretell("E2B", RECIPES["int4"])
    return settle(needs, context=32_768, global_kv=global_kv, chunk=CHUNKS[-1], encoders=TURNS).peak


def names(ranked: list[Candidate]) -> list[str]:
    return [f"{c.model} {c.recipe}" for c in ranked]


def test_what_a_device_recommends_comes_first_where_it_fits() -> None:
    found = [candidate(m, r, 4 * GIB) for m in ("E2B", "E4B") for r in RECIPES]
    assert names(rank(found, ("E2B", "int4-hq")))[0] == "E2B int4-hq"
    assert names(rank(found, ("E4B", "int8")))[0] == "E4B int4-hq"  # E4B int8 does not fit


def test_the_larger_model_and_the_larger_recipe_come_first() -> None:
    found = [candidate(m, r, 11 * GIB) for m in ("E2B", "E4B") for r in ("int4", "fp32", "int8")]
    assert names(rank(found)) == ["E4B int8", "E4B int4", "E2B int8", "E2B int4", "E2B fp32", "E4B fp32"]
    assert [c.plan.fits for c in rank(found)] == [True] * 5 + [False]
    none = [candidate(m, r, GIB) for m in ("E4B", "E2B") for r in ("int8", "int4")]
    assert names(rank(none)) == ["E2B int4", "E2B int8", "E4B int4", "E4B int8"]


@pytest.mark.parametrize("budget", [int(1.8 * GIB), 2 * GIB, 20 * GIB])
def test_the_longest_context_fits_and_a_longer_one_does_not(budget: int) -> None:
    found = candidate("E2B", "int4", budget)
    assert found.longest == 32_768 or found.longest % 256 == 0
    assert candidate("E2B", "int4", budget, found.longest).plan.fits
    if found.longest < found.limit:
        assert not candidate("E2B", "int4", budget, found.longest + 256).plan.fits
    assert candidate("E2B", "int4", GIB).longest == 0


def test_candidates_of_a_budget(capsys: Capture) -> None:
    found = ask(capsys, "--memory", "2GiB")
    pairs = [(c["model"], c["recipe"]) for c in found["candidates"]]
    assert sorted(pairs) == sorted((m, r) for m in ("E2B", "E4B") for r in RECIPES)
    assert (found["device"], found["budget_bytes"], found["context"]) == (None, 2 * GIB, 4096)
    assert pairs[0] == ("E2B", "int4-hq") and found["candidates"][0]["fits"] and found["advice"] is None
    for c in found["candidates"]:
        peak = max(sum(parts.values()) for parts in c["phases"].values())
        assert c["peak_bytes"] == peak and c["fits"] == (peak <= 2 * GIB)
        assert set(c["phases"]) == {"load", "text", "audio", "image"}


def test_a_device_gives_budget_context_and_recommendation(capsys: Capture, tmp_path: Path) -> None:
    device = find_device("raspberry-pi-5-16gb")
    found = ask(capsys, "--device", device.name)
    first = found["candidates"][0]
    assert (first["model"], first["recipe"]) == (device.model, device.recipe)
    assert (found["budget_bytes"], found["context"]) == (device.budget, device.context)
    smaller = ask(capsys, "--device", device.name, "--memory", "2GiB", "--context", "512")
    assert (smaller["device"], smaller["budget_bytes"], smaller["context"]) == (device.name, 2 * GIB, 512)
    profiles = yaml.safe_load((BUILT_IN.with_name("devices.yaml")).read_text("utf-8"))
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump({"mine": profiles["ci"] | {"context": 300}}), "utf-8")
    assert ask(capsys, "--device", str(mine))["context"] == 300


def test_this_machine_is_the_default(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(devices_cli, "detect_device", lambda: find_device("pixel-8"))
    found = ask(capsys)
    assert (found["device"], found["budget_bytes"]) == ("pixel-8", find_device("pixel-8").budget)


def test_auto_is_this_machine(capsys: Capture) -> None:
    found = []
    for arguments in ([], ["--device", "auto"]):
        assert run(["plan", "--json", *arguments]) in (0, 8)
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]


def test_model_and_recipe_narrow_it_down(capsys: Capture, tmp_path: Path) -> None:
    found = ask(capsys, "--memory", "8GiB", "--model", "E4B", "--recipe", "int8")
    assert [(c["model"], c["recipe"]) for c in found["candidates"]] == [("E4B", "int8")]
    own = yaml.safe_load(BUILT_IN.read_text("utf-8"))["int8"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"mine": own}), "utf-8")
    mine = ask(capsys, "--memory", "8GiB", "--recipe", str(tmp_path / "mine.yaml"))
    assert [c["recipe"] for c in mine["candidates"]] == ["mine", "mine"]
    assert mine["candidates"][0]["phases"] == found["candidates"][0]["phases"]


def test_an_artifact(media_artifact: Path, tiny_artifact: Path, capsys: Capture) -> None:
    manifest = artifacts.read(media_artifact).manifest
    (found,) = ask(capsys, str(media_artifact), "--memory", "1GiB", "--context", "64")["candidates"]
    assert found["phases"] == plan(Needs.of(manifest), context=64, budget=GIB).phases
    assert set(found["phases"]) == {"load", "text", "audio", "image"}
    assert (found["model"], found["recipe"]) == (None, "fp32")
    text_only = ask(capsys, str(tiny_artifact), "--memory", "1GiB")
    assert set(text_only["candidates"][0]["phases"]) == {"load", "text"}
    assert text_only["context"] == text_only["candidates"][0]["longest_context"] == 2048  # the model's limit


def test_the_chart_adds_up(capsys: Capture) -> None:
    assert run(["plan", "--memory", "2GiB"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("budget 2.00 GiB, 4096 tokens of context\n")
    table, _, choice = out.partition("\n\n")
    assert table.splitlines()[2].split()[:3] == ["E2B", "int4-hq", "yes"]
    best = candidate("E2B", "int4-hq", 2 * GIB)
    head = (
        "E2B int4-hq: global KV in float16, chunks of 128 tokens, encoders take turns with the decoder, "
        f"context up to {best.longest}"
    )
    assert choice.startswith(head)
    bars = {name: bar for name, bar in BARS.findall(choice)}
    assert list(bars) == ["load", "text", "audio", "image"]
    assert len({len(bar) for bar in bars.values()}) == 1
    for name, bar in bars.items():
        taken = sum(best.plan.phases[name].values())
        assert (len(bar) - bar.count("·")) / len(bar) == pytest.approx(taken / (2 * GIB), abs=0.51 / len(bar))
    legend = dict(re.findall(r"  (?:(.)\1)  +(.*)", choice))
    parts = {
        "tokenizer and runtime": best.plan.phases["text"]["tokenizer"] + best.plan.phases["text"]["runtime"],
        "weights": best.plan.phases["text"]["weights"],
        "KV cache": best.plan.phases["text"]["kv"],
        "scratch": best.plan.phases["text"]["scratch"],
        "encoders": best.plan.phases["audio"]["audio"],
        "loading": best.plan.phases["load"]["loading"],
        "headroom": 2 * GIB - best.plan.peak,
    }
    assert list(legend.values()) == [f"{format_bytes(size)}  {name}" for name, size in parts.items()]
    assert set("".join(bars.values())) == set(legend)


def test_an_artifact_without_encoders_has_none_in_its_chart(tiny_artifact: Path, capsys: Capture) -> None:
    assert run(["plan", str(tiny_artifact), "--memory", "1GiB"]) == 0
    out = capsys.readouterr().out
    assert "this model int4: global KV in float16, chunks of 128 tokens" in out and "headroom" in out
    assert "audio" not in out.partition("\n\n")[2] and "  encoders\n" not in out


def test_the_budget_in_the_advice_is_enough(capsys: Capture) -> None:
    found = ask(capsys, "--memory", "1GiB", status=8)
    assert not any(c["fits"] for c in found["candidates"])
    assert found["advice"].startswith("nothing fits 1.00 GiB at 4096 tokens of context, E2B int4 needs 1.")
    (enough,) = re.findall(r"a budget of (\w+)$", found["advice"])
    assert ask(capsys, "--memory", enough)["candidates"][0]["recipe"] == "int4"
    less = f"{parse_bytes(enough) // 2**20 - 1}MiB"
    ask(capsys, "--memory", less, status=8)


def test_the_context_in_the_advice_fits(capsys: Capture) -> None:
    budget = f"{sparing('int8') - 8 * MIB}B"
    found = ask(capsys, "--memory", budget, "--context", "32768", status=8)
    ((tokens, named),) = re.findall(r"a context of (\d+) tokens \((.*?)\)", found["advice"])
    assert named == "E2B int4"
    longest = ask(capsys, "--memory", budget, "--context", tokens)["candidates"][0]
    assert longest["fits"] and longest["global_kv"] == "int8"
    ask(capsys, "--memory", budget, "--context", str(int(tokens) + 256), status=8)
    assert "--global-kv" not in found["advice"]  # an artifact of int4 can have that already


def test_int8_is_chosen_where_float16_does_not_fit(capsys: Capture) -> None:
    for memory, global_kv in ((sparing("float16"), "float16"), (sparing("float16") - 1, "int8")):
        options = ("--recipe", "int4", "--memory", f"{memory}B", "--context", "32768")
        found = ask(capsys, *options)["candidates"][0]
        assert (found["model"], found["fits"], found["global_kv"]) == ("E2B", True, global_kv)
    assert run(["plan", "--memory", f"{sparing('int8')}B", "--context", "32768"]) == 0
    table, _, choice = capsys.readouterr().out.partition("\n\n")
    assert table.splitlines()[2].split()[-2:] == ["int8", "32768"]
    assert choice.startswith("E2B int4: global KV in int8, chunks of 16 tokens")


def test_a_smaller_cache_is_advised_only_where_it_helps(capsys: Capture, tmp_path: Path) -> None:
    """To recipes whose artifacts cannot have it otherwise."""

    def advice(budget: int, global_kv: str, status: int = 8) -> str:
        own = yaml.safe_load(BUILT_IN.read_text("utf-8"))["int4"]
        own["kv_cache"] = {"sliding": "float16", "global": global_kv}
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"mine": own}), "utf-8")
        options = ("--recipe", str(tmp_path / "mine.yaml"), "--memory", f"{budget}B", "--context", "32768")
        return str(ask(capsys, *options, status=status)["advice"])

    enough = sparing("int8")
    assert "or an export with --global-kv int8 or" in advice(enough, "float32")
    assert "--global-kv" not in advice(enough - 1, "float32")
    assert "--global-kv" not in advice(enough - 1, "int8")
    advice(enough, "int8", status=0)


@pytest.mark.parametrize(
    ("asked", "memory", "ideas"),
    [
        (("--model", "E4B", "--recipe", "int8"), "4GiB", ["the recipe int4-hq", "the model E2B (int8)"]),
        (("--model", "E4B", "--recipe", "int8"), "3GiB", ["the recipe int4", "the model E2B (int8)"]),
        (("--model", "E4B"), "2GiB", ["the model E2B (int4-hq)"]),
        (("--model", "E2B", "--recipe", "int8"), "2GiB", ["the recipe int4-hq"]),
    ],
)
def test_what_else_would_fit(asked: tuple[str, ...], memory: str, ideas: list[str], capsys: Capture) -> None:
    advice = ask(capsys, *asked, "--memory", memory, status=8)["advice"]
    assert re.findall(r"the (?:recipe|model) [^ ]+(?: \(.*?\))?(?= or)", advice) == ideas
    for idea in ideas:
        recipe = re.findall(r"int[48](?:-hq)?", idea)[0]
        model = "E2B" if "E2B" in idea else asked[1]
        ask(capsys, "--memory", memory, "--model", model, "--recipe", recipe)


def test_an_artifact_that_does_not_fit(media_artifact: Path, capsys: Capture) -> None:
    assert run(["plan", str(media_artifact), "--memory", "80MiB"]) == 8
    out, err = capsys.readouterr()
    assert " no " in out and "headroom" not in out
    assert err.startswith("error: nothing fits 80 MiB at ") and "this model fp32 needs" in err
    assert err.count("\n") == 1 and "the recipe" not in err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--memory", "plenty"], 2, "'plenty' is not a size"),
        (["--memory", "0GiB"], 2, "the budget is 0GiB: expected more than 0"),
        (["--memory", "2GiB", "--recipe", "int3"], 2, "no recipe is called 'int3'"),
        (["--memory", "2GiB", "--context", "40000"], 2, "at most the 32768 tokens of this model"),
        (["ARTIFACT", "--memory", "2GiB", "--context", "4096"], 2, "at most the 2048 tokens of this model"),
        (["ARTIFACT", "--model", "E2B"], 2, "leave --model and --recipe out"),
        (["nowhere", "--memory", "2GiB"], 5, "expected an artifact"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], status: int, message: str, tiny_artifact: Path, capsys: Capture
) -> None:
    assert run(["plan", *(str(tiny_artifact) if a == "ARTIFACT" else a for a in arguments)]) == status
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_a_plan_needs_nothing_heavy() -> None:
    script = (
        "import sys; from edge_gemma.cli import run; status = run(['plan', '--memory', '2GiB', '--json'])\n"
        "roots = {name.partition('.')[0] for name in sys.modules}\n"
        "print(status, *roots & {'numpy', 'onnxruntime', 'onnx', 'torch', 'transformers', 'rich'})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stderr == "" and done.stdout.splitlines()[-1] == "0"


def test_an_export_for_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def export(target: str, *options: str) -> tuple[str, str]:
        command = ["export", "synthetic:tiny", "-o", str(tmp_path / target), "--device", "raspberry-pi-4-8gb"]
        assert run([*command, *options]) == 0
        return artifacts.read(tmp_path / target).manifest.recipe, capsys.readouterr().err

    recipe, err = export("first")
    assert recipe == "int4-hq"
    assert err == (
        "warning: synthetic:tiny is neither E2B nor E4B, and E2B is recommended for raspberry-pi-4-8gb: "
        "`edge-gemma plan --device raspberry-pi-4-8gb` shows what fits\n"
    )
    monkeypatch.setattr(export_cli, "model_name", lambda config: "E2B")
    assert export("second", "--recipe", "int8") == ("int8", "")
    monkeypatch.setattr(export_cli, "model_name", lambda config: "E4B")
    assert "warning: synthetic:tiny is E4B, and E2B is recommended" in export("third")[1]
    assert run(["export", "synthetic:tiny", "-o", str(tmp_path / "x"), "--device", "nokia"]) == 2
    assert not (tmp_path / "x").exists()
