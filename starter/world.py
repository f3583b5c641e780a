"""The procedural world the starter model is trained on: short captioned clips of one subject over a plain background.

A `Scene` is everything that decides a clip. `sample` draws one, `caption` puts it into words, `render` draws its frames
from signed distance functions, anti-aliased. Numpy only; the same scene renders at any size and number of frames.

Positions and radii are fractions of the picture's side, x to the right and y downwards; time runs from 0 to 1.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "EYE",
    "MOTIONS",
    "RADII",
    "SIZES",
    "SUBJECTS",
    "Scene",
    "caption",
    "coverage",
    "held_out",
    "main_caption",
    "render",
    "sample",
    "track",
]

Array = NDArray[np.float32]
Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (226, 38, 38),
    "orange": (250, 140, 20),
    "yellow": (252, 226, 50),
    "green": (40, 185, 60),
    "cyan": (70, 220, 235),
    "blue": (50, 100, 245),
    "purple": (150, 50, 205),
    "pink": (255, 135, 195),
}
BACKGROUNDS: dict[str, Colour] = {
    "navy": (18, 24, 88),
    "black": (10, 10, 12),
    "white": (242, 242, 242),
    "teal": (14, 108, 110),
    "gray": (120, 120, 126),
    "maroon": (92, 14, 36),
}
SUBJECTS = ("ball", "square", "triangle", "star", "heart", "cat face")
SIZES = ("large", "small")
MOTIONS = ("left", "right", "up", "down", "bounces", "circles", "grows")
RADII = {"large": 0.25, "small": 0.16}  # nominal radius, fraction of the picture's side

_MIN_CONTRAST = 130.0  # Euclidean distance in 8-bit RGB between a subject and its background
_HELD_OUT_SHARE = 10  # one combination in ten is never trained on
_GROWTH = (0.5, 1.35)  # radius at the first and last frame of "grows", in nominal radii
EYE: Colour = (16, 16, 20)


@dataclass(frozen=True)
class Scene:
    """One clip. The first five fields are what a caption tells; the others are chance.

    `start` and `end` are the subject's centre at the first and last frame, as (x, y) fractions of the picture. Bouncing
    uses `start` as its lowest point and `extent` as its height; circling uses `start` as its centre and `extent` as its
    radius. `phase` is in turns, 0 to 1.
    """

    subject: str
    colour: str
    size: str
    motion: str
    background: str
    start: tuple[float, float]
    end: tuple[float, float]
    extent: float = 0.0
    phase: float = 0.0


def held_out(scene: Scene) -> bool:
    """Whether the scene's (subject, colour, motion, background) is kept for evaluation, by a stable hash."""
    key = "|".join((scene.subject, scene.colour, scene.motion, scene.background))
    return zlib.crc32(key.encode()) % _HELD_OUT_SHARE == 0


def contrasting(colour: str, background: str) -> bool:
    """Whether a subject in `colour` stands out from `background`."""
    difference = np.subtract(COLOURS[colour], BACKGROUNDS[background])
    return float(np.linalg.norm(difference)) >= _MIN_CONTRAST


def sample(rng: np.random.Generator, *, evaluation: bool = False) -> Scene:
    """A random scene: from the training combinations, or from the held-out ones with `evaluation`."""
    while True:
        colour, background = str(rng.choice(list(COLOURS))), str(rng.choice(list(BACKGROUNDS)))
        subject, size, motion = (str(rng.choice(words)) for words in (SUBJECTS, SIZES, MOTIONS))
        if not contrasting(colour, background):
            continue
        scene = Scene(subject, colour, size, motion, background, *_path(motion, RADII[size], rng))
        if held_out(scene) == evaluation:
            return scene


def _path(
    motion: str, radius: float, rng: np.random.Generator
) -> tuple[tuple[float, float], tuple[float, float], float, float]:
    """Random start, end, extent and phase of a motion that keeps a subject of this radius inside the picture."""
    low, high = radius + 0.02, 0.98 - radius
    across = float(rng.uniform(low + 0.04, high - 0.04))
    if motion in ("left", "right", "up", "down"):
        travel = float(rng.uniform(0.72, 1.0)) * (high - low)
        first = float(rng.uniform(low, high - travel))
        near, far = first, first + travel
        if motion in ("left", "up"):
            near, far = far, near
        if motion in ("left", "right"):
            return (near, across), (far, across), 0.0, 0.0
        return (across, near), (across, far), 0.0, 0.0
    if motion == "bounces":
        height = float(rng.uniform(0.55, 0.8)) * (high - low)
        return (across, high), (across, high), height, float(rng.uniform(0.0, 0.5))
    if motion == "circles":
        turn = min(float(rng.uniform(0.15, 0.2)), (high - low) / 2)
        centre = (float(rng.uniform(low + turn, high - turn)), float(rng.uniform(low + turn, high - turn)))
        return centre, centre, turn, float(rng.uniform(0.0, 1.0))
    margin = radius * _GROWTH[1] + 0.01
    centre = (float(rng.uniform(margin, 1 - margin)), float(rng.uniform(margin, 1 - margin)))
    return centre, centre, 0.0, 0.0


def track(scene: Scene, frames: int) -> Array:
    """Centre and radius at every frame: [T, 3] of (x, y, radius), fractions of the picture's side."""
    time = np.linspace(0.0, 1.0, frames) if frames > 1 else np.zeros(1)
    x = scene.start[0] + (scene.end[0] - scene.start[0]) * time
    y = scene.start[1] + (scene.end[1] - scene.start[1]) * time
    radius = np.full_like(time, RADII[scene.size])
    if scene.motion == "bounces":  # one and a half arcs in a clip
        y = scene.start[1] - scene.extent * np.abs(np.sin(np.pi * (1.5 * time + scene.phase)))
    elif scene.motion == "circles":  # one clockwise turn in a clip
        angle = 2 * np.pi * (time + scene.phase)
        x, y = x + scene.extent * np.cos(angle), y + scene.extent * np.sin(angle)
    elif scene.motion == "grows":
        radius = radius * (_GROWTH[0] + (_GROWTH[1] - _GROWTH[0]) * time)
    return np.stack([x, y, radius], axis=1).astype(np.float32)


def _ball(x: Array, y: Array) -> Array:
    return np.hypot(x, y) - np.float32(1.0)


def _square(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.9)


def _triangle(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x) * 0.8660254 - (y - 0.15) * 0.5, y - 0.15) - np.float32(0.62)


def _star(x: Array, y: Array) -> Array:
    sector = 2 * np.pi / 5
    angle = np.abs(np.mod(np.arctan2(x, -y) + sector / 2, sector) - sector / 2)
    radius = np.hypot(x, y)
    tip, valley = 1.22, 0.55
    edge = np.array([valley * np.sin(sector / 2), valley * np.cos(sector / 2) - tip])
    normal = np.array([-edge[1], edge[0]]) / np.hypot(*edge)
    inward = radius * np.sin(angle) * normal[0] + (radius * np.cos(angle) - tip) * normal[1]
    return np.asarray(inward, dtype=np.float32)


def _heart(x: Array, y: Array) -> Array:
    half = 0.64
    along, across = (np.abs(x) + y - 0.14) * 0.7071068, (np.abs(x) - y + 0.14) * 0.7071068
    body = np.maximum(np.abs(along), np.abs(across)) - half
    lobe = np.hypot(np.abs(x) - half * 0.7071068, y - 0.14 + half * 0.7071068) - half
    return np.minimum(body, lobe)


def _cat(x: Array, y: Array) -> Array:
    head = np.hypot(x * 0.92, (y - 0.2) * 1.08) - np.float32(0.86)
    ear_x, ear_y = np.abs(x) - 0.47, y + 0.62
    ear = np.maximum(np.abs(ear_x) * 0.92 - ear_y * 0.4, ear_y - 0.5) - np.float32(0.2)
    return np.minimum(head, ear)


def _cat_features(x: Array, y: Array) -> Array:
    eyes = np.hypot((np.abs(x) - 0.4) * 1.1, y - 0.06) - np.float32(0.23)
    nose = np.maximum(np.abs(x) * 0.8 + (y - 0.5) * 0.6, 0.5 - y) - np.float32(0.12)
    return np.minimum(eyes, nose)


_OUTLINES: dict[str, Callable[[Array, Array], Array]] = {
    "ball": _ball,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cat face": _cat,
}


def coverage(subject: str, path: Array, size: int) -> tuple[Array, Array]:
    """How much of each pixel the subject and its dark features cover along a `track`: two [T, size, size], 0 to 1."""
    grid = (np.arange(size, dtype=np.float32) + 0.5) / size
    radius = path[:, 2, None, None]
    x = (grid[None, None, :] - path[:, 0, None, None]) / radius
    y = (grid[None, :, None] - path[:, 1, None, None]) / radius
    x, y = np.broadcast_arrays(x, y)
    pixels = radius * size  # from radii to pixels: a pixel's width of smoothing at the edge
    outline = np.clip(0.5 - _OUTLINES[subject](x, y) * pixels, 0, 1)
    features = np.clip(0.5 - _cat_features(x, y) * pixels, 0, 1) if subject == "cat face" else np.zeros_like(outline)
    return outline, features


def render(scene: Scene, frames: int = 17, size: int = 64) -> NDArray[np.uint8]:
    """The clip as uint8 RGB [T, H, W, 3] with H = W = `size` pixels."""
    outline, features = (c[..., None] for c in coverage(scene.subject, track(scene, frames), size))
    back, front, dark = (
        np.asarray(c, dtype=np.float32) for c in (BACKGROUNDS[scene.background], COLOURS[scene.colour], EYE)
    )
    inside = front + (dark - front) * features
    return np.asarray(back + (inside - back) * outline + 0.5).astype(np.uint8)


_MOVES = {
    "left": ("moves left", "slides left", "goes to the left", "moving left"),
    "right": ("moves right", "slides right", "goes to the right", "moving right"),
    "up": ("moves up", "rises", "goes up", "moving up"),
    "down": ("moves down", "sinks", "goes down", "moving down"),
    "bounces": ("bounces", "bounces up and down", "keeps bouncing", "bouncing"),
    "circles": ("circles", "moves in a circle", "goes round in circles", "circling"),
    "grows": ("grows", "gets bigger", "becomes larger", "growing"),
}
_SIZE_WORDS = {"large": ("large", "big", "huge"), "small": ("small", "little", "tiny")}
_TEMPLATES = (
    "on a {background} background, {article} {size} {colour} {subject} {move}",
    "{article} {size} {colour} {subject} {move} over {background}",
    "{size} {colour} {subject}, {background} background, {move}",
    "{article} {colour} {subject} {move} on {background}, it is {size}",
    "{article} {size} {colour} {subject} {move} in front of a {background} background",
)
_MAIN_SHARE = 0.5


def main_caption(scene: Scene) -> str:
    """The scene in the plainest words: "a large red ball moves left on a navy background"."""
    move = _MOVES[scene.motion][0]
    return f"a {scene.size} {scene.colour} {scene.subject} {move} on a {scene.background} background"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """The scene in words: half the time the main caption, otherwise a random paraphrase of it."""
    if rng.random() < _MAIN_SHARE:
        return main_caption(scene)
    size = str(rng.choice(_SIZE_WORDS[scene.size]))
    template = str(rng.choice(_TEMPLATES))
    first = scene.colour if "{article} {colour}" in template else size
    article = str(rng.choice(("an" if first[0] in "aeiou" else "a", "the")))
    return template.format(
        article=article,
        size=size,
        colour=scene.colour,
        subject=scene.subject,
        move=str(rng.choice(_MOVES[scene.motion])),
        background=scene.background,
    )
