"""Pictures and films that a program hands over in memory, as the files that a request names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

import av
import msgspec
import numpy as np
import numpy.typing as npt

from kinograph.errors import RequestError
from kinograph.runtime.image import png_bytes
from kinograph.runtime.request import Request, Still

__all__ = ["Attachment", "attached", "write_attachment"]

Pixels = npt.NDArray[np.uint8]
_Side = Annotated[int, msgspec.Meta(ge=1, le=8192)]

_MAX_DENOMINATOR = 1001  # 23.976023976 means 24000/1001


class Attachment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`frames` pictures of `width` × `height` RGB pixels for a field of the request; of `images` one, shown at `at`."""

    field: Literal["images", "before", "after", "remix", "inpaint", "mask"]
    width: _Side
    height: _Side
    frames: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 1
    at: int = 0


def write_attachment(folder: Path, number: int, what: Attachment, frames: Iterator[Pixels], fps: float) -> Path:
    """Write uint8 [H, W, 3] frames as a file that has every pixel as it is: a PNG, or a film of `fps` frames a second.

    Raises OSError where that cannot be written.
    """
    if what.frames == 1 and what.field in ("images", "mask"):
        path = folder / f"{number}.png"
        path.write_bytes(png_bytes(next(frames), compress_level=1))
    else:
        path = folder / f"{number}.mkv"
        _write_film(path, frames, fps)
    return path


def attached(request: Request, files: Iterable[tuple[Attachment, str]]) -> Request:
    """`request` with the files' names in its fields. Raises RequestError for several pictures where there is one."""
    for what, path in files:
        if what.field == "images" and what.frames > 1:
            raise RequestError(f"a picture of {what.frames} frames was handed over. Hand over one for each frame")
        if what.field == "images":
            request = msgspec.structs.replace(request, images=(*request.images, Still(path, what.at)))
        else:
            request = msgspec.structs.replace(request, **{what.field: path})
    return request


def _write_film(path: Path, frames: Iterable[Pixels], fps: float) -> None:
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=Fraction(fps).limit_denominator(_MAX_DENOMINATOR))
        stream.pix_fmt = "bgr0"
        for number, frame in enumerate(frames):
            if number == 0:
                stream.height, stream.width = frame.shape[:2]
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="bgr0")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
