"""Text in the picture: a title over the beginning, and captions from a subtitle file, in any script.

Text is shaped by HarfBuzz and ordered by FriBidi through Pillow's Raqm layout, wrapped to the title-safe area (90 % of
the picture, SMPTE ST 2046-1), and drawn in white with a dark edge.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, features

from kinograph.errors import RequestError
from kinograph.runtime.clip import check_file, reading

__all__ = ["Caption", "Captions", "read_captions", "title"]

Pixels = npt.NDArray[np.uint8]

_SAFE = 0.9  # of each side, where every screen shows text whole
_TITLE_HEIGHT, _CAPTION_HEIGHT = 0.10, 0.065  # of the picture's shorter side
_LEAST_HEIGHT = 9  # pixels, below which letters run together
_EDGE = 0.12  # of the height, the dark edge around letters
_LEADING = 1.25  # heights from line to line
_TITLE_SECONDS, _FADE_SECONDS = 3.0, 0.5
_WHITE, _DARK = (255, 255, 255), (16, 16, 16)
_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": "srt,webvtt"}
_TAGS = re.compile(r"<[^<>]{0,64}>|\{\\[^{}]{0,64}\}")
_MOST_TEXT = 1 << 14  # characters of one caption
_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/Library/Fonts",
    "/System/Library/Fonts",
    "C:/Windows/Fonts",
)
_FIRST = ("NotoSans-Regular", "DejaVuSans")  # before all others that have a text's characters
_ABSENT = "\U0010fffe"  # no character, so that every font shows its box for it
_INVISIBLE = frozenset({"Mn", "Me", "Cc", "Cf", "Zs", "Zl", "Zp"})  # categories that need no shape of their own
_BY_POSITION = frozenset({"R", "AL", "AN"})  # bidirectional classes that plain layout gets wrong


class Caption(NamedTuple):
    """`text` from `start` to `end` seconds: a title in the middle, which fades, or a caption at the bottom."""

    start: float
    end: float
    text: str
    is_title: bool = False


def title(text: str, seconds: float = _TITLE_SECONDS) -> Caption:
    """A title over the first seconds."""
    return Caption(0.0, seconds, text, is_title=True)


def read_captions(path: str) -> list[Caption]:
    """The captions of a SubRip (.srt) or WebVTT file. Raises RequestError."""
    check_file(path, "captions")
    found = []
    with reading(path, "file of captions", "UTF-8 .srt"), av.open(path, "r", options=_OPTIONS) as container:
        if not container.streams.subtitles:
            raise RequestError(f"{path!r} has no captions. Give an .srt or .vtt file")
        for packet in container.demux(container.streams.subtitles[0]):
            if packet.pts is None or not packet.duration or packet.time_base is None:
                continue
            text = _TAGS.sub("", bytes(packet).decode("utf-8")).replace("\0", "").strip()
            start, lasts = (float(ticks * packet.time_base) for ticks in (packet.pts, packet.duration))
            if text:
                found.append(Caption(start, start + lasts, text[:_MOST_TEXT]))
    if not found:
        raise RequestError(f"{path!r} has no caption with text in it. Give an .srt or .vtt file")
    return found


class _Laid(NamedTuple):
    """A caption in lines, with the font that they are for."""

    caption: Caption
    face: ImageFont.FreeTypeFont
    tall: int
    lines: tuple[str, ...]


class _Layer(NamedTuple):
    """The rows from `top` to `bottom` of a picture: colour [T, W, 3], and its share [T, W, 1]."""

    top: int
    bottom: int
    colour: npt.NDArray[np.float32]
    share: npt.NDArray[np.float32]


class Captions:
    """Draws captions into the frames of a video of `width` × `height` pixels, `fps` a second.

    `font` is a font file; without one it is the first of the system's that has every character of a text. Raises
    RequestError where none has, or where a text needs shaping and this Pillow has no Raqm.
    """

    def __init__(
        self, captions: Sequence[Caption], *, width: int, height: int, fps: float, font: str | None = None
    ) -> None:
        self._size, self._fps = (width, height), fps
        self._captions = [self._laid_out(caption, font) for caption in captions]
        self._drawn: dict[_Laid, _Layer] = {}  # those that are seen now

    def draw(self, frames: Pixels, first: int) -> Pixels:
        """Frames uint8 [T, H, W, 3] with what is to be read in them; the first is the video's frame `first`."""
        result = frames
        for index in range(len(frames)):
            at = (first + index) / self._fps
            seen = [laid for laid in self._captions if _shown(laid.caption, at) > 0]
            self._drawn = {laid: self._drawn.get(laid) or self._layer(laid) for laid in seen}
            for laid, layer in self._drawn.items():
                result = frames.copy() if result is frames else result
                below = result[index, layer.top : layer.bottom].astype(np.float32)
                share = _shown(laid.caption, at) * layer.share
                result[index, layer.top : layer.bottom] = np.rint(below + share * (layer.colour - below))
        return result

    def _laid_out(self, caption: Caption, font: str | None) -> _Laid:
        width, height = self._size
        tall = max(_LEAST_HEIGHT, round(min(self._size) * (_TITLE_HEIGHT if caption.is_title else _CAPTION_HEIGHT)))
        face = _face(caption.text, tall, font)
        lines = tuple(_wrapped(caption.text, face, width * _SAFE))
        if len(lines) * tall * _LEADING > height * _SAFE:
            raise RequestError(
                f"{caption.text[:60]!r} takes {len(lines)} lines, more than fit into {width}×{height} pixels. "
                "Use less text, or a larger --size"
            )
        return _Laid(caption, face, tall, lines)

    def _layer(self, laid: _Laid) -> _Layer:
        width, height = self._size
        block = len(laid.lines) * laid.tall * _LEADING
        edge = max(1, round(laid.tall * _EDGE))
        start = (height - block) / 2 if laid.caption.is_title else height * (1 + _SAFE) / 2 - block
        top, bottom = max(0, math.floor(start) - edge), min(height, math.ceil(start + block) + edge)
        layer = Image.new("RGBA", (width, bottom - top))
        pen = ImageDraw.Draw(layer)
        for number, line in enumerate(laid.lines):
            place = (width / 2, start - top + (number + 0.5) * laid.tall * _LEADING)
            pen.text(place, line, _WHITE, font=laid.face, anchor="mm", stroke_width=edge, stroke_fill=_DARK)
        pixels = np.asarray(layer, np.float32)
        return _Layer(top, bottom, pixels[..., :3], pixels[..., 3:] / np.float32(255))


def _shown(caption: Caption, at: float) -> float:
    """How much of a caption is seen at that moment: 0 to 1."""
    if not caption.start <= at < caption.end:
        return 0.0
    return min(1.0, (caption.end - at) / _FADE_SECONDS) if caption.is_title else 1.0


def _wrapped(text: str, face: ImageFont.FreeTypeFont, width: float) -> Iterator[str]:
    """The lines of a text, none wider than `width`; what has no spaces is broken where it has to be."""
    for paragraph in text.splitlines():
        line = ""
        for piece in re.findall(r"\S+\s*", paragraph):
            if line and face.getlength((line + piece).rstrip()) > width:
                yield line.rstrip()
                line = ""
            while face.getlength(piece.rstrip()) > width and len(piece) > 1:
                fits = next(n for n in range(len(piece), 0, -1) if n == 1 or face.getlength(piece[:n]) <= width)
                yield piece[:fits]
                piece = piece[fits:]
            line += piece
        if line.strip():
            yield line.rstrip()


def _face(text: str, tall: int, font: str | None) -> ImageFont.FreeTypeFont:
    """A font of that height which has the text's characters, and an engine that lays them out."""
    shaped = features.check("raqm")
    if not shaped and any(unicodedata.bidirectional(one) in _BY_POSITION for one in text):
        raise RequestError(
            f"{text[:60]!r} is written from right to left, and Pillow has no Raqm here to lay it out. "
            "Install FriBidi (libfribidi0)"
        )
    engine = ImageFont.Layout.RAQM if shaped else ImageFont.Layout.BASIC
    missing = ""
    for path in [font] if font is not None else _system_fonts():
        try:
            face = ImageFont.truetype(path, tall, layout_engine=engine)
        except (OSError, ValueError) as error:
            if font is not None:
                raise RequestError(f"{font!r} is no font that can be read: {error}. Use a .ttf or .otf file") from error
            continue
        lacking = _lacking(face, text)
        if not lacking:
            return face
        missing = min(missing or lacking, lacking, key=len)
    whose = f"{font!r} has" if font is not None else "no font of this system has"
    raise RequestError(f"{whose} {missing[:20]!r} of {text[:60]!r}. Name a font that has, with --font FILE")


def _lacking(face: ImageFont.FreeTypeFont, text: str) -> str:
    """The characters that a font shows as its box for those it does not have."""
    box = _shape(face, _ABSENT)
    visible = sorted({one for one in text if unicodedata.category(one) not in _INVISIBLE})
    return "".join(one for one in visible if _shape(face, one) == box)


def _shape(face: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    mask = face.getmask(character)
    return mask.size, bytes(mask)


def _system_fonts() -> list[str]:
    found = []
    for folder in _FOLDERS:
        root = Path(folder).expanduser()
        if root.is_dir():
            found += [path for path in root.rglob("*") if path.suffix.lower() in (".ttf", ".otf", ".ttc")]
    plain = [path for path in found if not re.search("Bold|Italic|Oblique|Mono|Light|Thin|Black", path.stem)]
    return [str(path) for path in sorted(plain or found, key=lambda path: (path.stem not in _FIRST, path.name))]
