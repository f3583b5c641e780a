"""Where the subjects of a clip are: what differs from its backdrop, split by colour and followed over time.

A part is a subject as a weight [T, H, W]: how much of its paint each pixel has, 0 to 1. Two subjects of one colour are
parts of their own where they stay apart, or touch only along the lines between a scene's places.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kinograph.starter import drawing, world
from kinograph.starter.judge_backdrops import FAINT, squared

__all__ = ["area_of", "by_colour", "grown", "parts_of"]

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]

_PALE = 0.1  # how much of a paint's missing strength counts as its being another colour
_WEIGHT = (0.3, 0.7)  # shares of the way from backdrop to paint: from nothing of a subject to all
_OFF = (45.0, 90.0)  # distance off the line from backdrop to paint: from all of a subject to nothing
_STRONG = 0.55  # share of the way to a paint from which a pixel tells its colour
_BETTER = (18.0, 30.0)  # a further colour's gain over those chosen, and its greatest misfit, where it is there
_COLOUR_SHARE = 0.03  # of the pixels that must tell a further colour
_COLOURS = 4  # in a clip, at most
_CUT = 0.3  # of the mean weight along a line, below which a line may part two subjects of a colour
_APART = 0.12  # of the weight that must be on either side of such a line
_MOSTLY = 0.7  # of the frames in which that must hold
_PRESENT = 0.4  # weight from which a pixel belongs to a piece
_PIECES = 16  # pieces of a colour that are looked at, the largest
_SMALLEST = 14  # pixels in the frame where a subject is largest
_SHORTEST = 3  # frames in which a subject is seen at least
_SCENERY = 0.5  # of a piece, from which on it is the backdrop's own


def by_colour(pictures: Array, behind: Array, clear: Mask, genre: str) -> dict[str, Array]:
    """For each colour that is in the clip, how much of it every pixel has: [T, H, W], 0 to 1."""
    apart = pictures - behind
    foreground = (squared(apart) > FAINT**2) & clear
    if foreground.sum() < _SMALLEST:
        return {}
    pixels, below = apart[foreground], np.broadcast_to(behind, pictures.shape)[foreground]
    share, off, misfit = _unmixed(pixels, below, _paints(genre))
    strong = share.max(1) > _STRONG
    names = _colours_in(misfit[strong] if strong.sum() > _SMALLEST else misfit)
    label = misfit[:, names].argmin(1)
    own = np.arange(len(label)), np.asarray(names)[label]
    low, high = _WEIGHT
    least, most = _OFF
    weight = np.clip((share[own] - low) / (high - low), 0, 1) * np.clip((most - off[own]) / (most - least), 0, 1)
    maps = {}
    for i, number in enumerate(names):
        plane = np.zeros(foreground.shape, np.float32)
        plane[foreground] = np.where(label == i, weight, 0)
        maps[list(world.COLOURS)[number]] = plane
    return maps


def _paints(genre: str) -> Array:
    """The paint of every colour, [colours, shades, 3]: pixel art has a dark rim in a second shade."""
    paints = np.stack([drawing.paint(genre, np.asarray(c, np.float32)) for c in world.COLOURS.values()])
    return np.stack([paints, paints * np.float32(0.5)], 1) if genre == "pixel art" else paints[:, None]


def _unmixed(apart: Array, below: Array, paints: Array) -> tuple[Array, Array, Array]:
    """How far pixels are on the way to each colour, how far off that way, and their misfit: three [pixels, colours].

    `apart` is the pixels' difference from what is `below` them, both [pixels, 3]; `paints` is [colours, shades, 3].
    """
    best: list[list[Array]] = []
    for shades in paints:
        options = []
        for paint in shades:
            way = paint - below
            length = np.maximum(squared(way), 1)
            share = np.clip(np.einsum("pc,pc->p", apart, way) / length, 0, 1.15)
            off = np.sqrt(squared(apart - share[:, None] * way))
            pale = np.maximum(1 - share, 0) * np.sqrt(length) * np.float32(_PALE)
            options.append((share, off, np.sqrt(np.square(off) + np.square(pale))))
        first = options[0]
        for other in options[1:]:
            better = other[2] < first[2]
            first = tuple(np.where(better, o, f) for o, f in zip(other, first, strict=True))
        best.append(list(first))
    share, off, misfit = (np.stack([one[i] for one in best], 1) for i in range(3))
    return share, off, misfit


def _colours_in(misfit: Array) -> list[int]:
    """The numbers of the colours, the main one first, that together explain pixels of this misfit [pixels, colours]."""
    chosen = [int(np.minimum(misfit, 2 * _BETTER[1]).sum(0).argmin())]
    while len(chosen) < _COLOURS:
        left = misfit[:, chosen].min(1, keepdims=True)
        telling = ((left - misfit > _BETTER[0]) & (misfit < _BETTER[1])).mean(0)
        if telling.max() < _COLOUR_SHARE:
            break
        chosen.append(int(telling.argmax()))
    return chosen


def parts_of(weight: Array, scenery: Mask, wall: bool) -> list[Array]:
    """The subjects of one colour, each a weight [T, H, W], from all that has this colour.

    What lies mostly in the `scenery` [T, H, W] belongs to none: a moon's rim is no part of who passes behind a wall.
    """
    cut = _cut(weight)
    labels = _components(cut > _PRESENT)
    sizes = np.bincount(labels.ravel())
    own = np.bincount(labels.ravel(), weights=(weight * scenery).ravel())
    whole = np.bincount(labels.ravel(), weights=weight.ravel())
    sizes[own >= _SCENERY * whole] = 0
    sizes[0] = 0
    largest = [i for i in np.argsort(-sizes)[:_PIECES] if sizes[i] >= _SMALLEST]
    pieces = [np.nonzero(labels == i) for i in largest]
    groups: list[list[int]] = []
    for i, piece in enumerate(pieces):
        home = next((g for g in groups if _belongs(piece, pieces[g[0]], wall)), None)
        if home is None:
            groups.append([i])
        else:
            home.append(i)
    parts = []
    for group in groups:
        part = np.zeros_like(weight)
        for i in group:
            part[pieces[i]] = weight[pieces[i]]
        part = np.where(grown(part > 0), np.maximum(part, weight), 0)
        if area_of(part) >= _SMALLEST and (part.sum((1, 2)) > 4).sum() >= _SHORTEST:
            parts.append(part)
    return parts


def _belongs(piece: tuple[NDArray[np.int64], ...], main: tuple[NDArray[np.int64], ...], wall: bool) -> bool:
    """Whether a piece lies within the bounds of a larger one, or is what appears of it on the wall's other side."""
    shared = np.intersect1d(piece[0], main[0])
    if wall or not len(shared):
        return True
    inside = 0
    for frame in shared:
        of_piece, of_main = piece[0] == frame, main[0] == frame
        inside += all(
            main[i][of_main].min() - 1 <= piece[i][of_piece].mean() <= main[i][of_main].max() + 1 for i in (1, 2)
        )
    return inside > 0.5 * len(shared)


def _cut(weight: Array) -> Array:
    """The weight [T, H, W] without the lines along which two or three subjects of a colour may touch."""
    size = weight.shape[1]
    cut = weight.copy()
    for axis, place in ((2, 1 / 2), (1, 1 / 2), (2, 1 / 3), (2, 2 / 3)):
        line = round(place * size)
        profile = weight.sum(3 - axis)  # [T, across the line]
        total = profile.sum(1)
        before = profile[:, :line].sum(1)
        together = (np.minimum(before, total - before) > _APART * total) & (total > 0)
        across = total / np.maximum((profile > 0.5).sum(1), 1)
        thin = profile[:, line - 2 : line + 2].min(1) < _CUT * across
        if together.mean() > _MOSTLY and thin[together].mean() > _MOSTLY:
            thinnest = line - 2 + int(profile[:, line - 2 : line + 2].sum(0).argmin())
            np.moveaxis(cut, axis, 0)[thinnest] = 0
    return cut


def grown(mask: Mask) -> Mask:
    """A mask [T, H, W] grown by one pixel in every frame."""
    grown = mask.copy()
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    wide = grown.copy()
    wide[:, :, 1:] |= grown[:, :, :-1]
    wide[:, :, :-1] |= grown[:, :, 1:]
    return wide


def _components(mask: Mask) -> NDArray[np.int64]:
    """Numbers from 1 for what hangs together in space and time in a mask [T, H, W]; 0 outside."""
    places = np.flatnonzero(mask)
    number = np.full(mask.size, -1)
    number[places] = np.arange(len(places))
    number = number.reshape(mask.shape)
    pairs = []
    for before, after in (
        (number[1:], number[:-1]),
        (number[:, 1:], number[:, :-1]),
        (number[:, :, 1:], number[:, :, :-1]),
        (number[:, 1:, 1:], number[:, :-1, :-1]),
        (number[:, 1:, :-1], number[:, :-1, 1:]),
    ):
        both = (before >= 0) & (after >= 0)
        pairs.append(np.stack([before[both], after[both]]))
    edges = np.concatenate(pairs, axis=1)
    root = np.arange(len(places))
    while True:
        ends = root[edges]
        apart = ends[0] != ends[1]
        if not apart.any():
            break
        np.minimum.at(root, ends[:, apart].max(0), ends[:, apart].min(0))
        while (root[root] != root).any():
            root = root[root]
    labels = np.zeros(mask.size, np.int64)
    labels[places] = np.unique(root, return_inverse=True)[1] + 1
    return labels.reshape(mask.shape)


def area_of(weight: Array) -> float:
    """Pixels in the frame where something weighs most."""
    return float(weight.sum((1, 2)).max())
