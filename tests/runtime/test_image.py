"""Pictures are read upright as RGB or refused from their header; contact sheets hold evenly spaced frames."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kinograph.errors import RequestError
from kinograph.runtime.image import contact_sheet, png_bytes, read_image, sheet_indices

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def test_the_content_decides_the_format(tmp_path: Path) -> None:
    path = tmp_path / "picture.txt"
    path.write_bytes(png_bytes(PICTURE))
    assert np.array_equal(read_image(path), PICTURE)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    Image.fromarray(PICTURE).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), np.rot90(PICTURE, -1))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_other_8_bit_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    Image.fromarray(PICTURE).convert(mode).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png")
    assert pixels.shape == (6, 8, 3) and pixels.dtype == np.uint8


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    whole = png_bytes(PICTURE)
    huge = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    header = (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + huge + struct.pack(">I", zlib.crc32(b"IHDR" + huge))
    )
    wide = Image.fromarray(np.zeros((4, 4), dtype=np.uint16))
    wide.save(tmp_path / "wide.png")
    os.mkfifo(tmp_path / "pipe.png")
    for name, data, words in [
        ("playlist.png", b"ffconcat version 1.0\nfile secret.png\n", "not a picture"),
        ("empty.png", b"", "not a picture"),
        ("cut.png", whole[:-40], "damaged"),
        ("huge.png", header + whole[33:], "100000×100000|too large"),
        ("wide.png", None, "8-bit PNG"),
        ("pipe.png", None, "not a regular file"),
        ("missing.png", None, "cannot be opened"),
        ("https://example.com/a.png", None, "cannot be opened"),
        ("nul\0.png", None, "cannot be opened"),
    ]:
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(RequestError, match=words):
            read_image(f"{tmp_path}/{name}")


def test_contact_sheet_is_evenly_spaced_and_ends_at_the_last_frame() -> None:
    assert sheet_indices(33, 5) == [0, 8, 16, 24, 32]
    assert sheet_indices(2, 8) == [0, 1]
    assert sheet_indices(1, 8) == [0]
    frames = np.broadcast_to(np.arange(9, dtype=np.uint8)[:, None, None, None], (9, 4, 6, 3))
    sheet = contact_sheet(frames, columns=2, rows=2)
    assert sheet.shape == (4 + 2 * 8, 4 + 2 * 10, 3)
    assert [sheet[4, 4, 0], sheet[4, 14, 0], sheet[12, 4, 0], sheet[12, 14, 0]] == [0, 3, 5, 8]
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet(frames[:0])
