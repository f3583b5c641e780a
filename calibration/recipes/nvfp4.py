"""`nvfp4`: E2M1 with an E4M3 scale for every block of 16, found when it is computed, for compute capability 12.0."""

from kinograph.calibration import block_numerics
from kinograph.calibration.recipes.products import Products

__all__ = ["NVFP4"]

NVFP4 = Products(block_numerics.NVFP4, convolutions=False)
