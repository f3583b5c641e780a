"""`int8`: for CPUs, and for GPUs of every generation that TensorRT knows."""

from kinograph.calibration.numerics import INTEGERS
from kinograph.calibration.recipes.products import Products

__all__ = ["INT8"]

INT8 = Products(INTEGERS, convolutions=True)
