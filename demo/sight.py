"""From pictures to the soft tokens that the decoder reads, for training.

The fusion of the vision tower makes 2048 channels only for the embedder to project them to 128. Between the
two wide matrices there is nothing but norms, and a norm divides a position's channels by one number, which
the last norm removes again. So the two matrices and the norms' weights are multiplied first, and the 2048
channels are never made. Same tokens, same gradients (up to the norms' epsilon), a third of the time.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from demo.model import IMAGE_SIZE, Gemma3nMultimodalEmbedder


def pixels(pictures: list[NDArray[np.uint8]]) -> Tensor:
    """uint8 [height, width, 3] each → float32 [B, 3, 128, 128] in 0..1, as SiglipImageProcessor does."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    resized = [np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BILINEAR)) for p in pictures]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 255


def image_tokens(tower: nn.Module, embedder: Gemma3nMultimodalEmbedder, images: Tensor) -> Tensor:
    """images [B, 3, 128, 128] → soft tokens [B, 256, hidden], as Gemma3nModel.get_image_features does."""
    timm = tower.timm_model
    x, maps = timm.conv_stem(images), []
    for i, stage in enumerate(timm.blocks, 1):
        x = stage(x)
        if i in timm.msfa_indices:
            maps.append(x)
    sizes = maps[0].shape[-2:]
    maps = [m if m.shape[-2:] == sizes else F.interpolate(m, size=sizes, mode="nearest") for m in maps]
    fusion = timm.msfa.ffn
    narrow = fusion.pw_exp(torch.cat(maps, dim=1)).flatten(2).transpose(1, 2)  # [B, 256, 224]
    scale = fusion.pw_proj.bn.weight * timm.msfa.norm.weight * embedder.soft_embedding_norm.weight  # [2048]
    wide = fusion.pw_proj.conv.weight[:, :, 0, 0]  # [2048, 224]
    both = (embedder.embedding_projection.weight * scale) @ wide  # [hidden, 224]
    return embedder.embedding_post_projection_norm(narrow @ both.T)
