"""`mxfp8`: E4M3 with a power of two for every block of 32, found when it is computed, for Blackwell GPUs."""

from kinograph.calibration.block_numerics import MICROSCALED
from kinograph.calibration.recipes.products import Products

__all__ = ["MXFP8"]

MXFP8 = Products(MICROSCALED, convolutions=False, cut=False)
