"""`int8`: weights and activations in 8 bits, with static ranges.

Weights have a scale for every output channel. Activations have one affine range, found while making videos; before it
applies, what is large in a few channels is moved into the weights (SmoothQuant, Xiao et al. 2022, arXiv:2211.10438):
X·W = (X/s)·(s·W) with s = max|X|^α / max|W|^(1−α) for each input channel. α, and how much of the range is cut off, are
what gives the products of the sample the least error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kinograph.calibration.collect import Statistics
from kinograph.calibration.layers import Group
from kinograph.calibration.numerics import (
    Affine,
    Weight,
    affine,
    fake_quantised,
    quantised_weight,
    signal_to_noise,
)

__all__ = ["Int8", "Plan"]

Floats = npt.NDArray[np.float32]

_ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
_CUTS = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6)  # shares of the range that are kept
_SMALLEST = 1e-5  # of the largest channel: what is smaller is not smoothed further


@dataclass(frozen=True)
class Plan:
    """How a group is quantised: the activation divided by `smoothing` [K] (None for all ones), in `form`.

    `weights` are the group's, in its order, smoothing included; `noise` is the products' signal-to-noise ratio in dB
    over the sample.
    """

    group: Group
    smoothing: Floats | None
    form: Affine
    weights: tuple[Weight, ...]
    noise: float


@dataclass(frozen=True)
class Int8:
    """The recipe. With everything off it is the control: one range for each tensor, the smallest and largest value."""

    smooth: bool = True
    cut: bool = True
    per_channel: bool = True

    def plan(self, group: Group, seen: Statistics, weights: Sequence[Floats]) -> Plan:
        """How to quantise a group whose activation was seen, and whose weights are [K, N] each."""
        products = [seen.sample @ weight for weight in weights]
        trials = [self._trial(group, seen, weights, products, None, 1.0)]
        if self.smooth:
            for alpha in _ALPHAS:
                smoothing = _smoothing(seen.largest, weights, alpha)
                trials.append(self._trial(group, seen, weights, products, smoothing, 1.0))
        best = max(trials, key=lambda plan: plan.noise)
        if self.cut:
            cut = [self._trial(group, seen, weights, products, best.smoothing, kept) for kept in _CUTS[1:]]
            best = max([best, *cut], key=lambda plan: plan.noise)
        return best

    def _trial(
        self,
        group: Group,
        seen: Statistics,
        weights: Sequence[Floats],
        products: Sequence[Floats],
        smoothing: Floats | None,
        kept: float,
    ) -> Plan:
        divisor = np.ones(group.channels, np.float32) if smoothing is None else smoothing
        form = affine(
            kept * float((seen.low.min(axis=0) / divisor).min()), kept * float((seen.high.max(axis=0) / divisor).max())
        )
        formed = tuple(self._weight(weight * divisor[:, None]) for weight in weights)
        x = fake_quantised(seen.sample / divisor, form)
        got = [x @ (weight.values * weight.scale) for weight in formed]
        return Plan(group, smoothing, form, formed, signal_to_noise(np.hstack(products), np.hstack(got)))

    def _weight(self, weight: Floats) -> Weight:
        if self.per_channel:
            return quantised_weight(weight, 1)
        whole = quantised_weight(weight.reshape(-1, 1), 1)
        return Weight(whole.values.reshape(weight.shape), np.full(weight.shape[1], whole.scale[0], np.float32), 1)


def _smoothing(largest: Floats, weights: Sequence[Floats], alpha: float) -> Floats:
    """s of the module's formula, [K]; channels that are nothing in the activation or in the weights keep 1."""
    column = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    used = (largest > _SMALLEST * largest.max(initial=0)) & (column > _SMALLEST * column.max(initial=0))
    smoothing = np.ones_like(largest)
    smoothing[used] = largest[used] ** alpha / column[used] ** (1 - alpha)
    return (smoothing / np.exp(np.log(smoothing[used]).mean() if used.any() else 0.0)).astype(np.float32)
