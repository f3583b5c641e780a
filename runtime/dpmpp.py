"""DPM-Solver++ (Lu et al., arXiv:2211.01095), multistep, deterministic, for data prediction.

Order 2 is the paper's Algorithm 2, DPM-Solver++(2M), which diffusers calls the midpoint solver; order 1 is DDIM; order
3 carries the Taylor expansion of the exact solution (Proposition 4.1) one term further.

History: slots 0 and 1 are the data predictions of the previous steps, latest first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kinograph import manifest
from kinograph.runtime.coefficients import SAMPLE, Row, data_prediction, log_snr, remembered, table

__all__ = ["coefficients", "levels"]

_FEW_STEPS = 15  # below this many steps the last ones are of lower order, where `lower_order_final` asks for it


def levels(solver: manifest.Solver, num_inference_steps: int) -> tuple[Row, Row]:
    """Noise levels and timesteps, each float64 [steps].

    The levels are evenly spaced from 1 − 1/train_timesteps down to, and without, 0, then shifted (SD3,
    arXiv:2403.03206, equation 23). The timesteps are whole numbers, rounded down.
    """
    even = 1.0 - np.linspace(1, 1 / solver.train_timesteps, num_inference_steps + 1)
    shifted = solver.shift * even / (1 + (solver.shift - 1) * even)
    descending = shifted[::-1][:-1]
    return descending, np.trunc(descending * solver.train_timesteps)


def coefficients(sigmas: Sequence[float], solver: manifest.Solver) -> list[npt.NDArray[np.float32]]:
    """The table [K+1, K+3] of every step between the noise levels [steps + 1], the last of which is 0."""
    tables = []
    for index, order in enumerate(_orders(len(sigmas) - 1, solver)):
        known = [data_prediction(sigmas[index]), remembered(0), remembered(1)]
        window = [sigmas[index + 1 - back] for back in range(order + 1)]
        tables.append(table(_update(window, known[:order]), dict(enumerate(known[: solver.order - 1]))))
    return tables


def _orders(steps: int, solver: manifest.Solver) -> list[int]:
    """The order at every step: no more than the predictions there are; the step to σ = 0 is always of first order."""
    few = solver.lower_order_final and steps < _FEW_STEPS

    def order(index: int) -> int:
        remaining = steps - index
        highest = remaining if remaining == 1 or (few and remaining == 2) else solver.order
        return min(solver.order, index + 1, highest)

    return [order(index) for index in range(steps)]


def _update(window: Sequence[float], predictions: Sequence[Row]) -> Row:
    """One step from σ_s₀ to σ_t. Returns the row of the target's sample.

    With h = λ_t − λ_s₀ and z = e^−h − 1, the terms of order 1, 2 and 3 are

        x_t = σ_t/σ_s₀·x − α_t·z·m₀ − ½·α_t·z·D                                    (orders 1 and 2)
        x_t = σ_t/σ_s₀·x − α_t·z·m₀ + α_t·(z/h + 1)·D′ − α_t·((z + h)/h² − ½)·D″   (order 3)

    where D, D′ and D″ are divided differences of the data predictions, in units of h.
    Arguments: `window` = σ_t, σ_s₀, σ_s₁ …; `predictions` = rows of m₀, m₁ ….
    """
    target, start = window[:2]
    alpha = 1 - target
    h = log_snr(target) - log_snr(start)
    z = math.expm1(-h)
    x_t = target / start * SAMPLE - alpha * z * predictions[0]
    gaps = [(log_snr(window[i]) - log_snr(window[i + 1])) / h for i in range(1, len(predictions))]
    slopes = [(predictions[i] - predictions[i + 1]) / gap for i, gap in enumerate(gaps)]
    if len(slopes) == 1:
        x_t = x_t - 0.5 * alpha * z * slopes[0]
    elif len(slopes) == 2:
        bend = (slopes[0] - slopes[1]) / (gaps[0] + gaps[1])
        first = slopes[0] + gaps[0] * bend
        x_t = x_t + alpha * (z / h + 1) * first - alpha * ((z + h) / h**2 - 0.5) * bend
    return x_t
