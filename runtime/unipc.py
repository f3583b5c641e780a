"""UniPC (Zhao et al., arXiv:2302.04867): the predictor UniP and the corrector UniC, for data prediction.

Both are one formula, Theorem 3.1 and Corollary 3.2 of the paper: an exponential-integrator step of first order plus
differences of data predictions, weighted so that the Taylor expansions agree. The corrector also uses the prediction at
the point that is being corrected. It runs at the beginning of the following step, which is where that prediction is
known, so it costs no evaluation of the model.

History: slots 0, 1, 2 are the data predictions of the previous steps, latest first; slot 3 is the last step's corrected
sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from kinograph import manifest
from kinograph.runtime.coefficients import SAMPLE, Row, data_prediction, log_snr, remembered, table

__all__ = ["coefficients", "levels"]

_LAST_SAMPLE = 3
_NUDGE = 1e-6  # σ = 1 has no logarithm of its signal; diffusers starts this far below it


def levels(solver: manifest.Solver, num_inference_steps: int) -> tuple[Row, Row]:
    """Noise levels and timesteps, each float64 [steps].

    The levels are evenly spaced from 1 down to, and without, 1/train_timesteps, then shifted (SD3, arXiv:2403.03206,
    equation 23). The timesteps are whole numbers, rounded down.
    """
    even = np.linspace(1, 1 / solver.train_timesteps, num_inference_steps + 1)[:-1]
    shifted = solver.shift * even / (1 + (solver.shift - 1) * even)
    if abs(shifted[0] - 1) < _NUDGE:
        shifted[0] -= _NUDGE
    return shifted, np.trunc(shifted * solver.train_timesteps)


def coefficients(sigmas: Sequence[float], solver: manifest.Solver) -> list[npt.NDArray[np.float32]]:
    """The table [K+1, K+3] of every step between the noise levels [steps + 1], the last of which is 0."""
    orders = _orders(len(sigmas) - 1, solver)
    correctors = [
        solver.corrector and index > 0 and index - 1 not in solver.disable_corrector for index in range(len(orders))
    ]
    slots = solver.order if any(correctors) else solver.order - 1
    tables = []
    for index, order in enumerate(orders):
        prediction = data_prediction(sigmas[index])
        past = [remembered(slot) for slot in range(slots)]
        sample = SAMPLE
        if correctors[index]:
            previous = orders[index - 1]
            sample = _update(
                _window(sigmas, index, previous), remembered(_LAST_SAMPLE), past[:previous], solver.kind, prediction
            )
        known = [prediction, *past]
        next_sample = _update(_window(sigmas, index + 1, order), sample, known[:order], solver.kind)
        history = dict(enumerate(known[:slots]))
        if any(correctors):
            history[_LAST_SAMPLE] = sample
        tables.append(table(next_sample, history))
    return tables


def _orders(steps: int, solver: manifest.Solver) -> list[int]:
    """The predictor's order at every step: no more than the predictions there are, lower again at the end if asked.

    The step to σ = 0 is always of first order. There h is infinite and a higher order is not defined; diffusers returns
    NaN from it where `lower_order_final` is false.
    """
    last = [steps - index if solver.lower_order_final or index == steps - 1 else solver.order for index in range(steps)]
    return [min(solver.order, index + 1, last[index]) for index in range(steps)]


def _window(sigmas: Sequence[float], index: int, order: int) -> list[float]:
    """The noise level at `index` and the `order` levels before it, latest first."""
    return [sigmas[index - back] for back in range(order + 1)]


def _update(
    window: Sequence[float], x: Row, predictions: Sequence[Row], kind: Literal["bh1", "bh2"], here: Row | None = None
) -> Row:
    """UniP, or UniC if `here`, the data prediction at the target, is given. Returns the row of the target's sample.

    With s₀ the latest point, h = λ_t − λ_s₀, r_m = (λ_sm − λ_s₀)/h and D_m = m_m − m₀ (r = 1 for `here`):

        x_t = σ_t/σ_s₀·x − α_t·(e^−h − 1)·m₀ − α_t·B(h)·Σ_m ρ_m·D_m/r_m

    Arguments: `window` = σ_t, σ_s₀, σ_s₁ …; `x` the row of the sample at s₀; `predictions` = rows of m₀, m₁ ….
    """
    target, start, *earlier = window
    latest = predictions[0]
    h = log_snr(target) - log_snr(start)
    x_t = target / start * x - (1 - target) * math.expm1(-h) * latest
    ratios = [(log_snr(sigma) - log_snr(start)) / h for sigma in earlier]
    differences = [(row - latest) / ratio for row, ratio in zip(predictions[1:], ratios, strict=True)]
    if here is not None:
        ratios.append(1.0)
        differences.append(here - latest)
    if differences:
        scale, rhos = _weights(h, ratios, kind)
        x_t = x_t - (1 - target) * scale * np.tensordot(rhos, np.stack(differences), 1)
    return x_t


def _weights(h: float, ratios: Sequence[float], kind: Literal["bh1", "bh2"]) -> tuple[float, npt.NDArray[np.float64]]:
    """B(h) and the weights ρ that solve Σ_m r_m^(k−1)·ρ_m = b_k, k = 1 … p, with p = len(ratios).

    b_k = z·φ_{k+1}(z)·k!/B with z = −h. B is z for "bh1" and e^z − 1 for "bh2". One difference alone takes ½, the
    paper's simplification, for either B.
    """
    z = -h
    scale = z if kind == "bh1" else math.expm1(z)
    if len(ratios) == 1:
        return scale, np.array([0.5])
    powers = np.vander(ratios, increasing=True).T
    b = np.array([z * _phi(k + 1, z) * math.factorial(k) / scale for k in range(1, len(ratios) + 1)])
    return scale, np.linalg.solve(powers, b)


def _phi(k: int, z: float) -> float:
    """φ_k(z) = Σ_j z^j/(j + k)!, the exponential integrators' functions: φ_0 = e^z, φ_k = (φ_{k−1} − 1/(k−1)!)/z.

    That recurrence loses a digit for every digit by which |z| is below 1, so small z take the series.
    """
    if abs(z) < 1.0:
        return sum(z**j / math.factorial(j + k) for j in range(18))  # the next term is below 1/18! = 2e-16
    value = math.exp(z)
    for j in range(k):
        value = (value - 1 / math.factorial(j)) / z
    return value
