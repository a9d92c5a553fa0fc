"""Sub-models: the published table, files of one's own, and what is refused."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from edge_gemma.config import FULL, TextConfig, parse_config
from edge_gemma.errors import SubmodelError
from edge_gemma.models import TEXT, text_config
from edge_gemma.recipes import load_recipes
from edge_gemma.shapes import text_shapes
from edge_gemma.submodels import (
    BUILT_IN,
    Submodel,
    apply,
    as_yaml,
    block_of,
    find_submodel,
    published,
    published_names,
)

PAGE = Path(__file__).parent.parent / "docs" / "matformer.md"
E4B = text_config("E4B")
SOURCES = (18, 19)


def own(folder: Path, text: str, config: TextConfig = E4B) -> Submodel:
    (folder / "own.yaml").write_text(text, "utf-8")
    return find_submodel(str(folder / "own.yaml"), config)


def effective(config: TextConfig) -> int:
    embeddings = ("embed_tokens.weight", "embed_tokens_per_layer.weight")
    return sum(math.prod(s) for name, s in text_shapes(config).items() if name not in embeddings)


@pytest.mark.parametrize("name", published_names())
def test_a_published_one_has_the_size_in_its_name(name: str) -> None:
    part = find_submodel(name, E4B)
    size = effective(apply(part, E4B, block=128)) / 1e9
    assert part.effective is not None and size == pytest.approx(part.effective, abs=0.02)
    if named := re.match(r"E(\d\.\d\d)B-", name):
        assert size == pytest.approx(float(named[1]), abs=0.02)


def test_the_published_ones() -> None:
    found = published(E4B)
    assert tuple(found) == published_names() and len(found) == 16
    assert found["E4B"] == Submodel("E4B", tuple(range(35)), (16_384,) * 35, 62.30, 3.98)
    assert apply(found["E4B"], E4B) == E4B
    assert apply(found["E2B"], E4B) == text_config("E2B")
    wide = {i for i, w in enumerate(found["E3.18B-layer"].widths) if w == 16_384}
    assert wide == {4, *range(9, 25), 29, 34}
    for part in found.values():
        assert set(range(35)) - set(part.layers) in (set(), {20, 21, 22, 23, 24})
        if len(part.layers) == 30:  # both numberings agree
            assert all(i < 20 for i, w in enumerate(part.widths) if w == 16_384)


def test_published_widths_follow_the_source() -> None:
    narrow = replace(E4B, intermediate_size=(256,) * 35)
    assert set(find_submodel("E2.49B-block", narrow).widths) == {128, 256}
    for other in (text_config("E2B"), replace(E4B, intermediate_size=(256,) * 34 + (128,))):
        with pytest.raises(SubmodelError, match="published sub-models are E4B's: expected 35 of one width"):
            find_submodel("E2B", other)


def test_the_shape_is_trimmed_with_the_layers() -> None:
    kept = (0, 4, 9, 12, 18, 19, 22, 24, 34)
    config = apply(Submodel("part", kept, tuple(range(128, 1280, 128))), E4B, block=128)
    assert (config.num_hidden_layers, config.num_kv_shared_layers) == (9, 3)
    assert config.intermediate_size == tuple(range(128, 1280, 128))
    assert config.activation_sparsity_pattern == (0.95,) * 3 + (0.0,) * 6
    assert [i for i, kind in zip(kept, config.layer_types, strict=True) if kind == FULL] == [4, 9, 19, 24, 34]
    assert [kept[config.kv_source(i)] for i in (6, 7, 8)] == [18, 19, 19]
    changed = ("num_hidden_layers", "num_kv_shared_layers", "intermediate_size", "layer_types")
    same = {n: getattr(E4B, n) for n in (*changed, "activation_sparsity_pattern")}
    assert replace(config, **same) == E4B


def test_where_nothing_is_shared_any_layer_can_go() -> None:
    config = parse_config(TEXT | {"num_hidden_layers": 5, "num_kv_shared_layers": 0, "intermediate_size": 64})
    for dropped in range(5):
        kept = tuple(i for i in range(5) if i != dropped)
        assert apply(Submodel("part", kept, (64,) * 4), config.text).num_kv_shared_layers == 0


@pytest.mark.parametrize(
    ("text", "layers", "widths"),
    [
        ("mine: {}", range(35), [16_384] * 35),
        ("mine: {layers: [0-19, 25, 30-31]}", [*range(20), 25, 30, 31], [16_384] * 23),
        ("mine: {drop: [0, 20-34], widths: half}", range(1, 20), [8192] * 19),
        ("mine: {drop: [0-17, 20-34], widths: [128, 256]}", [18, 19], [128, 256]),
        ("mine: {widths: {default: 128, 3-5: 256, 7: full, 9: half}}", range(35), None),
        ("mine: {layers: [18, 19], widths: {19: 512}}", [18, 19], [16_384, 512]),
    ],
)
def test_a_file_of_ones_own(text: str, layers: list[int], widths: list[int] | None, tmp_path: Path) -> None:
    found = own(tmp_path, text)
    expected = widths or [{3: 256, 4: 256, 5: 256, 7: 16_384, 9: 8192}.get(i, 128) for i in range(35)]
    assert found == Submodel("mine", tuple(layers), tuple(expected))


@pytest.mark.parametrize("name", published_names())
def test_what_is_written_is_read(name: str, tmp_path: Path) -> None:
    part = replace(find_submodel(name, E4B), name="mine", mmlu=None, effective=None)
    assert own(tmp_path, as_yaml(part)) == part
    uneven = replace(part, widths=tuple(128 * (1 + i // 3) for i in range(len(part.layers))))
    assert own(tmp_path, as_yaml(uneven)) == uneven


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {}\nb: {}", "holds 2 sub-models, expected one"),
        ("E2B: {}", "'E2B' in .* has a published one's name: choose another"),
        ("[1]", "holds list, expected sub-models by name"),
        ("mine: {mmlu: 99.0}", "unknown key 'mmlu'"),
        ("mine: {layers: [0-19], drop: [20-34]}", "both layers and drop are given, expected one of them"),
        ("mine: {drop: 20}", r"drop is 20, expected a list such as \[0-19, 25\]"),
        ("mine: {drop: [twenty]}", "drop holds 'twenty', expected a layer's number or a range"),
        ("mine: {drop: [24-20]}", "drop holds '24-20', expected a layer's number or a range"),
        ("mine: {drop: [-1]}", "drop holds -1, expected a layer's number or a range"),
        ("mine: {drop: [35]}", "drop names layer 35, expected 0 to 34"),
        ("mine: {layers: [0-19, 19]}", "layers names layer 19 twice, expected each once"),
        ("mine: {widths: wide}", "widths hold 'wide', expected a number of neurons, half or full"),
        ("mine: {widths: true}", "widths hold True, expected a number of neurons, half or full"),
        ("mine: {widths: [1, 2]}", "2 widths for 35 kept layers, expected one for each"),
        ("mine: {widths: {3: 128, 2-4: 256}}", "widths names layer 3 twice"),
        ("mine: {drop: [20], widths: {20: 128}}", "widths names layer 20, which is dropped: leave it out"),
    ],
)
def test_malformed_files(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SubmodelError, match=message) as caught:
        own(tmp_path, text)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_there_is_no_such_submodel(tmp_path: Path) -> None:
    with pytest.raises(SubmodelError, match="'E3B': choose E4B, E2B, .*, or give a .yaml file"):
        find_submodel("E3B", E4B)
    with pytest.raises(
        SubmodelError, match="does not exist: expected a sub-model file, see docs/matformer.md"
    ):
        find_submodel(str(tmp_path / "none.yaml"), E4B)


ALL, FULL_WIDTHS = tuple(range(35)), (16_384,) * 35


@pytest.mark.parametrize(
    ("layers", "widths", "message"),
    [
        ((), (), "keeps no layer: expected some of 35"),
        ((*ALL, 35), (1,) * 36, "keeps layer 35: expected layers from 0 to 34"),
        ((*SOURCES, 19), (1,) * 3, "keeps the layers .*: expected each once, in ascending order"),
        (SOURCES[::-1], (1, 1), "keeps the layers .*: expected each once, in ascending order"),
        (
            tuple(range(18)),
            (1,) * 18,
            r"drops layer 18, whose keys and values later layers read: keep \[18, 19\]",
        ),
        (tuple(i for i in ALL if i != 19), (1,) * 34, "drops layer 19, whose keys and values"),
        (SOURCES, (128,), "has 1 widths for 2 layers: expected one for each"),
        (SOURCES, (128, 0), "gives layer 19 a width of 0: expected 1 to 16384"),
        (SOURCES, (16_512, 128), "gives layer 18 a width of 16512: expected 1 to 16384"),
        (
            SOURCES,
            (128, 8200),
            "gives layer 19 a width of 8200: expected a multiple of 128, the recipe's block",
        ),
    ],
)
def test_what_cannot_be_made(layers: tuple[int, ...], widths: tuple[int, ...], message: str) -> None:
    with pytest.raises(SubmodelError, match=f"sub-model 'part' {message}") as caught:
        apply(Submodel("part", layers, widths), E4B, block=128)
    assert "\n" not in str(caught.value)


def test_blocks_matter_only_where_they_are_cut() -> None:
    odd = replace(E4B, intermediate_size=(100,) * 35)
    whole = Submodel("whole", ALL, (100,) * 35)
    assert apply(whole, odd, block=128) == odd
    part = Submodel("part", ALL, (64,) + (100,) * 34)
    assert apply(part, odd).intermediate_size[0] == 64
    with pytest.raises(SubmodelError, match="a width of 64: expected a multiple of 128"):
        apply(part, odd, block=128)
    assert {name: block_of(recipe) for name, recipe in load_recipes().items()} == {
        "fp32": 1,
        "int8": 128,
        "int4": 128,
        "int4-hq": 128,
    }


def test_the_table_in_the_docs_is_the_file() -> None:
    """One row for each entry, in its order, with the file's figures and widths."""
    entries = yaml.safe_load(BUILT_IN.read_text("utf-8"))
    rows = re.findall(r"^\| `(E[^`]+)` \| (.*) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert [name for name, _ in rows] == list(entries)
    for name, cells in rows:
        entry = entries[name]
        widths = entry.get("widths", "full")
        wide = [str(key) for key in widths if key != "default"] if isinstance(widths, dict) else []
        told = ", ".join(wide) or ("all" if widths == "full" else "none")
        dropped = ", ".join(map(str, entry.get("drop", []))) or "-"
        assert cells.split(" | ") == [f"{entry['effective']:.2f}", f"{entry['mmlu']:.2f}", dropped, told]
