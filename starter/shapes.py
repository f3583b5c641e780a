"""The subjects' outlines, as signed distances: negative inside, zero on the edge, positive outside.

Coordinates and distances are in nominal radii, x to the right and y downwards, with the subject's centre at the origin.
Those with a front face right. The distances are exact or a little short, which is enough for smooth edges.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["FEATURES", "OUTLINES"]

Array = NDArray[np.float32]


def _circle(x: Array, y: Array, centre_x: float, centre_y: float, radius: float) -> Array:
    return np.hypot(x - np.float32(centre_x), y - np.float32(centre_y)) - np.float32(radius)


def _box(x: Array, y: Array, left: float, top: float, right: float, bottom: float) -> Array:
    across = np.abs(x - np.float32((left + right) / 2)) - np.float32((right - left) / 2)
    along = np.abs(y - np.float32((top + bottom) / 2)) - np.float32((bottom - top) / 2)
    return np.maximum(across, along)


def _convex(x: Array, y: Array, *corners: tuple[float, float]) -> Array:
    """A convex polygon, its corners clockwise on the screen."""
    sides = []
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = float(np.hypot(x1 - x0, y1 - y0))
        normal_x, normal_y = np.float32((y1 - y0) / length), np.float32((x0 - x1) / length)
        sides.append((x - np.float32(x0)) * normal_x + (y - np.float32(y0)) * normal_y)
    return np.maximum.reduce(sides)


def _ellipse(x: Array, y: Array, centre_x: float, centre_y: float, width: float, height: float) -> Array:
    scaled = np.hypot((x - np.float32(centre_x)) / np.float32(width), (y - np.float32(centre_y)) / np.float32(height))
    return (scaled - np.float32(1)) * np.float32(min(width, height))


def _ball(x: Array, y: Array) -> Array:
    return _circle(x, y, 0, 0, 1)


def _square(x: Array, y: Array) -> Array:
    return _box(x, y, -0.88, -0.88, 0.88, 0.88)


def _triangle(x: Array, y: Array) -> Array:
    return _convex(x, y, (0, -1.1), (1.1, 0.8), (-1.1, 0.8))


def _star(x: Array, y: Array) -> Array:
    sector = np.float32(2 * np.pi / 5)
    angle = np.abs(np.mod(np.arctan2(x, -y) + sector / 2, sector) - sector / 2)
    radius = np.hypot(x, y)
    tip, valley = 1.25, 0.52
    edge = np.array([valley * np.sin(sector / 2), valley * np.cos(sector / 2) - tip])
    normal = (np.array([-edge[1], edge[0]]) / np.hypot(*edge)).astype(np.float32)
    return radius * np.sin(angle) * normal[0] + (radius * np.cos(angle) - np.float32(tip)) * normal[1]


def _heart(x: Array, y: Array) -> Array:
    half, turn = np.float32(0.66), np.float32(0.7071068)
    along, across = (np.abs(x) + y - np.float32(0.14)) * turn, (np.abs(x) - y + np.float32(0.14)) * turn
    body = np.maximum(np.abs(along), np.abs(across)) - half
    lobe = np.hypot(np.abs(x) - half * turn, y - np.float32(0.14) + half * turn) - half
    return np.minimum(body, lobe)


def _cat(x: Array, y: Array) -> Array:
    head = _ellipse(x, y, 0, 0.2, 0.98, 0.8)
    sides = np.abs(x)
    return np.minimum(head, _convex(sides, y, (0.62, -1.15), (0.98, 0.1), (0.12, -0.3)))


def _cat_features(x: Array, y: Array) -> Array:
    eyes = np.minimum(_circle(x, y, -0.22, 0.06, 0.2), _circle(x, y, 0.54, 0.06, 0.2))
    return np.minimum(eyes, _convex(x, y, (-0.04, 0.42), (0.36, 0.42), (0.16, 0.62)))


def _car(x: Array, y: Array) -> Array:
    body = _box(x, y, -1.15, -0.1, 1.15, 0.42)
    cabin = _convex(x, y, (-0.85, -0.7), (0.15, -0.7), (0.6, 0.0), (-0.95, 0.0))
    return np.minimum(np.minimum(body, cabin), _car_wheels(x, y))


def _car_wheels(x: Array, y: Array) -> Array:
    return np.minimum(_circle(x, y, -0.62, 0.44, 0.32), _circle(x, y, 0.62, 0.44, 0.32))


def _car_features(x: Array, y: Array) -> Array:
    window = _convex(x, y, (-0.2, -0.52), (0.08, -0.52), (0.35, -0.1), (-0.2, -0.1))
    return np.minimum(_car_wheels(x, y), window)


def _fish(x: Array, y: Array) -> Array:
    body = _ellipse(x, y, 0.2, 0, 0.92, 0.62)
    tail = _convex(x, y, (-1.2, -0.68), (-0.4, 0.0), (-1.2, 0.68))
    return np.minimum(body, tail)


def _fish_features(x: Array, y: Array) -> Array:
    return _circle(x, y, 0.68, -0.12, 0.18)


def _bird(x: Array, y: Array) -> Array:
    body = _ellipse(x, y, -0.1, 0.25, 0.78, 0.56)
    head = _circle(x, y, 0.5, -0.38, 0.44)
    tail = _convex(x, y, (-1.25, -0.45), (-0.45, 0.05), (-0.7, 0.45))
    beak = _convex(x, y, (0.85, -0.58), (1.3, -0.3), (0.85, -0.12))
    return np.minimum(np.minimum(body, head), np.minimum(tail, beak))


def _bird_features(x: Array, y: Array) -> Array:
    return _circle(x, y, 0.54, -0.44, 0.18)


OUTLINES: dict[str, Callable[[Array, Array], Array]] = {
    "ball": _ball,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cat": _cat,
    "car": _car,
    "fish": _fish,
    "bird": _bird,
}
"""Where a subject is: everything it covers."""

FEATURES: dict[str, Callable[[Array, Array], Array]] = {
    "cat": _cat_features,
    "car": _car_features,
    "fish": _fish_features,
    "bird": _bird_features,
}
"""What is dark on a subject: eyes, nose, wheels, window."""
