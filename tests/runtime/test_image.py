"""Pictures of every kind, as arrays; Pillow's own conversions and transformers' loader are the references."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import needs
from numpy.typing import NDArray
from PIL import Image, ImageOps

from edge_gemma.errors import MediaError
from edge_gemma.runtime import image as module
from edge_gemma.runtime.image import fingerprint, read_image

Pixels = NDArray[np.uint8]


def picture(height: int = 24, width: int = 40, channels: int = 3) -> Pixels:
    """Smooth, so that lossy formats keep it, and different in every corner."""
    y, x = np.mgrid[0:height, 0:width]
    layers = [x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height), 255 - x * 200 // width]
    return np.stack(layers[:channels], axis=2).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


RGB = picture()
PNG = encoded(Image.fromarray(RGB), "PNG")


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def assert_contract(pixels: Pixels) -> None:
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    assert pixels.flags.c_contiguous


def refusal(source: Any) -> str:
    with pytest.raises(MediaError) as caught:
        read_image(source)
    text = str(caught.value)
    assert "\n" not in text and "expected" in text
    return text


def test_every_kind_of_source(tmp_path: Path) -> None:
    path = tmp_path / "ein Bild ü.dat"
    path.write_bytes(PNG)
    file = io.BytesIO(PNG)
    file.read(100)  # read from its start
    for source in (path, str(path), PNG, file, Image.fromarray(RGB), RGB, Image.open(path)):
        pixels = read_image(source)
        assert_contract(pixels)
        np.testing.assert_array_equal(pixels, RGB)
    assert not file.closed


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_a_picture_from_a_pipe(kind: str) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as sink:
        sink.write(encoded(Image.fromarray(RGB), kind, **({"lossless": True} if kind == "WEBP" else {})))
    with os.fdopen(reader, "rb") as source:
        np.testing.assert_array_equal(read_image(source), RGB)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP", "JPEG", "AVIF", "JPEG2000"])
def test_formats(kind: str) -> None:
    image = Image.fromarray(RGB)
    data = encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
    pixels = read_image(data)
    with Image.open(io.BytesIO(data)) as reference:
        np.testing.assert_array_equal(pixels, np.asarray(reference.convert("RGB")))
    assert abs(pixels.astype(int) - RGB).mean() < (
        0.5 if kind in ("PNG", "BMP", "TIFF", "PPM", "WEBP") else 12
    )


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV"])
def test_opaque_modes_are_converted_as_pillow_converts_them(mode: str) -> None:
    image = Image.fromarray(RGB)
    image = image.convert("LAB") if mode == "LAB" else image.convert(mode)
    pixels = read_image(image)
    assert_contract(pixels)
    np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))


def test_cmyk_jpeg() -> None:
    pixels = read_image(encoded(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=95))
    assert abs(pixels.astype(int) - RGB).mean() < 6


def on_white(image: Image.Image) -> Pixels:
    rgba = image.convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"))


def transparent(mode: str) -> Image.Image:
    rgba = Image.fromarray(picture(channels=4))
    if mode == "P":
        image = Image.fromarray(RGB).quantize(16)
        image.info["transparency"] = 3
        return image
    if mode in ("RGB", "L"):
        image = Image.fromarray(RGB).convert(mode)
        image.info["transparency"] = image.getpixel((3, 3))
        return image
    return rgba.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "RGB", "L", "RGBa"])
def test_transparency_is_laid_on_white(mode: str) -> None:
    image = transparent(mode)
    expected = on_white(image)
    assert (expected != np.asarray(image.convert("RGB"))).any()
    assert abs(read_image(image).astype(int) - expected).max() <= 1


def test_transparent_files() -> None:
    for image, kind in ((transparent("P"), "GIF"), (transparent("P"), "PNG"), (transparent("RGB"), "PNG")):
        assert abs(read_image(encoded(image, kind)).astype(int) - on_white(image)).max() <= 1
    clear = np.zeros((3, 3, 4), np.uint8)
    assert (read_image(encoded(Image.fromarray(clear), "PNG")) == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_greyscale_is_scaled(kind: str) -> None:
    values = np.array([[0, 128, 129, 257], [32768, 40000, 65000, 65535]], np.uint16)
    pixels = read_image(encoded(Image.fromarray(values), kind))
    assert_contract(pixels)
    expected = [[0, 0, 1, 1], [128, 156, 253, 255]]  # value / 257, rounded
    for channel in range(3):
        np.testing.assert_array_equal(pixels[..., channel], expected)


def test_values_without_a_known_range() -> None:
    assert "floating-point" in refusal(Image.fromarray(np.ones((2, 2), np.float32)))
    assert "32-bit" in refusal(Image.fromarray(np.full((2, 2), 1 << 20, np.int32)))
    assert (read_image(Image.fromarray(np.full((2, 2), 65535, np.int32))) == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(RGB), kind, exif=exif)
    with Image.open(io.BytesIO(data)) as reference:
        expected = np.asarray(ImageOps.exif_transpose(reference).convert("RGB"))
    assert expected.shape == ((40, 24, 3) if orientation > 4 else (24, 40, 3))
    pixels = read_image(data)
    assert_contract(pixels)
    np.testing.assert_array_equal(pixels, expected)


def test_a_damaged_orientation_is_upright() -> None:
    image = Image.fromarray(RGB)
    for exif in (b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b""):
        pixels = read_image(encoded(image, "JPEG", exif=exif, quality=95))
        np.testing.assert_array_equal(pixels, read_image(encoded(image, "JPEG", quality=95)))


def test_as_transformers_loads_a_photo(tmp_path: Path) -> None:
    load_image = needs("transformers.image_utils").load_image

    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "photo.jpg"
    Image.fromarray(picture(200, 300)).save(path, exif=exif)
    np.testing.assert_array_equal(read_image(path), np.asarray(load_image(str(path))))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (read_image(data) == (255, 0, 0)).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "L", "I;16"])
def test_strips_leave_no_seams(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mode == "I;16":
        image = Image.fromarray((picture()[..., 0].astype(np.uint16) << 8) + 5)
    else:
        image = transparent("RGBA").convert(mode) if mode != "P" else transparent("P")
    whole = read_image(image)
    monkeypatch.setattr(module, "STRIP_PIXELS", 7 * 40 + 1)
    np.testing.assert_array_equal(read_image(image), whole)


def test_arrays() -> None:
    np.testing.assert_array_equal(read_image(RGB[..., 0]), np.repeat(RGB[..., :1], 3, axis=2))
    rgba = picture(channels=4)
    assert abs(read_image(rgba).astype(int) - on_white(Image.fromarray(rgba))).max() <= 1
    mirrored = RGB[:, ::-1]
    pixels = read_image(mirrored)
    assert_contract(pixels)
    np.testing.assert_array_equal(pixels, mirrored)
    pixels[:] = 0
    assert mirrored.any()  # a copy


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((2, 2, 3), np.float32), "float32; expected uint8.*astype"),
        (np.zeros((2, 2, 3), np.int64), "int64; expected uint8"),
        (np.zeros((2, 2), bool), "bool; expected uint8"),
        (np.zeros((3, 20, 20), np.uint8), r"\(3, 20, 20\).*transpose"),
        (np.zeros((1, 20, 20, 3), np.uint8), r"\(1, 20, 20, 3\)"),
        (np.zeros((0, 20, 3), np.uint8), "20 x 0 pixels"),
        (np.broadcast_to(np.uint8(0), (10_000, 5_001, 3)), "50,010,000 pixels"),
        (b"", "no picture"),
        (b"hello world " * 50, "no picture that Pillow .* reads; expected JPEG, PNG.*convert"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "no picture"),
        ("no/such/picture.png", "no/such/picture.png cannot be opened: No such file"),
        ("https://example.org/a.png", "download it"),
        ("a\0b", "null"),
        ("x" * 5000, "xxx… cannot be opened"),
        (None, "NoneType"),
        (io.StringIO("x"), "StringIO"),
        ([[1]], "list"),
        (png_header(0, 5), "."),
        (png_header(10_000, 5_001), "50,010,000 pixels; expected at most 50,000,000"),
        (png_header(12_000, 10_000), "120,000,000 pixels"),  # Pillow warns
        (png_header(60_000, 50_000), "3,000,000,000 pixels"),  # Pillow refuses
        (png_header(40, 40), "damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 60 else "",
)
def test_refusals(source: Any, message: str) -> None:
    text = refusal(source)
    assert re.search(message, text), text
    assert len(text) < 400


def test_a_folder_and_a_forbidden_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Is a directory" in refusal(tmp_path)
    path = tmp_path / "a.png"
    path.write_bytes(PNG)

    def deny(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)  # root may read everything
    assert "a.png cannot be opened: Permission denied" in refusal(path)


def test_an_image_as_large_as_allowed() -> None:
    data = encoded(Image.new("1", (10_000, 5_000)), "PNG")
    assert read_image(data).shape == (5_000, 10_000, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_truncated_files_are_refused_or_whole(kind: str) -> None:
    data = encoded(Image.fromarray(picture(60, 80)), kind)
    whole = read_image(data)
    refused = 0
    for length in [*range(0, len(data), max(1, len(data) // 60)), *range(len(data) - 20, len(data))]:
        try:
            pixels = read_image(data[:length])
        except MediaError:
            refused += 1
        else:
            np.testing.assert_array_equal(pixels, whole)
    assert refused > 50


@settings(max_examples=150)
@given(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"]), st.data())
def test_damaged_files_are_read_or_refused(kind: str, data: st.DataObject) -> None:
    """Nothing but MediaError, and no warning."""
    content = bytearray(encoded(Image.fromarray(RGB), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            assert_contract(read_image(bytes(content)))
        except MediaError as error:
            assert "\n" not in str(error)


def test_fingerprints() -> None:
    assert fingerprint(RGB) == fingerprint(read_image(PNG)) and len(fingerprint(RGB)) == 16
    changed = RGB.copy()
    changed[3, 3, 1] ^= 1
    assert fingerprint(changed) != fingerprint(RGB)
    assert fingerprint(RGB.reshape(40, 24, 3)) != fingerprint(RGB)
    assert fingerprint(np.asfortranarray(RGB)) == fingerprint(RGB)


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_pillow() -> None:
    code = """
import sys; sys.modules["PIL"] = None
import numpy as np
from edge_gemma.errors import DependencyError
from edge_gemma.runtime.image import read_image
print(read_image(np.zeros((2, 2, 3), np.uint8)).shape)
try: read_image(b"x")
except DependencyError as error: print(error)
"""
    assert python(code).splitlines() == [
        "(2, 2, 3)",
        "pictures need Pillow: pip install 'edge-gemma[vision]'",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_large_photo(tmp_path: Path) -> None:
    """The decoded picture (4 bytes a pixel) and the result (3), and little else."""
    path = tmp_path / "large.jpg"
    Image.fromarray(np.zeros((4000, 5000, 3), np.uint8)).save(path)
    code = f"""
from edge_gemma.memory import peak_resident_bytes as peak
from edge_gemma.runtime.image import read_image
from PIL import Image
before = peak()
read_image({str(path)!r})
print((peak() - before) / 20e6)
"""
    assert float(python(code)) < 8.5
