"""`python -m kinograph.starter.evaluate BUNDLE`: how often a bundle's videos show what their prompts say.

The prompts describe combinations that were never trained on. The judge's own figures, on true renders of the same
scenes and on captions that belong to other clips, stand beside the model's: they say how far it can be trusted.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

import kinograph
from kinograph.starter import drawing, world
from kinograph.starter.captions import caption, main_caption
from kinograph.starter.judge import Verdict, judge
from kinograph.starter.measures import CHANCE, decibels, features, frechet_distance, shares
from kinograph.starter.pictures import write_confusions, write_sheets

__all__ = ["Evaluation", "FirstFrames", "Report", "captions_of", "evaluate", "held_out_scenes", "main", "show"]

Frames = NDArray[np.uint8]
Generate = Callable[[str, int, Frames | None], Frames]
"""Prompt, seed and a first frame [H, W, 3] or None in; uint8 RGB [T, H, W, 3] out."""

_SEED = 20_000  # of the evaluation's scenes, far from any training seed
_FAITHFUL = 30.0  # dB from which a first frame counts as kept


@dataclass(frozen=True)
class FirstFrames:
    """How well given first frames were kept: mean PSNR in dB, and the share of clips with at least 30 dB."""

    decibels: float
    kept: float


@dataclass(frozen=True)
class Report:
    """Shares from 0 to 1 by attribute, `measures.ATTRIBUTES`; `counts` is over how many each was taken.

    `generated` is for generated clips, `renders` for true renders of the same scenes, `shuffled` for true renders held
    against the scenes of other clips. `frechet` is the distance between generated clips and true renders of as many
    other scenes, `frechet_floor` that between true renders of the same and of those. `seconds` is the mean time of a
    generation.
    """

    prompts: int
    generated: dict[str, float]
    renders: dict[str, float]
    shuffled: dict[str, float]
    counts: dict[str, int]
    frechet: float
    frechet_floor: float
    seconds: float
    first_frames: FirstFrames | None = None


@dataclass(frozen=True)
class Evaluation:
    """A report with what it was made from: the scenes, their captions, and the clips and verdicts in their order."""

    report: Report
    scenes: Sequence[world.Scene]
    captions: Sequence[str]
    clips: Sequence[Frames]
    verdicts: Sequence[Verdict]


def held_out_scenes(count: int, seed: int = _SEED, kind: str | None = None) -> list[world.Scene]:
    """Scenes of combinations that were never trained on, the same ones for the same arguments."""
    rng = np.random.default_rng(seed)
    return [world.sample(rng, evaluation=True, kind=kind) for _ in range(count)]


def captions_of(scenes: Sequence[world.Scene], paraphrase_seed: int | None = None) -> list[str]:
    """The scenes' plain captions, or random paraphrases drawn with a seed."""
    if paraphrase_seed is None:
        return [main_caption(scene) for scene in scenes]
    rng = np.random.default_rng(paraphrase_seed)
    return [caption(scene, rng) for scene in scenes]


def evaluate(
    generate: Generate,
    scenes: Sequence[world.Scene],
    captions: Sequence[str] | None = None,
    *,
    first_frames: Sequence[Frames] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Generate a clip for every scene, with its number as seed, and judge it; plain captions unless others are given.

    With `first_frames`, uint8 RGB [H, W, 3] for every scene, clips start from these.
    """
    captions = captions or captions_of(scenes)
    clips: list[Frames] = []
    started = time.perf_counter()
    for seed, text in enumerate(captions):
        clips.append(generate(text, seed, None if first_frames is None else first_frames[seed]))
        progress(seed + 1)
    seconds = (time.perf_counter() - started) / len(scenes)
    verdicts = [judge(clip) for clip in clips]
    length, size = clips[0].shape[:2]
    truth = [drawing.render(scene, length, size) for scene in scenes]
    true_verdicts = [judge(clip) for clip in truth]
    rng = np.random.default_rng(_SEED)
    shuffled = [scenes[i] for i in rng.permutation(len(scenes))]
    others = [drawing.render(world.sample(rng, evaluation=True, kind=s.kind), length, size) for s in scenes]
    made, true, other = (np.stack([features(clip) for clip in group]) for group in (clips, truth, others))
    generated, counts = shares(scenes, verdicts)
    report = Report(
        prompts=len(scenes),
        generated=generated,
        renders=shares(scenes, true_verdicts)[0],
        shuffled=shares(shuffled, true_verdicts)[0],
        counts=counts,
        frechet=frechet_distance(made, other),
        frechet_floor=frechet_distance(true, other),
        seconds=seconds,
        first_frames=_kept(clips, first_frames),
    )
    return Evaluation(report, scenes, captions, clips, verdicts)


def _kept(clips: Sequence[Frames], first_frames: Sequence[Frames] | None) -> FirstFrames | None:
    if first_frames is None:
        return None
    ratios = [decibels(clip[0], first) for clip, first in zip(clips, first_frames, strict=True)]
    return FirstFrames(float(np.mean(ratios)), float(np.mean(np.asarray(ratios) >= _FAITHFUL)))


def table(report: Report) -> str:
    """The report as a Markdown table, in percent, with the distances and the time below."""
    lines = [
        f"| {report.prompts} held-out prompts | generated | true renders | shuffled captions | chance | of |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, share in report.generated.items():
        columns = " | ".join(f"{100 * s:.1f} %" for s in (share, report.renders[name], report.shuffled[name]))
        chance = f"{100 * CHANCE[name]:.1f} %" if name in CHANCE else ""
        lines.append(f"| {name} | {columns} | {chance} | {report.counts[name]} |")
    lines.append(f"\nFréchet distance {report.frechet:.3f}, {report.frechet_floor:.3f} between true renders")
    if report.first_frames is not None:
        kept = report.first_frames
        lines.append(f"first frame {kept.decibels:.1f} dB, {100 * kept.kept:.1f} % at {_FAITHFUL:.0f} dB or more")
    lines.append(f"{report.seconds:.2f} s a clip")
    return "\n".join(lines)


def show(evaluation: Evaluation, *, as_json: bool, sheets: Path | None) -> None:
    """Print the report on stdout, and write contact sheets and confusion matrices into a folder if there is one."""
    report = evaluation.report
    click.echo(json.dumps(asdict(report)) if as_json else table(report))
    if sheets is not None:
        scenes, verdicts = evaluation.scenes, evaluation.verdicts
        write_sheets(evaluation.clips, verdicts, scenes, evaluation.captions, sheets)
        write_confusions(scenes, verdicts, sheets)


def generator(
    pipe: kinograph.Pipeline, steps: int | None, guidance: float | None, speed: str | None = None
) -> Generate:
    """A function from prompt, seed and first frame to frames by a loaded bundle, with its defaults where None."""

    def generate(prompt: str, seed: int, first_frame: Frames | None) -> Frames:
        options = {"num_inference_steps": steps, "guidance_scale": guidance, "speed": speed, "seed": seed}
        if first_frame is None:
            return np.asarray(pipe(prompt, **options).frames)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "first.png"
            Image.fromarray(first_frame).save(path)
            return np.asarray(pipe(prompt, image=str(path), **options).frames)

    return generate


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--prompts", default=200, show_default=True, help="Held-out prompts to generate.")
@click.option("--seed", default=_SEED, show_default=True, help="Draws the prompts.")
@click.option("--kind", type=click.Choice(list(world.KINDS)), help="Only scenes of this kind.")
@click.option("--paraphrases", is_flag=True, help="Other words than the plainest.")
@click.option("--first-frame", is_flag=True, help="Give the true clip's first frame as a picture to start from.")
@click.option("--steps", type=int, help="Denoising steps; the bundle's own if not given.")
@click.option("--guidance", type=float, help="Guidance scale; the bundle's own if not given.")
@click.option("--variant", help="Precision, such as int8; the best for the device if not given.")
@click.option("--speed", help="A speed level of the bundle, such as balanced; every step if not given.")
@click.option("--sheets", type=click.Path(path_type=Path), help="Folder for contact sheets and confusion matrices.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    bundle: Path,
    prompts: int,
    seed: int,
    kind: str | None,
    paraphrases: bool,
    first_frame: bool,
    steps: int | None,
    guidance: float | None,
    variant: str | None,
    speed: str | None,
    sheets: Path | None,
    as_json: bool,
) -> None:
    """Judge the videos of BUNDLE for prompts it was not trained on."""
    scenes = held_out_scenes(prompts, seed, kind)
    captions = captions_of(scenes, seed if paraphrases else None)
    with (
        kinograph.load(bundle, variant=variant) as pipe,
        click.progressbar(length=prompts, file=sys.stderr, label="generating") as bar,
    ):
        usual = pipe.resolve(kinograph.Request(prompt=captions[0]))
        length, size = usual.num_frames or 1, usual.width or 0
        firsts = [drawing.render(scene, length, size)[0] for scene in scenes] if first_frame else None
        evaluation = evaluate(
            generator(pipe, steps, guidance, speed),
            scenes,
            captions,
            first_frames=firsts,
            progress=lambda done: bar.update(1),
        )
    show(evaluation, as_json=as_json, sheets=sheets)


if __name__ == "__main__":
    main()
