"""A calibration that several tests look at."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from kinograph.calibration import CalibrationOptions, calibrate
from kinograph.calibration.compare import Report
from kinograph.console.judges import JUDGES

__all__ = ["Calibrated", "calibrated_with_counts"]


class Calibrated(NamedTuple):
    """A bundle after its calibration, and how often each stage of that told how far it was."""

    path: Path
    report: Report
    options: CalibrationOptions
    calls: Counter[str]


def calibrated_with_counts(path: Path, options: CalibrationOptions) -> Calibrated:
    calls: Counter[str] = Counter()

    def progress(stage: str, done: int, total: int) -> None:
        assert 0 <= done <= total, stage
        calls[stage] += 1

    return Calibrated(path, calibrate(path, options, progress, JUDGES), options, calls)
