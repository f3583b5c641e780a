"""Calibration: from a bundle's float graphs to quantised variants in the same bundle, and what that cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from kinograph.calibration.compare import Report
    from kinograph.calibration.judging import Judge
    from kinograph.manifest import Speed

__all__ = ["RECIPES", "SPEEDS", "CalibrationOptions", "calibrate", "find_speeds"]

RECIPES = ("int8", "int8-dynamic", "fp8", "mxfp8", "nvfp4", "int4-weights")
SPEEDS = ("careful", "balanced", "fast")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CalibrationOptions:
    """How to calibrate.

    `prompts` are what videos are made of, by default the project's own; `runs` of them are looked into and `videos`
    others, which no range was found on, are compared. With `scan` every layer's effect on the velocity is measured, and
    those that cost most stay as they are; without, only what flows through each layer decides. `force` writes a variant
    that misses the gate, marked as such, and replaces one that is there. `skip` names speed levels to find.
    `images` are pictures that videos start from, where the model makes them from one; by default the project's own.
    `judged` is how many prompts a judge asks for, where the bundle has one.
    """

    recipe: str = "int8"
    skip: tuple[str, ...] = ()
    prompts: tuple[str, ...] | None = None
    images: tuple[str, ...] = ()
    runs: int = 16
    videos: int = 8
    judged: int = 40
    scan: bool = True
    force: bool = False
    device: str = "cpu"


def calibrate(
    bundle: Path,
    options: CalibrationOptions,
    progress: Progress,
    judges: Mapping[str, Callable[[], Judge]] | None = None,
) -> Report:
    """Add a quantised variant to the bundle at a path. `progress` is called with a stage's name, what is done, of what.

    If `judges` has the one that the manifest names, it compares what the videos show. An interrupted calibration goes
    on where it was when it is called again with the same arguments.

    Raises UsageError where the bundle has the variant already or prompts do not fit, NumericError where the variant
    misses its gate: the bundle is then as it was.
    """
    from kinograph.calibration.run import run

    return run(bundle, options, progress, judges or {})


def find_speeds(bundle: Path, options: CalibrationOptions, progress: Progress) -> dict[str, Speed]:
    """Find the speed levels named by `options.skip`, and add them to the manifest of the bundle at a path.

    Raises UsageError for a level that is unknown or there already, NumericError where no step can be skipped at its
    quality: the bundle is then as it was.
    """
    from kinograph.calibration.levels import find_levels

    return find_levels(bundle, options, progress)
