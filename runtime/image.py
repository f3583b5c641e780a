"""Single pictures: reading the one a video starts from, writing PNG, and laying out a contact sheet."""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Mapping
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from kinograph.errors import RequestError

__all__ = ["contact_sheet", "png_bytes", "read_image", "sheet_indices"]

Pixels = npt.NDArray[np.uint8]

_READABLE = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
_MAX_PIXELS = 1 << 26  # 8192×8192, 192 MB as RGB: far beyond what a video model takes
_GAP = 4  # pixels between the frames of a contact sheet
_PAPER = 24  # grey of the gaps


def read_image(path: str | os.PathLike[str]) -> Pixels:
    """The picture as uint8 [H, W, 3] RGB, upright as its EXIF orientation says; transparency is dropped.

    The format is found from the content, whatever the name. Only a local regular file is read, and a picture that is
    too large is refused from its header. Raises RequestError.
    """
    name = os.fspath(path)
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RequestError(f"the image {name!r} cannot be opened: {reason}. Name a local picture file") from error
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor, not a path
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise RequestError(f"the image {name!r} is not a regular file. Name a local picture file")
        try:
            return _decode(file, name)
        except UnidentifiedImageError as error:
            readable = ", ".join(_READABLE)
            raise RequestError(
                f"{name!r} is not a picture of a known kind. Convert it to one of: {readable}"
            ) from error
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            raise RequestError(f"the image {name!r} is damaged or too large: {error}. Save it again as PNG") from error


def _decode(file: IO[bytes], name: str) -> Pixels:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # size is checked below; odd metadata does not matter here
        with Image.open(file, formats=_READABLE) as image:
            width, height = image.size
            if width * height > _MAX_PIXELS:
                raise RequestError(
                    f"the image {name!r} has {width}×{height} pixels, more than the {_MAX_PIXELS} that "
                    "are read. Scale it to the size of the video first"
                )
            if image.mode not in _MODES:
                raise RequestError(
                    f"the image {name!r} has pixels of type {image.mode}, not 8 bits a channel. Save it as 8-bit PNG"
                )
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"), dtype=np.uint8)


def png_bytes(image: Pixels, metadata: Mapping[str, str] | None = None, *, compress_level: int = 6) -> bytes:
    """An uint8 [H, W, 3] RGB image as a PNG file, with `metadata` as its text chunks."""
    text = PngImagePlugin.PngInfo()
    for key, value in (metadata or {}).items():
        text.add_itxt(key, value)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", pnginfo=text, compress_level=compress_level)
    return buffer.getvalue()


def sheet_indices(total: int, count: int) -> list[int]:
    """The numbers of up to `count` evenly spaced frames out of `total`, the first and the last among them."""
    if total <= 0 or count <= 0:
        return []
    return sorted({round(position) for position in np.linspace(0, total - 1, min(count, total)).tolist()})


def contact_sheet(frames: Pixels, columns: int = 8, rows: int = 1) -> Pixels:
    """Evenly spaced frames of a video, laid out left to right and top to bottom.

    `frames` is uint8 [T, H, W, 3]; returns uint8 [H', W', 3] with `columns`·`rows` frames, fewer if T is smaller.
    Raises ValueError if there is no frame.
    """
    chosen = frames[sheet_indices(len(frames), columns * rows)]
    if len(chosen) == 0:
        raise ValueError("a contact sheet needs at least one frame and one column")
    count, height, width, _ = chosen.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    shape = (rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3)
    sheet = np.full(shape, _PAPER, dtype=np.uint8)
    for number, frame in enumerate(chosen):
        top = _GAP + (number // columns) * (height + _GAP)
        left = _GAP + (number % columns) * (width + _GAP)
        sheet[top : top + height, left : left + width] = frame
    return sheet
