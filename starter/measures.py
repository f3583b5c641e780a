"""Scores what the judge found against what a scene asked for, and measures how far two sets of clips are apart.

Every attribute is scored only where it applies: sizes where a caption tells one, facing where the caption or the motion
does, relations between two or three. A subject that was not found counts as wrong in everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise, permutations

import numpy as np
from numpy.typing import NDArray

from kinograph.starter import world
from kinograph.starter.judge import Found, Verdict

__all__ = ["ATTRIBUTES", "CHANCE", "decibels", "features", "frechet_distance", "matched", "outcomes", "shares"]

Frames = NDArray[np.uint8]
Floats = NDArray[np.float64]

ATTRIBUTES = (
    "subject",
    "colour",
    "count",
    "motion",
    "left or right",
    "relation",
    "background",
    "genre",
    "size",
    "facing",
    "two subjects bound",
    "three subjects bound",
    "occlusion",
    "collision",
    "all",
)
CHANCE = {
    "subject": 1 / len(world.SUBJECTS),
    "colour": 1 / len(world.COLOURS),
    "motion": 1 / len(world.MOTIONS),
    "left or right": 1 / 2,
    "background": 1 / len(world.BACKGROUNDS),
    "genre": 1 / len(world.GENRES),
    "size": 1 / len(world.SIZES),
    "facing": 1 / 2,
}

_TRAVEL = 0.1  # of the picture's side: the least that goes left or right
_BINS = (4, 8, 8)  # of time, height and width, into which clips are averaged for their features
_FEATURES = 64  # numbers a clip
_CHANGES = 4.0  # weight of changes from frame to frame, which are smaller than colours
_PROJECTION_SEED = 2017  # of the fixed random projection


def matched(scene: world.Scene, verdict: Verdict) -> list[Found | None]:
    """The found subject that stands for each of the scene's actors, in their order; `None` where there is none."""
    found: list[Found | None] = [*verdict.actors, *[None] * len(scene.actors)]

    def agreement(order: Iterable[Found | None]) -> int:
        return sum(
            2 * (one.subject == actor.subject) + 2 * (one.colour == actor.colour) + (one.motion == actor.motion)
            for actor, one in zip(scene.actors, order, strict=True)
            if one is not None
        )

    return list(max(permutations(found, len(scene.actors)), key=agreement))


def outcomes(scene: world.Scene, verdict: Verdict) -> dict[str, list[bool]]:
    """For each of `ATTRIBUTES` that applies to the scene, whether the verdict is right, once or for every actor."""
    found = matched(scene, verdict)
    pairs = list(zip(scene.actors, found, strict=True))
    right: dict[str, list[bool]] = {
        "subject": [one is not None and one.subject == actor.subject for actor, one in pairs],
        "colour": [one is not None and one.colour == actor.colour for actor, one in pairs],
        "count": [len(verdict.actors) == len(scene.actors)],
        "motion": [one is not None and one.motion == actor.motion for actor, one in pairs],
        "left or right": [_goes(one) == _side(actor) for actor, one in pairs if _side(actor)],
        "relation": [_in_order(scene, found)] if scene.kind in ("beside", "above", "row") else [],
        "background": [verdict.background == scene.background],
        "genre": [verdict.genre == scene.genre],
        "size": [one is not None and one.size == actor.size for actor, one in pairs if actor.size],
        "facing": [one is not None and one.facing == actor.facing for actor, one in pairs if _faces(scene, actor)],
    }
    everything = all(all(hits) for hits in right.values())
    bound = all(all(right[name]) for name in ("subject", "colour", "count", "motion", "relation"))
    if scene.kind in ("beside", "above"):
        right["two subjects bound"] = [bound]
    elif scene.kind == "row":
        right["three subjects bound"] = [bound]
    elif scene.kind == "collision":
        right["collision"] = [bound]
    elif scene.kind == "wall":
        right["occlusion"] = [bound and verdict.wall and all(one is not None and one.steady for one in found)]
        everything = everything and right["occlusion"][0]
    right["all"] = [everything]
    return {name: hits for name, hits in right.items() if hits}


def shares(scenes: Sequence[world.Scene], verdicts: Sequence[Verdict]) -> tuple[dict[str, float], dict[str, int]]:
    """The share, 0 to 1, that is right of each attribute, and over how many it was taken; only of those that apply."""
    gathered: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
    for scene, verdict in zip(scenes, verdicts, strict=True):
        for name, hits in outcomes(scene, verdict).items():
            gathered[name] += hits
    gathered = {name: hits for name, hits in gathered.items() if hits}
    return (
        {name: float(np.mean(hits)) for name, hits in gathered.items()},
        {name: len(hits) for name, hits in gathered.items()},
    )


def _side(actor: world.Actor) -> int:
    """-1 for an actor that goes to the left, 1 to the right, 0 for neither."""
    if actor.motion == "circles":
        return 0
    return int(np.sign(actor.end[0] - actor.start[0]))


def _goes(found: Found | None) -> int:
    if found is None:
        return 0
    seen = found.path[found.visible, 0]
    travel = float(seen[-1] - seen[0])
    return int(np.sign(travel)) if abs(travel) >= _TRAVEL else 0


def _faces(scene: world.Scene, actor: world.Actor) -> bool:
    """Whether the caption or the motion tells which way an actor faces."""
    return actor.subject in world.FACING and (world.faces(scene) or _side(actor) != 0)


def _in_order(scene: world.Scene, found: Sequence[Found | None]) -> bool:
    """Whether all were found, and from left to right, or from top to bottom, as the scene has them."""
    axis = 1 if scene.kind == "above" else 0
    places = [float(one.path[one.visible, axis].mean()) for one in found if one is not None]
    return len(places) == len(scene.actors) and all(a < b for a, b in pairwise(places))


def decibels(clip: Frames, truth: Frames, part: NDArray[np.bool_] | None = None) -> float:
    """Peak signal-to-noise ratio of uint8 RGB [..., H, W, 3], over the pixels of `part` [..., H, W] or all."""
    error = np.square(clip.astype(np.float32) - truth).mean(-1)
    return float(10 * np.log10(255**2 / max(float(error[part].mean() if part is not None else error.mean()), 1e-6)))


def features(clip: Frames) -> Floats:
    """Numbers [64] that tell clips, uint8 RGB [T, H, W, 3], apart: coarse colours and changes, projected at random."""
    pictures = clip.astype(np.float32) / 255
    changes = np.abs(np.diff(pictures, axis=0)) if len(clip) > 1 else np.zeros_like(pictures)
    coarse = np.concatenate([_averaged(pictures).ravel(), _CHANGES * _averaged(changes).ravel()])
    rng = np.random.default_rng(_PROJECTION_SEED)
    projection = rng.standard_normal((len(coarse), _FEATURES)) / np.sqrt(_FEATURES)
    return np.asarray(coarse @ projection)


def _averaged(pictures: NDArray[np.floating]) -> NDArray[np.floating]:
    """Pictures [T, H, W, 3] averaged into `_BINS` of time, height and width."""
    for axis, bins in enumerate(_BINS):
        edges = np.linspace(0, pictures.shape[axis], bins + 1).astype(int)
        slices = [pictures.take(range(a, max(b, a + 1)), axis) for a, b in pairwise(edges)]
        pictures = np.stack([part.mean(axis) for part in slices], axis)
    return pictures


def frechet_distance(one: Floats, other: Floats) -> float:
    """The Fréchet distance between Gaussians fitted to two sets of features, [clips, features] each; 0 for equal sets.

    Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", 2017. It grows as sets shrink: compare only distances
    between sets of the same number of clips.
    """
    apart = one.mean(0) - other.mean(0)
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = _root(first)
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ second @ root), 0, None)).sum()
    return max(float(apart @ apart + np.trace(first) + np.trace(second) - 2 * cross), 0.0)


def _root(matrix: Floats) -> Floats:
    """The square root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T)
