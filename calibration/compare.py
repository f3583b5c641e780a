"""Holds a variant against the float graphs it was made from, and says whether it passes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kinograph.calibration import CalibrationOptions, Progress
from kinograph.calibration.draft import VariantDraft
from kinograph.calibration.judging import Judge, agreement, worse
from kinograph.calibration.loop import FLOAT, Experts, Loop, Moment, Start
from kinograph.calibration.numerics import signal_to_noise
from kinograph.calibration.quality import Bars, psnr, ssim
from kinograph.calibration.work import Work
from kinograph.engines.protocol import Contents, Engine
from kinograph.manifest import Manifest, Quality
from kinograph.runtime.codec import decode

__all__ = ["Exam", "Layer", "Report", "compare", "why_not"]

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Layer:
    """What became of a layer: its own error, and what it alone does to the velocity or the frames, in dB.

    `format` is what it is quantised to, None where it is not; the errors are then those that it would have had.
    """

    component: str
    weights: tuple[str, ...]
    format: str | None
    noise_db: float
    effect_db: float | None
    smoothed: bool

    @property
    def rank(self) -> float:
        """What orders layers, the most harmful first: the effect in dB, or the own error where none was measured."""
        return self.noise_db if self.effect_db is None else self.effect_db


@dataclass(frozen=True)
class Report:
    """What was made: `velocity_db` and the control's by timestep, over all videos compared; sizes in bytes of weights.

    `text_db` is the signal-to-noise ratio of embedded prompts, None where the text encoder stays as it is. Times are
    medians in seconds, of the float and of the quantised variant.
    """

    variant: str
    quality: Quality
    velocity_db: dict[float, float]
    control_db: dict[float, float]
    text_db: float | None
    layers: list[Layer]
    bytes_before: int
    bytes_after: int
    step_seconds: tuple[float, float]
    decode_seconds: tuple[float, float]


@dataclass(frozen=True)
class Exam:
    """What a variant is held against: prompts and noise, embedded by the float text encoder and by the variant's.

    `told` is what the variant's steps and the control's are told where velocities are compared: the float prompts,
    unless it is the text encoder alone that was quantised. `judged` are those of the judge's own prompts, if there is
    a judge.
    """

    starts: tuple[Sequence[Start], Sequence[Start]]
    told: tuple[Sequence[Start], Sequence[Start]]
    judge: Judge | None
    judged: tuple[Sequence[Start], Sequence[Start]]


def compare(
    loop: Loop,
    work: Mapping[str, Work],
    drafts: tuple[VariantDraft, VariantDraft],
    exam: Exam,
    options: CalibrationOptions,
    progress: Progress,
) -> tuple[Report, list[tuple[Frames, Frames]]]:
    """Hold a variant against the float graphs: every step of runs, and videos.

    `drafts` are the variant and its control. Also returns the videos, by the float graphs and by the variant.
    """
    quantised, control = (one.trial(loop.bundle) for one in drafts)
    moments = loop.reference(exam.starts[0], progress)
    velocity = _velocities(loop, quantised, moments, exam.told[0])
    control_db = _velocities(loop, control, moments, exam.told[1])
    count = len(exam.starts[0])
    with _videos(loop, loop.bundle) as before:
        originals = before.all([*exam.starts[0], *exam.judged[0]], "compare float", progress)
    with _videos(loop, quantised) as after:
        copies = after.all([*exam.starts[1], *exam.judged[1]], "compare", progress)
    pairs = list(zip(originals[:count], copies[:count], strict=True))
    name = loop.bundle.manifest.judge
    judged = agreement(name, exam.judge, originals[count:], copies[count:]) if name and exam.judge else None
    bars = Bars()
    figures = {
        "velocity_db": min(velocity.values()),
        "psnr_db": float(np.mean([psnr(*pair) for pair in pairs])),
        "ssim": float(np.mean([ssim(*pair) for pair in pairs])),
    }
    passed = all(figures[name] >= getattr(bars, name) for name in figures) and not (judged and worse(judged))
    quality = Quality(recipe=options.recipe, videos=len(pairs), passed=passed, judged=judged, **figures)
    report = Report(
        variant=options.recipe,
        quality=quality,
        velocity_db=velocity,
        control_db=control_db,
        text_db=_text_db(*exam.starts) if "text_encoder" in work else None,
        layers=[layer for name, own in work.items() for layer in _layers(name, own)],
        bytes_before=_float_bytes(loop.bundle.manifest, work),
        bytes_after=drafts[0].bytes,
        step_seconds=(before.step_seconds, after.step_seconds),
        decode_seconds=(before.decode_seconds, after.decode_seconds),
    )
    return report, pairs


def _velocities(loop: Loop, bundle: Contents, moments: Sequence[Moment], told: Sequence[Start]) -> dict[float, float]:
    """The velocity's signal-to-noise ratio in dB by timestep, the mean over moments, in the order of `told`."""
    found: dict[float, list[float]] = {}
    each = len(moments) // len(told)
    moments = [replace(moment, start=told[number // each]) for number, moment in enumerate(moments)]
    for name in dict.fromkeys(expert.component for expert in loop.bundle.manifest.experts):
        own = [moment for moment in moments if loop.expert(moment.step).component == name]
        if not own:
            continue
        engine = loop.device.open(bundle, name, FLOAT)
        try:
            got = loop.velocities(engine, own)
        finally:
            engine.close()
        for moment, velocity in zip(own, got, strict=True):
            found.setdefault(moment.step.timestep, []).append(signal_to_noise(moment.velocity, velocity))
    return {timestep: float(np.mean(values)) for timestep, values in found.items()}


@contextmanager
def _videos(loop: Loop, contents: Contents) -> Iterator[_Videos]:
    with Experts(loop, contents, FLOAT) as experts, loop.decoder(contents, FLOAT) as decoder:
        yield _Videos(loop, experts, decoder)


class _Videos:
    """Makes videos from latent noise, and keeps the time: medians over the videos, in seconds."""

    def __init__(self, loop: Loop, experts: Experts, decoder: tuple[Engine, Engine]) -> None:
        self._loop, self._experts, self._decoder = loop, experts, decoder
        self._steps: list[float] = []
        self._decodes: list[float] = []

    @property
    def step_seconds(self) -> float:
        return float(np.median(self._steps))

    @property
    def decode_seconds(self) -> float:
        return float(np.median(self._decodes))

    def all(self, starts: Sequence[Start], stage: str, progress: Progress) -> list[Frames]:
        """A video [T, H, W, 3] from each start."""
        found = []
        for number, start in enumerate(starts, 1):
            found.append(self._make(start))
            progress(stage, number, len(starts))
        return found

    def _make(self, start: Start) -> Frames:
        began = time.perf_counter()
        for _, binding in self._loop.run(start, self._experts.open):
            latents = binding["sample"].read()
        stepped = time.perf_counter()
        frames = np.concatenate(list(decode(self._loop.device, *self._decoder, latents)))
        self._steps.append((stepped - began) / len(self._loop.steps))
        self._decodes.append(time.perf_counter() - stepped)
        return frames


def _layers(component: str, work: Work) -> Iterator[Layer]:
    for number, coarse in enumerate(work.plans):
        applied = work.chosen.get(number)
        plan = applied or coarse
        tried = number if plan is coarse else len(work.plans) + number
        effect = -10 * float(np.log10(max(work.effects[tried], 1e-12))) if work.effects else None
        yield Layer(
            component,
            plan.group.weights,
            None if applied is None else applied.format,
            plan.noise,
            effect,
            plan.smoothing is not None,
        )


def _float_bytes(manifest: Manifest, components: Iterable[str]) -> int:
    """Of the floats that the bundle itself has, which are not in float32 if they were exported in 16 bits."""
    paths: set[str] = set()
    for name in components:
        variants = manifest.components[name].variants
        own = (one for one in (variants[FLOAT], *variants.values()) if set(one.weights) <= manifest.files.keys())
        paths |= set(next(own).weights)
    return sum(manifest.files[path].size for path in paths)


def _text_db(starts: Sequence[Start], others: Sequence[Start]) -> float:
    text, other = (np.stack([start.text for start in some]) for some in (starts, others))
    return signal_to_noise(text, other)


def why_not(report: Report) -> str:
    """What of the gate a variant missed."""
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
    if quality.judged:
        lost = {name: quality.judged.attributes[name] for name in worse(quality.judged)}
        figures += [
            f"{name} was right in {one.right} of {one.prompts} videos and is lost in {one.lost}, gained in "
            f"{one.gained}, expected no more than chance explains"
            for name, one in lost.items()
        ]
    return (
        f"the {report.variant} variant missed its gate and was not written: {'; '.join(figures)}. "
        "Calibrate with prompts like those it will be used with (--prompts), or write it anyway with --force"
    )
