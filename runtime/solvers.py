"""Solvers of the diffusion ODE, as tables: what the step graph multiplies by, one small matrix per step.

Every deterministic linear multistep sampler is a linear map of (sample, history, prediction, noise). One file per
family turns its paper's formulas into such maps; nothing is stateful, and no sampler runs at generation time.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from kinograph import errors, manifest
from kinograph.runtime import dpmpp, euler, unipc
from kinograph.runtime.coefficients import HISTORY, Row

__all__ = ["HISTORY", "Step", "schedule", "solver_from_scheduler_config"]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One denoising step.

    `timestep` is what the model is given, in its own units (0 … train_timesteps). The step leads from noise level
    `sigma` to `sigma_next`, both in [0, 1]. `coefficients` is float32 [K+1, K+3], read-only: rows are the next sample
    and the next history (K); columns are the sample, the history (K), the prediction (the flow velocity v = noise − x₀)
    and noise. What a solver does not use is zero. The history starts as zeros. A step that is not `guided` runs with
    the prompt's row alone, whatever the guidance scale.
    """

    index: int
    timestep: float
    sigma: float
    sigma_next: float
    coefficients: npt.NDArray[np.float32]
    guided: bool = True


@dataclass(frozen=True)
class _Family:
    """`levels` gives (sigmas, timesteps), `coefficients` the tables; `distinct`: no two sigmas may be equal."""

    levels: Callable[[manifest.Solver, int], tuple[Row, Row]]
    coefficients: Callable[[Sequence[float], manifest.Solver], list[npt.NDArray[np.float32]]]
    distinct: bool


_FAMILIES = {
    "euler": _Family(euler.levels, euler.coefficients, distinct=False),
    "unipc": _Family(unipc.levels, unipc.coefficients, distinct=True),
    "dpmpp-2m": _Family(dpmpp.levels, dpmpp.coefficients, distinct=True),
}


def schedule(solver: manifest.Solver, num_inference_steps: int) -> tuple[Step, ...]:
    """The steps of a run, first (most noise) to last (σ = 0), equal to what diffusers' schedulers do.

    Sigmas are float32 numbers, as in diffusers; everything computed from them is float64 until the table is stored.
    Raises RequestError for a number of steps outside 1 … train_timesteps, or so large that two steps of a multistep
    solver would have the same noise level.
    """
    steps = num_inference_steps
    nearest = min(max(steps, 1), solver.train_timesteps)
    if steps != nearest:
        raise errors.RequestError(
            f"num_inference_steps is {steps}: expected 1 to {solver.train_timesteps}, the model's training timesteps. "
            f"Nearest: {nearest}."
        )
    family = _FAMILIES[solver.name]
    sigmas, timesteps = _levels(solver, steps)
    if family.distinct and not _descends(sigmas):
        most = bisect.bisect_left(range(1, steps + 1), True, key=lambda n: not _descends(_levels(solver, n)[0]))
        advice = f"Use at most {most} steps, or the" if most else "Use the"
        raise errors.RequestError(
            f"num_inference_steps is {steps}: with the {solver.name} solver at shift {solver.shift:g}, two steps would "
            f"have the same noise level. {advice} euler solver."
        )
    tables = family.coefficients(sigmas, solver)
    for coefficients in tables:
        coefficients.setflags(write=False)
    return tuple(Step(i, timesteps[i], sigmas[i], sigmas[i + 1], tables[i]) for i in range(steps))


def _levels(solver: manifest.Solver, steps: int) -> tuple[list[float], list[float]]:
    """Noise levels [steps + 1], rounded to float32 and ending with 0, and timesteps [steps]."""
    sigmas, timesteps = _FAMILIES[solver.name].levels(solver, steps)
    return [*map(float, sigmas.astype(np.float32)), 0.0], [*map(float, timesteps)]


def _descends(sigmas: Sequence[float]) -> bool:
    return all(sigmas[i + 1] < sigmas[i] for i in range(len(sigmas) - 1))


@dataclass(frozen=True)
class _Setting:
    """A key of a scheduler config that has to have one of the `supported` values; `default` is diffusers' own."""

    default: object
    supported: tuple[object, ...]


@dataclass(frozen=True)
class _Scheduler:
    """How a diffusers scheduler's config reads.

    `fields`: keys that are fields of manifest.Solver. `settings`: keys that have to have one value. `irrelevant`: keys
    that change nothing, the settings being what they are.
    """

    name: Literal["euler", "unipc", "dpmpp-2m"]
    fields: Mapping[str, str]
    settings: Mapping[str, _Setting]
    irrelevant: frozenset[str]
    aliases: Mapping[str, Mapping[object, object]] = field(default_factory=dict)


_OFF = _Setting(False, (False, None))
_UNSHIFTED_SIGMAS = {
    "use_karras_sigmas": _OFF,
    "use_exponential_sigmas": _OFF,
    "use_beta_sigmas": _OFF,
    "use_dynamic_shifting": _OFF,
}
_MULTISTEP_SETTINGS = {
    "prediction_type": _Setting("epsilon", ("flow_prediction",)),
    "use_flow_sigmas": _Setting(False, (True,)),
    "thresholding": _OFF,
    "final_sigmas_type": _Setting("zero", ("zero",)),
    **_UNSHIFTED_SIGMAS,
}
_MULTISTEP_FIELDS = {
    "flow_shift": "shift",
    "num_train_timesteps": "train_timesteps",
    "solver_order": "order",
    "lower_order_final": "lower_order_final",
}
_MULTISTEP_IRRELEVANT = frozenset(
    (
        *("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"),  # no variance schedule
        *("timestep_spacing", "steps_offset"),  # replaced by the flow sigmas
        *("dynamic_thresholding_ratio", "sample_max_value", "time_shift_type", "sigma_min", "sigma_max"),
    )
)
_SCHEDULERS = {
    "FlowMatchEulerDiscreteScheduler": _Scheduler(
        name="euler",
        fields={"shift": "shift", "num_train_timesteps": "train_timesteps"},
        settings={
            "shift_terminal": _Setting(None, (None, 0)),
            "invert_sigmas": _OFF,
            "stochastic_sampling": _OFF,
            **_UNSHIFTED_SIGMAS,
        },
        irrelevant=frozenset(("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type")),
    ),
    "UniPCMultistepScheduler": _Scheduler(
        name="unipc",
        fields={**_MULTISTEP_FIELDS, "solver_type": "kind", "disable_corrector": "disable_corrector"},
        settings={
            "predict_x0": _Setting(True, (True,)),
            "solver_p": _Setting(None, (None,)),
            "shift_terminal": _Setting(None, (None, 0)),
            **_MULTISTEP_SETTINGS,
        },
        irrelevant=_MULTISTEP_IRRELEVANT,
        # What diffusers reads other schedulers' types as.
        aliases={
            "solver_type": {"midpoint": "bh2", "heun": "bh2", "logrho": "bh2"},
            "disable_corrector": {None: ()},
        },
    ),
    "DPMSolverMultistepScheduler": _Scheduler(
        name="dpmpp-2m",
        fields=_MULTISTEP_FIELDS,
        settings={
            "algorithm_type": _Setting("dpmsolver++", ("dpmsolver++",)),
            "solver_type": _Setting(
                "midpoint", ("midpoint", "logrho", "bh1", "bh2")
            ),  # diffusers reads all as midpoint
            "use_lu_lambdas": _OFF,
            **_MULTISTEP_SETTINGS,
        },
        # With a final sigma of zero the last step is of first order, as `euler_at_final` would have it.
        irrelevant=_MULTISTEP_IRRELEVANT | {"euler_at_final", "lambda_min_clipped", "variance_type"},
    ),
}


def solver_from_scheduler_config(config: Mapping[str, object]) -> manifest.Solver:
    """The solver that a diffusers `scheduler_config.json` describes; an absent key means diffusers' default.

    Raises BundleError for a scheduler, a key or a value that is not implemented and would change the result.
    """
    kind = config.get("_class_name")
    scheduler = _SCHEDULERS.get(kind) if isinstance(kind, str) else None
    if scheduler is None:
        raise errors.BundleError(f"scheduler _class_name is {kind!r}: supported are {', '.join(_SCHEDULERS)}.")
    known = {*scheduler.fields, *scheduler.settings, *scheduler.irrelevant}
    for key in config:
        if key not in known and not key.startswith("_"):
            raise errors.BundleError(
                f"{kind} config has {key} = {config[key]!r}, which is not known here: "
                f"known are {', '.join(sorted(known))}. Remove the key if it has no effect on this scheduler."
            )
    for key, setting in scheduler.settings.items():
        value = config.get(key, setting.default)
        if value not in setting.supported:
            origin = "is" if key in config else "is absent, which means"
            supported = " or ".join(map(repr, setting.supported))
            raise errors.BundleError(f"{kind} config: {key} {origin} {value!r}: supported is {supported}.")
    fields = {name: _field(scheduler, key, config[key]) for key, name in scheduler.fields.items() if key in config}
    return msgspec.convert({"name": scheduler.name, **fields}, manifest.Solver)


def _field(scheduler: _Scheduler, key: str, value: object) -> object:
    """The value of a manifest.Solver field, validated. Raises BundleError naming the config's key and value."""
    name = scheduler.fields[key]
    aliases = scheduler.aliases.get(key, {})
    value = aliases.get(value, value) if isinstance(value, str | None) else value
    try:
        return getattr(msgspec.convert({"name": scheduler.name, name: value}, manifest.Solver), name)
    except msgspec.ValidationError as exc:
        raise errors.BundleError(f"scheduler config: {key} is {value!r}, which is not supported: {exc}") from exc
