"""The demo's training: what is learned from, the narrow width, the rounding, and going on after a stop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from demo import loop
from demo.clips import Clip
from demo.conversations import answer_labels, mixed_batch, picture_batch, speech_batch
from demo.model import AUDIO_TOKENS, FULL_WIDTH, HALF_WIDTH, IMAGE_TOKENS, new_model, use_width
from demo.rounding import int4_weights, round_to_int4
from demo.speech import SPANISH, Sentence
from demo.tokenizer import AUDIO_OFFSET, VISION_OFFSET, write_tokenizer
from demo.train import KINDS, STAGE, loss_of, train_together


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    """Noise in the place of speech, short."""
    rng = np.random.default_rng(0)
    sentence = Sentence("Lock the back door", "Bloquea la puerta trasera")
    return [
        Clip(sentence, SPANISH, ("b", "l", "o"), rng.integers(-9000, 9000, 3000 + 50 * i).astype(np.int16))
        for i in range(16)
    ]


def test_only_answers_are_learned(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [
        {"role": "system", "content": "You are a home assistant."},
        {"role": "user", "content": "4 + 5 ="},
        {"role": "assistant", "content": "9"},
        {"role": "user", "content": "40 + 3 ="},
        {"role": "assistant", "content": "43"},
    ]
    ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    labels = answer_labels(ids)
    learned = [label for label in labels if label != -100]
    assert tokenizer.decode(learned) == "9<end_of_turn>43<end_of_turn>"
    assert all(label in (-100, ids[i + 1]) for i, label in enumerate(labels[:-1]))


def test_batches_hold_as_many_soft_tokens_as_media(
    tokenizer: PreTrainedTokenizerBase, clips: list[Clip]
) -> None:
    for batch in (
        speech_batch(tokenizer, clips[:3], 1),
        picture_batch(tokenizer, 1, 2),
        mixed_batch(tokenizer, clips[:5], 1),
    ):
        images = 0 if batch.images is None else len(batch.images)
        heard = 0 if batch.mel is None else len(batch.mel)
        assert (batch.ids == VISION_OFFSET + 1).sum() == images * IMAGE_TOKENS
        assert (batch.ids == AUDIO_OFFSET + 1).sum() == heard * AUDIO_TOKENS
        assert batch.ids.shape == batch.labels.shape
        assert (batch.labels != -100).any(dim=1).all()


def test_loss_is_that_of_transformers(tokenizer: PreTrainedTokenizerBase, clips: list[Clip]) -> None:
    model = new_model(0).eval()
    batch = mixed_batch(tokenizer, clips[:2], 3)
    with torch.no_grad():
        logits = model(
            input_ids=batch.ids,
            pixel_values=batch.images,
            input_features=batch.mel,
            input_features_mask=torch.ones(batch.mel.shape[:2], dtype=torch.bool),
        ).logits
        theirs = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
        torch.testing.assert_close(loss_of(model, batch), theirs, atol=1e-4, rtol=0)


def test_half_width_reads_the_first_half_of_the_neurons() -> None:
    ids = torch.arange(40)[None]
    model = new_model(0).eval()
    with torch.no_grad():
        full = model(ids).logits
        use_width(model, FULL_WIDTH)
        assert torch.equal(model(ids).logits, full)
        use_width(model, HALF_WIDTH)
        half = model(ids).logits
        for layer in model.model.language_model.layers:
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
        towers = "model.audio_tower.conformer.0.ffw_layer_start.ffw_layer_1.weight"
        assert not torch.equal(model.state_dict()[towers], before[towers])
        kernel = "model.vision_tower.timm_model.conv_stem.conv.weight"
        assert torch.equal(model.state_dict()[kernel], before[kernel])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Stop(Exception):
    """Raised in the middle of a stage."""


def test_a_stage_that_was_cut_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0)
    stage = loop.Stage(name="tiny", seed=1, steps=6, rate=0.1, warmup=2, slow=("0.",), slow_rate=0.01)

    def new() -> torch.nn.Module:
        torch.manual_seed(1)
        return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))

    def losses(model: torch.nn.Module, stop: int) -> Iterator:
        def of(step: int) -> Iterator[tuple[str, torch.Tensor]]:
            if step == stop:
                raise Stop
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            yield "square", model(x).square().mean()

        return of

    whole, cut, again = new(), new(), new()
    loop.run(whole, stage, losses(whole, -1), folder=tmp_path / "whole")
    with pytest.raises(Stop):
        loop.run(cut, stage, losses(cut, 4), folder=tmp_path / "cut")
    loop.run(again, stage, losses(again, -1), folder=tmp_path / "cut")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
        assert not torch.equal(new().state_dict()[name], tensor)


def test_all_kinds_of_conversation_are_trained(
    tokenizer: PreTrainedTokenizerBase, clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, count in (("SPEECH", 2), ("TEXTS", 1), ("PICTURES", 1), ("MIXED", 1)):
        monkeypatch.setattr(f"demo.train.{name}", count)
    model = new_model(0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train_together(model, tokenizer, clips, replace(STAGE, steps=len(KINDS)), folder=tmp_path)
    still = [name for name, p in model.named_parameters() if torch.equal(before[name], p)]
    assert not still
