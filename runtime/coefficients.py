"""The rows of a solver's coefficient table.

A solver step is linear: the next sample and the next history are weighted sums of the sample, the history, the model's
prediction and noise. Such a weighted sum is a row of weights here, so a formula of a paper can be written down as it
stands, with rows where the paper has latents, and what comes out is the table.

The prediction is the flow velocity v = noise − x₀ on the straight path x_σ = (1 − σ)·x₀ + σ·noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

__all__ = ["HISTORY", "PREDICTION", "SAMPLE", "Row", "data_prediction", "log_snr", "remembered", "table"]

HISTORY = 4  # K: enough for UniPC of order 3 with its corrector (three data predictions and the last sample)

Row = npt.NDArray[np.float64]  # [K+3] weights of (sample, history × K, prediction, noise)

_UNITS: Row = np.eye(HISTORY + 3)
_UNITS.setflags(write=False)

SAMPLE: Row = _UNITS[0]
PREDICTION: Row = _UNITS[HISTORY + 1]


def remembered(slot: int) -> Row:
    """The row [K+3] of what is in `slot` of the history, 0 ≤ slot < K."""
    row: Row = _UNITS[1 + slot]
    return row


def data_prediction(sigma: float) -> Row:
    """The row [K+3] of the x₀ that the prediction implies at noise level `sigma`: x₀ = x − σ·v."""
    return SAMPLE - sigma * PREDICTION


def log_snr(sigma: float) -> float:
    """λ = log((1 − σ)/σ), half the log signal-to-noise ratio: −∞ at σ = 1 (noise alone), ∞ at σ = 0 (no noise)."""
    if sigma == 0.0:
        return math.inf
    return math.log((1.0 - sigma) / sigma) if sigma < 1.0 else -math.inf


def table(next_sample: Row, next_history: Mapping[int, Row]) -> npt.NDArray[np.float32]:
    """A step's table, float32 [K+1, K+3]. `next_history` has the rows of the slots in use; the others are zero."""
    rows = np.zeros((HISTORY + 1, HISTORY + 3))
    rows[0] = next_sample
    for slot, row in next_history.items():
        rows[1 + slot] = row
    return rows.astype(np.float32)
