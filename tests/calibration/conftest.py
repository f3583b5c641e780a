"""The few-step starter, quantised once per run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from calibrated import Calibrated, calibrated_with_counts

from kinograph.calibration import CalibrationOptions


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory: pytest.TempPathFactory, starter_copy: Callable[..., Path]) -> Calibrated:
    """At 64×64, with an int8 variant that passed its gate."""
    path = starter_copy(tmp_path_factory.mktemp("calibrated") / "starter", name="starter-few-steps", size=64)
    return calibrated_with_counts(path, CalibrationOptions(runs=6, videos=2, judged=3))
