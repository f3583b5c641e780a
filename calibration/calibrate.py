"""Calibration's verbs in their order: look, plan, scan, choose, compare, write."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path

import numpy as np

from kinograph.bundle import Bundle
from kinograph.calibration import RECIPES, CalibrationOptions, Progress
from kinograph.calibration.collect import Watch, watched
from kinograph.calibration.compare import Report, compare, why_not
from kinograph.calibration.emit import emit
from kinograph.calibration.layers import open_graph
from kinograph.calibration.loop import Experts, Loop, Moment, Start
from kinograph.calibration.numerics import signal_to_noise
from kinograph.calibration.recipes.int8 import Int8
from kinograph.calibration.work import FLOAT, Work, best_precision, trial
from kinograph.calibration.write import write
from kinograph.engines import open_device
from kinograph.errors import NumericError, RequestError, UsageError
from kinograph.manifest import Manifest
from kinograph.runtime.text import Tokenizer

__all__ = ["run"]

_SCANNED = 6  # moments that every layer's effect is measured on
_WANTED_DB = 28.0  # of the velocity, to which the costliest layers are left as they are
_MOST_KEPT = 0.1  # of the weights that may stay as they are for it


def run(path: Path, options: CalibrationOptions, progress: Progress) -> Report:
    """See `kinograph.calibration.calibrate`."""
    if options.recipe not in RECIPES:
        raise UsageError(f"unknown recipe {options.recipe!r}; expected one of: {', '.join(RECIPES)}. Use --recipe.")
    with ExitStack() as stack:
        bundle = stack.enter_context(Bundle.open(path))
        _check_new(bundle.manifest, options)
        device = stack.enter_context(open_device(options.device))
        loop = Loop(bundle, device)
        prompts = _prompts(bundle, options)
        runs = min(options.runs, max(1, len(prompts) - 1))
        starts = loop.starts(prompts[: runs + options.videos], best_precision(bundle.manifest, "text_encoder"))
        seen, compared = starts[:runs], starts[runs:] or starts[-1:]
        work = _look(loop, seen, progress)
        moments = _moments(loop, compared, progress)
        for component, own in work.items():
            _plan(own, progress)
            if options.scan:
                _scan(
                    loop, component, own, [m for m in moments if loop.expert(m.step).component == component], progress
                )
            own.chosen = _chosen(own)
            own.model = emit(own.graph.model, [own.plans[i] for i in own.chosen], own.graph.weights)
        report = compare(loop, work, compared, moments, options, progress)
        if not report.quality.passed and not options.force:
            raise NumericError(why_not(report))
        write(bundle, path, work, report, progress)
        return report


def _check_new(manifest: Manifest, options: CalibrationOptions) -> None:
    component = manifest.components[manifest.experts[0].component]
    if options.recipe in component.variants and not options.force:
        raise UsageError(f"{manifest.name} has a variant {options.recipe!r} already. Replace it with --force.")


def _prompts(bundle: Bundle, options: CalibrationOptions) -> list[str]:
    """The user's prompts, all of which must fit the model, or those of the project that do."""
    tokenizer = Tokenizer(bundle.read(bundle.manifest.text.tokenizer), bundle.manifest.text)
    given = options.prompts
    prompts = given or tuple((files("kinograph.calibration") / "prompts.txt").read_text("utf-8").splitlines())
    fitting = []
    for number, prompt in enumerate(prompts, 1):
        try:
            tokenizer.encode(prompt)
        except RequestError as error:
            if given is not None:
                raise RequestError(f"prompt {number} cannot be used: {error}") from error
            continue
        fitting.append(prompt)
    if not fitting:
        raise UsageError(
            f"none of {len(prompts)} prompts fits {bundle.manifest.name}. Give your own with --prompts FILE."
        )
    order = np.random.default_rng(0).permutation(len(fitting))
    return [fitting[i] for i in order]


def _look(loop: Loop, starts: Sequence[Start], progress: Progress) -> dict[str, Work]:
    """Run the float loop over `starts`, gathering what flows through every step component."""
    work: dict[str, Work] = {}
    per_component = {
        name: sum(loop.expert(step).component == name for step in loop.steps) * len(starts)
        for name in dict.fromkeys(expert.component for expert in loop.bundle.manifest.experts)
    }
    for name, runs in per_component.items():
        graph = open_graph(loop.bundle, name, FLOAT)
        groups = graph.groups()
        work[name] = Work(graph, groups, Watch(groups, max(1, runs)))
    looking = watched(loop.bundle, [(own.graph, own.watch) for own in work.values()])
    total = len(starts) * len(loop.steps)
    with Experts(loop, looking, FLOAT) as experts:
        for number, start in enumerate(starts):
            for step, binding in loop.run(start, experts.open):
                share = step.timestep / loop.bundle.manifest.solver.train_timesteps
                work[loop.expert(step).component].watch.see(binding, share)
                progress("look", number * len(loop.steps) + step.index + 1, total)
    return work


def _moments(loop: Loop, starts: Sequence[Start], progress: Progress) -> list[Moment]:
    """Every step of the float loop over `starts`."""
    found: list[Moment] = []
    for start in starts:
        with Experts(loop, loop.bundle, FLOAT) as experts:
            for moment in loop.moments(start, experts.open):
                found.append(moment)
                progress("reference", len(found), len(starts) * len(loop.steps))
    return found


def _plan(work: Work, progress: Progress) -> None:
    recipe, control = Int8(), Int8(smooth=False, cut=False, per_channel=False)
    for number, group in enumerate(work.groups, 1):
        seen = work.watch.statistics[group.activation]
        weights = [np.asarray(work.graph.weights[name]) for name in group.weights]
        work.plans.append(recipe.plan(group, seen, weights))
        work.control.append(control.plan(group, seen, weights))
        progress("plan", number, len(work.groups))


def _scan(loop: Loop, component: str, work: Work, moments: Sequence[Moment], progress: Progress) -> None:
    """Measure what each plan alone does to the velocity, at moments spread over all there are."""
    chosen = [moments[i] for i in np.linspace(0, len(moments) - 1, min(_SCANNED, len(moments))).astype(int)]
    for number, plan in enumerate(work.plans, 1):
        alone = emit(work.graph.model, [plan], work.graph.weights)
        engine = loop.device.open(trial(loop.bundle, {component: alone}), component, FLOAT)
        try:
            got = loop.velocities(engine, chosen)
        finally:
            engine.close()
        errors = [10 ** (-signal_to_noise(m.velocity, v) / 10) for m, v in zip(chosen, got, strict=True)]
        work.effects.append(float(np.mean(errors)))
        progress("scan", number, len(work.plans))


def _chosen(work: Work) -> list[int]:
    """Which plans to apply: all but those that do most harm for their weight, until the rest does little enough.

    Effects add up, for the errors of different layers have nothing to do with each other.
    """
    chosen = list(range(len(work.plans)))
    if not work.effects:
        return chosen
    size = [sum(weight.values.size for weight in plan.weights) for plan in work.plans]
    left = _MOST_KEPT * sum(size)
    harm = sum(work.effects)
    for i in sorted(chosen, key=lambda i: work.effects[i] / size[i], reverse=True):
        if -10 * np.log10(harm) >= _WANTED_DB:
            break
        if size[i] <= left:
            left -= size[i]
            harm -= work.effects[i]
            chosen.remove(i)
    return chosen
