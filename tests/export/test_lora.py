"""Merging is PEFT's, tensor by tensor and logit by logit; what is no plain LoRA of this model is refused."""

from __future__ import annotations

import copy
import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from edge_gemma import artifact as artifacts
from edge_gemma.cli import run
from edge_gemma.errors import CheckpointError
from edge_gemma.export.checkpoint import FolderCheckpoint, open_checkpoint
from edge_gemma.export.lora import CONFIG, WEIGHTS, LoraAdapter, MergedCheckpoint
from edge_gemma.export.matformer import SlicedCheckpoint
from edge_gemma.export.parity import compare
from edge_gemma.export.pipeline import export
from edge_gemma.export.verify import forced_logits, greedy_reference
from edge_gemma.recipes import find_recipe
from edge_gemma.runtime.decoder import Decoder
from edge_gemma.runtime.embeddings import EmbeddingStore
from edge_gemma.submodels import Submodel

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # in peft

EVERYWHERE = [
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    *("per_layer_input_gate", "per_layer_projection", "per_layer_model_projection"),
    *("linear_left", "linear_right", "altup_projections.1"),
]
SETTINGS: dict[str, dict[str, Any]] = {
    "attention": {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "everything": {"r": 8, "lora_alpha": 12, "target_modules": EVERYWHERE},
    "rank-stabilized": {"r": 6, "lora_alpha": 9, "use_rslora": True, "target_modules": EVERYWHERE},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "down_proj", "per_layer_model_projection"],
        "rank_pattern": {"q_proj": 2, r"layers\.[12]\.mlp.down_proj": 3},
        "alpha_pattern": {"down_proj": 5, "per_layer_model_projection": 1},
    },
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tiny.Tiny:
    return tiny.make(tmp_path_factory.mktemp("lora") / "base")


def train(base: tiny.Tiny, folder: Path, **settings: Any) -> Any:
    """Write a random adapter to `folder`; PEFT's model with it."""
    torch.manual_seed(1)
    model = get_peft_model(copy.deepcopy(base.model), LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3 / math.sqrt(parameter.shape[-1]))
    model.save_pretrained(str(folder))
    return model


@pytest.fixture(scope="module", params=list(SETTINGS))
def trained(
    request: pytest.FixtureRequest, base: tiny.Tiny, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    """An adapter's folder, and transformers' model that PEFT merged it into."""
    folder = tmp_path_factory.mktemp("adapters") / request.param
    return folder, train(base, folder, **SETTINGS[request.param]).merge_and_unload()


@pytest.fixture(scope="module")
def plain(base: tiny.Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    train(base, folder, **SETTINGS["attention"])
    return folder


@pytest.fixture
def adapter(plain: Path, tmp_path: Path) -> Path:
    """One to damage."""
    return Path(shutil.copytree(plain, tmp_path / "adapter"))


def test_tensors_are_those_of_peft(base: tiny.Tiny, trained: tuple[Path, Any]) -> None:
    """To the bit; rows, whose product may be summed in another order, as close as float32 is."""
    folder, merged = trained
    source = FolderCheckpoint(base.folder)
    found = MergedCheckpoint(source, LoraAdapter(folder))
    expected = {name.removeprefix("model."): tensor for name, tensor in merged.state_dict().items()}
    changed = 0
    for name, shape in source.text_shapes().items():
        assert torch.equal(found.tensor(name), expected[name]), name
        changed += not torch.equal(found.tensor(name), source.tensor(name))
        if len(shape) == 2:
            first, last = shape[0] // 3, shape[0] // 2 + 1
            rows = found.rows(name, first, last)
            torch.testing.assert_close(rows, expected[name][first:last], rtol=1e-6, atol=1e-6)
    assert changed == len(LoraAdapter(folder).modules) > 3
    assert found.name == f"base+lora:{folder.name}"


def test_logits_are_those_of_peft(base: tiny.Tiny, trained: tuple[Path, Any], tmp_path: Path) -> None:
    folder, merged = trained
    checkpoint = MergedCheckpoint(open_checkpoint(str(base.folder)), LoraAdapter(folder))
    manifest = export(checkpoint, find_recipe("fp32"), tmp_path / "artifact")
    assert manifest.source.name == f"base+lora:{folder.name}"
    ids = list(range(2, 40))
    answer, expected = greedy_reference(merged, ids, 4)
    _, without = greedy_reference(base.model, ids, 4)
    opened = artifacts.read(tmp_path / "artifact")
    store = EmbeddingStore(opened.path(manifest.embeddings.file), manifest.embeddings)
    found = forced_logits(Decoder(opened), store, ids, answer, chunk=16)
    store.close()
    report = compare(found, expected)
    assert report.max_relative_error <= 1e-4 and report.argmax_agreement == 1.0
    assert compare(found[: len(ids)], without[: len(ids)]).max_relative_error > 0.01


def test_bfloat16_is_summed_in_float32(base: tiny.Tiny, adapter: Path, tmp_path: Path) -> None:
    """Where PEFT rounds the sum to the checkpoint's dtype."""
    folder = Path(shutil.copytree(base.folder, tmp_path / "base"))
    tensors = {n: t.bfloat16() for n, t in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    name, key = "layers.1.self_attn.q_proj", "base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight"
    parts = load_file(adapter / WEIGHTS)
    found = MergedCheckpoint(FolderCheckpoint(folder), LoraAdapter(adapter)).tensor(f"{name}.weight")
    expected = tensors[f"model.{name}.weight"].float() + parts[key.format("B")] @ parts[key.format("A")] * 4
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_a_submodel_is_cut_out_of_the_sum(base: tiny.Tiny, tmp_path: Path) -> None:
    train(base, tmp_path / "adapter", **SETTINGS["everything"])
    whole = MergedCheckpoint(FolderCheckpoint(base.folder), LoraAdapter(tmp_path / "adapter"))
    layers = (0, 1, 2, 3, 4, 6, 9)
    found = SlicedCheckpoint(whole, Submodel("small", layers, (96,) * 7))
    name = "layers.{}.mlp.{}.weight"
    for new, old in enumerate(layers):
        up, down = (whole.tensor(name.format(old, part)) for part in ("up_proj", "down_proj"))
        torch.testing.assert_close(found.tensor(name.format(new, "up_proj")), up[:96])
        torch.testing.assert_close(found.tensor(name.format(new, "down_proj")), down[:, :96])
    projection = whole.tensor("per_layer_model_projection.weight").view(10, 16, 64)[list(layers)]
    torch.testing.assert_close(found.tensor("per_layer_model_projection.weight"), projection.flatten(0, 1))


@pytest.mark.parametrize("prefix", ["model.language_model.", ""])
def test_other_classes_name_modules_otherwise(base: tiny.Tiny, adapter: Path, prefix: str) -> None:
    source = FolderCheckpoint(base.folder)
    names = ("layers.0.self_attn.q_proj.weight", "layers.3.self_attn.v_proj.weight")
    expected = [MergedCheckpoint(source, LoraAdapter(adapter)).tensor(name) for name in names]
    tensors = load_file(adapter / WEIGHTS)
    outer = "base_model.model."
    renamed = {name.replace(f"{outer}model.", outer + prefix): t for name, t in tensors.items()}
    save_file(renamed, adapter / WEIGHTS)
    found = MergedCheckpoint(source, LoraAdapter(adapter))
    assert all(torch.equal(found.tensor(n), t) for n, t in zip(names, expected, strict=True))


def test_towers(multimodal_checkpoint: Any, tmp_path: Path) -> None:
    """Linear layers of the encoders, under the names that the checkpoint has for them."""
    targets = r".*audio_tower.*(q_proj|linear_start)|.*embed_vision\.embedding_projection"
    model = get_peft_model(
        copy.deepcopy(multimodal_checkpoint.model), LoraConfig(r=2, target_modules=targets)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    model.save_pretrained(str(tmp_path / "adapter"))
    merged = model.merge_and_unload().state_dict()
    source = FolderCheckpoint(multimodal_checkpoint.folder)
    found = MergedCheckpoint(source, LoraAdapter(tmp_path / "adapter"))
    assert len(found._updates) == len(LoraAdapter(tmp_path / "adapter").modules) > 2
    for name in found._updates:
        assert torch.equal(found.tensor(name), merged[f"model.{name}"]), name
        assert not torch.equal(found.tensor(name), source.tensor(name))


def test_a_synthetic_source(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its shapes are the tiny checkpoint's; the command says what it merged into what."""
    command = ["export", "synthetic:tiny", "--lora", str(adapter), "--recipe", "fp32", "--json"]
    assert run([*command, "-o", str(tmp_path / "artifact")]) == 0
    out, _ = capsys.readouterr()
    assert json.loads(out)["source"] == "synthetic:tiny+lora:adapter"
    check = ["verify", str(tmp_path / "artifact"), "--new-tokens", "3", "--prompt", "Why?"]
    assert run([*check, "--against", "synthetic:tiny", "--lora", str(adapter)]) == 0
    assert run([*check, "--against", "synthetic:tiny"]) == 7


def configure(adapter: Path, **changes: Any) -> None:
    path = adapter / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def edit(adapter: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(adapter / WEIGHTS)
    change(tensors)
    save_file(tensors, adapter / WEIGHTS)


A, B = (f"base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.weight" for part in "AB")
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, f"has no {CONFIG}: expected the folder of a PEFT adapter"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), f"has no {WEIGHTS}: save the adapter as safetensors"),
    "damaged": (lambda f: (f / WEIGHTS).write_bytes(b"x"), "cannot be read"),
    "IA3": (
        lambda f: configure(f, peft_type="IA3"),
        "an adapter of type 'IA3': expected LORA; merge it with",
    ),
    "DoRA": (lambda f: configure(f, use_dora=True), "has use_dora = True: expected a plain LoRA"),
    "whole modules": (
        lambda f: configure(f, modules_to_save=["norm"]),
        "has modules_to_save = ['norm']: expected a plain LoRA",
    ),
    "something new": (lambda f: configure(f, use_more=1), "has use_more = 1: expected a plain LoRA"),
    "transposed": (lambda f: configure(f, fan_in_fan_out=True), "has fan_in_fan_out = True"),
    "biases": (lambda f: configure(f, bias="all"), "has bias = 'all'"),
    "changed base": (lambda f: configure(f, init_lora_weights="pissa"), "has init_lora_weights = 'pissa'"),
    "no rank": (lambda f: configure(f, r=None), "has None as r: expected a number above 0"),
    "a bad alpha": (lambda f: configure(f, lora_alpha="8"), "has '8' as lora_alpha"),
    "a bad pattern": (lambda f: configure(f, rank_pattern={"(": 3}), "has rank_pattern = {'(': 3}"),
    "another rank": (lambda f: configure(f, r=3), "expected two matrices of the rank 3"),
    "an unknown tensor": (
        lambda f: edit(f, lambda t: t.update({"base_model.model.lm_head.weight": torch.zeros(2, 2)})),
        "has the tensor base_model.model.lm_head.weight: expected lora_A and lora_B",
    ),
    "a half": (lambda f: edit(f, lambda t: t.pop(A)), "has only lora_B of model.layers.0.self_attn.q_proj"),
    "nothing": (lambda f: edit(f, dict.clear), "has no tensors"),
    "another module": (
        lambda f: edit(f, lambda t: [t.update({k.replace("s.0", "s.99"): t.pop(k)}) for k in (A, B)]),
        "changes model.layers.99.self_attn.q_proj, which base does not have: the adapter was trained on",
    ),
    "another shape": (
        lambda f: edit(f, lambda t: t.update({A: torch.zeros(4, 96)})),
        "changes model.layers.0.self_attn.q_proj of shape [64, 96] and that of base is [64, 64]",
    ),
}


@pytest.mark.parametrize("damage", REFUSED)
def test_what_is_refused(base: tiny.Tiny, adapter: Path, damage: str) -> None:
    act, message = REFUSED[damage]
    act(adapter)
    with pytest.raises(CheckpointError) as caught:
        MergedCheckpoint(FolderCheckpoint(base.folder), LoraAdapter(adapter))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_that_are_none(base: tiny.Tiny, adapter: Path) -> None:
    edit(adapter, lambda t: t[B].fill_(torch.nan))
    merged = MergedCheckpoint(FolderCheckpoint(base.folder), LoraAdapter(adapter))
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        merged.tensor("layers.0.self_attn.q_proj.weight")


def test_layers_that_have_no_keys_of_their_own(base: tiny.Tiny, adapter: Path) -> None:
    """Adapters of older transformers change K and V that nothing reads."""
    shared = [k.replace("layers.0.", "layers.9.").replace("q_proj", "k_proj") for k in (A, B)]
    edit(adapter, lambda t: t.update({shared[0]: torch.ones(4, 64), shared[1]: torch.ones(32, 4)}))
    merged = MergedCheckpoint(FolderCheckpoint(base.folder), LoraAdapter(adapter))
    assert "layers.9.self_attn.k_proj.weight" not in merged._updates


def test_another_base_is_a_warning(base: tiny.Tiny, adapter: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in (None, "someone/base", "/there/Base/"):
        configure(adapter, base_model_name_or_path=name)
        MergedCheckpoint(FolderCheckpoint(base.folder), LoraAdapter(adapter))
    assert caplog.messages == []
    configure(adapter, base_model_name_or_path="google/gemma-3n-E2B")
    with caplog.at_level(logging.WARNING, "edge_gemma"):
        MergedCheckpoint(FolderCheckpoint(base.folder), LoraAdapter(adapter))
    assert caplog.messages == [f"{adapter} was trained on google/gemma-3n-E2B and is merged into base"]
