"""edge-gemma plan --source: the order of sub-models, the reason, and what is proposed between two of them."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_gemma.cli import run
from edge_gemma.devices import find_device
from edge_gemma.memory import parse_bytes
from edge_gemma.models import foretell, foretell_shape, text_config
from edge_gemma.planning import CHUNKS, TURNS, plan, settle
from edge_gemma.recipes import find_recipe, load_recipes
from edge_gemma.shapes import text_shapes
from edge_gemma.submodel_choice import Chooser, explain, next_better
from edge_gemma.submodels import Submodel, apply, find_submodel, published_names

Capture = pytest.CaptureFixture[str]
GIB = 1 << 30


def chooser(gib: float, recipe: str = "int4", context: int = 8192, **options: Any) -> Chooser:
    return Chooser(find_recipe(recipe), context=context, budget=int(gib * GIB), **options)


def ask(capsys: Capture, *arguments: str, status: int = 0) -> dict[str, Any]:
    assert run(["plan", "--source", "E4B", *arguments, "--json"]) == status
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and (err == "") == (status == 0)
    found: dict[str, Any] = json.loads(out)
    return found


def test_the_best_that_fits_comes_first() -> None:
    ranked = chooser(2.2).ranked()
    fitting = [c for c in ranked if c.fits]
    assert sorted(c.name for c in ranked) == sorted(published_names())
    assert ranked[: len(fitting)] == fitting
    assert [c.name for c in fitting] == [
        *("E2.69B-layer", "E2.73B-block", "E2.54B-layer", "E2.49B-block", "E1.96B-layer", "E2B")
    ]
    others = [c.candidate.plan.peak for c in ranked[len(fitting) :]]
    assert others == sorted(others) and others[0] > 2.2 * GIB


def test_of_equal_ones_the_faster_comes_first() -> None:
    """E3.59B-layer and E3.79B-layer have 63.40 both, and E4B less."""
    names = [c.name for c in chooser(8).ranked()]
    assert names[:2] == ["E3.59B-layer", "E3.79B-layer"]
    assert names.index("E4B") == 3 and names[-1] == "E2B"


def test_memory_and_speed_are_those_of_the_shape() -> None:
    found = {c.name: c for c in chooser(8).ranked()}
    for name in ("E2B", "E4B"):
        needs = foretell(name, find_recipe("int4"))
        assert found[name].candidate.needs == needs
        whole = foretell("E4B", find_recipe("int4")).decoder.weights
        assert found[name].speed == pytest.approx(whole / needs.decoder.weights)
    assert found["E4B"].speed == 1.0 and 1.7 < found["E2B"].speed < 1.9


def test_what_the_next_better_one_needs_is_enough() -> None:
    first = chooser(2.2)
    said = explain(first.ranked())
    assert said.startswith("E2.69B-layer has the highest published MMLU, 57.70, of the 6 that fit 2.20 GiB; ")
    better = next_better(first.ranked())
    assert (
        better is not None and f"the next better, {better.name} ({better.mmlu:.2f}), needs 2.26 GiB" in said
    )
    budget = better.candidate.plan.peak
    assert Chooser(first.recipe, context=8192, budget=budget).ranked()[0].name == better.name
    assert Chooser(first.recipe, context=8192, budget=budget - 1).ranked()[0].name == "E2.69B-layer"
    assert explain(chooser(8).ranked()).endswith(
        "of the 16 that fit 8.00 GiB, and no published one has a higher one"
    )


def test_encoders_that_are_left_out_take_nothing() -> None:
    kept = chooser(2, encoders=["audio"]).ranked()[0].candidate
    assert list(kept.needs.encoders) == ["audio"] and set(kept.plan.phases) == {"load", "text", "audio"}
    assert not chooser(2, encoders=[]).ranked()[0].candidate.needs.encoders


@pytest.mark.parametrize(
    ("recipe", "budget"),
    [("int4", 2.1), ("int4", 2.2), ("int4", 2.3), ("int4", 2.4), ("int8", 3.5), ("int8", 4), ("fp32", 14)],
)
def test_a_proposal_uses_the_budget_up(recipe: str, budget: float) -> None:
    """Layers that the next better one has wider grow, from the last on; 128 neurons more would not fit."""
    asked = chooser(budget, recipe)
    ranked = asked.ranked()
    found, better = asked.between(ranked), next_better(ranked)
    assert found is not None and better is not None
    first, goal, grown = (
        dict(zip(c.submodel.layers, c.submodel.widths, strict=True)) for c in (ranked[0], better, found)
    )
    assert found.fits and list(grown) == list(first)
    could = [i for i in grown if goal[i] > first[i]]
    widened = [i for i in grown if grown[i] > first[i]]
    assert widened and widened == could[-len(widened) :]
    assert all(grown[i] == goal[i] for i in widened[1:]) and grown[widened[0]] % 128 == 0
    added = sum(grown[i] - first[i] for i in widened)
    share = added / sum(goal[i] - first[i] for i in could)
    assert found.mmlu == pytest.approx(ranked[0].mmlu + share * (better.mmlu - ranked[0].mmlu))
    assert effective(found.submodel) - effective(ranked[0].submodel) == 3 * 2048 * added

    next_layer = widened[0] if grown[widened[0]] < goal[widened[0]] else could[-len(widened) - 1]
    more = replace(found.submodel, widths=tuple(w + 128 * (i == next_layer) for i, w in grown.items()))
    needs = foretell_shape(apply(more, text_config("E4B")), asked.recipe)
    assert not plan(needs, context=8192, budget=asked.budget).fits


def effective(submodel: Submodel) -> int:
    """Parameters without embeddings."""
    shapes = text_shapes(apply(submodel, text_config("E4B")))
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.startswith("embed_"))


@pytest.mark.parametrize("budget", [1.75, 2.0, 2.5, 3])
def test_where_nothing_is_proposed(budget: float) -> None:
    """The next better one has what the first drops; is hardly better; does not exist."""
    asked = chooser(budget)
    assert asked.ranked()[0].fits and asked.between(asked.ranked()) is None


def test_a_proposal_is_exported_as_it_was_proposed(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "between.yaml"
    found = ask(capsys, "--memory", "2.2GiB", "--context", "8192", "--propose", str(file))
    proposal = found["proposal"]
    assert "interpolated" in file.read_text("utf-8").splitlines()[0]
    part = find_submodel(str(file), text_config("E4B"))
    assert part.name == proposal["submodel"] == f"E{proposal['effective_parameters'] / 1e9:.2f}B-proposed"
    assert (list(part.layers), list(part.widths)) == (proposal["layers"], proposal["widths"])
    assert 57.7 < proposal["mmlu"] < 59.5 and proposal["peak_bytes"] <= parse_bytes("2.2GiB")


def test_the_json(capsys: Capture) -> None:
    found = ask(capsys, "--memory", "2.2GiB")
    assert (found["source"], found["context"], found["device"]) == ("E4B", 4096, None)
    assert found["reason"].startswith("E2.69B-layer has") and found["advice"] is None
    first = found["candidates"][0]
    assert (first["submodel"], first["mmlu"], first["recipe"], first["fits"]) == (
        *("E2.69B-layer", 57.7, "int4", True),
    )
    assert first["relative_speed"] == pytest.approx(1.374) and len(first["widths"]) == 35
    assert first["peak_bytes"] == max(sum(parts.values()) for parts in first["phases"].values())


def test_a_device_gives_budget_context_and_recipe(capsys: Capture) -> None:
    device = find_device("raspberry-pi-4-8gb")
    found = ask(capsys, "--device", device.name)
    assert (found["device"], found["budget_bytes"], found["context"]) == (
        *(device.name, device.budget, device.context),
    )
    assert {c["recipe"] for c in found["candidates"]} == {device.recipe}
    other = ask(capsys, "--device", device.name, "--recipe", "int8")
    assert {c["recipe"] for c in other["candidates"]} == {"int8"}
    assert set(load_recipes()) >= {"int8", device.recipe}


def test_the_page(capsys: Capture) -> None:
    assert run(["plan", "--source", "E4B", "--memory", "2.2GiB", "--context", "8192"]) == 0
    out, err = capsys.readouterr()
    table, reason, chart = out.split("\n\n")
    assert err == "" and len(table.splitlines()) == 18
    assert "MMLU as Google published it, relative speed by bytes read" in table.splitlines()[0]
    assert table.splitlines()[2].split()[:4] == ["E2.69B-layer", "yes", "57.70", "2.69"]
    assert "unpublished, quality interpolated: MMLU 58.5, 2.20 GiB" in reason
    assert chart.startswith("E2.69B-layer int4: global KV in float16") and "headroom" in chart


def test_nothing_fits(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "between.yaml"
    found = ask(capsys, "--memory", "1GiB", "--propose", str(file), status=8)
    assert found["reason"] is None and found["proposal"] is None and not file.exists()
    assert found["advice"].startswith("nothing fits 1.00 GiB at 4096 tokens of context, E2B int4 needs 1.")
    (enough,) = re.findall(r"a budget of (\w+)$", found["advice"])
    assert ask(capsys, "--memory", enough)["candidates"][0]["submodel"] == "E2B"
    smallest = settle(
        foretell("E2B", find_recipe("int4")), context=4096, global_kv="int8", chunk=CHUNKS[-1], encoders=TURNS
    )
    assert parse_bytes(enough) - smallest.peak < 1 << 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "E4B", "--model", "E2B"], "leave ARTIFACT and --model out"),
        (["--source", "E4B", "somewhere"], "leave ARTIFACT and --model out"),
        (["--propose", "x.yaml"], "--propose is about sub-models: give --source E4B, too"),
        (["--source", "E4B", "--context", "40000"], "at most the 32768 tokens of this model"),
        (["--source", "E4B", "--recipe", "int3"], "no recipe is called 'int3'"),
    ],
)
def test_refused_before_anything_is_printed(arguments: list[str], message: str, capsys: Capture) -> None:
    assert run(["plan", "--memory", "3GiB", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and message in err


@pytest.mark.parametrize(
    ("memory", "file", "message"),
    [
        ("3GiB", "x.yaml", "nothing notable lies between the best that fits and the next better one"),
        ("2.2GiB", "x.json", "expected a file that ends in .yaml"),
        ("2.2GiB", "none/x.yaml", "cannot be written: No such file or directory"),
    ],
)
def test_a_proposal_that_cannot_be_written(
    memory: str, file: str, message: str, tmp_path: Path, capsys: Capture
) -> None:
    target = tmp_path / file
    arguments = ["plan", "--source", "E4B", "--memory", memory, "--context", "8192", "--propose", str(target)]
    assert run(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert not target.exists()


def test_ranking_needs_nothing_heavy() -> None:
    script = (
        "import sys; from edge_gemma.cli import run\n"
        "status = run(['plan', '--source', 'E4B', '--memory', '2GiB', '--json'])\n"
        "roots = {name.partition('.')[0] for name in sys.modules}\n"
        "print(status, *roots & {'numpy', 'onnxruntime', 'onnx', 'torch', 'transformers', 'rich'})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stderr == "" and done.stdout.splitlines()[-1] == "0"
