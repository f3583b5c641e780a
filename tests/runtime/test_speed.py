"""Speed levels: one table for a computed step and the skipped ones after it, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinograph.errors import BundleError
from kinograph.manifest import Skip, Solver, Speed
from kinograph.runtime.solvers import HISTORY, schedule
from kinograph.runtime.speed import shortened, spare_slot

SOLVERS = (
    Solver(name="euler", shift=3.0),
    Solver(name="unipc", shift=3.0),
    Solver(name="unipc", shift=5.0, kind="bh1", corrector=False),
    Solver(name="dpmpp-2m", shift=3.0),
    Solver(name="dpmpp-2m", order=3),
)
FULL = Solver(name="unipc", order=3, shift=3.0)  # its history has no slot left


def level(steps: int, skipped: tuple[Skip, ...], guided: tuple[int, int] = (0, 0)) -> Speed:
    return Speed(steps=steps, guided=guided, skipped=skipped, rows=1, every_row=steps, psnr_db=0, ssim=0, videos=1)


def run(steps, state, noise, predictions):
    """The state [K+1, n] after every step, in float64; `predictions` is one for each."""
    for step, prediction in zip(steps, predictions, strict=True):
        state = step.coefficients.astype(np.float64) @ np.vstack([state, prediction, noise])
    return state


@given(
    solver=st.sampled_from(SOLVERS),
    count=st.integers(2, 12),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_a_shortened_run_ends_where_the_whole_one_does(solver: Solver, count: int, data: st.DataObject) -> None:
    steps = schedule(solver, count)
    weights = st.floats(-2, 2, width=32)
    skips = {
        i: Skip(step=i, latest=data.draw(weights), earlier=data.draw(weights) if i > 1 else 0.0)
        for i in range(1, count)
        if data.draw(st.booleans())
    }
    rng = np.random.default_rng(count)
    computed = [i for i in range(count) if i not in skips]
    given_ = {i: rng.standard_normal(5) for i in computed}
    predictions, latest, earlier = [], np.zeros(5), np.zeros(5)
    for i in range(count):
        if i in skips:
            predictions.append(skips[i].latest * latest + skips[i].earlier * earlier)
        else:
            latest, earlier = given_[i], latest
            predictions.append(latest)
    start, noise = np.vstack([rng.standard_normal(5), np.zeros((HISTORY, 5))]), rng.standard_normal(5)
    whole = run(steps, start, noise, predictions)[0]
    short = shortened(steps, level(count, tuple(skips.values())))
    assert [step.index for step in short] == list(range(len(computed)))
    assert [step.timestep for step in short] == [steps[i].timestep for i in computed]
    assert short[-1].sigma_next == 0.0
    got = run(short, start, noise, [given_[i] for i in computed])[0]
    scale = np.abs(whole).max() + np.abs(np.stack(predictions)).max()
    assert np.abs(got - whole).max() < 2e-5 * scale


def test_steps_outside_the_interval_are_not_guided() -> None:
    steps = shortened(schedule(SOLVERS[1], 6), level(6, (Skip(step=4, latest=1.0),), guided=(1, 3)))
    assert [step.guided for step in steps] == [False, True, True, False, False]


def test_a_solver_without_room_can_only_repeat() -> None:
    steps = schedule(FULL, 6)
    assert len(shortened(steps, level(6, (Skip(step=3, latest=1.0),)))) == 5
    with pytest.raises(BundleError, match="no slot left"):
        shortened(steps, level(6, (Skip(step=3, latest=1.5, earlier=-0.5),)))
    with pytest.raises(BundleError, match="no slot left"):
        spare_slot(steps)


@pytest.mark.parametrize("skips", [(Skip(step=6, latest=1.0),), (Skip(step=2, latest=1.0), Skip(step=9, latest=1.0))])
def test_a_level_of_another_schedule_is_refused(skips: tuple[Skip, ...]) -> None:
    with pytest.raises(BundleError, match="Calibrate the bundle again"):
        shortened(schedule(SOLVERS[0], 6), level(6, skips))
    with pytest.raises(BundleError, match="a speed level of 8 steps"):
        shortened(schedule(SOLVERS[0], 6), level(8, ()))
