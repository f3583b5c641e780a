"""`fp8`: E4M3, for GPUs of compute capability 8.9 and later; on a CPU it is computed as it would be there, slowly.

The decoder's convolutions stay in float.
"""

from kinograph.calibration.numerics import FLOATS
from kinograph.calibration.recipes.products import Products

__all__ = ["FP8"]

FP8 = Products(FLOATS, convolutions=False)
