"""How a subject moves: the motion whose course fits its track best."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from kinograph.starter import world

__all__ = ["STILL", "motion_of"]

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]

STILL = 0.13  # travel, as a fraction of the picture, below which a subject stays in its place
_LEAST = 0.14  # travel that a course must have
_GROWS = 1.5  # last radius over first
_MISSING = 0.1  # penalty, as a fraction of the picture, for being in the picture when a course is not, or the reverse


def motion_of(path: Array, seen: Mask, whole: Mask) -> str:
    """The motion of a track [T, 3] of (x, y, radius), of which the frames `whole` are sure."""
    frames = np.flatnonzero(whole)
    sure = path[frames]
    if _travel(sure) < STILL / 2 or _travel(path[seen]) < STILL:
        slope, start = np.polyfit(frames / max(len(path) - 1, 1), sure[:, 2], 1)
        ratio = max(start + slope, 1e-3) / max(start, 1e-3)
        return "grows" if ratio > _GROWS else "shrinks" if ratio < 1 / _GROWS else "stays"
    errors = {c.motion: _course_misfit(c, path, seen) for c in _courses(len(path))}
    return min(errors, key=errors.__getitem__)


def _travel(path: Array) -> float:
    """How far a track [T, 3] reaches, across or along."""
    return float(np.ptp(path[:, :2], axis=0).max())


def _course_misfit(course: _Course, path: Array, seen: Mask) -> float:
    """How far, as a fraction of the picture, a track is from the best course of this motion."""
    squared = 0.0
    for values, share, way in (
        (path[seen, 0], course.x[seen], course.ways[0]),
        (path[seen, 1], course.y[seen], course.ways[1]),
    ):
        centred = share - share.mean()
        slope = 0.0
        if way and np.square(centred).sum() > 1e-6:
            slope = way * max(way * float(centred @ values) / float(centred @ centred), _LEAST)
        squared += float(np.square(values - values.mean() - slope * centred).mean())
    squared += _MISSING**2 * ((not seen[0]) != course.enters)
    squared += _MISSING**2 * ((not seen[-1]) != course.leaves)
    return float(squared**0.5)


@dataclass(frozen=True)
class _Course:
    """A motion as shares of the way at every frame, [T]; `ways` are the signs of x and y, 0 for no travel."""

    motion: str
    x: Array
    y: Array
    ways: tuple[int, int]
    enters: bool = False
    leaves: bool = False


@cache
def _courses(frames: int) -> tuple[_Course, ...]:
    """Every motion from place to place, with that of a ball that is hit."""
    signs = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    signs.update({f"{a} {b}": (signs[b][0], signs[a][1]) for a in ("up", "down") for b in ("left", "right")})
    courses = []
    for motion in (*world.MOTIONS, "is hit left", "is hit right"):
        first, *rest = motion.split()
        ways = signs.get(motion) or signs.get(rest[-1] if rest else "", (0, 1))
        if first == "enters":
            ways = (-ways[0], 0)
        if first in ("spins", "grows", "shrinks", "stays"):
            continue
        drawn = "is hit" if first == "is" else motion
        actor = world.Actor("ball", "red", drawn, 0.1, (0.0, 0.0), (1.0, 1.0), 1.0)
        path = world.track(actor, frames)
        x, y = path[:, 0], path[:, 1]
        if first in ("bounces", "circles"):
            x, y, ways = (x, y, (1, 1)) if first == "circles" else (np.zeros_like(x), y, (0, 1))
        courses.append(_Course(motion, x, y, ways, first == "enters", first == "leaves"))
    return tuple(courses)
