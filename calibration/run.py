"""Calibration's verbs in their order: look, plan, scan, choose, compare, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from kinograph.bundle import Bundle
from kinograph.calibration import RECIPES, CalibrationOptions, Progress
from kinograph.calibration.collect import watched
from kinograph.calibration.compare import Report, compare, why_not
from kinograph.calibration.html import page
from kinograph.calibration.layers import open_graph
from kinograph.calibration.draft import draft
from kinograph.calibration.loop import DECODER, FLOAT, Experts, Loop, Moment, Start
from kinograph.calibration.numerics import signal_to_noise
from kinograph.calibration.work import Work, best_precision, choose, trial
from kinograph.calibration.write import write
from kinograph.engines import open_device
from kinograph.errors import NumericError, RequestError, UsageError
from kinograph.manifest import Manifest
from kinograph.runtime.codec import decode, latent_chunks, stream
from kinograph.runtime.text import Tokenizer

__all__ = ["run"]

Latents = npt.NDArray[np.float32]

_SCANNED = 6  # moments, or latent frames, that every layer's effect is measured on
_VELOCITY_DB = 30.0  # up to which layers of the step are left as they are
_FRAMES_DB = 35.0  # the same for layers of the decoder
_FEWEST = 2  # prompts
_TAKEN_APART = 1.6  # times as many tokens a word as the prompt with the fewest


def run(path: Path, options: CalibrationOptions, progress: Progress) -> Report:
    """See `kinograph.calibration.calibrate`."""
    if options.recipe not in RECIPES:
        raise UsageError(f"unknown recipe {options.recipe!r}; expected one of: {', '.join(RECIPES)}. Use --recipe.")
    with Bundle.open(path) as bundle, open_device(options.device) as device:
        _check(bundle.manifest, options)
        loop = Loop(bundle, device)
        prompts = _prompts(bundle, options)
        runs = min(options.runs, 2 * len(prompts) // 3)  # where there are few, the rest is to compare with
        prompts = prompts[: runs + options.videos]
        text = best_precision(bundle.manifest, "text_encoder")
        starts = list(loop.starts(prompts, bundle, text))
        seen, compared = starts[:runs], starts[runs:]
        steps, latents = _look(loop, seen, progress)
        decoder = _look_at_decoder(loop, latents, progress)
        for own in (*steps.values(), *decoder.values()):
            own.plan()
        if options.scan:
            moments = loop.reference(seen[:2], progress)
            for component, own in steps.items():
                _scan(
                    loop, component, own, [m for m in moments if loop.expert(m.step).component == component], progress
                )
            _scan_decoder(loop, decoder, latents[0][:, :, :_SCANNED], progress)
        for own in steps.values():
            own.chosen = choose(own, _VELOCITY_DB)
        for own in decoder.values():
            own.chosen = choose(own, _FRAMES_DB)
        work = steps | decoder
        if text == FLOAT:
            work["text_encoder"] = Work.on_weights(open_graph(bundle, "text_encoder", FLOAT))
        with TemporaryDirectory(prefix=f".{path.name}.", dir=path.absolute().parent) as folder:
            made = draft(bundle, work, options.recipe, Path(folder, "variant"))
            control = draft(bundle, steps, options.recipe, Path(folder, "control"), control=True)
            others = list(loop.starts(prompts[runs:], made.trial(bundle), text, first_seed=runs))
            report, videos = compare(loop, work, (made, control), (compared, others), options, progress)
            if not report.quality.passed and not options.force:
                raise NumericError(why_not(report))
            write(bundle, path, made, report, page(bundle.manifest.name, report, videos), progress)
        return report


def _check(manifest: Manifest, options: CalibrationOptions) -> None:
    if options.runs < 1 or options.videos < 1:
        raise UsageError(f"{options.runs} runs and {options.videos} videos: expected at least one of each.")
    if manifest.conditioning.image_required:
        raise UsageError(
            f"{manifest.name} makes videos from pictures, and only text-to-video can be calibrated so far."
        )
    component = manifest.components[manifest.experts[0].component]
    if options.recipe in component.variants and not options.force:
        raise UsageError(f"{manifest.name} has a variant {options.recipe!r} already. Replace it with --force.")


def _prompts(bundle: Bundle, options: CalibrationOptions) -> list[str]:
    """The user's prompts, all of which must fit the model, or those of the project whose words the model knows.

    A word it does not know its tokenizer takes apart: prompts that become far more tokens than others are left out.
    """
    tokenizer = Tokenizer(bundle.read(bundle.manifest.text.tokenizer), bundle.manifest.text)
    given = options.prompts
    prompts = given or tuple((files("kinograph.calibration") / "prompts.txt").read_text("utf-8").splitlines())
    fitting: dict[str, float] = {}
    for number, prompt in enumerate(prompts, 1):
        try:
            tokens = len(tokenizer.encode(prompt))
        except RequestError as error:
            if given is not None:
                raise RequestError(f"prompt {number} cannot be used: {error}") from error
            continue
        fitting[prompt] = tokens / max(1, len(prompt.split()))
    limit = np.inf if given is not None else _TAKEN_APART * min(fitting.values(), default=0.0)
    known = [prompt for prompt, ratio in fitting.items() if ratio <= limit]
    if len(known) < _FEWEST:
        raise UsageError(
            f"{len(known)} of {len(prompts)} prompts can be used with {bundle.manifest.name}; expected at least "
            f"{_FEWEST} different ones, to find ranges on and to compare with. Give more with --prompts FILE."
        )
    return [known[i] for i in np.random.default_rng(0).permutation(len(known))]


def _look(loop: Loop, starts: Sequence[Start], progress: Progress) -> tuple[dict[str, Work], list[Latents]]:
    """Run the float loop over `starts`, gathering what flows through every step component; and where it ended."""
    work: dict[str, Work] = {}
    for name in dict.fromkeys(expert.component for expert in loop.bundle.manifest.experts):
        own = sum(loop.expert(step).component == name for step in loop.steps)
        work[name] = Work.on_products(open_graph(loop.bundle, name, FLOAT), max(1, own * len(starts)))
    looking = watched(loop.bundle, [(own.graph, own.watch) for own in work.values()])
    latents = []
    with Experts(loop, looking, FLOAT) as experts:
        for number, start in enumerate(starts):
            for step, binding in loop.run(start, experts.open):
                share = step.timestep / loop.bundle.manifest.solver.train_timesteps
                work[loop.expert(step).component].watch.see(binding, share, number)
                progress("look", number * len(loop.steps) + step.index + 1, len(starts) * len(loop.steps))
                if step is loop.steps[-1]:
                    latents.append(binding["sample"].read())
    return work, latents


def _look_at_decoder(loop: Loop, latents: Sequence[Latents], progress: Progress) -> dict[str, Work]:
    """Decode with the float decoder, gathering what flows through its two graphs."""
    work = {name: Work.on_convolutions(open_graph(loop.bundle, name, FLOAT), len(latents)) for name in DECODER}
    looking = watched(loop.bundle, [(own.graph, own.watch) for own in work.values()])
    with loop.decoder(looking, FLOAT) as (first, following):
        for number, one in enumerate(latents, 1):
            for index, binding in enumerate(stream(loop.device, first, following, latent_chunks(following, one))):
                work[DECODER[min(index, 1)]].watch.see(binding, 0.0, number)
            progress("look at decoder", number, len(latents))
    return work


def _scan(loop: Loop, component: str, work: Work, moments: Sequence[Moment], progress: Progress) -> None:
    """Measure what each plan alone does to the velocity, at moments spread over all there are."""
    chosen = [moments[i] for i in np.linspace(0, len(moments) - 1, min(_SCANNED, len(moments))).astype(int)]
    for number in range(len(work.plans)):
        engine = loop.device.open(trial(loop.bundle, {component: work.alone(number)}), component, FLOAT)
        try:
            got = loop.velocities(engine, chosen)
        finally:
            engine.close()
        errors = [10 ** (-signal_to_noise(m.velocity, v) / 10) for m, v in zip(chosen, got, strict=True)]
        work.effects.append(float(np.mean(errors)))
        progress("scan", number + 1, len(work.plans))


def _scan_decoder(loop: Loop, work: Mapping[str, Work], latents: Latents, progress: Progress) -> None:
    """Measure what each plan of either graph alone does to the frames."""
    with loop.decoder(loop.bundle, FLOAT) as engines:
        truth = np.concatenate(list(decode(loop.device, *engines, latents)))
    done, total = 0, sum(len(own.plans) for own in work.values())
    for component, own in work.items():
        for number in range(len(own.plans)):
            with loop.decoder(trial(loop.bundle, {component: own.alone(number)}), FLOAT) as engines:
                got = np.concatenate(list(decode(loop.device, *engines, latents)))
            own.effects.append(float(10 ** (-signal_to_noise(truth, got) / 10)))
            done += 1
            progress("scan decoder", done, total)
