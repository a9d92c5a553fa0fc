"""What the towers are fed in training is what transformers' extractor, processor and model make of it."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from demo import data
from demo.checkpoint_files import write_checkpoint
from demo.conversations import expand
from demo.evaluate import answer, answer_all, features
from demo.model import Gemma3nForConditionalGeneration, new_model
from demo.pictures import SCENES, draw_picture
from demo.sight import image_tokens, pixels
from demo.sound import augment, log_mel
from demo.tokenizer import write_tokenizer
from demo.train_audio import batch_of, edits
from demo.train_vision import draw_batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as training writes it, with random weights."""
    target = tmp_path_factory.mktemp("untrained")
    write_tokenizer(target)
    write_checkpoint(new_model(0), target)
    return target


@pytest.fixture(scope="module")
def processor(folder: Path):  # noqa: ANN201
    from transformers import Gemma3nProcessor

    return Gemma3nProcessor.from_pretrained(folder)


@pytest.mark.parametrize("samples", [700, 16_000, 30_001, 40_960])
def test_features_equal_the_extractor(processor, samples: int) -> None:  # noqa: ANN001
    rng = np.random.default_rng(samples)
    waves = (0.1 * rng.standard_normal((2, samples))).astype(np.float32)
    waves[1, : samples // 2] = 0
    ours = log_mel(torch.from_numpy(waves))
    for wave, mel in zip(waves, ours, strict=True):
        theirs = processor.feature_extractor(wave, return_tensors="pt")
        assert theirs["input_features_mask"].all()
        torch.testing.assert_close(mel[None], theirs["input_features"], atol=2e-3, rtol=0)


def test_clips_of_other_lengths_are_extracted_alone(processor) -> None:  # noqa: ANN001
    waves = [np.full(samples, 0.1, np.float32) for samples in (9000, 16_000)]
    mel, mask = features(waves)
    for i, wave in enumerate(waves):
        frames = processor.feature_extractor(wave)["input_features"][0].shape[0]
        assert mask[i].tolist() == [True] * frames + [False] * (mel.shape[1] - frames)


def test_augmented_clips_depend_on_the_seed_alone() -> None:
    clips = [np.full(samples, 8000, np.int16) for samples in (4000, 6000, 5000)]
    assert torch.equal(augment(clips, 1), augment(clips, 1))
    assert not torch.equal(augment(clips, 1)[0, :5600], augment(clips, 2)[0, :5600])
    assert augment(clips, 1).shape[1] >= 6000 + 1600


def test_pixels_equal_the_processor(processor) -> None:  # noqa: ANN001
    picture = draw_picture(SCENES[50], random.Random(4))
    theirs = processor.image_processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"]
    assert (pixels([picture]) - theirs).abs().max() <= 1.01 / 255  # the rounding of a resized byte


def test_image_tokens_equal_the_model() -> None:
    inner = new_model(0).model
    generator = torch.Generator().manual_seed(0)
    for parameter in inner.parameters():
        if parameter.dim() == 1:
            parameter.data = 0.5 + torch.rand(parameter.shape, generator=generator)
    images = draw_batch("x", 2, want_held_out=False).images
    with torch.no_grad():
        theirs = inner.get_image_features(images).pooler_output
        ours = image_tokens(inner.vision_tower, inner.embed_vision, images)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("task", ["pictures", "translation"])
def test_prompts_equal_the_processor(processor, task: str) -> None:  # noqa: ANN001
    messages = list(data.held_out(task, 1)[0].messages)
    theirs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True
    )
    tokenizer = processor.tokenizer
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert tokenizer(expand(text), add_special_tokens=False)["input_ids"] == theirs["input_ids"][0]


def test_checkpoint_loads_and_answers_in_batches_as_alone(folder: Path, processor) -> None:  # noqa: ANN001
    model = Gemma3nForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    items = data.held_out("transcription", 3)
    together = answer_all(model, processor.tokenizer, items)
    assert together == [answer(model, processor.tokenizer, [item])[0] for item in items]
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 12_000_000


def test_every_clip_is_in_one_batch_of_an_epoch() -> None:
    lengths = tuple(random.Random(0).choices(range(100, 900), k=96))
    epoch = [batch_of(lengths, 8, 0, i) for i in range(12)]
    assert sorted(i for batch in epoch for i in batch) == list(range(96))
    assert epoch != [batch_of(lengths, 8, 0, i) for i in range(12, 24)]


def test_edits_count_changes() -> None:
    assert edits(list("kitten"), list("sitting")) == 3
    assert edits([], list("abc")) == 3
