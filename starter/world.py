"""The procedural world that the starter model is trained on: who is in a clip, how each of them moves, and where.

A `Scene` is everything that decides a clip; `sample` draws one. `captions` puts it into words, `drawing` into frames.
Positions and radii are fractions of the picture's side, x to the right and y downwards; time runs from 0 to 1.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "ENDLESS",
    "GENRES",
    "KINDS",
    "MOST_ACTORS",
    "MOTIONS",
    "SIZES",
    "SUBJECTS",
    "WALL",
    "Actor",
    "Scene",
    "begun",
    "contrasting",
    "faces",
    "held_out",
    "sample",
    "sample_under_way",
    "track",
]

Array = NDArray[np.float32]
Colour = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, Colour] = {
    "red": (226, 38, 38),
    "orange": (250, 140, 20),
    "yellow": (252, 226, 50),
    "lime": (160, 235, 50),
    "green": (20, 150, 60),
    "cyan": (60, 220, 235),
    "blue": (50, 100, 245),
    "purple": (150, 50, 205),
    "pink": (255, 135, 195),
    "white": (246, 246, 246),
}
BACKGROUNDS: dict[str, tuple[Colour, ...]] = {  # with the tones that subjects must stand out from
    "black": ((12, 12, 14),),
    "white": ((240, 240, 240),),
    "navy": ((20, 28, 92),),
    "gradient": ((82, 34, 100), (14, 20, 52)),
    "stripes": ((46, 52, 70), (84, 92, 112)),
    "stars": ((30, 16, 48),),
    "hills": ((190, 222, 244), (96, 146, 104)),
    "night sky": ((14, 22, 60), (44, 62, 120)),
    "sea": ((250, 216, 180), (26, 84, 140)),
}
GENRES = ("flat", "outline", "pixel art", "watercolour", "neon", "chalkboard")
SUBJECTS = ("ball", "square", "triangle", "star", "heart", "cat", "car", "fish", "bird")
SIZES = ("large", "small")
MOTIONS = (
    "left",
    "right",
    "up",
    "down",
    "up left",
    "up right",
    "down left",
    "down right",
    "bounces",
    "circles",
    "spins",
    "grows",
    "shrinks",
    "enters left",
    "enters right",
    "leaves left",
    "leaves right",
    "stops left",
    "stops right",
    "falls",
    "settles",
    "stays",
)
KINDS: dict[str, float] = {  # what happens, with its share of the clips
    "single": 0.40,
    "beside": 0.16,  # two subjects, the first on the left
    "above": 0.16,  # two subjects, the first above
    "row": 0.10,  # three subjects, from left to right
    "wall": 0.10,  # one subject passes behind a wall
    "collision": 0.08,  # a ball stops as it hits another, which rolls on
}
MOST_ACTORS = 3  # in a scene
ENDLESS = ("bounces", "circles")  # motions that come back to where they were, and a film may go on with
WALL = (0.34, 0.66)  # left and right edge of the wall
FACING = ("cat", "car", "fish", "bird")  # subjects with a front

_RADII = {"large": 0.24, "small": 0.16, "beside": 0.19, "above": 0.19, "row": 0.14, "wall": 0.15, "collision": 0.13}
_MIN_CONTRAST = 85.0  # Euclidean distance in 8-bit RGB between a subject and every tone behind it
_HELD_OUT_SHARE = 10  # one combination in ten is never trained on
_EDGE = 0.02  # kept free at the picture's border
_LANES = {  # motions with room in a part of the picture: a column, a row, a narrow column
    "beside": ("up", "down", "bounces", "spins", "grows", "shrinks", "falls", "stays"),
    "above": ("left", "right", "spins", "grows", "shrinks", "stops left", "stops right", "stays"),
    "row": ("up", "down", "bounces", "spins", "stays"),
}
_GROWTH = (0.45, 1.25)  # radius at the first and last frame of "grows", in nominal radii
_DROP = 0.3  # of the clip until something dropped first touches the ground
_REBOUND = 0.5  # height of a rebound over that before it


@dataclass(frozen=True)
class Actor:
    """One subject. `start` and `end` are where its centre is when it sets off and when it has arrived.

    `extent` is the height of a bounce or the radius of a circle; `facing` is 1 to the right and -1 to the left; `size`
    is told only where the actor is alone. `motion` is one of `MOTIONS`, or "hits left", "hits right", "is hit". One of
    `ENDLESS` has gone on for `begun` of a clip's length before this clip begins.
    """

    subject: str
    colour: str
    motion: str
    radius: float
    start: Point
    end: Point
    extent: float = 0.0
    facing: int = 1
    size: str = ""
    begun: float = 0.0


@dataclass(frozen=True)
class Scene:
    """One clip: `kind` is one of `KINDS`, and actors are in the order in which the caption's relation names them."""

    kind: str
    actors: tuple[Actor, ...]
    background: str
    genre: str


def contrasting(colour: str, background: str) -> bool:
    """Whether a subject in `colour` stands out from `background`."""
    tones = np.asarray(BACKGROUNDS[background], dtype=float)
    return bool(np.linalg.norm(tones - np.asarray(COLOURS[colour]), axis=1).min() >= _MIN_CONTRAST)


def faces(scene: Scene) -> bool:
    """Whether the caption has to say which way the subject faces: it is alone, has a front and goes neither way."""
    actor = scene.actors[0]
    return scene.kind == "single" and actor.subject in FACING and _direction(actor.motion) == 0


def held_out(subject: str, colour: str, motion: str) -> bool:
    """Whether a subject of this colour with this motion is kept for evaluation, by a stable hash."""
    return zlib.crc32(f"{subject}|{colour}|{motion}".encode()) % _HELD_OUT_SHARE == 0


def sample(rng: np.random.Generator, *, evaluation: bool = False, kind: str | None = None) -> Scene:
    """A random scene, of the training combinations, or with every subject of a held-out one with `evaluation`."""
    chosen = kind or str(rng.choice(list(KINDS), p=list(KINDS.values())))
    background, genre = str(rng.choice(list(BACKGROUNDS))), str(rng.choice(GENRES))
    colours = [colour for colour in COLOURS if contrasting(colour, background)]
    if chosen == "collision":
        return Scene(chosen, _collision(colours, rng, evaluation), background, genre)
    count = {"beside": 2, "above": 2, "row": 3}.get(chosen, 1)
    actors: list[Actor] = []
    while len(actors) < count:
        actor = _actor(chosen, len(actors), colours, rng)
        looks = {(a.subject, a.colour) for a in actors}
        if held_out(actor.subject, actor.colour, actor.motion) == evaluation and (
            (actor.subject, actor.colour) not in looks
        ):
            actors.append(actor)
    return Scene(chosen, tuple(actors), background, genre)


def sample_under_way(rng: np.random.Generator) -> Scene:
    """A random scene of the training combinations, whose one subject's endless motion began at some time before."""
    while True:
        scene = sample(rng, kind="single")
        if scene.actors[0].motion in ENDLESS:
            return begun(scene, float(rng.uniform()))


def begun(scene: Scene, share: float) -> Scene:
    """The scene after its motions, of `ENDLESS`, have gone on for this share of a clip; with 0, as it sets off."""
    return replace(scene, actors=tuple(replace(actor, begun=share) for actor in scene.actors))


def _choose(words: tuple[str, ...] | list[str], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))]


def _actor(kind: str, place: int, colours: list[str], rng: np.random.Generator) -> Actor:
    """A random subject at its place in a scene of this kind."""
    subject, colour = _choose(SUBJECTS, rng), _choose(colours, rng)
    if kind == "wall":
        motion, size = _choose(("left", "right"), rng), ""
    elif kind == "single":
        motion, size = _choose(MOTIONS, rng), _choose(SIZES, rng)
    else:
        motion, size = _choose(_LANES[kind], rng), ""
    if motion == "spins" and subject == "ball":
        motion = "stays"  # a ball that spins looks like one that does not
    radius = _RADII[size or kind]
    low, high = radius * 1.15 + _EDGE, 1 - _EDGE - radius * 1.15
    across = along = (low, high)
    if kind in ("beside", "row"):
        middle = (place + 0.5) / (2 if kind == "beside" else 3)
        across = (middle - 0.02, middle + 0.02)
    elif kind == "above":
        middle = (place + 0.5) / 2
        along = (middle - 0.02, middle + 0.02)
    start, end, extent = _path(motion, radius, across, along, rng)
    facing = _direction(motion)
    if facing == 0:
        facing = _choose_facing(kind, subject, rng)
    return Actor(subject, colour, motion, radius, start, end, extent, facing, size)


def _choose_facing(kind: str, subject: str, rng: np.random.Generator) -> int:
    """Either way where the caption tells it, to the right elsewhere."""
    return int(rng.choice((-1, 1))) if kind == "single" and subject in FACING else 1


def _direction(motion: str) -> int:
    """-1 for a motion to the left, 1 to the right, 0 for neither. Who enters from the left goes to the right."""
    way = {"left": -1, "right": 1}.get(motion.split()[-1], 0)
    return -way if motion.startswith("enters") else way


def _path(
    motion: str, radius: float, across: Point, along: Point, rng: np.random.Generator
) -> tuple[Point, Point, float]:
    """Random start, end and extent of a motion within these bounds of the centre's x (`across`) and y (`along`)."""
    x, y = float(rng.uniform(*across)), float(rng.uniform(*along))
    left, right = across[0], across[1]
    top, bottom = along[0], along[1]
    way = _direction(motion)
    near, far = (left, right) if way > 0 else (right, left)
    first = motion.split()[0]
    if first == "enters":
        return (-1.2 * radius if way > 0 else 1 + 1.2 * radius, y), (0.5, y), 0.0
    if first == "leaves":
        return (0.5, y), (1 + 1.3 * radius if way > 0 else -1.3 * radius, y), 0.0
    if first == "stops":
        return (near, y), (0.5, y), 0.0
    if motion in ("left", "right"):
        return (near, y), (far, y), 0.0
    if motion == "up":
        return (x, bottom), (x, top), 0.0
    if motion in ("down", "falls", "settles"):
        return (x, top), (x, bottom), 0.0
    if way:  # diagonal
        return (near, bottom if first == "up" else top), (far, top if first == "up" else bottom), 0.0
    if motion == "bounces":
        return (x, bottom), (x, bottom), 0.75 * (bottom - top)
    if motion == "circles":
        turn = 0.5 * (right - left) * 0.8
        centre = (float(rng.uniform(left + turn, right - turn)), float(rng.uniform(top + turn, bottom - turn)))
        return centre, centre, turn
    return (x, y), (x, y), 0.0


def _collision(colours: list[str], rng: np.random.Generator, evaluation: bool) -> tuple[Actor, Actor]:
    """Two balls on the ground of the picture's middle: the first rolls and hits the second, which rolls on."""
    while True:
        hitting, other = (str(c) for c in rng.choice(colours, 2, replace=False))
        way = _choose(("left", "right"), rng)
        if held_out("ball", f"{hitting} {other}", f"hits {way}") == evaluation:
            break
    radius, y = _RADII["collision"], float(rng.uniform(0.3, 0.8))
    near, far = radius + _EDGE, 1 - radius - _EDGE
    sign = 1 if way == "right" else -1
    if sign < 0:
        near, far = far, near
    meeting = 0.5 + sign * radius
    first = Actor("ball", hitting, f"hits {way}", radius, (near, y), (meeting - sign * 2 * radius, y), 0.0, sign)
    return first, Actor("ball", other, "is hit", radius, (meeting, y), (far, y), 0.0, sign)


def track(actor: Actor, frames: int) -> Array:
    """Centre, radius and angle at every frame: [T, 4] of (x, y, radius, clockwise radians)."""
    time = actor.begun + (np.linspace(0.0, 1.0, frames) if frames > 1 else np.zeros(1))
    radius, angle = np.full_like(time, actor.radius), np.zeros_like(time)
    share = _share(actor.motion, time)
    x = actor.start[0] + (actor.end[0] - actor.start[0]) * share
    y = actor.start[1] + (actor.end[1] - actor.start[1]) * share
    if actor.motion == "bounces":  # one and a half arcs in a clip
        y = actor.start[1] - actor.extent * np.abs(np.sin(1.5 * np.pi * time))
    elif actor.motion == "circles":  # one clockwise turn in a clip, from the top
        x = actor.start[0] + actor.extent * np.sin(2 * np.pi * time)
        y = actor.start[1] - actor.extent * np.cos(2 * np.pi * time)
    elif actor.motion == "spins":  # half a turn
        angle = np.pi * time
    elif actor.motion in ("grows", "shrinks"):
        first, last = _GROWTH if actor.motion == "grows" else _GROWTH[::-1]
        radius = radius * (first + (last - first) * time)
    return np.stack([x, y, radius, angle], axis=1).astype(np.float32)


def _share(motion: str, time: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much of the way from start to end is done at each time."""
    first = motion.split()[0]
    if first == "enters":
        return np.minimum(time / 0.75, 1)
    if first == "leaves":
        return np.maximum((time - 0.25) / 0.75, 0)
    if first in ("stops", "hits"):
        return np.minimum(time / 0.5, 1)
    if motion == "is hit":
        return np.maximum((time - 0.5) / 0.5, 0)
    if motion == "falls":
        return np.minimum(np.square(time / 0.7), 1)
    if motion == "settles":
        return _settling(time)
    return time


def _settling(time: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share fallen of something dropped that rebounds to half its height each time."""
    fallen = np.square(time / _DROP)
    since, height = time - _DROP, _REBOUND
    while since.max() > 0:
        half = _DROP * np.sqrt(height)
        arc = 1 - height * (1 - np.square((since - half) / half))
        fallen = np.where(since > 0, arc, fallen)
        since, height = since - 2 * half, height * _REBOUND
    return np.minimum(fallen, 1)
