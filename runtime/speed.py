"""Speed levels: runs in which few of a schedule's steps are computed.

From one computed step to the next the sample moves by fixed weights of itself and the last two predictions, fitted to
the model's own runs with every step. That is one more linear multistep solver: a table for each computed step, in a
loop that is what it always is, only shorter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kinograph.errors import BundleError
from kinograph.manifest import Speed
from kinograph.runtime.coefficients import HISTORY, PREDICTION, SAMPLE, remembered
from kinograph.runtime.solvers import Step

__all__ = ["shortened"]


def shortened(steps: Sequence[Step], speed: Speed) -> tuple[Step, ...]:
    """The computed steps of a level, with its tables. The history's first slot keeps the last prediction.

    Raises BundleError where the level is not one of this schedule.
    """
    computed = [stretch.step for stretch in speed.computed]
    if len(steps) != speed.steps or computed[:1] != [0] or not set(computed) <= set(range(len(steps))):
        raise BundleError(
            f"a speed level of {speed.steps} steps computes {computed}; expected the first and others of {len(steps)} "
            "steps. Calibrate the bundle again."
        )
    found = []
    for number, (stretch, end) in enumerate(zip(speed.computed, [*computed[1:], len(steps)], strict=True)):
        table = np.zeros((HISTORY + 1, HISTORY + 3), np.float32)
        table[0] = stretch.sample * SAMPLE + stretch.latest * PREDICTION + stretch.earlier * remembered(0)
        table[1] = PREDICTION
        table.setflags(write=False)
        guided = speed.guided[0] <= stretch.step < speed.guided[1]
        last = steps[end - 1].sigma_next
        found.append(replace(steps[stretch.step], index=number, sigma_next=last, coefficients=table, guided=guided))
    return tuple(found)
