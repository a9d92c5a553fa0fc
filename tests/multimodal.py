"""A random tiny checkpoint with all three towers, and transformers' answers to prompts with media."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tiny
import torch
from safetensors.torch import save_file

from edge_gemma.export.synthetic import tokenizer_json
from edge_gemma.export.timm_support import require_timm

require_timm()

from timm.models._efficientnet_builder import decode_arch_def  # noqa: E402
from transformers import (  # noqa: E402
    Gemma3nConfig,
    Gemma3nForConditionalGeneration,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
)
from transformers.models.gemma3n import Gemma3nAudioFeatureExtractor, Gemma3nProcessor  # noqa: E402

TEMPLATE = (Path(__file__).parent.parent / "demo" / "chat_template.jinja").read_text("utf-8")
IMAGE_SIZE = 96
TOKENS = {  # transformers' name → text, id
    "boi": ("<start_of_image>", 380),
    "boa": ("<start_of_audio>", 381),
    "eoi": ("<end_of_image>", 384),
    "image": ("<image_soft_token>", 385),
    "eoa": ("<end_of_audio>", 392),
    "audio": ("<audio_soft_token>", 393),
}
BLOCKS = [
    ["er_r1_k3_s2_e4_c16"],
    ["uir_r1_a3_k5_s2_e4_c24"],
    ["uir_r1_a5_k5_s2_e4_c32", "mqa_r1_k3_h2_v2_s1_d16_c32", "uir_r1_a0_k0_s1_e2_c32"],
    ["uir_r1_a5_k5_s2_e4_c48", "mqa_r1_k3_h2_s1_d16_c48", "uir_r1_a0_k0_s1_e2_c48"],
]


@dataclass(frozen=True)
class Multimodal:
    """A checkpoint folder, transformers' model with the same weights (float32, eager) and its processor."""

    folder: Path
    model: Any
    processor: Any


def config_json(**text: Any) -> dict[str, Any]:
    config = Gemma3nConfig(
        text_config=tiny.BASE | {"max_position_embeddings": 2048} | text,
        audio_config={
            "hidden_size": 32,
            "conf_num_hidden_layers": 2,
            "conf_num_attention_heads": 2,
            "sscp_conv_channel_size": [8, 4],
            "vocab_offset": 392,
            "vocab_size": 8,
        },
        vision_config={
            "architecture": "mobilenetv5_300m_enc",
            "model_args": {"block_args": decode_arch_def(BLOCKS), "stem_size": 16},
            "vocab_offset": 384,
            "vocab_size": 8,
        },
        **{f"{name}_token_id": number for name, (_, number) in TOKENS.items()},
    )
    data: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return data


def make(folder: Path, seed: int = 0, **text: Any) -> Multimodal:
    data = config_json(**text)
    config = Gemma3nConfig.from_dict(copy.deepcopy(data))  # timm changes the arguments that it builds from
    config._attn_implementation = config.text_config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = Gemma3nForConditionalGeneration(config).eval()
    tiny.randomise(model)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors")  # save_pretrained fails on the arguments timm changed
    (folder / "config.json").write_text(json.dumps(data))
    write_tokenizer(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        bos_token="<bos>",
        extra_special_tokens={f"{name}_token": text for name, (text, _) in TOKENS.items()},
    )
    processor = Gemma3nProcessor(
        Gemma3nAudioFeatureExtractor(),
        SiglipImageProcessor(
            size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, resample=2, do_normalize=False, do_rescale=True
        ),
        tokenizer,
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(folder)
    return Multimodal(folder, model, processor)


def write_tokenizer(folder: Path) -> None:
    """The tokenizer of tiny text checkpoints, with the media tokens at their ids."""
    data = json.loads(tokenizer_json(384))
    vocab = data["model"]["vocab"]
    texts = {number: text for text, number in vocab.items()}
    special = {number: text for text, number in TOKENS.values()}
    rest = {number: f"<unused_{number}>" for number in range(384, 400)}
    for number, text in (rest | special).items():
        vocab.pop(texts.get(number), None)
        vocab[text] = number
        entry = {key: False for key in ("single_word", "lstrip", "rstrip", "normalized")}
        data["added_tokens"].append({"id": number, "content": text, "special": True, **entry})
    kept = set(vocab)
    data["model"]["merges"] = [(a, b) for a, b in data["model"]["merges"] if {a, b, a + b} <= kept]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def reference_ids(tested: Multimodal, messages: list[dict[str, Any]]) -> list[int]:
    """The ids that transformers' processor makes of messages."""
    text = tested.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    for token, whole in (
        (tested.processor.image_token, tested.processor.full_image_sequence),
        (tested.processor.audio_token, tested.processor.full_audio_sequence),
    ):
        text = text.replace(token, whole)
    ids: list[int] = tested.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def greedy_reference(
    tested: Multimodal, messages: list[dict[str, Any]], new_tokens: int
) -> tuple[list[int], np.ndarray]:
    """transformers' greedy answer and its logits for the prompt and the answer but its last token.

    In float64: in float32 they are off by up to 2e-3, since random towers make much of small differences.

    Features of each clip are extracted alone, since batching changes them; the towers then also run clip by
    clip, and Gemma3nModel.forward fills their soft tokens up as it does for any batch.
    """
    parts = [
        part for message in messages if isinstance(message["content"], list) for part in message["content"]
    ]
    images = [part["image"] for part in parts if part["type"] == "image"]
    clips = [part["audio"] for part in parts if part["type"] == "audio"]
    inputs: dict[str, Any] = {"input_ids": torch.tensor([reference_ids(tested, messages)])}
    if images:
        pixels = tested.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        inputs["pixel_values"] = pixels.double()
    if clips:
        inputs["input_features"] = torch.zeros(len(clips), 1, 128)  # a place for those of _each_alone
        inputs["input_features_mask"] = torch.ones(len(clips), 1, dtype=torch.bool)
    model = copy.deepcopy(tested.model).double()
    each_alone = _each_alone(tested, model.model.get_audio_features, clips)
    with torch.no_grad(), mock.patch.object(model.model, "get_audio_features", each_alone):
        output = model(**inputs, use_cache=True)
        rows, tokens = [output.logits[0].numpy()], []
        while len(tokens) < new_tokens:
            tokens.append(int(rows[-1][-1].argmax()))
            if len(tokens) < new_tokens:
                output = model(
                    input_ids=torch.tensor([[tokens[-1]]]),
                    past_key_values=output.past_key_values,
                    use_cache=True,
                )
                rows.append(output.logits[0].numpy())
    return tokens, np.concatenate(rows)


def _each_alone(tested: Multimodal, original: Any, clips: list[np.ndarray]) -> Any:
    def get_audio_features(*_: Any, **__: Any) -> Any:
        outputs = []
        for clip in clips:
            features = tested.processor.feature_extractor([clip], return_tensors="pt")
            mask = ~features["input_features_mask"]
            outputs.append(original(features["input_features"].double(), mask, return_dict=True))
        longest = max(output.pooler_output.shape[1] for output in outputs)
        batch = outputs[0]
        batch.pooler_output = torch.cat([_pad(output.pooler_output, longest, 0.0) for output in outputs])
        batch.audio_mel_mask = torch.cat([_pad(output.audio_mel_mask, longest, True) for output in outputs])
        return batch

    return get_audio_features


def _pad(x: torch.Tensor, length: int, value: float | bool) -> torch.Tensor:
    """x [1, tokens, …] → [1, length, …]"""
    missing = x.new_full((1, length - x.shape[1], *x.shape[2:]), value)
    return torch.cat([x, missing], 1)
