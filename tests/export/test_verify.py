"""Verification passes what equals transformers and tells what differs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from edge_gemma.cli import run
from edge_gemma.errors import ArtifactError
from edge_gemma.export import verify as verification
from edge_gemma.export import verify_encoders
from edge_gemma.export.checkpoint import Checkpoint, open_checkpoint
from edge_gemma.export.parity import ParityReport
from edge_gemma.export.pipeline import export
from edge_gemma.export.verify import load_reference, verify
from edge_gemma.recipes import find_recipe

QUICK = ["--new-tokens", "4", "--prompt", "Why?", "--prompt", "Where is the station?"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tiny.Tiny:
    return tiny.make(tmp_path_factory.mktemp("verify") / "tiny")


@pytest.fixture(scope="module")
def exact(checkpoint: tiny.Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("verify") / "fp32"
    export(open_checkpoint(str(checkpoint.folder)), find_recipe("fp32"), target)
    return target


def test_an_exact_artifact_passes(checkpoint: tiny.Tiny, exact: Path) -> None:
    """At every position of the prompts and of the answers that transformers' own model gives."""
    report = verify(exact, open_checkpoint(str(checkpoint.folder)), prompts=["Why?"], new_tokens=5, chunk=4)
    assert report.max_relative_error <= 1e-4 and report.argmax_agreement == 1.0
    # <bos><start_of_turn>user⏎Why?<end_of_turn>⏎<start_of_turn>model⏎, then four of the five new tokens
    longer = verify(exact, open_checkpoint(str(checkpoint.folder)), prompts=["Why?"] * 2, new_tokens=6)
    assert longer.positions == 2 * (report.positions + 1)


def test_the_reference_is_transformers_own(checkpoint: tiny.Tiny) -> None:
    """The same weights as from_pretrained gives, tied head included."""
    loaded = load_reference(open_checkpoint(str(checkpoint.folder)))
    expected = checkpoint.model.state_dict()
    found = loaded.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name].numpy(), value.numpy(), err_msg=name)


def test_the_reference_computes_in_float32(multimodal_checkpoint: Any, tmp_path: Path) -> None:
    """Also where every part of config.json names bfloat16, as in Google's."""
    folder = shutil.copytree(multimodal_checkpoint.folder, tmp_path / "checkpoint")
    data = json.loads((folder / "config.json").read_text("utf-8"))
    for part in (data, data["text_config"], data["audio_config"], data["vision_config"]):
        part.pop("dtype", None)
        part["torch_dtype"] = "bfloat16"
    (folder / "config.json").write_text(json.dumps(data), "utf-8")
    loaded = load_reference(open_checkpoint(str(folder)))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_an_fp32_artifact_with_a_smaller_cache_has_no_limits_of_its_own(
    checkpoint: tiny.Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = str(checkpoint.folder), str(tmp_path / "artifact")
    assert run(["export", source, "-o", target, "--recipe", "fp32", "--global-kv", "int8"]) == 0
    assert run(["verify", target, "--against", source, "--json", *QUICK]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["max_relative_error"] > 1e-4


def test_command_passes_and_prints_a_table(
    checkpoint: tiny.Tiny, exact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(exact), "--against", str(checkpoint.folder), *QUICK]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.splitlines()[0] == f"{exact} (recipe fp32) against {checkpoint.folder}"
    assert "argmax agreement      100.00% (0 near ties)" in out


def test_json_has_every_measure(
    checkpoint: tiny.Tiny, exact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(exact), "--against", str(checkpoint.folder), "--json", *QUICK]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert err == "" and out.count("\n") == 1
    assert set(data) == {"artifact", "against", "recipe", "encoders"} | set(ParityReport.__annotations__)
    assert (data["artifact"], data["recipe"], data["argmax_agreement"]) == (str(exact), "fp32", 1.0)
    assert data["encoders"] == {}


def test_another_checkpoint_is_told(exact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tiny.make(tmp_path / "other", seed=1).folder
    assert run(["verify", str(exact), "--against", str(other), "--json", *QUICK]) == 7
    out, err = capsys.readouterr()
    assert json.loads(out)["max_relative_error"] > 0.1
    assert err.startswith("error: relative error ") and err.endswith(" is above 0.0001\n")


def test_limits_are_the_users(
    tiny_artifact: Path, checkpoint: tiny.Tiny, exact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A quantized artifact fails only limits that were given."""
    against = [str(tiny_artifact), "--against", "synthetic:tiny", *QUICK]
    assert run(["verify", *against]) == 0
    assert run(["verify", *against, "--max-relative-error", "1e-6"]) == 7
    assert "is above 1e-06" in capsys.readouterr().err
    assert run(["verify", *against, "--min-agreement", "1.01"]) == 7
    assert "is below 101.00%" in capsys.readouterr().err
    assert run(["verify", *against, "--max-relative-error", "100", "--min-agreement", "0"]) == 0


def test_logits_that_are_not_numbers_fail(
    checkpoint: tiny.Tiny, exact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = verification.forced_logits
    monkeypatch.setattr(
        verification, "forced_logits", lambda *args, **options: real(*args, **options) * np.float32(np.nan)
    )
    options = ["--against", str(checkpoint.folder), "--json", "--max-relative-error", "1e9"]
    assert run(["verify", str(exact), *options, *QUICK]) == 7
    out, err = capsys.readouterr()
    data = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert data["max_relative_error"] is None and data["argmax_agreement"] == 0
    assert "relative error inf is above" in err


@pytest.mark.parametrize(
    "change", [{"vocab_size": 500}, {"hidden_size": 96}, {"hidden_size_per_layer_input": 8}]
)
def test_another_shape_is_refused(exact: Path, tmp_path: Path, change: dict[str, int]) -> None:
    other = open_checkpoint(str(tiny.make(tmp_path / "other", **change).folder))
    with pytest.raises(ArtifactError, match="compare it with the checkpoint it was made from") as caught:
        verify(exact, other)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_opened(exact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(tmp_path), "--against", "synthetic:tiny"]) == 5
    assert run(["verify", str(exact), "--against", str(tmp_path)]) == 3
    assert run(["verify", str(exact), "--against", "synthetic:tiny"]) == 5
    damaged = Path(shutil.copytree(exact, tmp_path / "damaged"))
    os.truncate(damaged / "decoder_kv.onnx", 1000)
    assert run(["verify", str(damaged), "--against", "synthetic:tiny"]) == 5
    err = capsys.readouterr().err
    assert err.count("error: ") == err.count("\n") == 4


def test_encoders_are_compared(
    multimodal_checkpoint: Any, media_artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    against = ["--against", str(multimodal_checkpoint.folder)]
    assert run(["verify", str(media_artifact), *against, "--json", *QUICK]) == 0
    found = json.loads(capsys.readouterr().out)["encoders"]
    assert set(found) == {"audio", "vision"}
    for report in found.values():
        assert report["max_relative_error"] <= 1e-3 and report["snr_db"] >= 50
    assert run(["verify", str(media_artifact), *against, *QUICK]) == 0
    assert "vision: signal to noise" in capsys.readouterr().out


def test_an_encoder_of_other_weights_fails(
    multimodal_checkpoint: Any,
    media_artifact: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = verify_encoders.load_encoder

    def other(checkpoint: Checkpoint, kind: str) -> Any:
        encoder = real(checkpoint, kind)
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.mul_(1.01)
        return encoder

    monkeypatch.setattr(verify_encoders, "load_encoder", other)
    assert run(["verify", str(media_artifact), "--against", str(multimodal_checkpoint.folder), *QUICK]) == 7
    assert "of the audio encoder is above 0.001" in capsys.readouterr().err
