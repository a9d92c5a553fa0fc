"""Tensors come out the same however they are stored, and a checkpoint that cannot be read says why."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import tiny
import torch
from huggingface_hub import errors as hub_errors
from safetensors.torch import load_file, save_file

from edge_gemma.errors import CheckpointError
from edge_gemma.export.checkpoint import HUB_FILES, FolderCheckpoint, open_checkpoint
from edge_gemma.export.pipeline import export
from edge_gemma.recipes import find_recipe
from edge_gemma.shapes import is_read, text_shapes

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("original") / "tiny").folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(original, tmp_path / "checkpoint"))


def shard(folder: Path, count: int = 3) -> None:
    """Split model.safetensors into shards and an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for i in range(count):
        name = f"model-{i + 1:05}-of-{count:05}.safetensors"
        part = {n: tensors[n] for n in sorted(tensors)[i::count]}
        save_file(part, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), "utf-8")


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(CheckpointError) as caught:
        action()
    assert "\n" not in str(caught.value) and caught.value.exit_code == 3
    return str(caught.value)


@pytest.mark.parametrize("prefix", ["model.language_model.", "model.", ""])
@pytest.mark.parametrize("sharded", [False, True])
def test_every_layout_gives_the_same_tensors(
    folder: Path, original: Path, prefix: str, sharded: bool
) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors = {n.replace("model.", prefix, 1): t for n, t in tensors.items() if n.startswith("model.")}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    if sharded:
        shard(folder)
    found, expected = open_checkpoint(str(folder)), load_file(original / "model.safetensors")
    shapes = found.text_shapes()
    assert shapes == {n.removeprefix("model."): tuple(t.shape) for n, t in expected.items()}
    for name, shape in shapes.items():
        assert found.has(name)
        assert torch.equal(found.tensor(name), expected[f"model.{name}"])
        if len(shape) == 2:
            first, last = shape[0] // 3, shape[0] // 2 + 1
            assert torch.equal(found.rows(name, first, last), expected[f"model.{name}"][first:last])
    assert not found.has("layers.99.mlp.up_proj.weight")


def test_shapes_are_those_of_the_configuration(original: Path) -> None:
    checkpoint = FolderCheckpoint(original)
    config = checkpoint.config.text
    expected = {n: s for n, s in text_shapes(config).items() if is_read(config, n)}
    assert checkpoint.text_shapes() == expected
    assert {n.split(".")[1] for n in set(text_shapes(config)) - set(expected)} == set("56789")


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.001, 0.5, 0.99, 0.99999])
@pytest.mark.parametrize("sharded", [False, True])
def test_truncated_weights(folder: Path, share: float, sharded: bool) -> None:
    path = folder / "model.safetensors"
    if sharded:
        shard(folder)
        path = folder / "model-00002-of-00003.safetensors"
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    assert f"{path} cannot be read (" in refusal(lambda: open_checkpoint(str(folder)))


def test_weights_that_are_cut_short_after_opening(folder: Path) -> None:
    checkpoint = open_checkpoint(str(folder))
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "truncated or damaged" in refusal(lambda: checkpoint.tensor("norm.weight"))
    assert "truncated or damaged" in refusal(lambda: checkpoint.rows("embed_tokens.weight", 0, 1))
    assert "truncated or damaged" in refusal(checkpoint.text_shapes)


def edit_index(folder: Path, change: Any) -> None:
    shard(folder)
    (folder / INDEX).write_text(json.dumps(change), "utf-8")


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def drop(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def missing_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config.json": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "another model": (
        lambda f: (f / "config.json").write_text('{"model_type": "llama"}', "utf-8"),
        "describes a model of type 'llama': expected Gemma 3n",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
    "a missing shard": (missing_shard, f"00002-of-00003.safetensors is missing, {INDEX} names it"),
    "an index without map": (lambda f: edit_index(f, {"metadata": {}}), "has no weight_map"),
    "an index of lists": (lambda f: edit_index(f, {"weight_map": {"a": ["b"]}}), "has no weight_map"),
    "an index that is a list": (lambda f: edit_index(f, []), "holds list, expected a JSON object"),
    "an empty index": (lambda f: edit_index(f, {"weight_map": {}}), "has no embed_tokens_per_layer.weight"),
    "quantized": (
        lambda f: edit_config(f, quantization_config={"quant_method": "compressed-tensors"}),
        "is quantized already (quant_method 'compressed-tensors'): expected weights in bfloat16",
    ),
    "an unreadable index": (lambda f: (f / INDEX).write_bytes(b"\xff"), "is not valid JSON"),
    "Gemma 3's weights": (
        lambda f: drop(f, "model.embed_tokens_per_layer.weight"),
        "has no embed_tokens_per_layer.weight: expected the weights of a Gemma 3n model",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_cannot_be_opened(folder: Path, damage: str) -> None:
    act, message = DAMAGE[damage]
    act(folder)
    assert message in refusal(lambda: open_checkpoint(str(folder)))


def wrong_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(8, 8)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def spoil(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][3, 3] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def retype(folder: Path, dtype: torch.dtype) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(dtype)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


LATER: dict[str, tuple[Callable[[Path], object], str]] = {
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "a bad tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}", "utf-8"), "cannot be read"),
    "no chat template": (lambda f: (f / "chat_template.jinja").unlink(), "has no chat template: expected"),
    "a chat template in Latin-1": (
        lambda f: (f / "chat_template.jinja").write_bytes(b"caf\xe9"),
        "chat_template.jinja is not UTF-8 text",
    ),
    "int8 codes": (lambda f: retype(f, torch.int8), "is of int8: expected bfloat16, float16 or float32"),
    "float8": (lambda f: retype(f, torch.float8_e4m3fn), "is of float8_e4m3fn: expected bfloat16"),
    "a missing tensor": (
        lambda f: drop(f, "model.layers.7.mlp.up_proj.weight"),
        "has no tensor layers.7.mlp.up_proj.weight",
    ),
    "a wrong shape": (wrong_shape, "up_proj.weight of shape [8, 8], its config.json expects [128, 64]"),
    "not a number": (spoil, "model.safetensors holds NaN or infinity"),
    "bad stop ids": (
        lambda f: (f / "generation_config.json").write_text('{"eos_token_id": ["x"]}', "utf-8"),
        "generation_config.json",
    ),
}


@pytest.mark.parametrize("damage", LATER)
def test_what_an_export_finds(folder: Path, tmp_path: Path, damage: str) -> None:
    act, message = LATER[damage]
    act(folder)
    checkpoint = open_checkpoint(str(folder))
    assert message in refusal(lambda: export(checkpoint, find_recipe("int8"), tmp_path / "artifact"))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def test_a_chat_template_inside_the_tokenizer_configuration(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}', "utf-8")
    assert open_checkpoint(str(folder)).chat_template() == "{{ messages }}"


def test_sources_that_do_not_exist(tmp_path: Path) -> None:
    assert "does not exist: expected" in refusal(lambda: open_checkpoint(str(tmp_path / "nowhere")))
    assert "does not exist: expected" in refusal(lambda: open_checkpoint("nowhere"))
    (tmp_path / "file").touch()
    assert "is a file: expected a checkpoint folder" in refusal(
        lambda: open_checkpoint(str(tmp_path / "file"))
    )
    for name in (
        "synthetic:",
        "synthetic:E9B",
        "synthetic:tiny:x",
        "synthetic:tiny:1:2",
        "synthetic:tiny:-1",
    ):
        assert "is not a synthetic checkpoint" in refusal(lambda name=name: open_checkpoint(name))


def http_error(kind: type[Exception]) -> Exception:
    """One of the hub's errors, whose response comes from whichever HTTP library it uses."""
    response: Any = SimpleNamespace(headers={}, request=None, status_code=403)
    return kind("403 Client Error.\n\nAccess is restricted.", response=response)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (hub_errors.LocalEntryNotFoundError("offline\nand not cached"), "the hub cannot be reached"),
        (http_error(hub_errors.GatedRepoError), "403 Client Error. (Gemma is gated: accept its terms"),
        (http_error(hub_errors.RepositoryNotFoundError), "403 Client Error."),
        (http_error(hub_errors.RevisionNotFoundError), "403 Client Error."),
        (hub_errors.HFValidationError("bad id"), "bad id"),
        (hub_errors.OfflineModeIsEnabled("offline"), "offline"),
        (hub_errors.HTTPError("the HTTP library's own"), "the HTTP library's own"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (ConnectionError(), "ConnectionError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_hub_refuses(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = refusal(lambda: open_checkpoint("google/gemma-3n-E2B-it"))
    assert found.startswith("no folder 'google/gemma-3n-E2B-it' exists and the hub ") and message in found


def test_the_hub_is_asked_for_what_is_needed(monkeypatch: pytest.MonkeyPatch, original: Path) -> None:
    calls: list[tuple[Any, ...]] = []

    def download(*arguments: Any, **options: Any) -> str:
        calls.append((arguments, options))
        return str(original)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    checkpoint = open_checkpoint("owner/name", revision="v2", token="secret")
    assert (checkpoint.name, checkpoint.revision) == ("owner/name", original.name)
    options = {"revision": "v2", "token": "secret", "allow_patterns": HUB_FILES}
    assert calls == [(("owner/name",), options)]
    kept = huggingface_hub.utils.filter_repo_objects(
        ["config.json", "model-00001-of-00003.safetensors", INDEX, "tokenizer.json", "tokenizer_config.json"]
        + ["generation_config.json", "chat_template.jinja", "pytorch_model.bin", "README.md"],
        allow_patterns=HUB_FILES,
    )
    assert len(list(kept)) == 7


def test_reading_rows_does_not_keep_the_file_in_memory(original: Path, tmp_path: Path) -> None:
    """All rows of a 300 MB file, in a process of its own."""
    folder = Path(shutil.copytree(original, tmp_path / "large"))
    rows = 600_000
    tensors = {"model.embed_tokens_per_layer.weight": torch.ones(rows, 128)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    script = (
        "import sys; from edge_gemma.export.checkpoint import open_checkpoint\n"
        "from edge_gemma.memory import peak_resident_bytes\n"
        "checkpoint = open_checkpoint(sys.argv[1]); before = peak_resident_bytes()\n"
        f"total = sum(float(checkpoint.rows('embed_tokens_per_layer.weight', i, i + 1000).sum())"
        f" for i in range(0, {rows}, 1000))\n"
        "print(int(total), peak_resident_bytes() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True
    )
    total, growth = map(int, done.stdout.split())
    assert total == rows * 128
    assert (folder / "model.safetensors").stat().st_size > 290 << 20
    assert growth < 120 << 20
