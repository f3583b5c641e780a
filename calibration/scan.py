"""The third verb: quantise every layer alone, and measure what that does to the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial

import numpy as np
import numpy.typing as npt

from kinograph.calibration import Progress
from kinograph.calibration.journal import Arrays, Journal
from kinograph.calibration.loop import FLOAT, Loop, Moment, Start
from kinograph.calibration.numerics import signal_to_noise
from kinograph.calibration.work import Work, trial
from kinograph.runtime.codec import decode

__all__ = ["scan", "scan_decoder"]

Latents = npt.NDArray[np.float32]

_SCANNED = 6  # moments, or latent frames, that every layer's effect is measured on


def scan(loop: Loop, work: Mapping[str, Work], starts: Sequence[Start], journal: Journal, progress: Progress) -> None:
    """Measure what each plan of the step components alone does to the velocity, in runs from `starts`."""
    moments = cache(lambda: loop.reference(starts, progress))
    for component, own in work.items():
        make = partial(_effects, loop, component, own, moments, progress)
        own.effects = [float(one["effect"]) for one in journal.sequence(f"scan-{component}", len(own.tried), make)]


def scan_decoder(loop: Loop, work: Mapping[str, Work], latents: Latents, journal: Journal, progress: Progress) -> None:
    """Measure what each plan of either graph of the decoder alone does to the frames of `latents`."""
    latents = latents[:, :, :_SCANNED]

    @cache
    def truth() -> npt.NDArray[np.uint8]:
        with loop.decoder(loop.bundle, FLOAT) as engines:
            return np.concatenate(list(decode(loop.device, *engines, latents)))

    for component, own in work.items():
        make = partial(_frame_effects, loop, component, own, latents, truth, progress)
        own.effects = [float(one["effect"]) for one in journal.sequence(f"scan-{component}", len(own.tried), make)]


def _effects(
    loop: Loop, component: str, work: Work, reference: Callable[[], list[Moment]], progress: Progress, first: int
) -> Iterator[Arrays]:
    """At moments spread over all there are of the component, from the plan `first` on."""
    moments = [moment for moment in reference() if loop.expert(moment.step).component == component]
    chosen = [moments[i] for i in np.linspace(0, len(moments) - 1, min(_SCANNED, len(moments))).astype(int)]
    for number in range(first, len(work.tried)):
        engine = loop.device.open(trial(loop.bundle, {component: work.alone(number)}), component, FLOAT)
        try:
            got = loop.velocities(engine, chosen)
        finally:
            engine.close()
        errors = [10 ** (-signal_to_noise(m.velocity, v) / 10) for m, v in zip(chosen, got, strict=True)]
        yield {"effect": np.array(np.mean(errors))}
        progress(f"scan {component}", number + 1, len(work.tried))


def _frame_effects(
    loop: Loop,
    component: str,
    work: Work,
    latents: Latents,
    truth: Callable[[], npt.NDArray[np.uint8]],
    progress: Progress,
    first: int,
) -> Iterator[Arrays]:
    for number in range(first, len(work.tried)):
        with loop.decoder(trial(loop.bundle, {component: work.alone(number)}), FLOAT) as engines:
            got = np.concatenate(list(decode(loop.device, *engines, latents)))
        yield {"effect": np.array(10 ** (-signal_to_noise(truth(), got) / 10))}
        progress(f"scan {component}", number + 1, len(work.tried))
