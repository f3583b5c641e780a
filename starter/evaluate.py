"""`python -m kinograph.starter.evaluate BUNDLE`: how often a bundle's videos show what their prompts say.

The prompts describe combinations that were never trained on. The judge's own figures, on true renders of the same
scenes and on captions that belong to other clips, stand beside the model's: they say how far it can be trusted.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

import kinograph
from kinograph.starter import world
from kinograph.starter.judge import ATTRIBUTES, Verdict, judge
from kinograph.starter.sheet import contact_sheet, write_png

__all__ = ["Report", "evaluate", "held_out_scenes", "main"]

Frames = NDArray[np.uint8]
Generate = Callable[[str, int], Frames]  # prompt and seed in, uint8 RGB [T, H, W, 3] out

_SEED = 20_000  # of the evaluation's scenes, far from any training seed
_SHEET = 24  # clips a contact sheet
CHOICES = {
    "subject": len(world.SUBJECTS),
    "colour": len(world.COLOURS),
    "size": len(world.SIZES),
    "motion": len(world.MOTIONS),
    "background": len(world.BACKGROUNDS),
}


@dataclass(frozen=True)
class Report:
    """Shares from 0 to 1 by attribute; "all" is every attribute of a clip at once, "left or right" those motions alone.

    `model` is for generated clips, `renders` for true renders of the same scenes, `shuffled` for true renders held
    against the caption of another clip. `seconds` is the mean time of one generation.
    """

    prompts: int
    model: dict[str, float]
    renders: dict[str, float]
    shuffled: dict[str, float]
    seconds: float


def held_out_scenes(count: int, seed: int = _SEED) -> list[world.Scene]:
    """Scenes of combinations that were never trained on, the same ones for the same count and seed."""
    rng = np.random.default_rng(seed)
    return [world.sample(rng, evaluation=True) for _ in range(count)]


def _shares(scenes: Sequence[world.Scene], verdicts: Sequence[Verdict]) -> dict[str, float]:
    """How often verdicts agree with scenes, by attribute."""
    right = {
        name: np.array([getattr(v, name) == getattr(s, name) for s, v in zip(scenes, verdicts, strict=True)])
        for name in ATTRIBUTES
    }
    sideways = np.array([scene.motion in ("left", "right") for scene in scenes])
    shares = {name: float(hits.mean()) for name, hits in right.items()}
    if sideways.any():
        shares["left or right"] = float(right["motion"][sideways].mean())
    shares["all"] = float(np.all(list(right.values()), axis=0).mean())
    return shares


def evaluate(
    generate: Generate, scenes: Sequence[world.Scene], progress: Callable[[int], None] = lambda done: None
) -> tuple[Report, list[Frames], list[Verdict]]:
    """Generate a clip for every scene's main caption and judge it; also returns the clips and the verdicts on them."""
    clips: list[Frames] = []
    started = time.perf_counter()
    for seed, scene in enumerate(scenes):
        clips.append(generate(world.main_caption(scene), seed))
        progress(seed + 1)
    seconds = (time.perf_counter() - started) / len(scenes)
    verdicts = [judge(clip) for clip in clips]
    frames, size = clips[0].shape[:2]
    truth = [judge(world.render(scene, frames, size)) for scene in scenes]
    shuffled = list(np.random.default_rng(_SEED).permutation(len(scenes)))
    report = Report(
        prompts=len(scenes),
        model=_shares(scenes, verdicts),
        renders=_shares(scenes, truth),
        shuffled=_shares([scenes[i] for i in shuffled], truth),
        seconds=seconds,
    )
    return report, clips, verdicts


def table(report: Report) -> str:
    """The report as a Markdown table, in percent."""
    lines = [
        f"| {report.prompts} held-out prompts | generated | true renders | shuffled captions | chance |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in report.model:
        chance = f"{100 / CHOICES[name]:.1f} %" if name in CHOICES else ""
        columns = (f"{100 * shares[name]:.1f} %" for shares in (report.model, report.renders, report.shuffled))
        lines.append(f"| {name} | {' | '.join(columns)} | {chance} |")
    return "\n".join(lines)


def mistakes(scenes: Sequence[world.Scene], verdicts: Sequence[Verdict]) -> list[str]:
    """One line for each clip that shows something else than its prompt."""
    lines = []
    for seed, (scene, verdict) in enumerate(zip(scenes, verdicts, strict=True)):
        wrong = [
            f"{name} {getattr(verdict, name)}" for name in ATTRIBUTES if getattr(verdict, name) != getattr(scene, name)
        ]
        if wrong:
            lines.append(f"seed {seed}: {world.main_caption(scene)}: {', '.join(wrong)}")
    return lines


def write_sheets(
    clips: Sequence[Frames], verdicts: Sequence[Verdict], scenes: Sequence[world.Scene], folder: Path
) -> None:
    """Two contact sheets, of the first clips and of the first wrong ones, with their captions in text files."""
    wrong = [i for i, (s, v) in enumerate(zip(scenes, verdicts, strict=True)) if _shares([s], [v])["all"] < 1]
    for name, chosen in (("generated", list(range(len(clips)))), ("mistakes", wrong)):
        chosen = chosen[:_SHEET]
        if chosen:
            write_png(contact_sheet([clips[i] for i in chosen]), folder / f"{name}.png")
            captions = "\n".join(f"{i}: {world.main_caption(scenes[i])}" for i in chosen)
            (folder / f"{name}.txt").write_text(captions + "\n")


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--prompts", default=200, show_default=True, help="Held-out prompts to generate.")
@click.option("--frames", default=17, show_default=True, help="Frames a clip.")
@click.option("--seed", default=_SEED, show_default=True, help="Draws the prompts.")
@click.option("--sheets", type=click.Path(path_type=Path), help="Folder for contact sheets.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(bundle: Path, prompts: int, frames: int, seed: int, sheets: Path | None, as_json: bool) -> None:
    """Judge the videos of BUNDLE, made with its own defaults, for prompts it was not trained on."""
    pipe = kinograph.load(bundle)
    scenes = held_out_scenes(prompts, seed)
    with click.progressbar(length=prompts, file=sys.stderr, label="generating") as bar:
        report, clips, verdicts = evaluate(
            lambda prompt, seed: np.asarray(pipe(prompt, num_frames=frames, seed=seed).frames),
            scenes,
            lambda done: bar.update(1),
        )
    show(report, scenes, verdicts, as_json=as_json)
    if sheets is not None:
        write_sheets(clips, verdicts, scenes, sheets)


def show(report: Report, scenes: Sequence[world.Scene], verdicts: Sequence[Verdict], *, as_json: bool) -> None:
    """Print the report on stdout."""
    if as_json:
        columns = {"generated": report.model, "true_renders": report.renders, "shuffled": report.shuffled}
        click.echo(json.dumps({"prompts": report.prompts, "seconds": report.seconds, **columns}))
        return
    click.echo(table(report))
    click.echo(f"\n{report.seconds:.2f} s a clip")
    for line in mistakes(scenes, verdicts):
        click.echo(line)


if __name__ == "__main__":
    main()
