"""The demo's training: what is learned from, the narrow width, the rounding, and going on after a stop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from demo import train as training
from demo.model import FULL_WIDTH, HALF_WIDTH, int4_weights, new_model, round_to_int4, use_width

CHECKPOINT = Path(__file__).parents[2] / "demo" / "checkpoint"


def test_only_answers_are_learned() -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    messages = [
        {"role": "system", "content": "You are a home assistant."},
        {"role": "user", "content": "4 + 5 ="},
        {"role": "assistant", "content": "9"},
        {"role": "user", "content": "40 + 3 ="},
        {"role": "assistant", "content": "43"},
    ]
    ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    labels = training.answer_labels(ids)
    learned = [label for label in labels if label != -100]
    assert tokenizer.decode(learned) == "9<end_of_turn>43<end_of_turn>"
    assert all(label in (-100, ids[i + 1]) for i, label in enumerate(labels[:-1]))


def test_half_width_reads_the_first_half_of_the_neurons() -> None:
    ids = torch.arange(40)[None]
    model = new_model(0).eval()
    with torch.no_grad():
        full = model(ids).logits
        use_width(model, FULL_WIDTH)
        assert torch.equal(model(ids).logits, full)
        use_width(model, HALF_WIDTH)
        half = model(ids).logits
        for layer in model.model.layers:
            layer.mlp.gate_proj.weight[HALF_WIDTH:] = 7.0
            layer.mlp.up_proj.weight[HALF_WIDTH:] = 7.0
            layer.mlp.down_proj.weight[:, HALF_WIDTH:] = 7.0
        assert torch.equal(model(ids).logits, half)
    assert not torch.allclose(half, full)


def test_rounding_has_fifteen_levels_a_block_and_is_undone() -> None:
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    rounded = round_to_int4(weight)
    for block in rounded.reshape(-1, 32):
        assert len(block.unique()) <= 15
    step = weight.reshape(-1, 32).abs().amax(dim=1) / 7
    assert ((rounded - weight).reshape(-1, 32).abs().amax(dim=1) <= step / 2 + 1e-6).all()

    model = new_model(0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with int4_weights(model):
        assert not torch.equal(model.lm_head.weight, before["lm_head.weight"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_interrupted_run_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    monkeypatch.setattr(training, "BATCH", 1)
    monkeypatch.setattr(training, "SAVE_EVERY", 2)
    monkeypatch.setattr(training, "STATE", tmp_path / "whole" / "state.pt")
    whole = training.train(tokenizer, seed=1, steps=4).state_dict()

    save = training.save_state

    def save_and_stop(*arguments: object) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "STATE", tmp_path / "cut" / "state.pt")
    monkeypatch.setattr(training, "save_state", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        training.train(tokenizer, seed=1, steps=4)
    monkeypatch.setattr(training, "save_state", save)
    resumed = training.train(tokenizer, seed=1, steps=4).state_dict()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
