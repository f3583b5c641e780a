"""Solver tables: equal to diffusers' schedulers, and right on their own terms."""

import importlib
import itertools
import json

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinograph import errors
from kinograph.manifest import Solver
from kinograph.runtime import solvers
from kinograph.runtime.solvers import HISTORY

# At every step of a run, relative to the largest value in it. A table is float32, so a step may be off by 6e-8 of its
# terms, and up to 100 steps add up. The predictions are random: nothing cancels as it does for a smooth model.
TOLERANCE = 1e-6

# The same where diffusers computes in float32, as in pipelines: its own rounding, which the divided differences of
# order 2 magnify when predictions are random.
FLOAT32_TOLERANCE = 1e-5

# diffusers hands a tensor to np.array, which NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SHIFTS = (1.0, 3.0, 5.0, 8.0)
SOME_COUNTS = (1, 2, 3, 4, 5, 9, 14, 15, 16, 33, 100)
SHAPE = (1, 2, 1, 2, 2)


def apply(step, sample, history, prediction):
    """(next sample [1, …], next history [K, …]) of one step, in float64, as the step graph computes it."""
    columns = np.concatenate([sample, history, prediction, np.zeros_like(sample)])
    rows = np.tensordot(step.coefficients.astype(np.float64), columns, 1)
    return rows[:1], rows[1:]


def run(steps, sample, model):
    """The sample after every step; `model(step, sample)` is the prediction."""
    history, samples = np.zeros((HISTORY, *sample.shape[1:])), []
    for step in steps:
        sample, history = apply(step, sample, history, model(step, sample))
        samples.append(sample)
    return samples


# --- against diffusers


def scheduler_for(solver, steps):
    """diffusers' scheduler for a solver, with its timesteps set."""
    diffusers = pytest.importorskip("diffusers")
    if solver.name == "euler":
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(solver.train_timesteps, shift=solver.shift)
    else:
        options = {
            "num_train_timesteps": solver.train_timesteps,
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "flow_shift": solver.shift,
            "solver_order": solver.order,
            "lower_order_final": solver.lower_order_final,
        }
        if solver.name == "dpmpp-2m":
            scheduler = diffusers.DPMSolverMultistepScheduler(**options)
        else:
            disabled = list(solver.disable_corrector if solver.corrector else range(steps))
            options |= {"solver_type": solver.kind, "disable_corrector": disabled}
            scheduler = diffusers.UniPCMultistepScheduler(**options)
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)  # as pipelines do; without it, two equal first timesteps make it skip a step
    return scheduler


def diffusers_samples(scheduler, sample, predictions, exact):
    """The sample after every step of diffusers; `exact` has it compute in float64 what it computes in float32."""
    torch = pytest.importorskip("torch")

    class Float64Torch:
        float32 = torch.float64

        def __getattr__(self, name):
            return getattr(torch, name)

    if exact:
        scheduler.sigmas = scheduler.sigmas.double()
    samples, sample = [], torch.from_numpy(sample)
    with pytest.MonkeyPatch.context() as patch:
        if exact:  # `step` casts the sample to torch.float32
            patch.setattr(importlib.import_module(type(scheduler).__module__), "torch", Float64Torch())
        for prediction, timestep in zip(predictions, scheduler.timesteps, strict=False):
            sample = scheduler.step(torch.from_numpy(prediction), timestep, sample, return_dict=False)[0]
            samples.append(sample.numpy())
    return samples


def difference(solver, steps, exact=True):
    """The largest difference from diffusers at any step of a run, relative to the run's largest value."""
    scheduler = scheduler_for(solver, steps)
    table = solvers.schedule(solver, steps)
    assert [step.timestep for step in table] == scheduler.timesteps.tolist()
    assert [table[0].sigma, *(step.sigma_next for step in table)] == scheduler.sigmas.tolist()
    assert all(np.isfinite(step.coefficients).all() for step in table)
    random = np.random.default_rng(steps)
    start, predictions = random.standard_normal(SHAPE), list(random.standard_normal((steps, *SHAPE)))
    ours = run(table, start, lambda step, _: predictions[step.index])
    # To reach σ = 0, diffusers multiplies an infinite B(h) by zero (bh1) or divides by r = 0 (a higher order), and gets
    # NaN or a singular matrix. What is meant there is the data prediction.
    undefined = solver.name == "unipc" and (solver.kind == "bh1" or not solver.lower_order_final)
    theirs = diffusers_samples(scheduler, start, predictions[: steps - undefined], exact)
    if undefined:
        theirs.append((theirs[-1] if theirs else start) - table[-1].sigma * predictions[-1])
    return np.abs(np.subtract(ours, theirs)).max() / np.abs(theirs).max()


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("name", ["euler", "unipc", "dpmpp-2m"])
def test_every_step_count_equals_diffusers(name, shift):
    worst = max(difference(Solver(name=name, shift=shift), steps) for steps in range(1, 101))
    print(f"{name} shift {shift:g}: largest difference {worst:.1e}")
    assert worst <= TOLERANCE


VARIANTS = [
    *(
        Solver(name="unipc", shift=3.0, order=order, kind=kind, corrector=corrector)
        for order in (1, 2, 3)
        for kind in ("bh1", "bh2")
        for corrector in (True, False)
    ),
    Solver(name="unipc", shift=3.0, order=3, disable_corrector=(0, 3)),
    Solver(name="unipc", shift=3.0, order=2, lower_order_final=False),
    Solver(name="unipc", shift=12.0, order=3, lower_order_final=False, kind="bh1"),
    Solver(name="unipc", shift=0.5, train_timesteps=400),
    *(
        Solver(name="dpmpp-2m", shift=12.0, order=order, lower_order_final=final)
        for order in (1, 2, 3)
        for final in (True, False)
    ),
    Solver(name="dpmpp-2m", shift=2.5, train_timesteps=400),
    Solver(name="euler", shift=12.0),
    Solver(name="euler", shift=2.3, train_timesteps=777),
]


@pytest.mark.parametrize("solver", VARIANTS, ids=lambda solver: msgspec.json.encode(solver).decode())
def test_every_variant_equals_diffusers(solver):
    worst = max(difference(solver, steps) for steps in SOME_COUNTS)
    print(f"largest difference {worst:.1e}")
    assert worst <= TOLERANCE


@pytest.mark.parametrize("name", ["euler", "unipc", "dpmpp-2m"])
def test_equals_diffusers_as_pipelines_run_it(name):
    worst = max(difference(Solver(name=name, shift=5.0), steps, exact=False) for steps in SOME_COUNTS)
    print(f"{name} in float32: largest difference {worst:.1e}")
    assert worst <= FLOAT32_TOLERANCE


# --- on their own terms

any_solver = st.builds(
    Solver,
    name=st.sampled_from(["euler", "unipc", "dpmpp-2m"]),
    shift=st.floats(0.1, 20.0),
    train_timesteps=st.sampled_from([200, 1000, 4000]),
    order=st.integers(1, 3),
    kind=st.sampled_from(["bh1", "bh2"]),
    corrector=st.booleans(),
    disable_corrector=st.lists(st.integers(0, 9), max_size=3).map(tuple),
    lower_order_final=st.booleans(),
)


@settings(max_examples=150, deadline=None)
@given(solver=any_solver, steps=st.integers(1, 120))
def test_tables_are_finite_and_shaped(solver, steps):
    table = solvers.schedule(solver, steps)
    assert [step.index for step in table] == list(range(steps))
    assert table[-1].sigma_next == 0.0
    for step, following in itertools.pairwise(table):
        assert step.sigma_next == following.sigma < step.sigma
        assert step.timestep >= following.timestep
    for step in table:
        assert step.coefficients.shape == (HISTORY + 1, HISTORY + 3)
        assert step.coefficients.dtype == np.float32
        assert not step.coefficients.flags.writeable
        assert np.isfinite(step.coefficients).all()
        assert not step.coefficients[:, -1].any()  # none of these solvers adds noise
    assert not table[0].coefficients[0, 1 : HISTORY + 1].any()  # there is no history yet


@settings(max_examples=150, deadline=None)
@given(solver=any_solver, steps=st.integers(1, 60))
def test_a_model_that_knows_x0_lands_on_it(solver, steps):
    """v = (x − x₀)/σ points at one x₀ from everywhere. Every solver is exact for it, at every step."""
    random = np.random.default_rng(steps)
    x0, noise = random.standard_normal((2, *SHAPE))
    table = solvers.schedule(solver, steps)
    first = table[0].sigma
    samples = run(table, (1 - first) * x0 + first * noise, lambda step, x: (x - x0) / step.sigma)
    for step, sample in zip(table, samples, strict=True):
        np.testing.assert_allclose(sample, (1 - step.sigma_next) * x0 + step.sigma_next * noise, rtol=0, atol=2e-5)
    np.testing.assert_allclose(samples[-1], x0, rtol=0, atol=1e-6)


def gaussian_error(solver, steps, mean=0.3, deviation=0.4):
    """How far a run ends from the exact solution where the data is N(mean, deviation²), for which v is known."""
    z = np.array([-1.5, -0.2, 0.7, 2.0]).reshape(1, 1, 1, 2, 2)

    def spread(sigma):
        return np.hypot((1 - sigma) * deviation, sigma)

    def velocity(step, x):
        sigma = step.sigma
        signal = (1 - sigma) * deviation**2 / spread(sigma) ** 2
        return (x - (mean + signal * (x - (1 - sigma) * mean))) / sigma

    table = solvers.schedule(solver, steps)
    first = table[0].sigma
    last = run(table, (1 - first) * mean + spread(first) * z, velocity)[-1]
    return np.abs(last - (mean + deviation * z)).max()


@pytest.mark.parametrize("name", ["unipc", "dpmpp-2m"])
def test_order_two_is_more_accurate_than_order_one(name):
    first, second = (gaussian_error(Solver(name=name, shift=3.0, order=n, corrector=False), 40) for n in (1, 2))
    euler = gaussian_error(Solver(name="euler", shift=3.0), 40)
    print(f"euler {euler:.1e}, order 1 {first:.1e}, order 2 {second:.1e}")
    assert second < 0.25 * min(first, euler)


def test_the_corrector_makes_it_more_accurate():
    without = gaussian_error(Solver(name="unipc", shift=3.0, order=1, corrector=False), 40)
    corrected = gaussian_error(Solver(name="unipc", shift=3.0, order=1), 40)
    print(f"without {without:.1e}, with {corrected:.1e}")
    assert corrected < 0.75 * without


GOLDEN = {
    "euler": ([1000, 857.692322, 602.150574, 8.9285717], [0.857692301, 1.113234043, 0.816623049, 0.798765906]),
    "unipc": ([999, 900, 750, 500], [0.900120974, 1.138981785, 0.766823702, -0.235174246]),
    "dpmpp-2m": ([999, 899, 749, 499], [0.899973333, 1.078292579, 0.770342147, -0.228990937]),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_run(name):
    """Four steps at shift 3 from a sample of 1, with predictions 1, −1, ½, 2: what diffusers 0.39 makes of it."""
    timesteps, samples = GOLDEN[name]
    table = solvers.schedule(Solver(name=name, shift=3.0), 4)
    predictions = np.array([1.0, -1.0, 0.5, 2.0]).reshape(4, 1, 1, 1, 1, 1)
    ours = run(table, np.ones((1, 1, 1, 1, 1)), lambda step, _: predictions[step.index])
    np.testing.assert_allclose([step.timestep for step in table], timesteps, rtol=1e-7)
    np.testing.assert_allclose(np.ravel(ours), samples, rtol=0, atol=TOLERANCE)


# --- requests and configs


@pytest.mark.parametrize(("steps", "nearest"), [(0, 1), (-3, 1), (1001, 1000)])
def test_a_step_count_out_of_range_is_refused(steps, nearest):
    with pytest.raises(errors.RequestError, match=rf"is {steps}: expected 1 to 1000, .* Nearest: {nearest}\."):
        solvers.schedule(Solver(name="unipc"), steps)


def test_steps_that_float32_cannot_tell_apart_are_refused():
    solver = Solver(name="unipc", shift=5000.0)
    with pytest.raises(errors.RequestError, match=r"Use at most 192 steps, or the euler solver"):
        solvers.schedule(solver, 1000)
    assert len(solvers.schedule(solver, 192)) == 192
    with pytest.raises(errors.RequestError, match=r"Use the euler solver"):
        solvers.schedule(Solver(name="dpmpp-2m", train_timesteps=1), 1)


WAN = {  # scheduler/scheduler_config.json of Wan 2.1, 480p
    "_class_name": "UniPCMultistepScheduler",
    "_diffusers_version": "0.33.0.dev0",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "disable_corrector": [],
    "dynamic_thresholding_ratio": 0.995,
    "final_sigmas_type": "zero",
    "flow_shift": 3.0,
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "predict_x0": True,
    "prediction_type": "flow_prediction",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "solver_order": 2,
    "solver_p": None,
    "solver_type": "bh2",
    "steps_offset": 0,
    "thresholding": False,
    "timestep_spacing": "linspace",
    "trained_betas": None,
    "use_beta_sigmas": False,
    "use_exponential_sigmas": False,
    "use_flow_sigmas": True,
    "use_karras_sigmas": False,
}
EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 7, "num_train_timesteps": 1000}
DPMPP = {
    "_class_name": "DPMSolverMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 5.0,
    "solver_order": 3,
    "lower_order_final": False,
}


@pytest.mark.parametrize(
    ("config", "solver"),
    [
        (WAN, Solver(name="unipc", shift=3.0)),
        (WAN | {"disable_corrector": [0, 1]}, Solver(name="unipc", shift=3.0, disable_corrector=(0, 1))),
        (WAN | {"disable_corrector": None, "solver_type": "midpoint"}, Solver(name="unipc", shift=3.0)),
        (WAN | {"solver_order": 3, "solver_type": "bh1"}, Solver(name="unipc", shift=3.0, order=3, kind="bh1")),
        (EULER, Solver(name="euler", shift=7.0)),
        (EULER | {"shift_terminal": None, "max_shift": 1.15}, Solver(name="euler", shift=7.0)),
        (DPMPP, Solver(name="dpmpp-2m", shift=5.0, order=3, lower_order_final=False)),
    ],
)
def test_a_scheduler_config_reads_as_a_solver(config, solver):
    assert solvers.solver_from_scheduler_config(config) == solver


@pytest.mark.parametrize("solver", [Solver(name=name, shift=2.5) for name in ("euler", "unipc", "dpmpp-2m")])
def test_every_key_that_diffusers_writes_is_known(solver):
    config = json.loads(scheduler_for(solver, 4).to_json_string())  # which may contain -Infinity
    assert solvers.solver_from_scheduler_config(config) == solver


@pytest.mark.parametrize(
    ("base", "key", "value", "expected"),
    [
        (WAN, "_class_name", "DDIMScheduler", "UniPCMultistepScheduler"),
        (WAN, "_class_name", None, "UniPCMultistepScheduler"),
        (WAN, "prediction_type", "epsilon", "flow_prediction"),
        (WAN, "use_flow_sigmas", False, "True"),
        (WAN, "use_karras_sigmas", True, "False"),
        (WAN, "use_beta_sigmas", True, "False"),
        (WAN, "use_exponential_sigmas", True, "False"),
        (WAN, "use_dynamic_shifting", True, "False"),
        (WAN, "predict_x0", False, "True"),
        (WAN, "thresholding", True, "False"),
        (WAN, "final_sigmas_type", "sigma_min", "zero"),
        (WAN, "solver_p", ["diffusers", "DDIMScheduler"], "None"),
        (WAN, "shift_terminal", 0.1, "None"),
        (WAN, "solver_order", 4, "<= 3"),
        (WAN, "solver_type", "bh3", "bh3"),
        (WAN, "flow_shift", 0, "> 0"),
        (WAN, "flow_shift", "3", "float"),
        (WAN, "lower_order_final", 1, "bool"),
        (WAN, "brand_new_option", True, "flow_shift"),
        (EULER, "use_dynamic_shifting", True, "False"),
        (EULER, "shift_terminal", 0.1, "None"),
        (EULER, "invert_sigmas", True, "False"),
        (EULER, "stochastic_sampling", True, "False"),
        (EULER, "use_karras_sigmas", True, "False"),
        (DPMPP, "algorithm_type", "sde-dpmsolver++", "dpmsolver++"),
        (DPMPP, "solver_type", "heun", "midpoint"),
        (DPMPP, "use_lu_lambdas", True, "False"),
        (DPMPP, "final_sigmas_type", "sigma_min", "zero"),
    ],
)
def test_what_would_change_the_result_is_refused(base, key, value, expected):
    with pytest.raises(errors.BundleError) as caught:
        solvers.solver_from_scheduler_config(base | {key: value})
    for part in (key, repr(value), expected):
        assert part in str(caught.value)


def test_an_absent_key_means_diffusers_default():
    config = {key: value for key, value in WAN.items() if key != "prediction_type"}
    with pytest.raises(errors.BundleError, match="prediction_type is absent, which means 'epsilon'"):
        solvers.solver_from_scheduler_config(config)
