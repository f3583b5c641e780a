"""`nvfp4`: E2M1 with an E4M3 scale for every block of 16, found when it is computed, for Blackwell GPUs.

Layers that four bits do too much harm to are in fp8.
"""

from kinograph.calibration import block_numerics
from kinograph.calibration.recipes.fp8 import FP8
from kinograph.calibration.recipes.products import Products

__all__ = ["NVFP4"]

NVFP4 = Products(block_numerics.NVFP4, convolutions=False, finer=FP8)
