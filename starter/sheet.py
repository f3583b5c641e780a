"""Contact sheets: clips as rows of frames in one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["contact_sheet", "write_png"]

_GAP = 2  # pixels between frames
_PAPER = 255


def contact_sheet(
    clips: Sequence[NDArray[np.uint8]], shown: int = 5, columns: int = 2, zoom: int = 1
) -> NDArray[np.uint8]:
    """Clips, each uint8 [T, H, W, 3], in rows of `shown` frames spread over the clip, `columns` clips side by side."""
    strips = []
    for clip in clips:
        chosen = clip[np.linspace(0, len(clip) - 1, shown).round().astype(int)]
        framed = [np.pad(frame, ((0, _GAP), (0, _GAP), (0, 0)), constant_values=_PAPER) for frame in chosen]
        strips.append(np.pad(np.concatenate(framed, axis=1), ((0, 0), (0, 4 * _GAP), (0, 0)), constant_values=_PAPER))
    while len(strips) % columns:
        strips.append(np.full_like(strips[0], _PAPER))
    rows = [np.concatenate(strips[i : i + columns], axis=1) for i in range(0, len(strips), columns)]
    return np.concatenate(rows, axis=0).repeat(zoom, axis=0).repeat(zoom, axis=1)


def write_png(picture: NDArray[np.uint8], path: Path) -> None:
    """Write uint8 RGB [H, W, 3] as a PNG, making its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, optimize=True)
