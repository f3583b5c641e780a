"""Sound for a video: the audio of any file, as long as the video is, looped where it is shorter."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, cast

import av
from av.audio.fifo import AudioFifo
from av.audio.resampler import AudioResampler

from kinograph.errors import RequestError
from kinograph.runtime.clip import check_file, reading

__all__ = ["Soundtrack", "check_audio"]

_RATE = 48_000  # samples a second; all that Opus knows, and what video has
_BITS = 192_000  # a second; beyond what ears tell from the original
_FRAME = 1024  # samples, of encoders that take any number
# Formats that are one file. A playlist names others, which libav would open.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,ogg,mpeg,mpegts,nut,wav,w64,aiff,caf,flac,mp3,aac,amr,au,voc"
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
_CODECS = {".mp4": "aac", ".mkv": "aac", ".webm": "libopus"}


def check_audio(path: str, output: str | os.PathLike[str]) -> str:
    """The encoder for the sound of `path` in a file called `output`.

    Raises RequestError where `path` has no sound that can be read, or the output is of a kind without any.
    """
    codec = _CODECS.get(os.path.splitext(os.fspath(output))[1].lower())  # noqa: PTH122 - may end in a slash
    if codec is None:
        raise RequestError(f"{os.fspath(output)!r} can hold no sound. Use {', '.join(_CODECS)}, or leave out --audio")
    next(_blocks(path))
    return codec


class Soundtrack:
    """The sound of `path` as a stream of `container`, stereo at 48 kHz, which is written as the video goes on."""

    def __init__(self, path: str, container: Any, codec: str) -> None:
        self._container = container
        self._stream = cast(av.AudioStream, container.add_stream(codec, rate=_RATE, layout="stereo"))
        self._stream.bit_rate = _BITS
        context = self._stream.codec_context
        assert context.codec.audio_formats is not None
        self._resampler = AudioResampler(context.codec.audio_formats[0].name, "stereo", _RATE)
        self._fifo = AudioFifo()
        self._blocks = _looped(path)
        self._written = 0  # samples

    def until(self, seconds: float) -> None:
        """Write what is heard up to a moment, in the encoder's whole frames."""
        size = self._stream.codec_context.frame_size or _FRAME
        while self._written + size <= seconds * _RATE:
            self._write(size)

    def finish(self, seconds: float) -> None:
        """Write the rest, up to the end of the video."""
        self.until(seconds)
        if (rest := round(seconds * _RATE) - self._written) > 0:
            self._write(rest)
        self._container.mux(self._stream.encode(None))
        self._blocks.close()  # type: ignore[attr-defined]

    def _write(self, samples: int) -> None:
        while self._fifo.samples < samples:
            for block in self._resampler.resample(next(self._blocks)):
                block.pts = None
                self._fifo.write(block)
        frame = self._fifo.read(samples)
        assert frame is not None
        frame.pts, frame.sample_rate = self._written, _RATE
        self._written += samples
        self._container.mux(self._stream.encode(frame))


def _looped(path: str) -> Iterator[av.AudioFrame]:
    while True:
        yield from _blocks(path)


def _blocks(path: str) -> Iterator[av.AudioFrame]:
    """The decoded frames of a file's first audio stream. Raises RequestError where there are none."""
    check_file(path, "sound")
    count = 0
    with reading(path, "sound", "WAV"), av.open(path, "r", options=_OPTIONS) as container:
        if not container.streams.audio:
            raise RequestError(f"{path!r} has no sound. Give a file with an audio stream, such as a .wav")
        for frame in container.decode(container.streams.audio[0]):
            if frame.samples:
                count += frame.samples
                yield frame
    if not count:
        raise RequestError(f"{path!r} has no sound that can be read. Save it again as WAV")
