from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from PIL import Image

from edge_gemma.export.graph import Graph
from edge_gemma.export.resize import resize

Resize = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def ours(folder: Path, size: tuple[int, int]) -> Resize:
    path = folder / "resize.onnx"
    with Graph("resize", path) as graph:
        image = graph.input("image", "uint8", ("height", "width", 3))
        graph.op("Identity", resize(graph, image, size), out="resized")
        graph.output("resized", "uint8", (*size, 3))
        graph.save()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        resized: NDArray[np.uint8] = session.run(None, {"image": image})[0]
        return resized

    return run


def theirs(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """What the image processor of transformers makes of it, without rescaling"""
    from transformers import SiglipImageProcessor

    processor = SiglipImageProcessor(
        size={"height": size[0], "width": size[1]}, resample=2, do_rescale=False, do_normalize=False
    )
    pixels = processor(Image.fromarray(image), return_tensors="np")["pixel_values"][0]
    resized: NDArray[np.uint8] = np.asarray(pixels).transpose(1, 2, 0).astype(np.uint8)
    return resized


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(96, 96), (64, 96), (50, 37), (7, 3)], ids=str)
def test_every_bit_is_torchvisions(size: tuple[int, int], tmp_path: Path) -> None:
    run = ours(tmp_path, size)
    rng = np.random.default_rng(1)
    shapes = [(1, 1), (2, 2), (96, 96), (64, 64), (32, 32), (5, 3000), (3000, 5), (1080, 1920)]
    shapes += [(int(h), int(w)) for h, w in np.exp(rng.uniform(0, np.log(1500), (20, 2)))]
    for shape in shapes:
        image = noise(*shape)
        resized = run(image)
        assert resized.shape == (*size, 3)
        assert np.array_equal(resized, theirs(image, size)), shape


@pytest.mark.parametrize(
    "shape", [(32, 32), (512, 512), (480, 640), (767, 769), (3000, 4000), (4000, 3000)], ids=str
)
def test_every_bit_is_torchvisions_at_gemmas_size(shape: tuple[int, int], tmp_path: Path) -> None:
    image = noise(*shape)
    assert np.array_equal(ours(tmp_path, (768, 768))(image), theirs(image, (768, 768)))


def test_extremes_stay_extremes(tmp_path: Path) -> None:
    """Rounded weights may add up to a little more than one"""
    run = ours(tmp_path, (96, 96))
    for level in (0, 1, 254, 255):
        assert np.all(run(np.full((331, 97, 3), level, np.uint8)) == level)
