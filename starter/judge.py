"""Says what a clip shows, by plain image analysis: subject, colour, size, motion and background.

It knows the world's palette and shapes, nothing of any model. The background is the border's colour; the subject's
colour that of the core of what differs from it; the motion is read off the track of the foreground's centre and area;
the shape is the subject that, rendered along this track, explains the foreground best.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from kinograph.starter import world

__all__ = ["ATTRIBUTES", "Verdict", "judge"]

Frames = NDArray[np.uint8]
Floats = NDArray[np.float32]

ATTRIBUTES = ("subject", "colour", "size", "motion", "background")

_INSIDE = 0.5  # of the way from the background's colour to the subject's: inside, however blurred the edge
_FAINT = 40.0  # distance in 8-bit RGB below which a pixel counts as background
_DARK = 80.0  # distance from the features' black below which a pixel does not tell the subject's colour
_SMALLEST = 0.0015  # share of the picture: below it there is no subject in a frame
_COMPARED = 7  # frames in which shapes are compared
_BLURS = 4  # degrees of blur that a clip is allowed when shapes are compared
_WEAKEST = 0.5  # of the difference between a shape and a ball that must be there
_DEPTHS = (1.0, 0.6, 0.3)  # how dark features may be: small ones fade in soft pictures
_WITH_FEATURES = ("cat face",)
_GROWS = 1.45  # last radius over first radius
_RETURNS = 0.55  # net travel over total travel along an axis, below which a subject comes back
_STILL = 0.06  # travel, as a fraction of the picture, below which nothing moves
_ROUND = 0.4  # smaller over larger extent of a track, above which it is no line


@dataclass(frozen=True)
class Verdict:
    """What a clip shows; `None` where nothing could be made out. Field names are `world.Scene`'s."""

    subject: str | None
    colour: str | None
    size: str | None
    motion: str | None
    background: str


def judge(frames: Frames) -> Verdict:
    """What these frames, uint8 RGB [T, H, W, 3] with H = W, show."""
    pictures = frames.astype(np.float32)
    border = _border(pictures)
    background = _nearest(border, world.BACKGROUNDS)
    core = _core_colour(pictures, border)
    if core is None:
        return Verdict(None, None, None, None, background)
    inside = _inside(pictures, border, core)
    path = _track(inside)
    if path is None:
        return Verdict(None, _nearest(core, world.COLOURS), None, None, background)
    subject, radius = _shape(pictures, border, core, path)
    middle = (world.RADII["large"] + world.RADII["small"]) / 2
    size = "large" if radius > middle else "small"
    return Verdict(subject, _nearest(core, world.COLOURS), size, _motion(path), background)


def _nearest(colour: Floats, palette: dict[str, world.Colour]) -> str:
    return min(palette, key=lambda name: float(np.linalg.norm(colour - np.asarray(palette[name]))))


def _border(pictures: Floats) -> Floats:
    """The border's median colour, [3]."""
    edges = (pictures[:, :2], pictures[:, -2:], pictures[:, :, :2], pictures[:, :, -2:])
    return np.asarray(np.median(np.concatenate([e.reshape(-1, 3) for e in edges]), axis=0), dtype=np.float32)


def _core_colour(pictures: Floats, border: Floats) -> Floats | None:
    """The median colour of the strongest half of the foreground, [3]; `None` for an empty clip."""
    distance = np.linalg.norm(pictures - border, axis=-1)
    dark = np.linalg.norm(pictures - np.asarray(world.EYE, np.float32), axis=-1) < _DARK
    foreground = (distance > _FAINT) & ~dark
    if foreground.mean() < _SMALLEST:
        return None
    strong = foreground & (distance >= np.median(distance[foreground]))
    return np.asarray(np.median(pictures[strong], axis=0), dtype=np.float32)


def _inside(pictures: Floats, border: Floats, core: Floats) -> Floats:
    """How much of the subject's colour each pixel has: [T, H, W], 0 at the background's, 1 at the subject's."""
    axis = core - border
    along = (pictures - border) @ axis / float(axis @ axis)
    off_axis = np.linalg.norm(pictures - border - along[..., None] * axis, axis=-1) / np.linalg.norm(axis)
    return np.asarray(np.clip(along, 0, 1) * np.clip(1.5 - 2 * off_axis, 0, 1), dtype=np.float32)


def _moments(inside: Floats) -> tuple[Floats, Floats]:
    """Centre and equivalent radius a frame, [T, 3] of (x, y, radius) as fractions, and the area's share, [T]."""
    size = inside.shape[1]
    weight = np.clip(inside * 2 - 0.5, 0, 1)
    mass = weight.sum((1, 2))
    grid = (np.arange(size) + 0.5) / size
    x, y = (weight.sum(1) @ grid, weight.sum(2) @ grid) / np.maximum(mass, 1e-6)
    radius = np.sqrt(mass / np.pi) / size
    return np.stack([x, y, radius], axis=1).astype(np.float32), (mass / size**2).astype(np.float32)


def _track(inside: Floats) -> Floats | None:
    """Centre and equivalent radius a frame, [T, 3]; frames without a subject are bridged; `None` if few have one."""
    path, area = _moments(inside)
    seen = area > _SMALLEST
    if seen.sum() < max(3, len(path) // 4):
        return None
    times = np.arange(len(path))
    return np.stack([np.interp(times, times[seen], c[seen]) for c in path.T], axis=1).astype(np.float32)


def _motion(path: Floats) -> str | None:
    """The motion that a track of centre and radius shows."""
    smooth = (path[:-2] + path[1:-1] + path[2:]) / 3
    tail = max(1, len(smooth) // 8)
    first, last = smooth[:tail].mean(0), smooth[-tail:].mean(0)
    net = last - first
    total = np.abs(np.diff(smooth[:, :2], axis=0)).sum(0)
    if last[2] / max(float(first[2]), 1e-6) > _GROWS and np.hypot(*net[:2]) < 0.2:
        return "grows"
    spread = np.ptp(smooth[:, :2], axis=0)
    if spread.max() < _STILL:
        return None
    returns = np.abs(net[:2]) < _RETURNS * total
    if spread.min() > _ROUND * spread.max() and returns.any():
        return "circles"
    if spread[1] > spread[0] and returns[1]:
        return "bounces"
    if abs(net[0]) > abs(net[1]):
        return "right" if net[0] > 0 else "left"
    return "down" if net[1] > 0 else "up"


def _picture(subject: str, path: Floats, border: Floats, core: Floats, size: int, depth: float) -> Floats:
    """The subject drawn along a path, RGB [T, size, size, 3], its dark features `depth` deep: 1 is black, 0 is none."""
    outline, features = (c[..., None] for c in world.coverage(subject, path, size))
    inside = core + (np.asarray(world.EYE, np.float32) - core) * (features * depth)
    return np.asarray(border + (inside - border) * outline, dtype=np.float32)


def _blurred(pictures: Floats) -> Floats:
    """Pictures [T, H, W, 3] smoothed with the kernel (1, 2, 1)/4 in both directions."""
    for axis in (1, 2):
        pictures = (np.roll(pictures, 1, axis) + np.roll(pictures, -1, axis) + 2 * pictures) / 4
    return pictures


def _misfit(pictures: Floats, plain: Floats, rendered: Floats) -> float:
    """Squared difference from `rendered`, at the blur that fits best.

    Soft pictures lose corners first, so what sets a shape apart from `plain`, the ball, may be as weak as `_WEAKEST`.
    """
    errors = []
    for _ in range(_BLURS):
        seen, apart = pictures - plain, rendered - plain
        strength = np.clip(np.vdot(seen, apart) / max(float(np.vdot(apart, apart)), 1e-6), _WEAKEST, 1)
        errors.append(float(np.square(seen - strength * apart).sum()))
        plain, rendered = _blurred(plain), _blurred(rendered)
    return min(errors)


@cache
def _own_moments(subject: str) -> tuple[float, float, float]:
    """A subject's centroid (x, y) from its nominal centre and its equivalent radius, in nominal radii."""
    outline, features = world.coverage(subject, np.array([[0.5, 0.5, 0.25]], np.float32), 256)
    x, y, radius = _moments(outline * (1 - features))[0][0]
    return (float(x) - 0.5) / 0.25, (float(y) - 0.5) / 0.25, float(radius) / 0.25


def _shape(pictures: Floats, border: Floats, core: Floats, path: Floats) -> tuple[str, float]:
    """The subject that explains the pictures best, and its mean nominal radius as a fraction of the picture."""
    chosen = np.unique(np.linspace(0, len(path) - 1, _COMPARED).round().astype(int))
    drawn, radii = {}, {}
    for subject in world.SUBJECTS:
        x, y, radius = _own_moments(subject)
        nominal = path[:, 2] / radius
        radii[subject] = float(nominal.mean())
        fitted = np.stack([path[:, 0] - x * nominal, path[:, 1] - y * nominal, nominal], axis=1)[chosen]
        depths = _DEPTHS if subject in _WITH_FEATURES else (0.0,)
        drawn[subject] = [_picture(subject, fitted, border, core, pictures.shape[1], depth) for depth in depths]
    plain = drawn["ball"][0]
    errors = {name: min(_misfit(pictures[chosen], plain, r) for r in drawn[name]) for name in drawn}
    best = min(errors, key=errors.__getitem__)
    return best, radii[best]
