"""Pictures in: files, bytes, PIL images and arrays, as uint8 [height, width, 3] RGB.

The picture is turned as its EXIF orientation says, as transformers' load_image does. Transparency is laid
on white. 16-bit greyscale is scaled to 8 bits; CMYK and palettes are converted by Pillow, without colour
profiles; of an animation the first frame is taken. The size stays as it is: the encoder's graph resizes the
whole picture, and what a JPEG gives when it is decoded at a reduced size is not equal to that.

A picture is converted in strips, so that its decoded form and the result are all that is held. Whatever is
wrong with it is a MediaError, truncation too: there are no half-grey pictures.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np

from edge_gemma.errors import DependencyError, MediaError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    Pixels: TypeAlias = NDArray[np.uint8]
    ImageSource: TypeAlias = str | Path | bytes | IO[bytes] | Image | NDArray[np.uint8]

MAX_PIXELS = 50_000_000  # decoded, a picture takes 4 bytes a pixel, and the result 3
STRIP_PIXELS = 1 << 20
# Pillow knows more, some of which starts other programs (EPS) or has no signature (TGA).
COMMON = ("JPEG", "PNG", "GIF", "BMP", "PPM")
OTHERS = ("WEBP", "TIFF", "AVIF", "JPEG2000", "HEIF")  # where this Pillow has them; HEIF comes as a plugin
ORIENTATION = 0x0112  # EXIF tag


def read_image(source: ImageSource) -> Pixels:
    """A picture as uint8 [height, width, 3] RGB, contiguous.

    Args:
        source: a path; the bytes of a picture file; a binary file object, read from its start and left
            open; a PIL image; or an array, uint8 [height, width], [height, width, 3] RGB (OpenCV's are BGR:
            reverse them) or [height, width, 4] RGBA.

    Raises:
        MediaError: it cannot be opened, is no whole picture of a kind this Pillow reads, has no or more than
            50 million pixels (known from the header, before decoding), or is an array of another kind.
        DependencyError: Pillow is missing; arrays do without.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    try:
        from PIL import Image
    except ImportError:
        raise DependencyError("pictures need Pillow: pip install 'edge-gemma[vision]'") from None
    with ExitStack() as resources, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow: large pictures, odd metadata, palettes
        if isinstance(source, Image.Image):
            return _from_pillow(source, "the picture")
        name = "the picture"
        if isinstance(source, bytes):
            file: Any = io.BytesIO(source)
        elif isinstance(source, (str, Path)):
            name = str(source) if len(str(source)) <= 200 else f"{str(source)[:60]}…"
            file = resources.enter_context(_open_path(Path(source), name))
        elif hasattr(source, "read") and not isinstance(source, io.TextIOBase):
            file = source
        else:
            raise MediaError(
                f"the picture is a {type(source).__name__}; expected a path, bytes, a binary file, a PIL "
                "image or a numpy array"
            )
        return _from_pillow(resources.enter_context(_open_picture(file, name)), name)


def picture_size(data: bytes) -> tuple[int, int]:
    """Width and height by the header of a picture file; nothing is decoded. MediaError if it is none."""
    with _open_picture(io.BytesIO(data), "the picture") as picture:
        return picture.size


def fingerprint(image: Pixels) -> bytes:
    """16 bytes that tell this picture, uint8 [height, width, 3], from every other one."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16, person=b"image")
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


def _open_path(path: Path, name: str) -> IO[bytes]:
    try:
        return path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a null character
        hint = "download it first" if re.match(r"\w+:/", name) else "check the path"
        raise MediaError(
            f"{name} cannot be opened: {getattr(error, 'strerror', error)}; expected a picture file: {hint}"
        ) from None


def _open_picture(file: IO[bytes], name: str) -> Image:
    """A picture whose header has been read."""
    import PIL
    from PIL import Image, UnidentifiedImageError

    try:
        if not (hasattr(file, "seekable") and file.seekable()):  # each of both readings begins at the start
            file = io.BytesIO(file.read())
        try:
            return Image.open(file, formats=COMMON)
        except UnidentifiedImageError:
            Image.init()
            return Image.open(file, formats=[kind for kind in OTHERS if kind in Image.OPEN])
    except UnidentifiedImageError:
        known = ", ".join(kind for kind in (*COMMON, *OTHERS) if kind in Image.OPEN)
        raise MediaError(
            f"{name} is no picture that Pillow {PIL.__version__} reads; expected {known}: "
            "convert it with `magick INPUT picture.png`"
        ) from None
    except Image.DecompressionBombError as error:  # much larger than our own limit
        found = re.search(r"\d+", str(error))
        raise _too_large(name, int(found[0]) if found else 2 * MAX_PIXELS) from None
    except MemoryError:
        raise
    except Exception as error:  # from untrusted bytes, plugins can raise anything
        raise _damaged(name, error) from None


def _from_pillow(image: Image, name: str) -> Pixels:
    width, height = image.size
    _check_size(height, width, name)
    try:
        image.load()
        width, height = image.size  # TIFF has been turned now
        pixels = np.empty((height, width, 3), np.uint8)
        rows = max(1, STRIP_PIXELS // width)
        for top in range(0, height, rows):
            strip = image.crop((0, top, width, min(top + rows, height)))
            pixels[top : top + rows] = _convert(strip, name)
    except (MediaError, MemoryError):
        raise
    except Exception as error:  # from untrusted bytes, plugins can raise anything
        raise _damaged(name, error) from None
    return np.ascontiguousarray(_turn(pixels, _orientation(image)))


def _convert(strip: Image, name: str) -> Pixels:
    """uint8 [height, width, 3] of an image of any mode."""
    if strip.mode.startswith("I"):
        values: NDArray[Any] = np.asarray(strip).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise MediaError(f"{name} has 32-bit values; expected 8 or 16 bits: convert it to 8")
        grey = ((values * 255 + 0x7FFF) // 0xFFFF).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if strip.mode == "F":
        raise MediaError(f"{name} has floating-point values; expected 8 or 16 bits: scale it to 0..255")
    if strip.has_transparency_data:
        return _on_white(np.asarray(strip.convert("RGBA")))
    return np.asarray(strip.convert("RGB"))


def _on_white(rgba: Pixels) -> Pixels:
    """uint8 [height, width, 3] of uint8 [height, width, 4]."""
    colour, alpha = rgba[..., :3].astype(np.uint16), rgba[..., 3:].astype(np.uint16)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _orientation(image: Image) -> int:
    """1 to 8; 1, upright, where the metadata are damaged or say nothing."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # from untrusted bytes
        return 1


def _turn(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _from_array(array: NDArray[Any]) -> Pixels:
    name = "the picture"
    if array.dtype != np.uint8:
        hint = (
            "(image * 255).round().astype(np.uint8) if they are 0 to 1"
            if array.dtype.kind == "f"
            else "convert it"
        )
        raise MediaError(f"{name} is an array of {array.dtype}; expected uint8, 0 to 255: {hint}")
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise MediaError(
            f"{name} is an array of shape {array.shape}; expected [height, width, 3], [height, width, 4] or "
            "[height, width]: transpose or squeeze it"
        )
    height, width = array.shape[:2]
    _check_size(height, width, name)
    if array.ndim == 2:
        return np.repeat(array[..., None], 3, axis=2)
    return np.array(array, order="C") if array.shape[2] == 3 else _on_white(array)


def _check_size(height: int, width: int, name: str) -> None:
    if height < 1 or width < 1:
        raise MediaError(f"{name} has {width} x {height} pixels; expected at least one: make it again")
    if height * width > MAX_PIXELS:
        raise _too_large(name, height * width)


def _too_large(name: str, pixels: int) -> MediaError:
    return MediaError(f"{name} has {pixels:,} pixels; expected at most {MAX_PIXELS:,}: scale it down first")


def _damaged(name: str, error: Exception) -> MediaError:
    reason = str(error).strip(" .") or type(error).__name__
    return MediaError(f"{name} is damaged ({reason}); expected a whole picture file: make or copy it again")
