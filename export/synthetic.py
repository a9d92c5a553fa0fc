"""Random checkpoints of the real architecture, made on the fly from a seed and never written to disk.

Their values mean nothing; their shapes are those of Google's models, so that memory and speed can be
measured by anyone, without the weights.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import torch

from edge_gemma.config import MediaVocabulary, ModelConfig, parse_config
from edge_gemma.errors import CheckpointError
from edge_gemma.export.synthetic_tokenizer import MEDIA_TOKENS, TEMPLATE, tokenizer_json
from edge_gemma.models import MODELS, TEXT
from edge_gemma.shapes import text_shapes

ROW_CHUNK = 1024  # rows drawn from one generator, so that any range of rows can be made alone
COEFFICIENT_DEVIATION = 0.02  # of AltUp's coefficients: larger ones let the streams grow without bound
AUDIO: dict[str, Any] = {
    "model_type": "gemma3n_audio",
    "vocab_offset": 262_272,
    "vocab_size": 128,
    "hidden_size": 1536,
    "rms_norm_eps": 1e-6,
    "input_feat_size": 128,
    "gradient_clipping": 1e10,
    "conf_attention_chunk_size": 12,
    "conf_attention_context_left": 13,
    "conf_attention_context_right": 0,
    "conf_attention_logit_cap": 50.0,
    "conf_num_attention_heads": 8,
    "conf_num_hidden_layers": 12,
    "conf_conv_kernel_size": 5,
    "conf_reduction_factor": 4,
    "conf_residual_weight": 0.5,
    "sscp_conv_channel_size": [128, 32],
    "sscp_conv_group_norm_eps": 1e-3,
    "sscp_conv_kernel_size": [[3, 3], [3, 3]],
    "sscp_conv_stride_size": [[2, 2], [2, 2]],
}
VISION: dict[str, Any] = {
    "model_type": "gemma3n_vision",
    "architecture": "mobilenetv5_300m_enc",
    "do_pooling": False,
    "vocab_offset": 262_144,
    "vocab_size": 128,
    "hidden_size": 2048,
    "rms_norm_eps": 1e-6,
}
BASE: dict[str, Any] = {
    "model_type": "gemma3n",
    "audio_config": AUDIO,
    "vision_config": VISION,
    "audio_soft_tokens_per_image": 188,
    "vision_soft_tokens_per_image": 256,
    "boi_token_id": 255_999,
    "boa_token_id": 256_000,
    "eoi_token_id": 262_144,
    "image_token_id": 262_145,
    "eoa_token_id": 262_272,
    "audio_token_id": 262_273,
}
TINY_TEXT = TEXT | {
    "vocab_size": 1040,
    "vocab_size_per_layer_input": 1024,
    "hidden_size": 64,
    "hidden_size_per_layer_input": 16,
    "num_attention_heads": 4,
    "head_dim": 16,
    "sliding_window": 16,
    "laurel_rank": 8,
    "num_hidden_layers": 10,
    "num_kv_shared_layers": 5,
    "intermediate_size": 128,
    "activation_sparsity_pattern": [0.95] * 3 + [0.0] * 7,
    "max_position_embeddings": 2048,
}


def _block(kind: str, channels: int, stride: int, **arguments: Any) -> dict[str, Any]:
    """A block of timm's MobileNetV5, as its decode_arch_def describes it"""
    return {"block_type": kind, "out_chs": channels, "stride": stride, "act_layer": None, **arguments}


TINY_BLOCKS = [
    [_block("er", 16, 2, exp_kernel_size=3, exp_ratio=2.0)],
    [_block("uir", 24, 2, dw_kernel_size_start=3, dw_kernel_size_mid=5, exp_ratio=2.0)],
    [
        _block("uir", 32, 2, dw_kernel_size_start=5, dw_kernel_size_mid=5, exp_ratio=2.0),
        _block("mqa", 32, 1, dw_kernel_size=3, num_heads=2, key_dim=16, value_dim=16, kv_stride=2),
        _block("uir", 32, 1, dw_kernel_size_start=0, dw_kernel_size_mid=0, exp_ratio=2.0),
    ],
    [
        _block("uir", 48, 2, dw_kernel_size_start=5, dw_kernel_size_mid=0, exp_ratio=2.0),
        _block("mqa", 48, 1, dw_kernel_size=3, num_heads=2, key_dim=16, value_dim=16, kv_stride=1),
        _block("uir", 48, 1, dw_kernel_size_start=0, dw_kernel_size_mid=0, exp_ratio=2.0),
    ],
]
CONFIGS: dict[str, dict[str, Any]] = {
    **{name: BASE | {"text_config": text} for name, text in MODELS.items()},
    "tiny": TINY_TEXT,
    "tiny-media": BASE
    | {
        "text_config": TINY_TEXT,
        "audio_config": AUDIO
        | {
            "vocab_offset": 1032,
            "vocab_size": 8,
            "hidden_size": 64,
            "conf_num_attention_heads": 4,
            "conf_num_hidden_layers": 2,
            "sscp_conv_channel_size": [16, 8],
        },
        "vision_config": VISION
        | {
            "vocab_offset": 1024,
            "vocab_size": 8,
            "model_args": {"block_args": TINY_BLOCKS, "stem_size": 16},
        },
        "boi_token_id": 1020,
        "boa_token_id": 1021,
        "eoi_token_id": 1024,
        "image_token_id": 1025,
        "eoa_token_id": 1032,
        "audio_token_id": 1033,
    },
}
IMAGE_SIZES = {"E2B": 768, "E4B": 768, "tiny-media": 96}  # pixels, of either side


class SyntheticCheckpoint:
    """Random weights: matrices of standard deviation 1/sqrt(inputs), norms near 1, small coefficients.

    The norm of the queries holds the 1/sqrt(head_dim) that Gemma 3n's attention leaves to training: without
    it every softmax is all but one-hot, and the network amplifies rounding a thousandfold.

    The shapes of the towers come from transformers and timm, which are imported when one is asked for.
    """

    revision: str | None = None
    submodel: str | None = None

    def __init__(
        self, name: str, config: dict[str, Any], seed: int, *, image_size: int | None = None
    ) -> None:
        self.name = name
        self.seed = seed
        self.config_json = config
        self.config: ModelConfig = parse_config(config, where=name)
        self._image_size = image_size
        self._text = text_shapes(self.config.text)
        self._towers = {
            f"embed_{kind}": _embedder_shapes(kind, media, self.config.text.hidden_size)
            for kind, media in (("audio", self.config.audio), ("vision", self.config.vision))
            if media
        }

    @classmethod
    def from_name(cls, source: str) -> SyntheticCheckpoint:
        """Make the checkpoint of `synthetic:NAME` or `synthetic:NAME:SEED`."""
        _, name, *rest = source.split(":")
        if name not in CONFIGS or len(rest) > 1 or (rest and not rest[0].isdecimal()):
            raise CheckpointError(
                f"{source!r} is not a synthetic checkpoint: expected synthetic:NAME or synthetic:NAME:SEED "
                f"with NAME one of {', '.join(CONFIGS)}"
            )
        seed = int(rest[0]) if rest else 0
        return cls(source, CONFIGS[name], seed, image_size=IMAGE_SIZES.get(name))

    def tensor(self, name: str) -> torch.Tensor:
        shape = self._shape(name)
        if len(shape) > 1:
            return self._draw(name, 0, shape[0]).view(shape)
        centre, deviation = next((v for ending, v in VECTORS.items() if name.endswith(ending)), (1.0, 0.1))
        values = centre + deviation * self._generator(name, 0).standard_normal(shape, dtype=np.float32)
        if name.endswith("q_norm.weight"):
            values *= np.float32(self.config.text.head_dim**-0.5)
        return torch.from_numpy(values)

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        return self._draw(name, first, last)

    def has(self, name: str) -> bool:
        return name in self._shapes_beside(name)

    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        return self._text

    def tokenizer_json(self) -> bytes:
        c = self.config
        media = {number: MEDIA_TOKENS[name] for name, number in c.token_ids.items()}
        for kind, vocabulary in (("vision", c.vision), ("audio", c.audio)):
            if vocabulary:
                for i in range(vocabulary.size):
                    media.setdefault(vocabulary.offset + i, f"<unused_{kind}_{i}>")
        return tokenizer_json(c.text.vocab_size_per_layer_input, media)

    def chat_template(self) -> str:
        return TEMPLATE

    def generation_config(self) -> dict[str, Any]:
        # nothing ends an answer of random weights, so that benchmarks get the length they ask for
        return {"bos_token_id": 2, "pad_token_id": 0, "eos_token_id": []}

    def image_processor(self) -> dict[str, Any]:
        if self._image_size is None:
            return {}
        return {
            "do_resize": True,
            "size": {"height": self._image_size, "width": self._image_size},
            "resample": 2,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": False,
        }

    def _draw(self, name: str, first: int, last: int) -> torch.Tensor:
        """Rows first … last-1 of a tensor of two or more axes, the others flattened: [last-first, ·]"""
        columns = math.prod(self._shape(name)[1:])
        out = np.empty((last - first, columns), np.float32)
        for chunk in range(first // ROW_CHUNK, -(-last // ROW_CHUNK)):
            start = chunk * ROW_CHUNK
            end = min(last, start + ROW_CHUNK)
            drawn = self._generator(name, chunk).standard_normal((end - start, columns), dtype=np.float32)
            low = max(first, start)
            out[low - first : end - first] = drawn[low - start :]
        out *= COEFFICIENT_DEVIATION if name.endswith("coefs.weight") else columns**-0.5
        return torch.from_numpy(out)

    def _shape(self, name: str) -> tuple[int, ...]:
        shapes = self._shapes_beside(name)
        if name not in shapes:
            raise CheckpointError(f"{self.name} has no tensor {name}")
        return shapes[name]

    def _shapes_beside(self, name: str) -> dict[str, tuple[int, ...]]:
        """Shapes by name of the part of the model that a tensor would belong to."""
        part = name.split(".")[0]
        kind = part.removesuffix("_tower")
        if kind != part and part not in self._towers and self.config_json.get(f"{kind}_config"):
            from edge_gemma.export.towers import tower_shapes

            self._towers[part] = tower_shapes(self.config_json, kind)
        return self._towers.get(part, self._text)

    def _generator(self, name: str, chunk: int) -> np.random.Generator:
        key = [self.seed, zlib.crc32(name.encode()), chunk]
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence(key)))


# mean and standard deviation of vectors by the end of their name; the others, norms, are near 1
VECTORS = {
    "per_dim_scale": (0.0, 0.1),
    "bias": (0.0, 0.05),
    "gamma": (0.3, 0.05),  # of timm's layer scale
}


def _embedder_shapes(kind: str, media: MediaVocabulary, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of Gemma3nMultimodalEmbedder"""
    return {
        f"embed_{kind}.embedding.weight": (media.size, media.hidden_size),
        f"embed_{kind}.hard_embedding_norm.weight": (media.hidden_size,),
        f"embed_{kind}.soft_embedding_norm.weight": (media.hidden_size,),
        f"embed_{kind}.embedding_projection.weight": (hidden_size, media.hidden_size),
    }
