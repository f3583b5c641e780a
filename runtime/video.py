"""Writing a video: frames go to the encoder as they are decoded, and the file gets its name when it is complete.

Pictures from the models are sRGB-like RGB; MP4, MKV and WebM hold them as BT.709 in limited range with 4:2:0 chroma and
are tagged as that, so that players do not guess.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, cast

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from PIL import Image

from kinograph.errors import MemoryLimitError, OutputError, RequestError, UsageError
from kinograph.runtime.audio import Soundtrack, check_audio
from kinograph.runtime.image import png_bytes
from kinograph.runtime.output import StagedOutput, check_target, is_folder, mapped_errors

__all__ = ["VideoWriter", "available_codecs", "check_codec", "check_output"]

Pixels = npt.NDArray[np.uint8]

_BT709 = 1  # ITU-T H.273: colour primaries, transfer and matrix all number BT.709 as 1
_MIN_FPS, _MAX_FPS = 0.1, 1000.0
_MAX_GIF_FPS = 50.0  # players slow a GIF down when a frame lasts less than 20 ms
_MAX_DENOMINATOR = 1001  # 23.976023976 means 24000/1001
_MAX_SIDE = 16384  # pixels; H.264 and WebP end there
_CHROMA = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP


class _Format(NamedTuple):
    """A kind of file: libav's name of the container and its options, and the encoders it takes, the default first."""

    container: str
    options: dict[str, str]
    codecs: tuple[str, ...]


_H26X = ("libx264", "libx265", "h264_nvenc", "hevc_nvenc", "h264_qsv", "hevc_qsv")
_MOVIE_FORMATS = {
    # flush_packets: a frame is on the disk as soon as it is encoded
    ".mp4": _Format("mp4", {"movflags": "+faststart+use_metadata_tags", "flush_packets": "1"}, _H26X),
    ".mkv": _Format("matroska", {}, (*_H26X, "libvpx-vp9")),
    ".webm": _Format("webm", {}, ("libvpx-vp9",)),
}
_ANIMATION_FORMATS = {".gif": "GIF", ".webp": "WEBP"}
_CODEC_OPTIONS = {
    # zerolatency: without it, x264 holds back some fifty frames to look ahead. Veryfast at 15 looks as medium at 16
    # does, within 0.25 dB and 10 % of the bytes, in 0.3 to 0.4 of the time
    "libx264": {"crf": "15", "preset": "veryfast", "tune": "zerolatency"},
    "libx265": {"crf": "18", "preset": "medium", "x265-params": "log-level=error"},
    "libvpx-vp9": {"crf": "20", "b": "0", "row-mt": "1"},
    "h264_nvenc": {"rc": "vbr", "cq": "18", "b": "0"},
    "hevc_nvenc": {"rc": "vbr", "cq": "20", "b": "0"},
    "h264_qsv": {"global_quality": "18"},
    "hevc_qsv": {"global_quality": "20"},
}


def check_output(path: str | os.PathLike[str], force: bool = False) -> Path:
    """Refuse an output before any work: a kind of file that is not written, or a place that cannot be written to.

    Returns the absolute path. Raises OutputError.
    """
    suffix = Path(os.fspath(path)).suffix.lower()
    if not is_folder(path) and suffix not in _MOVIE_FORMATS and suffix not in _ANIMATION_FORMATS:
        known = ", ".join([*_MOVIE_FORMATS, *_ANIMATION_FORMATS])
        raise OutputError(
            f"{os.fspath(path)!r} does not say what to write: its ending is {suffix or 'missing'!r}. "
            f"Use one of {known}, or end the path in '/' for a folder of PNG frames"
        )
    return check_target(path, force)


def available_codecs(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The encoders this ffmpeg has for a path's kind of file, the default first; none for GIF, WebP and PNG."""
    kind = None if is_folder(path) else _MOVIE_FORMATS.get(Path(os.fspath(path)).suffix.lower())
    return () if kind is None else tuple(codec for codec in kind.codecs if codec in av.codecs_available)


def check_codec(path: str | os.PathLike[str], codec: str | None) -> str | None:
    """The encoder a path's kind of file is written with: `codec`, or the default; None for GIF, WebP and PNG.

    Raises UsageError if this ffmpeg has no such codec for that kind of file.
    """
    available = available_codecs(path)
    name = os.fspath(path)
    suffix = Path(name).suffix.lower()
    if is_folder(path) or suffix in _ANIMATION_FORMATS:
        if codec is not None:
            raise UsageError(f"{name!r} has no choice of codec, but {codec!r} was asked for. Leave --codec out")
        return None
    if not available:
        raise OutputError(f"this ffmpeg has no encoder for {suffix}. Write another kind of file, such as frames/")
    if codec is not None and codec not in available:
        raise UsageError(f"there is no codec {codec!r} for {suffix} here; available: {', '.join(available)}")
    return codec or available[0]


class _Sink(Protocol):
    """Where the frames of one kind of file go. Whoever makes one calls `finish` or `drop`."""

    def put(self, frame: Pixels) -> None:
        """Take one uint8 [H, W, 3] frame."""

    def finish(self) -> None:
        """Write what is left and close the file."""

    def drop(self) -> None:
        """Close the file without caring for its content."""


class VideoWriter:
    """A video file that is written while its frames are still being made.

    `write` takes uint8 [T, H, W, 3] RGB frames in their order. `close` completes the file, syncs it and gives it its
    name; until then it is a hidden temporary beside it, which `abort` removes. As a context manager it closes, or
    aborts on any exception. A folder path (ending in "/") gets frames `000000.png` and so on. GIF and WebP keep all
    frames in memory until `close`: T·H·W bytes for GIF and three times that for WebP. The sound of the file `audio`
    goes with it, as long as the video is, from its beginning again where it is shorter.

    Raises OutputError (place, disk), RequestError (size, fps, audio), UsageError (codec, wrong array).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        width: int,
        height: int,
        fps: float,
        codec: str | None = None,
        metadata: Mapping[str, str] | None = None,
        audio: str | None = None,
        force: bool = False,
    ) -> None:
        check_output(path, force)
        self.frames_written = 0
        self._shape = (height, width, 3)
        _check_size(path, width, height)
        rate = _rate(path, fps)
        codec = check_codec(path, codec)
        sound = None if audio is None else (audio, check_audio(audio, path))
        words = {_clean(key): _clean(value) for key, value in (metadata or {}).items()}
        self._staged = StagedOutput(path, force=force)
        self._open = True
        try:
            with self._mapped():
                self._sink = _sink(self._staged, (width, height), rate, codec, words, sound)
        except BaseException:
            self._staged.discard()
            raise

    def write(self, frames: Pixels) -> None:
        """Append uint8 [T, H, W, 3] RGB frames; after an error the writer can only be aborted."""
        if not self._open:
            raise UsageError("the video is closed already; make a new VideoWriter")
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != self._shape:
            expected = "×".join(str(side) for side in self._shape)
            raise UsageError(f"frames must be uint8 [T, {expected}], but are {frames.dtype} {list(frames.shape)}")
        with self._mapped():
            for frame in frames:
                self._sink.put(np.ascontiguousarray(frame))
                self.frames_written += 1

    def close(self) -> None:
        """Complete the file and give it its name; on failure nothing of it is left. Closing twice is harmless."""
        if not self._open:
            return
        if not self.frames_written:
            self.abort()
            raise OutputError(f"{str(self._staged.target)!r} was not written: there was no frame to write")
        try:
            with self._mapped():
                self._sink.finish()
            self._open = False
            self._staged.publish()
        finally:
            self.abort()

    def abort(self) -> None:
        """Close and remove the temporary; nothing happens after `close`."""
        if self._open:
            self._open = False
            with contextlib.suppress(OSError, av.error.FFmpegError):
                self._sink.drop()
        self._staged.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort()

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        target = self._staged.target
        try:
            with mapped_errors(target):
                yield
        except av.error.MemoryError as error:
            raise MemoryLimitError(f"not enough memory to encode {str(target)!r}. Use a smaller size") from error
        except av.error.FFmpegError as error:
            raise OutputError(f"{str(target)!r} could not be encoded: {error}. Try another --codec") from error


class _MovieSink:
    """Frames through libav: H.264, HEVC or VP9 in MP4, Matroska or WebM."""

    def __init__(
        self,
        path: Path,
        kind: _Format,
        size: tuple[int, int],
        rate: Fraction,
        codec: str,
        sound: tuple[str, str] | None,
    ) -> None:
        self._codec = codec
        self._time_base = 1 / rate
        self._count = 0
        self._converter = VideoReformatter()  # one for all frames: setting one up takes as long as converting 128 × 128
        self._container = av.open(str(path), "w", format=kind.container, options=kind.options)
        stream = self._container.add_stream(codec, rate=rate, options=_CODEC_OPTIONS.get(codec, {}))
        self._stream = cast(av.VideoStream, stream)
        self._stream.width, self._stream.height = size
        self._stream.pix_fmt = "yuv420p" if codec.startswith("lib") or codec.endswith("nvenc") else "nv12"
        context = self._stream.codec_context
        context.time_base = self._time_base
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = ColorRange.MPEG
        if codec.startswith(("libx265", "hevc")):
            context.codec_tag = "hvc1"  # what Apple's players look for
        self._sound = None if sound is None else Soundtrack(sound[0], self._container, sound[1])

    def start(self, metadata: Mapping[str, str]) -> None:
        """Open the encoder and write the header, so that a missing device shows before any work."""
        self._container.metadata.update(_container_metadata(metadata))
        try:
            self._container.start_encoding()
        except (OSError, av.error.FFmpegError) as error:
            if not self._stream.codec_context.is_open:
                raise OutputError(
                    f"the encoder {self._codec} cannot be used on this machine: {error}. Leave --codec out"
                ) from error
            raise

    def put(self, frame: Pixels) -> None:
        picture = self._converter.reformat(
            av.VideoFrame.from_ndarray(frame, format="rgb24"),
            format=self._stream.pix_fmt,
            src_color_range=ColorRange.JPEG,
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=_CHROMA,
        )
        picture.pts, picture.time_base = self._count, self._time_base
        picture.duration = 1
        self._count += 1
        self._container.mux(self._stream.encode(picture))
        if self._sound is not None:
            self._sound.until(float(self._count * self._time_base))

    def finish(self) -> None:
        self._container.mux(self._stream.encode(None))
        if self._sound is not None:
            self._sound.finish(float(self._count * self._time_base))
        self._container.close()

    def drop(self) -> None:
        self._container.close()


class _AnimationSink:
    """Frames through Pillow: GIF with a palette of its own for every frame, or WebP."""

    def __init__(self, path: Path, kind: str, rate: Fraction, metadata: Mapping[str, str]) -> None:
        self._path, self._kind, self._rate = path, kind, rate
        self._metadata = dict(metadata)
        self._frames: list[Image.Image] = []

    def put(self, frame: Pixels) -> None:
        image = Image.fromarray(frame)
        if self._kind == "GIF":
            image = image.quantize(palette=image.quantize(256), dither=Image.Dither.FLOYDSTEINBERG)
        self._frames.append(image)

    def finish(self) -> None:
        options: dict[str, Any] = {"duration": self._durations(), "loop": 0}
        text = json.dumps(self._metadata)
        if self._kind == "GIF":
            options["disposal"] = 1
            if self._metadata:
                options["comment"] = text.encode()
        else:
            options.update(quality=90, method=4)
            if self._metadata:
                exif = Image.Exif()
                exif[0x010E] = text  # ImageDescription
                options["exif"] = exif
        first, *rest = self._frames
        first.save(self._path, self._kind, save_all=True, append_images=rest, **options)

    def drop(self) -> None:
        self._frames.clear()

    def _durations(self) -> list[int]:
        """Milliseconds of every frame; rounding does not add up over the video (GIF counts in 10 ms)."""
        unit = 10 if self._kind == "GIF" else 1
        ends = [round(number * 1000 / (self._rate * unit)) for number in range(len(self._frames) + 1)]
        return [(end - start) * unit for start, end in itertools.pairwise(ends)]


class _PngSink:
    """Frames as `000000.png` and so on in a folder; the first carries the metadata."""

    def __init__(self, folder: Path, metadata: Mapping[str, str]) -> None:
        self._folder, self._metadata, self._count = folder, metadata, 0

    def put(self, frame: Pixels) -> None:
        data = png_bytes(frame, self._metadata if self._count == 0 else None)
        (self._folder / f"{self._count:06d}.png").write_bytes(data)
        self._count += 1

    def finish(self) -> None:
        """Every frame is a file of its own already."""

    def drop(self) -> None:
        """Nothing is open."""


def _sink(
    staged: StagedOutput,
    size: tuple[int, int],
    rate: Fraction,
    codec: str | None,
    metadata: Mapping[str, str],
    sound: tuple[str, str] | None,
) -> _Sink:
    if staged.path.is_dir():
        return _PngSink(staged.path, metadata)
    suffix = staged.target.suffix.lower()
    if codec is None:
        return _AnimationSink(staged.path, _ANIMATION_FORMATS[suffix], rate, metadata)
    movie = _MovieSink(staged.path, _MOVIE_FORMATS[suffix], size, rate, codec, sound)
    movie.start(metadata)
    return movie


def _check_size(path: str | os.PathLike[str], width: int, height: int) -> None:
    if not (1 <= width <= _MAX_SIDE and 1 <= height <= _MAX_SIDE):
        raise RequestError(f"{width}×{height} is not a size a video can have: each side is 1 to {_MAX_SIDE} pixels")
    if available_codecs(path) and (width % 2 or height % 2):
        nearest = f"{width + width % 2}×{height + height % 2}"
        raise RequestError(f"{width}×{height} is odd, but 4:2:0 video is even; nearest: {nearest}. Use that, or PNG")


def _rate(path: str | os.PathLike[str], fps: float) -> Fraction:
    is_gif = not is_folder(path) and Path(os.fspath(path)).suffix.lower() == ".gif"
    limit = _MAX_GIF_FPS if is_gif else _MAX_FPS
    if not (math.isfinite(fps) and _MIN_FPS <= fps <= limit):
        raise RequestError(f"fps is {fps}, but must be {_MIN_FPS:g} to {limit:g} for this kind of file. Use --fps 16")
    return Fraction(fps).limit_denominator(_MAX_DENOMINATOR)


def _clean(text: str) -> str:
    """Text as a C library takes it: UTF-8 without NUL."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")


def _container_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata with the two tags players show: the prompt as title, and everything as a comment in JSON."""
    if not metadata:
        return {}
    shown = {"comment": json.dumps(dict(metadata), ensure_ascii=False)}
    if metadata.get("prompt"):
        shown["title"] = metadata["prompt"]
    return {**shown, **metadata}
