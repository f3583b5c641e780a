"""The recipes, by name: one file each."""

from collections.abc import Mapping

from kinograph.calibration.recipes.blocks import INT4_WEIGHTS, Blocks
from kinograph.calibration.recipes.fp8 import FP8
from kinograph.calibration.recipes.int8 import INT8
from kinograph.calibration.recipes.int8_dynamic import INT8_DYNAMIC
from kinograph.calibration.recipes.mxfp8 import MXFP8
from kinograph.calibration.recipes.nvfp4 import NVFP4
from kinograph.calibration.recipes.products import Products

__all__ = ["RECIPES"]

RECIPES: Mapping[str, Products | Blocks] = {
    "int8": INT8,
    "int8-dynamic": INT8_DYNAMIC,
    "fp8": FP8,
    "mxfp8": MXFP8,
    "nvfp4": NVFP4,
    "int4-weights": INT4_WEIGHTS,
}
