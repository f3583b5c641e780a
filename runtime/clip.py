"""Films as input: the frames of a video file, at a rate and size of our own choosing."""

from __future__ import annotations

import contextlib
import os
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from kinograph.errors import RequestError
from kinograph.runtime.conditioning import Fit, fit
from kinograph.runtime.request import Request

__all__ = ["Clip", "Middle", "check_file", "read_clip", "reading"]

Pixels = npt.NDArray[np.uint8]

_MAX_SIDE = 8192  # pixels; four times the width of what any video model makes
_MAX_FRAMES = 1 << 20  # a day's worth is a mistake
_QUARTER = 90  # degrees
# Formats that are one file. A playlist names others, which libav would open.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,flv,gif,apng,ogg,mpeg,mpegts,ivf,yuv4mpegpipe,webp_pipe,nut"
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}


@dataclass(frozen=True)
class Clip:
    """A film that is given, as this one's frames: uint8 [H, W, 3] each. It is read anew each time; None is no film."""

    path: str | None
    width: int
    height: int
    fps: float
    how: Fit

    @classmethod
    def of(cls, request: Request, path: str | None) -> Clip:
        """A film given to a resolved request."""
        return cls(path, int(request.width or 0), int(request.height or 0), float(request.fps or 1), request.fit)

    def __iter__(self) -> Iterator[Pixels]:
        if self.path is not None:
            yield from read_clip(self.path, width=self.width, height=self.height, fps=self.fps, how=self.how)

    def last(self, most: int) -> tuple[Pixels | None, int]:
        """Its last frames [T, H, W, 3], up to `most` of them, and how many it has in all."""
        kept: deque[Pixels] = deque(maxlen=most)
        count = 0
        for frame in self:
            kept.append(frame)
            count += 1
        return (np.stack(kept) if kept else None), count

    def first(self, most: int) -> tuple[Pixels | None, int]:
        """Its first frames [T, H, W, 3], up to `most` of them, and how many it has in all."""
        kept: list[Pixels] = []
        count = 0
        for count, frame in enumerate(self, 1):
            if count <= most:
                kept.append(frame)
        return (np.stack(kept) if kept else None), count


class Middle:
    """Lets frames go by, but for the first `head` and the last `tail` of them, which it keeps."""

    def __init__(self, head: int, tail: int) -> None:
        self._most, self._behind = head, tail
        self._first: list[Pixels] = []
        self._last: deque[Pixels] = deque()

    def push(self, frames: Pixels) -> list[Pixels]:
        """Those of frames [T, H, W, 3], and of earlier ones, that are not among the last any more."""
        first = len(frames[: self._most - len(self._first)])
        self._first.extend(frames[:first])
        self._last.extend(frames[first:])
        return [self._last.popleft() for _ in range(len(self._last) - self._behind)]

    @property
    def head(self) -> Pixels:
        return np.stack(self._first)

    @property
    def tail(self) -> Pixels:
        return np.stack(self._last)


def read_clip(path: str | os.PathLike[str], *, width: int, height: int, fps: float, how: Fit) -> Iterator[Pixels]:
    """The frames of a video file as uint8 [H, W, 3], one after the other: `fps` a second, `width` × `height`, upright.

    Where the file's rate differs, or varies, a frame is what the file shows at that moment. Only a local regular file
    is read. Raises RequestError where it is no video, or is damaged.
    """
    name = os.fspath(path)
    check_file(name, "film")
    shown: Pixels | None = None
    due = 0  # frames that are out already
    begin: float | None = None
    with reading(name, "video", "MP4"), av.open(name, "r", options=_OPTIONS) as container:
        if not container.streams.video:
            raise RequestError(f"{name!r} has no video stream. Give a film, such as an .mp4")
        stream = container.streams.video[0]
        if max(stream.codec_context.width, stream.codec_context.height) > _MAX_SIDE:
            raise RequestError(f"{name!r} has sides of more than {_MAX_SIDE} pixels. Scale it down first")
        last = 0.0
        for frame in container.decode(stream):
            at = last if frame.time is None else float(frame.time)
            begin = at if begin is None else begin
            # everything due before this frame shows the one before it
            while shown is not None and due / fps < at - begin - 0.5 / fps and due < _MAX_FRAMES:
                yield shown
                due += 1
            shown = fit(_upright(frame), width, height, resample=Image.Resampling.LANCZOS, how=how)
            lasts = frame.duration * frame.time_base if frame.duration and frame.time_base else 1 / fps
            last = at + float(lasts)
    if shown is None or begin is None:
        raise RequestError(f"{name!r} has no frame that can be read. Give a film, such as an .mp4")
    yield shown
    due += 1
    while due / fps < last - begin - 0.5 / fps and due < _MAX_FRAMES:
        yield shown
        due += 1


def check_file(name: str, what: str) -> None:
    """Refuse what is not a local regular file, as the RequestError of a film or of whatever it shall be."""
    try:
        mode = os.stat(name).st_mode  # noqa: PTH116 - may be bytes that no Path takes
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RequestError(f"the {what} {name!r} cannot be opened: {reason}. Name a local file") from error
    if not stat.S_ISREG(mode):
        raise RequestError(f"the {what} {name!r} is not a regular file. Name a local file")


@contextlib.contextmanager
def reading(name: str, what: str, instead: str) -> Iterator[None]:
    """Turn libav's errors into ours; `instead` is the kind of file that is always read."""
    try:
        yield
    except (av.error.FFmpegError, OSError, ValueError, MemoryError) as error:
        said = getattr(error, "strerror", None) or error
        raise RequestError(
            f"{name!r} is no {what} that can be read, or is damaged: {said}. Save it again as {instead}"
        ) from error


def _upright(frame: Any) -> Pixels:
    """A decoded frame as RGB, turned as the file says it is to be shown."""
    pixels: Pixels = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / _QUARTER) % 4  # counter-clockwise
    return np.ascontiguousarray(np.rot90(pixels, turns))
