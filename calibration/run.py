"""Calibration's verbs in their order: look, plan, scan, choose, draft, compare, write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from kinograph.bundle import Bundle
from kinograph.calibration import CalibrationOptions, Progress
from kinograph.calibration.compare import Exam, Report, compare, why_not
from kinograph.calibration.draft import draft
from kinograph.calibration.floats import in_float32
from kinograph.calibration.html import page
from kinograph.calibration.journal import Arrays, Journal, open_journal
from kinograph.calibration.judging import Judge
from kinograph.calibration.layers import open_graph
from kinograph.calibration.look import look, look_at_decoder
from kinograph.calibration.loop import FLOAT, Loop, Start
from kinograph.calibration.prompts import chosen_prompts
from kinograph.calibration.recipes import RECIPES
from kinograph.calibration.recipes.blocks import Blocks
from kinograph.calibration.recipes.products import Products
from kinograph.calibration.scan import scan, scan_decoder
from kinograph.calibration.work import Work, best_precision, choose
from kinograph.calibration.write import write
from kinograph.engines import open_device
from kinograph.errors import NumericError, UsageError
from kinograph.manifest import Manifest

__all__ = ["run"]

_VELOCITY_DB = 30.0  # up to which layers of the step are left as they are
_FRAMES_DB = 35.0  # the same for layers of the decoder


def run(
    path: Path, options: CalibrationOptions, progress: Progress, judges: Mapping[str, Callable[[], Judge]]
) -> Report:
    """See `kinograph.calibration.calibrate`."""
    if options.recipe not in RECIPES:
        raise UsageError(f"unknown recipe {options.recipe!r}; expected one of: {', '.join(RECIPES)}. Use --recipe.")
    verified = partial(progress, "verify")
    with Bundle.open(path, progress=verified) as bundle, open_device(options.device) as device:
        _check(bundle.manifest, options)
        recipe = RECIPES[options.recipe]
        looked, held = chosen_prompts(bundle, options)
        with open_journal(bundle, options, device.backend) as journal:
            floats = in_float32(bundle, journal.folder / "floats", progress)
            loop = Loop(floats, device, options.images)
            text = best_precision(floats.manifest, "text_encoder")
            starts = _starts(loop, [*looked, *held], text, journal, progress)
            seen, compared = starts[: len(looked)], starts[len(looked) :]
            if isinstance(recipe, Blocks):
                steps: dict[str, Work] = {}
                work = {"text_encoder": Work.on_weights(open_graph(floats, "text_encoder", FLOAT), recipe)}
            else:
                steps, work = _planned(loop, recipe, options, seen, journal, progress)
                if text == FLOAT:
                    work["text_encoder"] = Work.on_weights(open_graph(floats, "text_encoder", FLOAT))
            made = draft(floats, work, options.recipe, journal.folder / "variant")
            compared_with = steps or work
            control = draft(floats, compared_with, options.recipe, journal.folder / "control", control=True)
            others = loop.starts(held, text, made.trial(floats), first_seed=len(looked))
            told = (compared, compared)
            if not steps:
                told = (others, loop.starts(held, text, control.trial(floats), first_seed=len(looked)))
            named = bundle.manifest.judge
            judge = judges[named]() if named and named in judges else None
            asked = judge.prompts(options.judged) if judge else []
            judged = loop.starts(asked, text), loop.starts(asked, text, made.trial(floats))
            exam = Exam((compared, others), told, judge, judged)
            report, videos = compare(loop, work, (made, control), exam, options, progress)
            if not report.quality.passed and not options.force:
                raise NumericError(why_not(report))
            write(bundle, path, made, report, page(bundle.manifest.name, report, videos), progress)
            journal.finish()
        return report


def _planned(
    loop: Loop, recipe: Products, options: CalibrationOptions, seen: list[Start], journal: Journal, progress: Progress
) -> tuple[dict[str, Work], dict[str, Work]]:
    """The steps, and those and the decoder, with what is to be quantised of them."""
    steps, latents = look(loop, seen, journal, progress)
    decoder = look_at_decoder(loop, latents, journal, progress) if recipe.convolutions else {}
    work = steps | decoder
    for number, own in enumerate(work.values(), 1):
        own.plan(recipe)
        progress("plan", number, len(work))
    if options.scan:
        scan(loop, steps, seen[:2], journal, progress)
        scan_decoder(loop, decoder, latents[0], journal, progress)
    for name, own in work.items():
        own.chosen = choose(own, _VELOCITY_DB if name in steps else _FRAMES_DB)
    formats = {plan.format for own in steps.values() for plan in own.chosen.values()}
    if recipe.numbers.name not in formats and not options.force:
        finer = f" Use --recipe {recipe.finer.numbers.name}." if recipe.finer else ""
        raise NumericError(f"no layer of the step can be in {recipe.numbers.name}: each does too much harm.{finer}")
    return steps, work


def _check(manifest: Manifest, options: CalibrationOptions) -> None:
    if options.runs < 1 or options.videos < 1:
        raise UsageError(f"{options.runs} runs and {options.videos} videos: expected at least one of each.")
    made = any(options.recipe in component.variants for component in manifest.components.values())
    if made and not options.force:
        raise UsageError(f"{manifest.name} has a variant {options.recipe!r} already. Replace it with --force.")


def _starts(loop: Loop, prompts: list[str], precision: str, journal: Journal, progress: Progress) -> list[Start]:
    """A start for every prompt, by the bundle's own text encoder."""

    def embeddings(first: int) -> Iterator[Arrays]:
        for number, text in enumerate(loop.embedded(prompts[first:], precision), first + 1):
            yield {"text": text}
            progress("text", number, len(prompts))

    texts = journal.sequence("text", len(prompts), embeddings)
    return [loop.start(seed, one["text"]) for seed, one in enumerate(texts)]
