"""Finds a bundle's speed levels, and writes them into its manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from kinograph.bundle import Bundle
from kinograph.bundle.amend import replace_manifest
from kinograph.calibration import SPEEDS, CalibrationOptions, Progress
from kinograph.calibration.loop import Experts, Loop, Start
from kinograph.calibration.prompts import chosen_prompts
from kinograph.calibration.quality import LEVELS, Bars, psnr, ssim
from kinograph.calibration.skip import Choice, Products, best_choices
from kinograph.calibration.work import best_precision
from kinograph.engines import open_device
from kinograph.engines.protocol import Engine
from kinograph.errors import NumericError, UsageError
from kinograph.manifest import Speed
from kinograph.runtime.codec import decode
from kinograph.runtime.solvers import Step
from kinograph.runtime.speed import shortened

__all__ = ["find_levels"]

Frames = npt.NDArray[np.uint8]


def find_levels(path: Path, options: CalibrationOptions, progress: Progress) -> dict[str, Speed]:
    """Find the levels that `options.skip` names, of the bundle at `path`, and write them into its manifest.

    Raises UsageError for a level that there is none of, or that the bundle has already, and NumericError where none of
    the schedule's steps can be skipped at a level's quality: the bundle is then as it was.
    """
    if unknown := [name for name in options.skip if name not in SPEEDS]:
        raise UsageError(f"unknown speed level {unknown[0]!r}; expected one of: {', '.join(SPEEDS)}. Use --skip.")
    verified = partial(progress, "verify")
    with Bundle.open(path, progress=verified) as bundle, open_device(options.device) as device:
        manifest = bundle.manifest
        if there := [name for name in options.skip if name in manifest.speeds and not options.force]:
            raise UsageError(f"{manifest.name} has a speed level {there[0]!r} already. Replace it with --force.")
        loop = Loop(bundle, device, options.images)
        looked, held = chosen_prompts(bundle, options)
        starts = loop.starts([*looked, *held], best_precision(manifest, "text_encoder"))
        products = _look(loop, starts[: len(looked)], progress)
        choices = best_choices(
            products, guidance=loop.scale > 1, progress=lambda done, of: progress("choose steps", done, of)
        )
        with _Videos(loop, starts[len(looked) :]) as videos:
            found = {name: _cheapest(name, LEVELS[name], choices, videos, progress) for name in options.skip}
        replace_manifest(path, msgspec.structs.replace(manifest, speeds=manifest.speeds | found))
        return found


def _look(loop: Loop, starts: Sequence[Start], progress: Progress) -> Products:
    """Run the loop with every step, and gather inner products."""
    precision = best_precision(loop.bundle.manifest, loop.bundle.manifest.experts[0].component)
    products = Products([*(step.sigma for step in loop.steps), loop.steps[-1].sigma_next])
    with Experts(loop, loop.bundle, precision) as experts:
        for number, start in enumerate(starts, 1):
            moments = list(loop.moments(start, experts.open))
            unguided = []
            for moment in moments:
                alone = replace(moment, step=replace(moment.step, guided=False))
                unguided += loop.velocities(experts.open(loop.expert(moment.step)), [alone]) if loop.scale > 1 else []
            guided = [moment.velocity for moment in moments]
            samples = [moments[0].sample, *(moment.result for moment in moments)]
            products.add(samples, guided, unguided or guided)
            progress("look at steps", number, len(starts))
    return products


class _Videos:
    """Videos of `starts` with every step, and what others with fewer are like beside them."""

    def __init__(self, loop: Loop, starts: Sequence[Start]) -> None:
        manifest = loop.bundle.manifest
        self.loop, self.starts = loop, starts
        self._experts = Experts(loop, loop.bundle, best_precision(manifest, manifest.experts[0].component))
        self._decoder = loop.decoder(loop.bundle, best_precision(manifest, "decoder_first"))
        self._whole: list[Frames] = []
        self._engines: tuple[Engine, Engine] | None = None

    def __enter__(self) -> _Videos:
        self._engines = self._decoder.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._decoder.__exit__(None, None, None)
        self._experts.close()

    def quality(self, choice: Choice) -> Speed:
        """The level that a choice amounts to, its quality measured."""
        if not self._whole:
            self._whole = [self._made(start, self.loop.steps) for start in self.starts]
        rows = len(self.starts[0].text)
        level = Speed(
            steps=len(self.loop.steps),
            guided=choice.guided,
            computed=choice.computed,
            rows=choice.rows,
            every_row=rows * len(self.loop.steps),
            psnr_db=0.0,
            ssim=0.0,
            videos=len(self.starts),
        )
        steps = shortened(self.loop.steps, level)
        pairs = [(whole, self._made(start, steps)) for whole, start in zip(self._whole, self.starts, strict=True)]
        return msgspec.structs.replace(
            level,
            psnr_db=float(np.mean([psnr(*pair) for pair in pairs])),
            ssim=float(np.mean([ssim(*pair) for pair in pairs])),
        )

    def _made(self, start: Start, steps: Sequence[Step]) -> Frames:
        if self._engines is None:
            raise RuntimeError("the videos are made within the context")
        for _, binding in self.loop.run(start, self._experts.open, steps):
            latents = binding["sample"].read()
        return np.concatenate(list(decode(self.loop.device, *self._engines, latents)))


def _cheapest(name: str, bars: Bars, choices: Sequence[Choice], videos: _Videos, progress: Progress) -> Speed:
    """The level with the fewest rows whose videos reach the bars, by bisection: more rows are seldom worse."""
    low, high = 0, len(choices) - 1
    best: Speed | None = None
    tried = 0
    while low <= high:
        middle = (low + high) // 2
        level = videos.quality(choices[middle])
        if level.psnr_db >= bars.psnr_db and level.ssim >= bars.ssim:
            best, high = level, middle - 1
        else:
            low = middle + 1
        tried += 1
        progress(f"level {name}", tried, len(choices).bit_length())
    if best is None or best.rows == best.every_row:
        raise NumericError(
            f"no step can be skipped at level {name!r}: it asks for a PSNR of {bars.psnr_db:g} dB and an SSIM of "
            f"{bars.ssim:g} against videos with every step. Ask for a faster level, or for more steps at export"
        )
    return best
