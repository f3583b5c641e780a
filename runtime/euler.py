"""Euler's method on the flow-matching ODE dx/dσ = v (SD3: Esser et al., arXiv:2403.03206). It has no history."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kinograph import manifest
from kinograph.runtime.coefficients import PREDICTION, SAMPLE, Row, table

__all__ = ["coefficients", "levels"]


def levels(solver: manifest.Solver, num_inference_steps: int) -> tuple[Row, Row]:
    """Noise levels and timesteps, each float64 [steps], with diffusers' roundings to float32.

    The levels are evenly spaced between the ends of the training schedule and then shifted (SD3, equation 23). The ends
    are themselves shifted, so the smallest level is shifted twice: diffusers' `set_timesteps(n)` does that, and models
    are used with it.
    """
    train = solver.train_timesteps
    ends = _shifted(np.array([train, 1], np.float32) / np.float32(train), solver.shift).astype(np.float64) * train
    even = np.linspace(ends[0], ends[1], num_inference_steps) / train
    sigmas = _shifted(even, solver.shift).astype(np.float32)
    return sigmas.astype(np.float64), (sigmas * np.float32(train)).astype(np.float64)


def coefficients(sigmas: Sequence[float], solver: manifest.Solver) -> list[npt.NDArray[np.float32]]:
    """The table [K+1, K+3] of every step between the noise levels [steps + 1]: x′ = x + (σ′ − σ)·v."""
    return [table(SAMPLE + (sigmas[i + 1] - sigmas[i]) * PREDICTION, {}) for i in range(len(sigmas) - 1)]


def _shifted(sigmas: npt.NDArray[Any], shift: float) -> npt.NDArray[Any]:
    """SD3's flow shift, equation 23: s·σ/(1 + (s − 1)·σ), in the dtype of `sigmas`."""
    shifted: npt.NDArray[Any] = shift * sigmas / (1 + (shift - 1) * sigmas)
    return shifted
