"""Products of activations with weights in 8 bits or fewer, whatever the numbers.

Where ranges are static, they were found while making videos, one for an activation; before it applies,
what is large in a few channels is moved into the weights (SmoothQuant, Xiao et al. 2022, arXiv:2211.10438):
X·W = (X/s)·(s·W) with s = max|X|^α / max|W|^(1−α) for each input channel. α, and how much of the range is cut off, are
what gives the products of the sample the least error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kinograph.calibration.collect import Statistics
from kinograph.calibration.layers import Convolution, Group
from kinograph.calibration.numerics import (
    INTEGERS,
    Affine,
    Form,
    Numbers,
    QuantisedWeight,
    Weight,
    affine,
    quantised_weight,
    signal_to_noise,
)

__all__ = ["ConvolutionPlan", "Halves", "Plan", "Products"]

Floats = npt.NDArray[np.float32]
Halves = tuple[Statistics, Statistics]

_ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
_CUTS = (1.25, 1.1, 0.95, 0.9, 0.8, 0.7)  # shares of the range that was seen: with room to spare, or cut off
_COLUMNS = 1024  # of a weight, about, that α and shares are tried on
_NARROW = 16  # channels that a convolution makes: in bytes such a one took two to six times as long as in floats
_SMALLEST = 1e-5  # of the largest channel: what is smaller is not smoothed further


@dataclass(frozen=True)
class Plan:
    """How a group is quantised: the activation divided by `smoothing` [K] (None for all ones), in `form`.

    `format` is what the numbers are called.

    `floats` are the group's weights [K, N] each, in its order, which stay in the bundle's file until they are
    quantised; `noise` is the products' signal-to-noise ratio in dB over rows that its range was not found on.
    """

    format: str
    group: Group
    smoothing: Floats | None
    form: Form
    floats: tuple[Floats, ...]
    make: Callable[[Floats], QuantisedWeight]
    noise: float

    def weight(self, number: int) -> QuantisedWeight:
        """One of the group's weights, smoothing included, made when it is asked for: all at once fill the memory."""
        return self.make(_smoothed(self.floats[number], self.smoothing))

    @property
    def weights(self) -> tuple[QuantisedWeight, ...]:
        return tuple(self.weight(number) for number in range(len(self.floats)))

    @property
    def size(self) -> int:
        """How many weights it is about."""
        return sum(weight.size for weight in self.floats)


@dataclass(frozen=True)
class ConvolutionPlan:
    """How a convolution is quantised: what goes in as `form`, what comes out as `output`, the weight by its channels.

    `bias` is int32 in steps of the input's scale times the weight's, as integer convolutions add it up. `noise` is the
    signal-to-noise ratio in dB of what goes in and comes out, whichever is less.
    """

    group: Convolution
    form: Affine
    output: Affine
    weight: Weight
    bias: npt.NDArray[np.int32] | None
    noise: float
    smoothing: None = None
    format = INTEGERS.name

    @property
    def weights(self) -> tuple[Weight, ...]:
        return (self.weight,)

    @property
    def size(self) -> int:
        """How many weights it is about."""
        return self.weight.values.size


@dataclass(frozen=True)
class Products:
    """A recipe: to which `numbers`, and whether convolutions over time and space are quantised besides products.

    With everything else off it is the control: one range for each tensor, the smallest and largest value, or blocks
    whose scales are their largest values'. Convolutions are always in 8 bits, with static ranges; those that make few
    channels stay in float, for products of bytes are done for many at a time.

    Layers that do most harm may be quantised by the recipe `finer` instead, in more bits.
    """

    numbers: Numbers
    convolutions: bool
    smooth: bool = True
    cut: bool = True
    fine: bool = True
    finer: Products | None = None

    @property
    def control(self) -> Products:
        """The same without what makes it good."""
        return replace(self, smooth=False, cut=False, fine=False, finer=None)

    def takes(self, layer: Group | Convolution) -> bool:
        """Whether a group's channels divide into blocks, or a convolution makes enough of them to gain by it."""
        if isinstance(layer, Convolution):
            return layer.channels > _NARROW
        return layer.channels % self.numbers.block == 0

    def plan(self, group: Group, halves: Halves, weights: Sequence[Floats]) -> Plan:
        """How to quantise a group of weights [K, N] each, whose activation was seen, by halves of the videos.

        What α and which share of the range are best is told by rows of the half that the range was not found on:
        a range that is tight for every channel fits what it was made from, and less well what comes later.
        """
        some = [weight[:, :: -(-weight.shape[1] // _COLUMNS)] for weight in weights]
        samples = [(fitted, tried, [tried.sample @ weight for weight in some]) for fitted, tried in _crossed(halves)]
        make = self.numbers.weight if self.fine else self.numbers.plain

        def errors(alpha: float | None, shares: Sequence[float]) -> dict[float, float]:
            found: dict[float, list[float]] = {kept: [] for kept in shares}
            for fitted, tried, products in samples:
                smoothing = None if alpha is None else _smoothing(fitted.largest, weights, alpha)
                back = [make(_smoothed(weight, smoothing)).floats for weight in some]
                divided = _divided(tried.sample, smoothing)
                for kept in shares:
                    x = self._range(fitted, smoothing, kept).there_and_back(divided)
                    got = [x @ weight for weight in back]
                    found[kept].append(signal_to_noise(np.hstack(products), np.hstack(got)))
            return {kept: float(np.mean(every)) for kept, every in found.items()}

        alphas = {alpha: errors(alpha, (1.0,))[1.0] for alpha in (None, *(_ALPHAS if self.smooth else ()))}
        alpha = max(alphas, key=lambda one: alphas[one])
        cuts = {1.0: alphas[alpha]} | (errors(alpha, _CUTS) if self.cut else {})
        kept = max(cuts, key=lambda one: cuts[one])
        every = halves[0].together(halves[1])
        smoothing = None if alpha is None else _smoothing(every.largest, weights, alpha)
        form = self._range(every, smoothing, kept)
        return Plan(self.numbers.name, group, smoothing, form, tuple(weights), make, cuts[kept])

    def plan_convolution(
        self, group: Convolution, seen: Halves, made: Halves, weight: Floats, bias: Floats | None
    ) -> ConvolutionPlan:
        """How to quantise a convolution that took in `seen` and put out `made`, both with one channel."""
        form, incoming = self._form(seen)
        output, outgoing = self._form(made)
        formed = quantised_weight(weight, 0)
        if not self.fine:
            whole = quantised_weight(weight.reshape(-1, 1), 1)
            formed = Weight(whole.values.reshape(weight.shape), np.full(len(weight), whole.scale[0], np.float32), 0)
        steps = None
        if bias is not None:
            limits = np.iinfo(np.int32)
            exact = np.rint(bias / (formed.scale.astype(np.float64) * form.scale))
            steps = np.clip(exact, limits.min, limits.max).astype(np.int32)
        return ConvolutionPlan(group, form, output, formed, steps, min(incoming, outgoing))

    def _range(self, seen: Statistics, smoothing: Floats | None, kept: float) -> Form:
        """The activation's format, of this share of the range that was seen."""
        low, high = (_divided(bound, smoothing) for bound in (seen.low.min(axis=0), seen.high.max(axis=0)))
        return self.numbers.activation(kept * float(low.min()), kept * float(high.max()))

    def _form(self, halves: Halves) -> tuple[Affine, float]:
        """The range of one channel that gives the other half's sample the least error, and that error in dB."""

        def form(seen: Statistics, kept: float) -> Affine:
            return affine(kept * float(seen.low.min()), kept * float(seen.high.max()))

        errors = {
            kept: float(
                np.mean(
                    [
                        signal_to_noise(tried.sample, form(fitted, kept).there_and_back(tried.sample))
                        for fitted, tried in _crossed(halves)
                    ]
                )
            )
            for kept in (1.0, *(_CUTS if self.cut else ()))
        }
        kept = max(errors, key=lambda one: errors[one])
        return form(halves[0].together(halves[1]), kept), errors[kept]


def _crossed(halves: Halves) -> list[tuple[Statistics, Statistics]]:
    """What to find ranges on, and what to try them on: each half and the other, or one half where that is all."""
    seen = [half for half in halves if half.rows]
    return list(zip(seen, seen[::-1], strict=True))


def _smoothed(weight: Floats, smoothing: Floats | None) -> Floats:
    return weight if smoothing is None else np.asarray(weight * smoothing[:, None], np.float32)


def _divided(x: Floats, smoothing: Floats | None) -> Floats:
    return x if smoothing is None else np.asarray(x / smoothing, np.float32)


def _smoothing(largest: Floats, weights: Sequence[Floats], alpha: float) -> Floats:
    """s of the module's formula, [K]; channels that are nothing in the activation or in the weights keep 1."""
    column = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    used = (largest > _SMALLEST * largest.max(initial=0)) & (column > _SMALLEST * column.max(initial=0))
    smoothing = np.ones_like(largest)
    smoothing[used] = largest[used] ** alpha / column[used] ** (1 - alpha)
    middle = np.exp(np.log(smoothing[used]).mean()) if used.any() else 1.0
    return np.asarray(smoothing / middle, np.float32)
