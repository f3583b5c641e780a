"""Which background, genre and wall a clip shows: the drawn backdrops that explain most of it.

A backdrop is compared where subjects do not hide it, and at the clip's own blur and levels. Genres whose backdrops are
alike stay together in the answer; the subjects tell them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from kinograph.starter import drawing, world

__all__ = [
    "FAINT",
    "Backdrop",
    "blurred",
    "blurs",
    "explained",
    "levelled",
    "likely",
    "picture_of",
    "reduced",
    "squared",
]

Array = NDArray[np.floating]

_SIDE = 64  # pixels; larger clips are averaged down to this side
_COARSE = 32  # pixels; the side at which backdrops are compared
_GLANCES = 6  # frames in which backdrops are compared
_LEVELLING = 3  # frames, or a few more, in which a backdrop is fitted to the clip
_OUTLIER = 60.0  # distance in 8-bit RGB from which a pixel says nothing about the backdrop
_SLACK = 7.0  # mean distance by which a backdrop may be worse than the best and still be tried
_TRIED = 4  # backdrops that are tried at most
_BLURS = 3  # degrees of blur that a clip may have
_OFF = 12.0  # levels of 255 by which a pixel may be beside what the backdrop has around it
_OVERDRAWN = 0.2  # the same, of the contrast that the backdrop has there: details come out too strong
FAINT = 34.0  # distance from the backdrop below which a pixel shows none of a subject


@dataclass(frozen=True)
class Backdrop:
    """What is behind the subjects, and whether a wall is before them."""

    background: str
    genre: str
    wall: bool


def likely(pictures: Array) -> list[Backdrop]:
    """The backdrops that a clip, RGB [T, H, W, 3], may have, the best first."""
    every, gallery = _gallery()
    chosen = np.unique(np.linspace(0, len(pictures) - 1, _GLANCES).round().astype(int))
    nearest = np.full(gallery.shape[:2], np.inf, np.float32)
    for frame in reduced(pictures[chosen], _COARSE):
        nearest = np.minimum(nearest, squared(gallery - frame.reshape(-1, 3)))
    distance = np.minimum(np.sqrt(nearest), _OUTLIER).mean(1)
    order = [i for i in np.argsort(distance) if distance[i] <= distance.min() + _SLACK]
    return [every[i] for i in order[:_TRIED]]


@cache
def _gallery() -> tuple[tuple[Backdrop, ...], Array]:
    """Every backdrop there is, and its coarse picture: [backdrops, pixels, 3]."""
    every = tuple(
        Backdrop(background, genre, wall)
        for background in world.BACKGROUNDS
        for genre in world.GENRES
        for wall in (False, True)
    )
    pictures = reduced(np.stack([picture_of(b, _SIDE)[0] for b in every]), _COARSE)
    return every, pictures.reshape(len(every), -1, 3)


def picture_of(backdrop: Backdrop, size: int) -> tuple[Array, Array]:
    """The backdrop, RGB [H, W, 3], and how much of it stands in front, [H, W]."""
    picture, front = drawing.backdrop(backdrop.background, backdrop.genre, backdrop.wall, size)
    nearest = np.arange(size) * len(picture) // size
    return picture[nearest][:, nearest], front[nearest][:, nearest]


def levelled(picture: Array, pictures: Array) -> Array:
    """The backdrop [H, W, 3] as the clip has it: blurred as fits, and shifted by the median difference from it."""
    glance = pictures[:: max(1, len(pictures) // _LEVELLING)]
    best, least = picture, np.inf
    for blurred in blurs(picture):
        apart = glance - blurred
        distance = np.sqrt(squared(apart))
        near = distance < _OUTLIER
        if near.mean() > 0.1:
            blurred = blurred + np.median(apart[near][::7], axis=0)
        misfit = float(np.minimum(np.sqrt(squared(glance - blurred)), _OUTLIER).mean())
        if misfit < least:
            best, least = blurred, misfit
    return np.asarray(best, dtype=np.float32)


def explained(pictures: Array, picture: Array, behind: Array) -> NDArray[np.bool_]:
    """Which pixels [T, H, W] show the backdrop, if a little off: within what it has in the three by three around.

    `picture` [H, W, 3] is the backdrop as it is drawn, `behind` the same as the clip has it (`levelled`). Details, such
    as the moon, may have come out sharper, stronger or a pixel away.
    """
    shifted = picture + np.median(behind - picture, axis=(0, 1))
    around = np.concatenate([_around(behind), _around(shifted)])
    low, high = around.min(0), around.max(0)
    slack = _OFF + _OVERDRAWN * (high - low)
    return np.asarray(((pictures >= low - slack) & (pictures <= high + slack)).all(-1))


def _around(picture: Array) -> Array:
    """A picture [H, W, 3] as seen from each of the nine pixels around: [9, H, W, 3]."""
    height, width = picture.shape[:2]
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), "edge")
    return np.stack([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)])


def reduced(pictures: Array, side: int) -> Array:
    """Pictures [T, H, W, 3] averaged down to `side`² pixels, H and W being multiples of it."""
    count, size = pictures.shape[:2]
    factor = size // side
    if factor == 1:
        return pictures
    return np.asarray(pictures.reshape(count, side, factor, side, factor, 3).mean((2, 4)))


def blurs(picture: Array) -> list[Array]:
    """A picture [H, W, ...] at rising degrees of blur, itself first."""
    blurs = [picture]
    for _ in range(_BLURS):
        blurs.append(blurred(blurs[-1]))
    return blurs


def blurred(picture: Array) -> Array:
    """A picture [H, W, ...] smoothed with the kernel (1, 2, 1) / 4 both ways."""
    for axis in (0, 1):
        padded = np.concatenate([picture.take([0], axis), picture, picture.take([-1], axis)], axis)
        size = picture.shape[axis]
        low, middle, high = (padded.take(range(k, k + size), axis) for k in range(3))
        picture = (low + high + 2 * middle) / 4
    return np.asarray(picture, dtype=np.float32)


def squared(apart: Array) -> Array:
    """The squared length of vectors [..., channels]: [...]."""
    return np.asarray(np.einsum("...c,...c->...", apart, apart))
