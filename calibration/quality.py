"""What quantising cost: videos of a variant held against those of the float graph it was made from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["LEVELS", "Bars", "psnr", "ssim"]

Frames = npt.NDArray[np.uint8]

_PEAK = 255.0
_WINDOW = 8
_LIMIT = 120.0  # dB of two equal videos


@dataclass(frozen=True)
class Bars:
    """What a variant must reach: the worst step's velocity in dB, and the videos' mean PSNR in dB and SSIM."""

    velocity_db: float = 15.0
    psnr_db: float = 30.0
    ssim: float = 0.9


LEVELS = {
    "careful": Bars(psnr_db=38.0, ssim=0.99),
    "balanced": Bars(psnr_db=34.0, ssim=0.985),
    "fast": Bars(psnr_db=26.0, ssim=0.85),
}
"""What videos of a speed level must reach, held against those of every step; the velocity has no say in it."""


def psnr(reference: Frames, other: Frames) -> float:
    """Peak signal-to-noise ratio of two videos uint8 [T, H, W, 3], over all of them, in dB; 120 if equal."""
    error = float(np.square(reference.astype(np.float64) - other).mean())
    return _LIMIT if error == 0 else min(_LIMIT, float(10 * np.log10(_PEAK**2 / error)))


def ssim(reference: Frames, other: Frames) -> float:
    """Structural similarity (Wang et al. 2004, doi:10.1109/TIP.2003.819861) of two videos uint8 [T, H, W, 3].

    Of luma, over windows of 8×8 pixels that do not overlap, averaged over all of them.
    """
    x, y = (_windows(frames) for frames in (reference, other))
    mean_x, mean_y = x.mean(-1), y.mean(-1)
    var_x, var_y = x.var(-1), y.var(-1)
    covariance = ((x - mean_x[..., None]) * (y - mean_y[..., None])).mean(-1)
    c1, c2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((likeness / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())


def _windows(frames: Frames) -> npt.NDArray[np.float64]:
    """Luma (BT.601) in windows: [T, rows, columns, 64]; what is left at the border is cut off."""
    luma = frames @ np.array([0.299, 0.587, 0.114])
    count, height, width = luma.shape
    rows, columns = max(height // _WINDOW, 1), max(width // _WINDOW, 1)
    side_y, side_x = min(_WINDOW, height), min(_WINDOW, width)
    cut = luma[:, : rows * side_y, : columns * side_x].reshape(count, rows, side_y, columns, side_x)
    return np.asarray(cut.transpose(0, 1, 3, 2, 4).reshape(count, rows, columns, -1))
