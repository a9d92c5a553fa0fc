"""Writes the checkpoint in the Hugging Face layout."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import Gemma3nAudioFeatureExtractor, GenerationConfig

from demo.model import AUDIO_TOKENS, IMAGE_SIZE, IMAGE_TOKENS, Gemma3nForConditionalGeneration, demo_config
from demo.tokenizer import BOS_ID, END_OF_TURN_ID, EOS_ID

IMAGE_PROCESSOR = {
    "image_processor_type": "SiglipImageProcessor",
    "do_convert_rgb": True,
    "do_normalize": False,
    "do_rescale": True,
    "do_resize": True,
    "resample": 2,  # bilinear
    "rescale_factor": 1 / 255,
    "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
}
PROCESSOR = {
    "processor_class": "Gemma3nProcessor",
    "audio_seq_length": AUDIO_TOKENS,
    "image_seq_length": IMAGE_TOKENS,
}


def write_checkpoint(model: Gemma3nForConditionalGeneration, folder: Path) -> None:
    """The weights in bfloat16 and every JSON file but the tokenizer's; `model` is in bfloat16 afterwards."""
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS_ID, eos_token_id=[EOS_ID, END_OF_TURN_ID], pad_token_id=0
    )
    model.config = demo_config()  # building a model changes the vision tower's block arguments
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder)
    write_json(folder / "processor_config.json", PROCESSOR)
    extractor = json.loads(Gemma3nAudioFeatureExtractor().to_json_string())
    write_json(folder / "preprocessor_config.json", extractor | IMAGE_PROCESSOR | PROCESSOR)


def write_json(path: Path, content: dict) -> None:
    """Writes JSON with sorted keys."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
