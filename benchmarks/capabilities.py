"""What the starter does beyond text: pictures, films continued and joined, a minute, prompts in time, going on.

    python benchmarks/capabilities.py [--bundle starter/bundle] [--only NAME ...] [--cases 100] [--sheets FOLDER]

Films that are given are true renders of held-out scenes; what comes out is judged by the starter's own judge. A seam is
measured as the change from one frame to the next at the join over the median of its neighbours' changes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from film_measures import border, centre, kept, outlines, pixel_drift, seam, shown
from PIL import Image, ImageDraw

import kinograph
from kinograph import Cue, FramesDecoded, Request
from kinograph.runtime.clip import read_clip
from kinograph.runtime.codec import decode, encode
from kinograph.runtime.image import contact_sheet, png_bytes
from kinograph.runtime.latents import read_latents
from kinograph.runtime.video import VideoWriter
from kinograph.starter import drawing, world
from kinograph.starter.captions import main_caption
from kinograph.starter.judge import judge
from kinograph.starter.measures import decibels, matched

SMOOTH = 1.5  # times its neighbours' change, up to which a join is not a cut
WHOLE = 0.7  # of a subject's outline, from which on a frame shows it as it was
STEADY = ("stays", "bounces", "circles")  # motions that can go on for as long as one likes
SIDE, FRAMES, FPS = 128, 33, 16  # the starter's


class Studio:
    """A pipeline, a folder for films, and where sheets go."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.pipe = kinograph.load(options.bundle, device="cpu", variant=options.variant)
        self.folder = Path(tempfile.mkdtemp(prefix="capabilities-"))

    def make(self, prompt: str, **fields: Any) -> np.ndarray:
        request = Request(prompt=prompt, speed=self.options.speed, **{"anchor": self.options.anchor} | fields)
        return np.concatenate([e.frames for e in self.pipe.run(request) if isinstance(e, FramesDecoded)])

    def film(self, frames: np.ndarray, name: str) -> str:
        """A film file of these frames, all but lossless."""
        path = self.folder / f"{name}.mkv"
        with VideoWriter(path, width=SIDE, height=SIDE, fps=FPS, force=True) as writer:
            writer.write(frames)
        return str(path)

    def sheet(self, name: str, frames: np.ndarray, rows: int = 1) -> None:
        if self.options.sheets:
            folder = Path(self.options.sheets)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.png").write_bytes(png_bytes(contact_sheet(frames, 12, rows)))


def scenes(count: int, motions: tuple[str, ...], seed: int) -> Iterator[world.Scene]:
    """Held-out scenes of one large subject with one of these motions."""
    rng = np.random.default_rng(seed)
    while count:
        scene = world.sample(rng, evaluation=True, kind="single")
        if scene.actors[0].motion in motions and scene.actors[0].size == "large":
            yield scene
            count -= 1


def share(values: list[Any]) -> float:
    return round(100 * float(np.mean([float(v) for v in values])), 1)


def image(studio: Studio) -> dict[str, Any]:
    """From a first frame: a true one, and drawings that are not of this world."""
    pipe, geometry = studio.pipe, studio.pipe.bundle.manifest.geometry
    engines = {n: pipe.device.open(pipe.bundle, n, "fp32") for n in pipe.bundle.manifest.components if "coder_" in n}

    def through(frame: np.ndarray) -> np.ndarray:
        axes = {"H": SIDE // geometry.spatial, "W": SIDE // geometry.spatial}
        chunk = [(frame[None], np.ones(1, np.float32))]
        latents = next(encode(pipe.device, engines["encoder_first"], engines["encoder_next"], chunk, axes))
        return next(decode(pipe.device, engines["decoder_first"], engines["decoder_next"], latents))[0]

    direction = ("left", "right", "up", "down", "up left", "up right", "down left", "down right")
    faithful, followed, sheet = [], [], []
    for number, scene in enumerate(scenes(studio.options.cases, direction, 71)):
        first = drawing.render(scene, FRAMES, SIDE)[0]
        path = studio.folder / "first.png"
        Image.fromarray(first).save(path)
        frames = studio.make(main_caption(scene), seed=number, image=str(path))
        faithful.append(decibels(frames[:1], through(first)[None]))
        found = matched(scene, judge(frames))[0]
        followed.append(found is not None and found.motion == scene.actors[0].motion)
        sheet += [*frames[:: FRAMES // 4]][:4] if number < 9 else []
    drawn, went = [], []
    for number in range(max(1, studio.options.cases // 4)):
        picture, prompt, towards = _drawn(number)
        path = studio.folder / "drawn.png"
        picture.save(path)
        frames = studio.make(prompt, seed=number, image=str(path))
        drawn.append(decibels(frames[:1], through(_fitted(picture))[None]))
        way = centre(frames[-9:]) - centre(frames[:5])
        went.append(float(way @ towards) > max(0.1 * SIDE, 2 * abs(float(way @ towards[::-1]))))
        sheet += [*frames[:: FRAMES // 4]][:4] if number < 6 else []
    studio.sheet("image", np.stack(sheet), 5)
    return {
        "frame 0 against encoded-decoded, dB": round(min(faithful), 1),
        "the same of drawings, dB": round(min(drawn), 1),
        "motion followed, %": share(followed),
        "the same of drawings, %": share(went),
        "cases": len(followed),
        "drawings": len(drawn),
    }


def _drawn(number: int) -> tuple[Image.Image, str, np.ndarray]:
    """A picture that the world's renderer did not draw, what is said of it, and which way (x, y) that has it go."""
    ways = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    paints = {"red": "#e22828", "yellow": "#fadc28", "blue": "#2850dc", "green": "#28a046", "purple": "#8232aa"}
    subject = ("ball", "square", "triangle")[number % 3]
    direction, paint = [*ways][number % len(ways)], [*paints][number % len(paints)]
    behind, background = (("navy", "#192350"), ("white", "#ebebe1"))[number % 2]
    picture = Image.new("RGB", ((128, 128), (160, 120))[number % 2], background)
    towards, radius = np.array(ways[direction]), 0.17 * min(picture.size)
    x, y = np.array(picture.size) / 2 - towards * np.array(picture.size) / 5
    pen, box = ImageDraw.Draw(picture), (x - radius, y - radius, x + radius, y + radius)
    about: dict[str, Any] = {"fill": paints[paint], "outline": "black", "width": 2}
    if subject == "ball":
        pen.ellipse(box, **about)
    elif subject == "square":
        pen.rectangle(box, **about)
    else:
        pen.polygon([(box[0], box[3]), (box[2], box[3]), (x, box[1])], **about)
    prompt = f"a large {paint} {subject} moves {direction} on a plain {behind} background, flat style"
    return picture, prompt, towards


def _fitted(picture: Image.Image) -> np.ndarray:
    from kinograph.runtime.conditioning import fit

    return fit(np.asarray(picture), SIDE, SIDE, resample=Image.Resampling.LANCZOS)


def extension(studio: Studio) -> dict[str, Any]:
    """Films continued by four seconds, and led up to by four."""
    results: dict[str, Any] = {}
    for name, field in (("after", "before"), ("before", "after")):
        seams, subjects, colours, goes_on, whole, sheet = [], [], [], [], [], []
        for number, scene in enumerate(scenes(studio.options.cases, STEADY, 72)):
            clip = drawing.render(scene, FRAMES, SIDE)
            path = studio.film(clip, "clip")
            count = 4 * FPS if field == "before" else 4 * FPS + 1
            frames = studio.make(main_caption(scene), seed=number, num_frames=count, **{field: path})
            join = FRAMES if field == "before" else count
            seams.append(seam(frames, join) <= SMOOTH)
            made = frames[FRAMES:] if field == "before" else frames[:count]
            subject, colour = kept(scene, made[-FRAMES:] if field == "before" else made[:FRAMES])
            subjects.append(subject)
            colours.append(colour)
            whole += [*(outlines(scene, clip, made) >= WHOLE)]
            found = matched(scene, judge(made[:FRAMES] if field == "before" else made[-FRAMES:]))[0]
            still = found is None or float(np.ptp(found.path[:, :2], axis=0).max()) < 0.08
            goes_on.append(still == (scene.actors[0].motion == "stays"))
            sheet += [*frames[np.linspace(0, len(frames) - 1, 12).astype(int)]] if number < 6 else []
        studio.sheet(f"extension-{name}", np.stack(sheet), 6)
        results |= {
            f"{name}: no cut, %": share(seams),
            f"{name}: subject kept, %": share(subjects),
            f"{name}: colour kept, %": share(colours),
            f"{name}: motion goes on, %": share(goes_on),
            f"{name}: new frames that show it whole, %": share(whole),
        }
    return results | {"cases": studio.options.cases}


def join(studio: Studio) -> dict[str, Any]:
    """Two films of one subject joined, and videos led back to their beginning."""
    smooth, ends, loops, sheet = [], [], [], []
    count = max(1, studio.options.cases // 2)
    for number, scene in enumerate(scenes(count, STEADY, 73)):
        clip = drawing.render(scene, FRAMES, SIDE)
        path = studio.film(clip, "clip")
        frames = studio.make(main_caption(scene), seed=number, before=path, after=path)
        made = len(frames) - 2 * FRAMES
        smooth.append(max(seam(frames, FRAMES), seam(frames, FRAMES + made)) <= SMOOTH)
        ends += [decibels(frames[:FRAMES], clip), decibels(frames[-FRAMES:], clip)]
        looped = studio.make(main_caption(scene), seed=number, loop=True)
        twice = np.concatenate([looped, looped])
        loops.append(seam(twice, len(looped)) <= SMOOTH)
        sheet += [*frames[np.linspace(0, len(frames) - 1, 12).astype(int)]] if number < 6 else []
    studio.sheet("join", np.stack(sheet), 6)
    return {
        "joined without a cut, %": share(smooth),
        "both ends as they were, dB, median": round(float(np.median(ends)), 1),
        "both ends as they were, dB, worst": round(min(ends), 1),
        "loop closed without a cut, %": share(loops),
        "cases": count,
    }


def inpaint(studio: Studio) -> dict[str, Any]:
    """A second subject put into true renders of one, where a mask leaves room for it, which its own render decides."""
    right, coloured, untouched, kept_in_file, sheet = [], [], [], [], []
    rng = np.random.default_rng(77)
    while len(right) < studio.options.cases:
        scene = world.sample(rng, evaluation=True, kind="above")
        both = drawing.render(scene, FRAMES, SIDE)
        alone = drawing.render(dataclasses.replace(scene, actors=scene.actors[:1]), FRAMES, SIDE)
        rows, columns = np.nonzero((np.abs(both.astype(int) - alone).max(3) > 24).any(0))
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[max(0, rows.min() - 8) : rows.max() + 9, max(0, columns.min() - 8) : columns.max() + 9] = 255
        path = studio.folder / "mask.png"
        Image.fromarray(mask).save(path)
        film = studio.film(alone, "clip")
        frames = studio.make(main_caption(scene), seed=len(right), inpaint=film, mask=str(path))
        given = np.stack(list(read_clip(film, width=SIDE, height=SIDE, fps=FPS, how="crop")))
        written = np.stack(list(read_clip(studio.film(frames, "made"), width=SIDE, height=SIDE, fps=FPS, how="crop")))
        kept_in_file.append(decibels(written[:, mask == 0][:, :, None], given[:, mask == 0][:, :, None]))
        untouched.append(np.array_equal(frames[:, mask == 0], given[:, mask == 0]))
        found = matched(scene, judge(frames))[1]
        right.append(found is not None and found.subject == scene.actors[1].subject)
        coloured.append(found is not None and found.colour == scene.actors[1].colour)
        if len(right) <= 3:
            chosen = np.linspace(0, FRAMES - 1, 12).astype(int)
            sheet += [*given[chosen], *frames[chosen]]
    studio.sheet("inpaint", np.stack(sheet), 6)
    return {
        "frames outside the mask as they were, %": share(untouched),
        "the same in the file, dB, worst": round(min(kept_in_file), 1),
        "new subject right, %": share(right),
        "new colour right, %": share(coloured),
        "cases": len(right),
    }


def minute(studio: Studio) -> dict[str, Any]:
    """A minute beside four seconds: memory, time, and whether the end shows what the beginning showed."""
    runs = {}
    for seconds in (4, 30, 60):
        command = [sys.executable, "-m", "kinograph", "generate", studio.options.bundle, "--json", "--force"]
        command += [] if studio.options.anchor is not False else ["--no-anchor"]
        prompt = "a large red ball bounces on a plain navy background, flat style"
        output = studio.folder / "long.mp4"
        told = subprocess.run(
            [*command, prompt, "--seconds", str(seconds), "-o", output], capture_output=True, check=True
        )
        stages = json.loads(told.stdout)["stages"]
        runs[seconds] = (max(s["peak_bytes"] for s in stages), sum(s["seconds"] for s in stages if s["name"] == "film"))
    same, drift, by_pixel, sheet = [], [], [], []
    for number, scene in enumerate(scenes(min(20, studio.options.cases), STEADY, 74)):
        frames = studio.make(main_caption(scene), seed=number, num_frames=60 * FPS + 1)
        early, late = judge(frames[:FRAMES]), judge(frames[-FRAMES:])
        one, other = (matched(scene, verdict)[0] for verdict in (early, late))
        same.append(
            one is not None and other is not None and (one.subject, one.colour) == (other.subject, other.colour)
        )
        drift.append(float(np.abs(border(frames[:FRAMES]) - border(frames[-FRAMES:])).max()))
        by_pixel.append(pixel_drift(frames[:FRAMES], frames[-FRAMES:]))
        sheet += [*frames[np.linspace(0, len(frames) - 1, 12).astype(int)]] if number < 8 else []
    studio.sheet("minute", np.stack(sheet), 8)
    return {
        "peak memory over that of 4 s": round(runs[60][0] / runs[4][0], 3),
        "time of 60 s over that of 30 s": round(runs[60][1] / runs[30][1], 2),
        "seconds of work for a minute": round(runs[60][1], 1),
        "subject and colour as at the beginning, %": share(same),
        "drift of the background, levels of 255, median": round(float(np.median(drift)), 1),
        "drift of the background, worst": round(max(drift), 1),
        "the same pixel by pixel, median": round(float(np.median(by_pixel)), 1),
        "the same pixel by pixel, worst": round(max(by_pixel), 1),
        "cases": len(same),
    }


def hidden(studio: Studio) -> dict[str, Any]:
    """Four seconds of a subject, a cut, five of another, a cut, and four that are told of the first again."""
    results: dict[str, Any] = {}
    count = min(20, studio.options.cases)
    chosen = list(zip(scenes(count, ("stays",), 76), scenes(count, STEADY, 78), strict=True))
    for name, anchor in (("with anchors", None), ("without", False)):
        same, alike, sheet = [], [], []
        for number, (scene, other) in enumerate(chosen):
            cues = (Cue(4.0, main_caption(other)), Cue(9.0, main_caption(scene)))
            told = {"cues": cues, "cuts": True, "num_frames": 13 * FPS + 1}
            frames = studio.make(main_caption(scene), seed=number, anchor=anchor, **told)
            before, after = (frames[end * FPS - FRAMES : end * FPS] for end in (4, 13))
            same.append(shown(scene, before) == shown(scene, after))
            alike.append(decibels(before[-1:], after[-1:]))
            sheet += [*frames[np.linspace(0, len(frames) - 1, 12).astype(int)]] if number < 6 else []
        studio.sheet(f"hidden-{name.split()[0]}", np.stack(sheet), 6)
        results |= {
            f"{name}: the same subject and colour, %": share(same),
            f"{name}: the picture before and after, dB, median": round(float(np.median(alike)), 1),
        }
    return results | {"cases": count}


def storyboard(studio: Studio) -> dict[str, Any]:
    """Three prompts of four seconds each: does every part show its own?"""
    results: dict[str, Any] = {}
    chosen = list(scenes(3 * max(1, studio.options.cases // 5), STEADY, 75))
    for name, cuts in (("faded", False), ("cut", True)):
        right, sheet = [], []
        for number, three in enumerate(zip(chosen[::3], chosen[1::3], chosen[2::3], strict=True)):
            told = {
                "cues": tuple(Cue(4.0 * i, main_caption(scene)) for i, scene in enumerate(three) if i),
                "cuts": cuts,
            }
            frames = studio.make(main_caption(three[0]), num_frames=12 * FPS + 1, seed=number, **told)
            for part, scene in enumerate(three):
                end = 4 * FPS * (part + 1)
                right.append(all(kept(scene, frames[end - FRAMES : end])))
            sheet += [*frames[np.linspace(0, len(frames) - 1, 12).astype(int)]] if number < 6 else []
        studio.sheet(f"storyboard-{name}", np.stack(sheet), 6)
        results[f"{name}: parts that show their own prompt, %"] = share(right)
    return results | {"cases": len(right)}


def resume(studio: Studio) -> dict[str, Any]:
    """Killed at random moments and resumed: are the latents those of an uninterrupted run?"""
    prompt = "a large red ball bounces on a plain navy background, flat style"
    command = [sys.executable, "-m", "kinograph", "generate", studio.options.bundle, prompt, "--seconds", "20", "-q"]
    whole = studio.folder / "whole.safetensors"
    begun = time.perf_counter()
    subprocess.run([*command, "-o", studio.folder / "whole.mp4", "--latents", whole], check=True, capture_output=True)
    took, same = time.perf_counter() - begun, []
    rng = random.Random(0)
    for number in range(20):
        kept_in = studio.folder / f"killed-{number}.safetensors"
        again = [*command, "-o", studio.folder / f"k{number}.mp4", "--latents", kept_in, "--resume", "--force"]
        with subprocess.Popen(again, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
            time.sleep(rng.uniform(0.2, 0.95) * took)
            os.kill(running.pid, signal.SIGKILL)
        subprocess.run(again, check=True, capture_output=True)
        (latents, about), (wanted, _) = read_latents(kept_in), read_latents(whole)
        same.append(np.array_equal(latents, wanted) and "request" in about)
    return {"the same latents after kill -9, of 20": sum(same)}


ALL: dict[str, Callable[[Studio], dict[str, Any]]] = {
    "image": image,
    "extension": extension,
    "join": join,
    "inpaint": inpaint,
    "minute": minute,
    "hidden": hidden,
    "storyboard": storyboard,
    "resume": resume,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="starter/bundle")
    parser.add_argument("--variant", default="fp32")
    parser.add_argument("--speed")
    parser.add_argument("--only", nargs="*", choices=list(ALL), default=list(ALL))
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--anchor", action=argparse.BooleanOptionalAction, help="as `kinograph generate` has it")
    parser.add_argument("--sheets")
    studio = Studio(parser.parse_args())
    for name in studio.options.only:
        began = time.perf_counter()
        print(name, flush=True)
        for what, value in ALL[name](studio).items():
            print(f"  {what}: {value}", flush=True)
        print(f"  ({time.perf_counter() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
