"""Speed levels: what their tables do to the sample, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinograph.errors import BundleError
from kinograph.manifest import Solver, Speed, Stretch
from kinograph.runtime.solvers import HISTORY, schedule
from kinograph.runtime.speed import shortened

SOLVERS = (
    Solver(name="euler", shift=3.0),
    Solver(name="unipc", shift=3.0),
    Solver(name="unipc", order=3, shift=3.0),  # whose own history has no slot left
    Solver(name="dpmpp-2m", order=3),
)


def level(steps: int, computed: tuple[Stretch, ...], guided: tuple[int, int] = (0, 0)) -> Speed:
    return Speed(steps=steps, guided=guided, computed=computed, rows=1, every_row=steps, psnr_db=0, ssim=0, videos=1)


def at(*steps: int) -> tuple[Stretch, ...]:
    return tuple(Stretch(step=step, sample=1.0, latest=-0.1) for step in steps)


@given(solver=st.sampled_from(SOLVERS), count=st.integers(2, 12), data=st.data())
@settings(max_examples=60, deadline=None)
def test_its_tables_mix_the_sample_and_the_last_two_predictions(
    solver: Solver, count: int, data: st.DataObject
) -> None:
    steps = schedule(solver, count)
    weights = st.floats(-2, 2, width=32)
    computed = [0, *(i for i in range(1, count) if data.draw(st.booleans()))]
    stretches = tuple(
        Stretch(step=i, sample=data.draw(weights), latest=data.draw(weights), earlier=data.draw(weights) if i else 0.0)
        for i in computed
    )
    rng = np.random.default_rng(count)
    sample, noise, predictions = rng.standard_normal(5), rng.standard_normal(5), rng.standard_normal((len(computed), 5))
    short = shortened(steps, level(count, stretches))
    assert [step.index for step in short] == list(range(len(computed)))
    assert [step.timestep for step in short] == [steps[i].timestep for i in computed]
    assert [step.sigma_next for step in short] == [*(steps[i].sigma for i in computed[1:]), 0.0]
    expected, earlier = sample, np.zeros(5)
    for stretch, prediction in zip(stretches, predictions, strict=True):
        expected = stretch.sample * expected + stretch.latest * prediction + stretch.earlier * earlier
        earlier = prediction
    state = np.vstack([sample, np.zeros((HISTORY, 5))])
    for step, prediction in zip(short, predictions, strict=True):
        state = step.coefficients.astype(np.float64) @ np.vstack([state, prediction, noise])
    assert np.abs(state[0] - expected).max() < 1e-5 * (1 + np.abs(expected).max())


def test_steps_outside_the_interval_are_not_guided() -> None:
    steps = shortened(schedule(SOLVERS[1], 6), level(6, at(0, 1, 2, 3, 5), guided=(1, 3)))
    assert [step.guided for step in steps] == [False, True, True, False, False]


@pytest.mark.parametrize("computed", [(0, 6), (0, 2, 9), (1, 2), ()])
def test_a_level_of_another_schedule_is_refused(computed: tuple[int, ...]) -> None:
    with pytest.raises(BundleError, match="Calibrate the bundle again"):
        shortened(schedule(SOLVERS[0], 6), level(6, at(*computed)))
    with pytest.raises(BundleError, match="a speed level of 8 steps"):
        shortened(schedule(SOLVERS[0], 6), level(8, at(0)))
