"""An exported sub-model computes what transformers computes with the sliced weights.

The rules of slicing are written here a second time, on whole state dicts.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

from edge_gemma import artifact as artifacts
from edge_gemma.errors import CheckpointError
from edge_gemma.export.checkpoint import Checkpoint, FolderCheckpoint
from edge_gemma.export.matformer import EMBEDDINGS, PROJECTION, SlicedCheckpoint
from edge_gemma.export.parity import compare
from edge_gemma.export.pipeline import count_parameters, export
from edge_gemma.export.synthetic import TINY_TEXT, SyntheticCheckpoint
from edge_gemma.export.verify import forced_logits, greedy_reference
from edge_gemma.recipes import find_recipe
from edge_gemma.runtime.decoder import Decoder
from edge_gemma.runtime.embeddings import EmbeddingStore
from edge_gemma.submodels import Submodel, find_submodel, published_names

Tensors = dict[str, torch.Tensor]
PROMPT, ANSWER, CHUNK = 24, 6, 10  # tokens; the window is 16
SOURCES = {18, 19}  # layers whose keys and values the last 15 of 35 read
PUBLISHED = [name for name in published_names() if name != "E4B"]


# Factors by which a random model of 35 layers amplifies rounding less; each path still counts.
MILDER = {"q_norm.": 0.25, "coefs.": 0.2, "post_": 0.5}


class Loaded(FolderCheckpoint):
    """A folder read into memory once: its many small tensors take longer to find than to compute with."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.held = {name: super(Loaded, self).tensor(name) for name in self.text_shapes()}

    def tensor(self, name: str) -> torch.Tensor:
        return self.held[name]

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        return self.held[name][first:last]


@dataclass(frozen=True)
class Source:
    """A random checkpoint of E4B's pattern, and transformers' model of it."""

    checkpoint: Checkpoint
    model: Any


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    made = tiny.make(tmp_path_factory.mktemp("checkpoints") / "as-e4b", **tiny.AS_E4B)
    with torch.no_grad():
        for name, parameter in made.model.named_parameters():
            for part, factor in MILDER.items():
                parameter.mul_(factor if part in name else 1.0)
    made.model.save_pretrained(made.folder)
    return Source(Loaded(made.folder), made.model)


def sliced_state(state: Tensors, layers: list[int], widths: list[int], per_layer: int) -> Tensors:
    """The state dict of a sub-model, by the rules of shared/DESIGN.md; names without a prefix."""
    count = state["per_layer_model_projection.weight"].shape[0] // per_layer
    found: Tensors = {}
    for name, tensor in state.items():
        if name.startswith("layers."):
            _, number, rest = name.split(".", 2)
            if int(number) not in layers:
                continue
            new = layers.index(int(number))
            width = widths[new]
            if "gate_proj" in rest or "up_proj" in rest:
                tensor = tensor[:width]
            elif "down_proj" in rest:
                tensor = tensor[:, :width]
            name = f"layers.{new}.{rest}"
        elif name == "embed_tokens_per_layer.weight":
            tensor = tensor.view(-1, count, per_layer)[:, layers].flatten(1)
        elif name == "per_layer_model_projection.weight":
            tensor = tensor.view(count, per_layer, -1)[layers].flatten(0, 1)
        found[name] = tensor.contiguous()
    return found


def sliced_model(source: Source, layers: list[int], widths: list[int]) -> Any:
    """transformers' model of the sub-model, float32, eager attention."""
    config = copy.deepcopy(source.model.config)
    config.num_kv_shared_layers = sum(layer >= 20 for layer in layers)
    config.num_hidden_layers = len(layers)
    config.intermediate_size = widths
    config.layer_types = [config.layer_types[i] for i in layers]
    config.activation_sparsity_pattern = [config.activation_sparsity_pattern[i] for i in layers]
    state = {name.removeprefix("model."): t for name, t in source.model.state_dict().items()}
    head = state.pop("lm_head.weight")
    model = Gemma3nForCausalLM(config).eval()
    here = sliced_state(state, layers, widths, config.hidden_size_per_layer_input)
    model.load_state_dict({"lm_head.weight": head} | {f"model.{name}": t for name, t in here.items()})
    return model


def random_submodel(seed: int) -> Submodel:
    """Any layers but the sources dropped, any widths, divisible by nothing."""
    random = np.random.default_rng(seed)
    kept = [i for i in range(35) if i in SOURCES or random.random() < 0.7]
    return Submodel(f"random-{seed}", tuple(kept), tuple(random.integers(1, 257, len(kept)).tolist()))


@pytest.mark.parametrize("name", [*PUBLISHED, *range(10)])
def test_equals_transformers_on_sliced_weights(name: str | int, source: Source, tmp_path: Path) -> None:
    checkpoint = source.checkpoint
    part = random_submodel(name) if isinstance(name, int) else find_submodel(name, checkpoint.config.text)
    sliced = SlicedCheckpoint(checkpoint, part)
    manifest = export(sliced, find_recipe("fp32"), tmp_path / "artifact")
    assert (manifest.submodel, manifest.source.name) == (part.name, "as-e4b")
    model = sliced_model(source, list(part.layers), list(part.widths))
    assert manifest.parameters.text == sum(p.numel() for p in model.parameters())
    assert Gemma3nTextConfig.from_dict(sliced.config_json).to_dict() == model.config.to_dict()

    ids = np.random.default_rng(1).integers(0, 400, PROMPT).tolist()
    answer, _ = greedy_reference(model, ids, ANSWER)
    with torch.no_grad():
        expected = model.double()(input_ids=torch.tensor([ids + answer[:-1]])).logits[0].numpy()
    opened = artifacts.read(tmp_path / "artifact")
    store = EmbeddingStore(opened.path("embeddings.bin"), manifest.embeddings)
    report = compare(forced_logits(Decoder(opened, threads=1), store, ids, answer, chunk=CHUNK), expected)
    assert report.positions == PROMPT + ANSWER - 1
    assert report.max_relative_error <= 1e-4
    assert report.argmax_agreement == 1.0


def test_quantized_after_slicing(source: Source, tmp_path: Path) -> None:
    """The files of E2B out of E4B are those of a checkpoint that holds the slice alone."""
    checkpoint = source.checkpoint
    part = find_submodel("E2B", checkpoint.config.text)
    sliced = SlicedCheckpoint(checkpoint, part, block=128)
    sliced_model(source, list(part.layers), list(part.widths)).save_pretrained(tmp_path / "slice")
    tiny.write_tokenizer(tmp_path / "slice", tiny.BASE["vocab_size_per_layer_input"])
    found = export(sliced, find_recipe("int4"), tmp_path / "found")
    expected = export(FolderCheckpoint(tmp_path / "slice"), find_recipe("int4"), tmp_path / "expected")
    assert found.files == expected.files
    assert (found.submodel, expected.submodel) == ("E2B", None)


def test_parameters_of_e2b_out_of_e4b() -> None:
    checkpoint = SyntheticCheckpoint.from_name("synthetic:E4B")
    part = find_submodel("E2B", checkpoint.config.text)
    counted = count_parameters(SlicedCheckpoint(checkpoint, part, block=128))
    assert (counted.text, counted.effective) == (4_456_156_768, 1_905_495_648)
    assert counted.text - counted.effective == 262_144 * 30 * 256 + 262_400 * 2048


@st.composite
def slices(draw: st.DrawFn) -> tuple[SyntheticCheckpoint, Submodel]:
    """A checkpoint of any shape and a sub-model of it."""
    count = draw(st.integers(4, 12))
    shared = draw(st.integers(0, count - 2))
    kinds = draw(st.lists(st.sampled_from([tiny.S, tiny.F]), min_size=count, max_size=count))
    owning = count - shared
    kinds[:2] = [tiny.S, tiny.F]
    full = draw(st.lists(st.integers(1, 40), min_size=count, max_size=count))
    config = TINY_TEXT | {
        "vocab_size": 70,
        "vocab_size_per_layer_input": 64,
        "hidden_size": draw(st.sampled_from([8, 24])),
        "hidden_size_per_layer_input": draw(st.sampled_from([2, 5])),
        "num_hidden_layers": count,
        "num_kv_shared_layers": shared,
        "layer_types": kinds,
        "intermediate_size": full,
        "activation_sparsity_pattern": [i / count for i in range(count)],
    }
    needed = {max(i for i in range(owning) if kinds[i] == kind) for kind in kinds[owning:]}
    kept = sorted(needed | draw(st.sets(st.integers(0, count - 1), min_size=1)))
    widths = [draw(st.integers(1, full[i])) for i in kept]
    return SyntheticCheckpoint("drawn", config, 0), Submodel("drawn", tuple(kept), tuple(widths))


@settings(max_examples=40)
@given(slices(), st.data())
def test_every_tensor_is_the_slice(drawn: tuple[SyntheticCheckpoint, Submodel], data: st.DataObject) -> None:
    checkpoint, part = drawn
    state = {name: checkpoint.tensor(name) for name in checkpoint.text_shapes()}
    width = checkpoint.config.text.hidden_size_per_layer_input
    expected = sliced_state(state, list(part.layers), list(part.widths), width)
    sliced = SlicedCheckpoint(checkpoint, part)
    assert sliced.text_shapes() == {name: tuple(t.shape) for name, t in expected.items()}
    for name, tensor in expected.items():
        assert torch.equal(sliced.tensor(name), tensor), name
        assert sliced.has(name)
        if tensor.ndim == 2:
            first = data.draw(st.integers(0, len(tensor) - 1))
            last = data.draw(st.integers(first + 1, len(tensor)))
            assert torch.equal(sliced.rows(name, first, last), tensor[first:last]), name
    behind = f"layers.{len(part.layers)}.input_layernorm.weight"
    assert not sliced.has(behind)
    with pytest.raises(CheckpointError, match=f"has no tensor {behind} in drawn, which has"):
        sliced.tensor(behind)
    config = sliced.config.text
    assert config.activation_sparsity_pattern == tuple(
        i / checkpoint.config.text.num_hidden_layers for i in part.layers
    )
    for new, old in enumerate(part.layers):
        assert part.layers[config.kv_source(new)] == checkpoint.config.text.kv_source(old)


class Recorder(SyntheticCheckpoint):
    """Notes how many rows are read at once."""

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        self.read = {**getattr(self, "read", {}), name: getattr(self, "read", {}).get(name, 0) + last - first}
        return super().rows(name, first, last)

    def tensor(self, name: str) -> torch.Tensor:
        assert name != EMBEDDINGS and "gate" not in name and "up_proj" not in name, f"{name} was read whole"
        return super().tensor(name)


def test_only_what_is_asked_for_is_read() -> None:
    checkpoint = Recorder("recorder", TINY_TEXT | {"num_hidden_layers": 10}, 0)
    sliced = SlicedCheckpoint(checkpoint, Submodel("part", (1, 3, 4, 7), (64,) * 4))
    assert sliced.rows(EMBEDDINGS, 5, 12).shape == (7, 64)
    assert sliced.rows(PROJECTION, 8, 40).shape == (32, 64)
    assert sliced.tensor("layers.2.mlp.gate_proj.weight").shape == (64, 64)
    assert checkpoint.read == {EMBEDDINGS: 7, PROJECTION: 32, "layers.4.mlp.gate_proj.weight": 64}


def test_everything_else_is_the_sources() -> None:
    media: Checkpoint = SyntheticCheckpoint.from_name("synthetic:tiny-media")
    count = media.config.text.num_hidden_layers
    part = Submodel("part", tuple(i for i in range(count) if i != 6), (64,) * (count - 1))
    sliced: Checkpoint = SlicedCheckpoint(media, part)
    before = json.dumps(media.config_json)
    assert sliced.config.audio == media.config.audio and sliced.config.token_ids == media.config.token_ids
    changed = {"num_hidden_layers", "num_kv_shared_layers", "intermediate_size", "layer_types"}
    for name, value in media.config_json["text_config"].items():
        if name not in changed | {"activation_sparsity_pattern"}:
            assert sliced.config_json["text_config"][name] == value
    assert {k: v for k, v in sliced.config_json.items() if k != "text_config"} == {
        k: v for k, v in media.config_json.items() if k != "text_config"
    }
    assert json.dumps(media.config_json) == before
    assert sliced.tokenizer_json() == media.tokenizer_json()
    assert sliced.chat_template() == media.chat_template()
    assert sliced.generation_config() == media.generation_config()
    assert sliced.image_processor() == media.image_processor()
    tower = "audio_tower.subsample_conv_projection.input_proj_linear.weight"
    assert sliced.has(tower) and torch.equal(sliced.tensor(tower), media.tensor(tower))


def test_a_shape_that_is_not_the_configs_is_shown() -> None:
    """So that the export refuses the source, whatever is sliced."""
    checkpoint = SyntheticCheckpoint.from_name("synthetic:tiny")
    damaged = "layers.3.mlp.gate_proj.weight"
    checkpoint._text = checkpoint._text | {damaged: (100, 64)}
    sliced = SlicedCheckpoint(checkpoint, Submodel("part", tuple(range(1, 10)), (64,) * 9))
    shapes = sliced.text_shapes()
    assert shapes["layers.2.mlp.gate_proj.weight"] == (100, 64)
    assert shapes["layers.2.mlp.up_proj.weight"] == (64, 64)
