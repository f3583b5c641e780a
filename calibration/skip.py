"""Finds speed levels: which steps of a schedule to skip, and which to run without guidance.

Caches of this kind (MagCache, arXiv:2506.09045; EasyCache, arXiv:2507.02860) decide while a video is made. Here it is
decided beforehand, from how a model's predictions change along its own schedule, and the loop has nothing to decide:

- A skipped step's prediction is a mix a·v + b·v′ of the last two that were computed, with the a and b that fit the
  runs looked at best. `runtime.speed` folds it into the solver's table.
- Guidance matters in an interval of noise levels (Kynkäänniemi et al., arXiv:2404.07724). Outside it, a step computes
  the prompt's row alone.

What a choice does to the result is told by how far it moves the sample: over a stretch from one computed step to the
next, Σ Δσ·(v − v̂). Its square is a quadratic form in the predictions' inner products, which are all that is kept of the
runs. The best choice for every number of computed steps is then found by dynamic programming.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kinograph.manifest import Skip

__all__ = ["Choice", "Products", "best_choices"]

Floats = npt.NDArray[np.float64]

_ELEMENTS = 1 << 17  # of a prediction, that inner products are taken over
_ROUNDING = 1e-12  # of the largest error: what is less is no gain, and another CPU might not find it
_FIRST = 2  # steps that are always computed: there is nothing to mix before


class Products:
    """Inner products of a schedule's predictions, the mean over runs: with guidance, and with the prompt's row alone.

    `sigmas` are the schedule's noise levels, [N + 1]. The first N rows and columns of `gram` [2N, 2N] are the guided
    predictions, the rest the unguided.
    """

    def __init__(self, sigmas: Sequence[float]) -> None:
        self.widths = -np.diff(np.asarray(sigmas, np.float64))
        self.gram: Floats = np.zeros((2 * len(self.widths), 2 * len(self.widths)))

    def add(self, guided: Sequence[npt.NDArray[np.float32]], unguided: Sequence[npt.NDArray[np.float32]]) -> None:
        """The predictions of one run, each of N arrays of one shape; of large ones a random part counts."""
        size = guided[0].size
        kept = np.random.default_rng(0).permutation(size)[:_ELEMENTS] if size > _ELEMENTS else np.arange(size)
        rows = np.stack([v.reshape(-1)[kept] for v in (*guided, *unguided)]).astype(np.float64)
        self.gram += rows @ rows.T / len(kept)


@dataclass(frozen=True)
class Choice:
    """Which steps of a schedule to compute, from where to where with guidance, and what the others' predictions are.

    `rows` is how many rows of the model that computes, `error` how far it moves the sample, as mean square.
    """

    computed: tuple[int, ...]
    guided: tuple[int, int]
    skipped: tuple[Skip, ...]
    rows: int
    error: float


def best_choices(products: Products, *, guidance: bool, mix: bool) -> list[Choice]:
    """For every number of rows the choice that moves the sample least, each with less error than any cheaper one.

    `guidance`: whether there are two rows at all. `mix`: whether skipped steps can use the prediction before the last.
    """
    steps = len(products.widths)
    best: dict[int, Choice] = {}
    for guided in _intervals(steps) if guidance else [(0, 0)]:
        for choice in _of_interval(products, guided, guidance=guidance, mix=mix):
            if choice.rows not in best or choice.error < best[choice.rows].error:
                best[choice.rows] = choice
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


def _of_interval(products: Products, guided: tuple[int, int], *, guidance: bool, mix: bool) -> list[Choice]:
    """The best choice for every number of computed steps, with guidance in this interval."""
    steps = len(products.widths)
    used = [i if not guidance or guided[0] <= i < guided[1] else steps + i for i in range(steps)]  # rows of the gram
    stretches = _Stretches(products, used, mix)
    # cost[k, j]: least error of having computed steps k and j last, with so many computed in all
    cost = {(-1, 0): 0.0}
    trace: list[dict[tuple[int, int], int]] = [{}]
    found = []
    for count in range(1, steps + 1):
        ends = {(k, j): error + stretches.error(k, j, steps) for (k, j), error in cost.items()}
        if ends:
            k, j = min(ends, key=lambda state: ends[state])
            computed = _traced(trace, (k, j), count)
            rows = sum(2 if guidance and guided[0] <= i < guided[1] else 1 for i in computed)
            found.append(Choice(computed, guided, stretches.skips(computed), rows, ends[k, j]))
        following: dict[tuple[int, int], float] = {}
        before: dict[tuple[int, int], int] = {}
        for (k, j), error in cost.items():
            nexts = [j + 1] if count < _FIRST else range(j + 1, steps)
            for m in nexts:
                total = error + stretches.error(k, j, m)
                if m < steps and total < following.get((j, m), np.inf):
                    following[j, m], before[j, m] = total, k
        cost = following
        trace.append(before)
    return found


def _traced(trace: Sequence[dict[tuple[int, int], int]], last: tuple[int, int], count: int) -> tuple[int, ...]:
    """The computed steps that led to the last two."""
    k, j = last
    steps = [j]
    for number in range(count - 1, 0, -1):
        steps.append(k)
        k, j = trace[number][k, j], k
    return tuple(reversed(steps))


class _Stretches:
    """What becomes of the steps between two computed ones."""

    def __init__(self, products: Products, used: Sequence[int], mix: bool) -> None:
        self._gram, self._widths, self._used, self._mix = products.gram, products.widths, used, mix
        self._errors: dict[tuple[int, int, int], float] = {}

    def error(self, earlier: int, latest: int, following: int) -> float:
        """How far the sample is moved from `latest` until `following` is computed, `earlier` having been before."""
        key = (earlier, latest, following)
        if key not in self._errors:
            moved = np.zeros(len(self._gram))
            moved[latest] += self._widths[latest]
            moved[self._used[latest]] -= self._widths[latest]
            for step in range(latest + 1, following):
                a, b = self.mixed(earlier, latest, step)
                moved[step] += self._widths[step]
                moved[self._used[latest]] -= a * self._widths[step]
                if earlier >= 0:
                    moved[self._used[earlier]] -= b * self._widths[step]
            self._errors[key] = max(0.0, float(moved @ self._gram @ moved))
        return self._errors[key]

    def mixed(self, earlier: int, latest: int, step: int) -> tuple[float, float]:
        """The least-squares a and b of v(step) ≈ a·v(latest) + b·v(earlier)."""
        rows = [self._used[latest], *([self._used[earlier]] if self._mix and earlier >= 0 else [])]
        known = self._gram[np.ix_(rows, rows)]
        fitted = np.linalg.lstsq(known, self._gram[rows, step], rcond=1e-9)[0]
        return float(fitted[0]), float(fitted[1]) if len(fitted) > 1 else 0.0

    def skips(self, computed: Sequence[int]) -> tuple[Skip, ...]:
        """Every step that is not computed, with its mix."""
        found = []
        for number, latest in enumerate(computed):
            following = computed[number + 1] if number + 1 < len(computed) else len(self._widths)
            earlier = computed[number - 1] if number else -1
            for step in range(latest + 1, following):
                a, b = self.mixed(earlier, latest, step)
                found.append(Skip(step=step, latest=a, earlier=b))
        return tuple(found)
