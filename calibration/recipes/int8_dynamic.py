"""`int8-dynamic`: products whose activation has a range for every row, found when it is computed.

For activations whose ranges move too much over the schedule for one to hold. A row is a token. For CPUs: TensorRT has
no products of integers whose scale is not known beforehand. Convolutions have static ranges, as in `int8`.
"""

from kinograph.calibration.block_numerics import ROWS
from kinograph.calibration.recipes.products import Products

__all__ = ["INT8_DYNAMIC"]

INT8_DYNAMIC = Products(ROWS, convolutions=True, cut=False)
