"""The recipes, by name: one file each."""

from collections.abc import Mapping

from kinograph.calibration.recipes.blocks import INT4_WEIGHTS, Blocks
from kinograph.calibration.recipes.fp8 import FP8
from kinograph.calibration.recipes.int8 import INT8
from kinograph.calibration.recipes.static import Static

__all__ = ["RECIPES"]

RECIPES: Mapping[str, Static | Blocks] = {"int8": INT8, "fp8": FP8, "int4-weights": INT4_WEIGHTS}
