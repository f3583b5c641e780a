"""Holds a variant against the float graphs it was made from, and says whether it passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from kinograph.calibration import CalibrationOptions, Progress
from kinograph.calibration.emit import emit
from kinograph.calibration.loop import Experts, Loop, Moment, Start
from kinograph.calibration.quality import Bars, psnr, ssim, velocity_decibels
from kinograph.calibration.work import FLOAT, Work, best_precision, trial
from kinograph.engines.protocol import Contents, Engine
from kinograph.manifest import Expert, Manifest, Quality
from kinograph.runtime.codec import decode

__all__ = ["Layer", "Report", "compare", "why_not"]


@dataclass(frozen=True)
class Layer:
    """What became of the products of one activation: their own error, and what it does to the velocity, in dB."""

    component: str
    weights: tuple[str, ...]
    quantised: bool
    noise_db: float
    velocity_db: float | None
    smoothed: bool


@dataclass(frozen=True)
class Report:
    """What was made: `velocity_db` by timestep, over all videos compared; sizes in bytes, times in seconds a step."""

    variant: str
    quality: Quality
    velocity_db: dict[float, float]
    control_db: dict[float, float]
    layers: list[Layer]
    bytes_before: int
    bytes_after: int
    seconds_before: float
    seconds_after: float


def compare(
    loop: Loop,
    work: Mapping[str, Work],
    starts: Sequence[Start],
    moments: Sequence[Moment],
    options: CalibrationOptions,
    progress: Progress,
) -> Report:
    quantised = trial(loop.bundle, {name: own.model for name, own in work.items() if own.model is not None})
    control = trial(
        loop.bundle,
        {
            name: emit(own.graph.model, [own.control[i] for i in own.chosen], own.graph.weights)
            for name, own in work.items()
        },
    )
    velocity, seconds_after = _velocities(loop, quantised, moments)
    control_db, _ = _velocities(loop, control, moments)
    _, seconds_before = _velocities(loop, loop.bundle, moments[: len(loop.steps)])
    pairs = []
    with ExitStack() as stack:
        decoders = []
        for name in ("decoder_first", "decoder_next"):
            decoders.append(loop.device.open(loop.bundle, name, best_precision(loop.bundle.manifest, name)))
            stack.callback(decoders[-1].close)
        before, after = Experts(loop, loop.bundle, FLOAT), Experts(loop, quantised, FLOAT)
        for number, start in enumerate(starts, 1):
            with before, after:
                pairs.append(tuple(_video(loop, start, experts.open, decoders) for experts in (before, after)))
            progress("compare", number, len(starts))
    bars = Bars()
    figures = {
        "velocity_db": min(velocity.values()),
        "psnr_db": float(np.mean([psnr(*pair) for pair in pairs])),
        "ssim": float(np.mean([ssim(*pair) for pair in pairs])),
    }
    passed = all(figures[name] >= getattr(bars, name) for name in figures)
    quality = Quality(recipe=options.recipe, videos=len(pairs), passed=passed, **figures)
    return Report(
        variant=options.recipe,
        quality=quality,
        velocity_db=velocity,
        control_db=control_db,
        layers=[layer for name, own in work.items() for layer in _layers(name, own)],
        bytes_before=sum(_float_bytes(loop.bundle.manifest, name) for name in work),
        bytes_after=sum(_model_bytes(own.model) for own in work.values()),
        seconds_before=seconds_before,
        seconds_after=seconds_after,
    )


def _velocities(loop: Loop, bundle: Contents, moments: Sequence[Moment]) -> tuple[dict[float, float], float]:
    """The velocity's signal-to-noise ratio in dB by timestep, the mean over moments, and seconds a step."""
    found: dict[float, list[float]] = {}
    seconds = 0.0
    for name in dict.fromkeys(expert.component for expert in loop.bundle.manifest.experts):
        own = [moment for moment in moments if loop.expert(moment.step).component == name]
        if not own:
            continue
        engine = loop.device.open(bundle, name, FLOAT)
        try:
            began = time.perf_counter()
            got = loop.velocities(engine, own)
            seconds += time.perf_counter() - began
        finally:
            engine.close()
        for moment, decibels in zip(own, velocity_decibels([m.velocity for m in own], got), strict=True):
            found.setdefault(moment.step.timestep, []).append(decibels)
    return {timestep: float(np.mean(values)) for timestep, values in found.items()}, seconds / len(moments)


def _video(
    loop: Loop, start: Start, open_expert: Callable[[Expert], Engine], decoders: Sequence[Engine]
) -> npt.NDArray[np.uint8]:
    for _, binding in loop.run(start, open_expert):
        latents = binding["sample"].read()
    return np.concatenate(list(decode(loop.device, *decoders, latents)))


def _layers(component: str, work: Work) -> Iterator[Layer]:
    for number, plan in enumerate(work.plans):
        effect = -10 * float(np.log10(max(work.effects[number], 1e-12))) if work.effects else None
        yield Layer(
            component, plan.group.weights, number in work.chosen, plan.noise, effect, plan.smoothing is not None
        )


def _float_bytes(manifest: Manifest, component: str) -> int:
    return sum(manifest.files[path].size for path in manifest.components[component].variants[FLOAT].weights)


def _model_bytes(model: ir.Model | None) -> int:
    if model is None:
        return 0
    return sum(int(v.const_value.nbytes) for v in model.graph.initializers.values() if v.const_value is not None)


def why_not(report: Report) -> str:
    bars, quality = Bars(), report.quality
    figures = [
        f"{label} {getattr(quality, name):.3g}{unit}, expected at least {getattr(bars, name):g}"
        for name, label, unit in (
            ("velocity_db", "the velocity's worst step", " dB"),
            ("psnr_db", "PSNR", " dB"),
            ("ssim", "SSIM", ""),
        )
        if getattr(quality, name) < getattr(bars, name)
    ]
    return (
        f"the {report.variant} variant missed its gate and was not written: {'; '.join(figures)}. "
        "Calibrate with prompts like those it will be used with (--prompts), or write it anyway with --force"
    )
