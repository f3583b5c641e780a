"""Speed levels: runs of a schedule in which many steps are not computed.

A step that is skipped takes a fixed mix of the last two computed predictions for its own. Solvers are linear, so what
it does to the sample and the history is a matrix, and its product with the matrix of the computed step before it is
again one table of that step: a skipped step costs nothing, and the loop is what it always is, only shorter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from kinograph.errors import BundleError
from kinograph.manifest import Speed
from kinograph.runtime.coefficients import HISTORY, PREDICTION, remembered
from kinograph.runtime.solvers import Step

__all__ = ["shortened", "spare_slot"]

_STATE = HISTORY + 1  # columns of the sample and the history
_NOISE = HISTORY + 2


def shortened(steps: Sequence[Step], speed: Speed) -> tuple[Step, ...]:
    """The computed steps of a level, each with the skipped ones that follow it in its table.

    Raises BundleError where the level is not one of this schedule, or mixes two predictions and the solver's history
    has no slot left to keep the earlier one in.
    """
    skipped = {skip.step: skip for skip in speed.skipped}
    if len(steps) != speed.steps or 0 in skipped or not skipped.keys() <= set(range(len(steps))):
        raise BundleError(
            f"a speed level of {speed.steps} steps skips {sorted(skipped)}; expected some of 1 to {len(steps) - 1} of "
            f"{len(steps)} steps. Calibrate the bundle again."
        )
    slot = spare_slot(steps) if any(skip.earlier for skip in speed.skipped) else None
    computed = [step for step in steps if step.index not in skipped]
    found = []
    for number, step in enumerate(computed):
        end = computed[number + 1].index if number + 1 < len(computed) else len(steps)
        coefficients = np.asarray(step.coefficients, np.float64)
        for later in steps[step.index + 1 : end]:
            skip = skipped[later.index]
            prediction = skip.latest * PREDICTION
            if slot is not None:
                prediction = prediction + skip.earlier * remembered(slot)
            coefficients = _followed(coefficients, later.coefficients, prediction)
        if slot is not None:
            coefficients[1 + slot] = PREDICTION
        table = coefficients.astype(np.float32)
        table.setflags(write=False)
        guided = speed.guided[0] <= step.index < speed.guided[1]
        found.append(
            replace(step, index=number, sigma_next=steps[end - 1].sigma_next, coefficients=table, guided=guided)
        )
    return tuple(found)


def spare_slot(steps: Sequence[Step]) -> int:
    """A slot of the history that the schedule leaves alone. Raises BundleError where it needs them all."""
    for slot in reversed(range(HISTORY)):
        if not any(step.coefficients[:, 1 + slot].any() for step in steps):
            return slot
    raise BundleError(
        "a speed level mixes two predictions, but this solver's history has no slot left for the earlier one. "
        "Calibrate the bundle again."
    )


def _followed(
    table: npt.NDArray[np.float64], later: npt.NDArray[np.float32], prediction: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """One table [K+1, K+3] for a step and a `later` one, whose `prediction` is a row [K+3] of its inputs."""
    composed = later[:, :_STATE].astype(np.float64) @ table
    composed += later[:, _STATE : _STATE + 1].astype(np.float64) * prediction
    composed[:, _NOISE] += later[:, _NOISE]
    return composed
