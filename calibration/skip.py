"""Finds speed levels: which steps of a schedule to compute, and which of those without guidance.

Caches of this kind (MagCache, arXiv:2506.09045; EasyCache, arXiv:2507.02860) decide while a video is made. Here it is
decided beforehand, from a model's own runs with every step, and the loop has nothing to decide:

- From a computed step to the next the sample becomes α·x + β·v + γ·v′, of itself and the last two predictions, with the
  weights that come nearest to where the runs with every step are then. `runtime.speed` makes tables of them.
- Guidance matters in an interval of noise levels (Kynkäänniemi et al., arXiv:2404.07724). Outside it, a step computes
  the prompt's row alone.

All that is kept of the runs are inner products of their samples and predictions. They give every stretch's weights and
what it leaves wrong; the choice that leaves least, for every number of rows, is found by dynamic programming.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kinograph.manifest import Stretch

__all__ = ["Choice", "Products", "best_choices"]

Floats = npt.NDArray[np.float64]

_ELEMENTS = 1 << 17  # of a sample, that inner products are taken over
_ROUNDING = 1e-12  # of the largest error: what is less is no gain, and another CPU might not find it
_FIRST = 2  # steps that are always computed: where the noise is greatest, what is left wrong grows most
_CLEAR = 1e-3  # least share of the picture in a sample, as its error is weighed
_ONE_WAY = 3.0  # what errors for want of guidance weigh: all point the same way, and add up as chance ones do not


class Products:
    """Inner products of what a schedule's runs go through, the mean over runs.

    `sigmas` are the schedule's noise levels, [N + 1]. Rows and columns of `gram` [3N + 1, 3N + 1] are N + 1 samples,
    from noise to video, then N guided predictions and N of the prompt's row alone.
    """

    def __init__(self, sigmas: Sequence[float]) -> None:
        self.sigmas = np.asarray(sigmas, np.float64)
        self.gram: Floats = np.zeros((3 * len(sigmas) - 2, 3 * len(sigmas) - 2))
        self._runs = 0

    @property
    def steps(self) -> int:
        """N, how many steps the schedule has."""
        return len(self.sigmas) - 1

    def add(
        self,
        samples: Sequence[npt.NDArray[np.float32]],
        guided: Sequence[npt.NDArray[np.float32]],
        unguided: Sequence[npt.NDArray[np.float32]],
    ) -> None:
        """One run: N + 1 samples, N predictions of either kind, alike in shape; of large ones a random part."""
        size = samples[0].size
        kept = np.random.default_rng(0).permutation(size)[:_ELEMENTS] if size > _ELEMENTS else np.arange(size)
        rows = np.stack([one.reshape(-1)[kept] for one in (*samples, *guided, *unguided)]).astype(np.float64)
        self._runs += 1
        self.gram += (rows @ rows.T / len(kept) - self.gram) / self._runs


@dataclass(frozen=True)
class Choice:
    """Which steps of a schedule to compute, where each leads, and from where to where with guidance.

    `rows` is how many rows of the model that computes, `error` what it leaves wrong, as `best_choices` weighs it.
    """

    computed: tuple[Stretch, ...]
    guided: tuple[int, int]
    rows: int
    error: float


def best_choices(
    products: Products, *, guidance: bool, progress: Callable[[int, int], None] = lambda done, of: None
) -> list[Choice]:
    """For every number of rows the choice that leaves least wrong, each with less error than any cheaper one.

    What a stretch leaves wrong, as mean square, grows on its way to the video: it is weighed by 1/(1 − σ) of the noise
    level it is left at, and more where guidance has ended. `guidance`: whether there are two rows at all.
    """
    best: dict[int, Choice] = {}
    fits = _Fits(products)
    intervals = list(_intervals(products.steps)) if guidance else [(0, 0)]
    for number, guided in enumerate(intervals, 1):
        for choice in _of_interval(_Stretches(fits, guided if guidance else (0, products.steps)), guided):
            if choice.rows not in best or choice.error < best[choice.rows].error:
                best[choice.rows] = choice
        progress(number, len(intervals))
    front: list[Choice] = []
    for _, choice in sorted(best.items()):
        if not front or choice.error < front[-1].error - _ROUNDING * front[0].error:
            front.append(choice)
    return front


def _intervals(steps: int) -> Iterator[tuple[int, int]]:
    """Where guidance may be on: from one of the first steps to anywhere."""
    stride = max(1, steps // 24)
    for first in range(min(3, steps)):
        for last in (*range(first + 1, steps, stride), steps):
            yield first, last


def _of_interval(stretches: _Stretches, guided: tuple[int, int]) -> list[Choice]:
    """The best choice for every number of computed steps; those in `guided` have two rows."""
    errors = stretches.errors()
    steps = errors.shape[1]
    cost = np.full((steps + 1, steps), np.inf)  # least error with steps k − 1 and j computed last, so many in all
    cost[0, 0] = 0.0
    trace: list[npt.NDArray[np.intp]] = []
    found = []
    for count in range(1, steps + 1):
        ends = cost + errors[:, :, steps]
        last = np.unravel_index(int(ends.argmin()), ends.shape)
        if np.isfinite(ends[last]):
            computed = _traced(trace, int(last[0]), int(last[1]))
            rows = sum(2 if guided[0] <= step < guided[1] else 1 for step in computed)
            found.append(Choice(stretches.along(computed), guided, rows, float(ends[last])))
        totals = cost[:, :, None] + errors
        if count < _FIRST:
            totals[:, ~np.eye(steps, steps + 1, 1, dtype=bool)] = np.inf
        trace.append(totals.argmin(0))
        cost[0], cost[1:] = np.inf, totals.min(0)[:, :steps]
    return found


def _traced(trace: Sequence[npt.NDArray[np.intp]], earlier: int, latest: int) -> tuple[int, ...]:
    """The computed steps that led to the last two, `earlier` being one more than its number and 0 for none."""
    steps = [latest]
    for before in reversed(trace):
        earlier, latest = int(before[earlier - 1, latest]), earlier - 1
        steps.append(latest)
    return tuple(reversed(steps))


class _Fits:
    """Weights of stretches, which many intervals of guidance have in common."""

    def __init__(self, products: Products) -> None:
        self.products = products
        self._found: dict[tuple[int, int, int], tuple[Floats, Floats]] = {}

    def of(self, latest: int, prediction: int, earlier: int) -> tuple[Floats, Floats]:
        """Least-squares weights [2 or 3, M] to each of the M samples after `latest`, and their errors [M].

        The predictions are rows of the gram; `earlier` is −1 for none.
        """
        key = latest, prediction, earlier
        if key not in self._found:
            gram = self.products.gram
            rows = np.array([latest, prediction, *([earlier] if earlier >= 0 else [])])
            targets = np.arange(latest + 1, self.products.steps + 1)
            known, wanted = gram[np.ix_(rows, rows)], gram[np.ix_(rows, targets)]
            weights: Floats = np.linalg.lstsq(known, wanted, rcond=1e-12)[0]
            left: Floats = gram[targets, targets] - (weights * (2 * wanted - known @ weights)).sum(0)
            self._found[key] = weights, np.maximum(left, 0.0)
        return self._found[key]


class _Stretches:
    """What becomes of the sample between two computed steps, with guidance in the interval `guided`."""

    def __init__(self, fits: _Fits, guided: tuple[int, int]) -> None:
        self._fits, self._guided, self._steps = fits, guided, fits.products.steps
        self._weighed = 1 / np.maximum(_CLEAR, 1 - fits.products.sigmas)

    def errors(self) -> Floats:
        """What is left wrong, weighed, [N + 1, N, N + 1].

        Of the step computed last but one, plus 1, and 0 for none; of the one computed last, j; and of the one that
        follows, N being the video. Infinity where they do not follow each other.
        """
        steps = self._steps
        errors = np.full((steps + 1, steps, steps + 1), np.inf)
        for latest in range(steps):
            weighed = self._weighed[latest + 1 :] * (_ONE_WAY if latest >= self._guided[1] else 1.0)
            for earlier in range(-1, latest):
                errors[earlier + 1, latest, latest + 1 :] = self._fit(earlier, latest)[1] * weighed
        return errors

    def along(self, computed: Sequence[int]) -> tuple[Stretch, ...]:
        """Where each of these steps leads."""
        found = []
        for earlier, latest, following in zip([-1, *computed], computed, [*computed[1:], self._steps], strict=False):
            weights = self._fit(earlier, latest)[0][:, following - latest - 1]
            found.append(Stretch(latest, *(float(weight) for weight in weights)))
        return tuple(found)

    def _fit(self, earlier: int, latest: int) -> tuple[Floats, Floats]:
        return self._fits.of(latest, self._prediction(latest), self._prediction(earlier) if earlier >= 0 else -1)

    def _prediction(self, step: int) -> int:
        """The row of the gram of what is predicted at a step, guided or not."""
        first, last = self._guided
        return 1 + self._steps + step + (0 if first <= step < last else self._steps)
