"""Says what a clip shows, by plain image analysis: backdrop, genre, and every subject with its look and motion.

The judge knows the world's palette and drawing, nothing of any model or prompt. It looks for the backdrops that explain
the clip best; what differs from a backdrop is split by colour into subjects and followed over time. A subject's shape
is that of the drawing that looks most like it, its motion the one whose course fits its track. Where several genres
have much the same backdrop, all are tried, and the one that redraws the clip best is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from kinograph.starter import drawing, world

__all__ = ["Found", "Verdict", "judge"]

Frames = NDArray[np.uint8]
Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

_SIDE = 64  # pixels; larger clips are averaged down to this side
_COARSE = 32  # pixels; the side at which backdrops are compared
_GLANCES = 6  # frames in which backdrops are compared
_OUTLIER = 60.0  # distance in 8-bit RGB from which a pixel says nothing about the backdrop
_SLACK = 7.0  # mean distance by which a backdrop may be worse than the best and still be tried
_TRIED = 4  # backdrops that are tried at most
_BLURS = 3  # degrees of blur that a clip may have
_CHECKS = 0.2  # mean strength in 8-bit levels of pixel art's checks, of 8, from which they are there
_FAINT = 34.0  # distance from the backdrop below which a pixel shows none of a subject
_PALE = 0.1  # how much of a paint's missing strength counts as its being another colour
_WEIGHT = (0.3, 0.7)  # shares of the way from backdrop to paint: from nothing of a subject to all
_OFF = (45.0, 90.0)  # distance off the line from backdrop to paint: from all of a subject to nothing
_STRONG = 0.55  # share of the way to a paint from which a pixel tells its colour
_BETTER = (18.0, 30.0)  # a further colour's gain over those chosen, and its greatest misfit, where it is there
_COLOUR_SHARE = 0.03  # of the pixels that must tell a further colour
_APART = 0.12  # of the weight that must be on either side of such a line
_MOSTLY = 0.7  # of the frames in which that must hold
_CUT = 0.3  # of the mean weight along a line, below which a line may part two subjects of a colour
_SMALLEST = 14  # pixels in the frame where a subject is largest
_LESSER = 0.12  # of the largest subject's area, below which something is a smudge
_MOST = 4  # subjects
_SHORTEST = 3  # frames that a subject is seen in
_PATCH = 20  # side of the picture in which shapes are compared
_REACH = 1.5  # half the patch's side, in mean half extents of the subject
_SCALES = (0.9, 1.0, 1.1)
_SHIFTS = (-0.12, 0.0, 0.12)  # in mean half extents
_SPIN = 0.8  # of the misfit of a shape at rest, below which one that turns explains a subject better
_STILL = 0.13  # travel, as a fraction of the picture, below which a subject stays in its place
_LEAST = 0.14  # travel that a course must have
_GROWS = 1.5  # last radius over first
_GONE = 0.3  # of the median area, below which a subject is out of the picture
_FULL = 0.9  # of the greatest area, from which a subject that is never whole is as whole as it gets
_MEAN_GROWTH = 0.85  # mean radius of a subject that grows or shrinks, in nominal radii
_MISSING = 0.1  # penalty, as a fraction of the picture, for being in the picture when a course is not, or the reverse
_MEDIUM = 0.2  # radius between small and large
_NOISE = 18.0  # distance in 8-bit RGB that does not count when clips are redrawn
_GREATEST = 130.0  # distance that counts at most
_MODEL_RADIUS = 0.3  # of the drawings that shapes are compared with
_MODEL_BLUR = 6  # passes of blur over a soft drawing of this radius
_LOOKS = tuple((s, f) for s in world.SUBJECTS for f in ((1, -1) if s in world.FACING else (1,)))


@dataclass(frozen=True)
class Found:
    """A subject that was found. `facing` is 1 or -1, or 0 for one without a front.

    `path` is [T, 3] of (x, y, radius) as fractions of the picture's side, bridged where the subject is hidden;
    `visible` is [T]. `steady` says whether it has the same shape on both sides of a wall; true where there is no wall.
    """

    subject: str
    colour: str
    motion: str
    facing: int
    size: str
    path: Array
    visible: Mask
    steady: bool


@dataclass(frozen=True)
class Verdict:
    """What a clip shows. `actors` has up to four found subjects, the largest first."""

    background: str
    genre: str
    wall: bool
    actors: tuple[Found, ...]


@dataclass(frozen=True)
class _Backdrop:
    background: str
    genre: str
    wall: bool


@dataclass(frozen=True)
class _Box:
    """A subject's bounding box in every frame, in pixels, each [T] and not-a-number where there is none."""

    left: Array
    right: Array
    top: Array
    bottom: Array


def judge(frames: Frames) -> Verdict:
    """What these frames, uint8 RGB [T, H, W, 3] with H = W a multiple of 32, show."""
    _check(frames)
    pictures = _reduced(frames.astype(np.float32), _SIDE if frames.shape[1] % _SIDE == 0 else frames.shape[1])
    tried = []
    for backdrop in _with_checks(_likely(pictures), pictures):
        actors = _actors(pictures, backdrop)
        tried.append((_redrawn_misfit(pictures, backdrop, actors), backdrop, actors))
    _, best, actors = min(tried, key=lambda one: one[0])
    return Verdict(best.background, best.genre, best.wall, _collided(actors))


def _check(frames: Frames) -> None:
    wanted = "uint8 RGB frames [T, H, W, 3] with H = W a multiple of 32"
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
        raise ValueError(f"expected {wanted}, got {getattr(frames, 'dtype', type(frames).__name__)}")
    if frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise ValueError(f"expected {wanted}, got shape {frames.shape}")
    if frames.shape[1] != frames.shape[2] or frames.shape[1] % _COARSE:
        raise ValueError(f"expected {wanted}, got {frames.shape[1]}x{frames.shape[2]} pixels")


def _reduced(pictures: Array, side: int) -> Array:
    """Pictures [T, H, W, 3] averaged down to `side`² pixels, H and W being multiples of it."""
    count, size = pictures.shape[:2]
    factor = size // side
    if factor == 1:
        return pictures
    return pictures.reshape(count, side, factor, side, factor, 3).mean((2, 4))


# Backdrops


def _picture(backdrop: _Backdrop, size: int) -> tuple[Array, Array]:
    """The backdrop, RGB [H, W, 3], and how much of it stands in front, [H, W]."""
    picture, front = drawing.backdrop(backdrop.background, backdrop.genre, backdrop.wall, size)
    nearest = np.arange(size) * len(picture) // size
    return picture[nearest][:, nearest], front[nearest][:, nearest]


@cache
def _gallery() -> tuple[tuple[_Backdrop, ...], Array]:
    """Every backdrop there is, and its coarse picture: [backdrops, pixels, 3]."""
    every = tuple(
        _Backdrop(background, genre, wall)
        for background in world.BACKGROUNDS
        for genre in world.GENRES
        for wall in (False, True)
    )
    pictures = _reduced(np.stack([_picture(b, _SIDE)[0] for b in every]), _COARSE)
    return every, pictures.reshape(len(every), -1, 3)


def _likely(pictures: Array) -> list[_Backdrop]:
    """The backdrops that explain most of the clip, the best first."""
    every, gallery = _gallery()
    chosen = np.unique(np.linspace(0, len(pictures) - 1, _GLANCES).round().astype(int))
    squared = np.full(gallery.shape[:2], np.inf, np.float32)
    for frame in _reduced(pictures[chosen], _COARSE):
        squared = np.minimum(squared, np.square(gallery - frame.reshape(-1, 3)).sum(-1))
    distance = np.minimum(np.sqrt(squared), _OUTLIER).mean(1)
    order = [i for i in np.argsort(distance) if distance[i] <= distance.min() + _SLACK]
    return [every[i] for i in order[:_TRIED]]


def _with_checks(likely: list[_Backdrop], pictures: Array) -> list[_Backdrop]:
    """The likely backdrops, as pixel art where the clip has its checks and only there.

    The checks of all frames together tell, even where blur and noise hide them from the eye.
    """
    settled: list[_Backdrop] = []
    for backdrop in likely:
        plain = replace(backdrop, genre="flat") if backdrop.genre == "pixel art" else backdrop
        if plain.genre in ("flat", "outline") and _checks(plain, pictures) > _CHECKS:
            backdrop = replace(backdrop, genre="pixel art")
        elif backdrop.genre == "pixel art":
            backdrop = replace(backdrop, genre="flat")
        if backdrop not in settled:
            settled.append(backdrop)
    return settled


def _checks(backdrop: _Backdrop, pictures: Array) -> float:
    """How strong pixel art's checks are over a backdrop without them, in 8-bit levels."""
    plain = _levelled(_picture(backdrop, pictures.shape[1])[0], pictures)
    rows, columns = np.indices(plain.shape[:2]) * _COARSE // len(plain)
    apart = pictures - plain
    behind = np.square(apart).sum(-1) < _FAINT**2
    sign = np.where((rows + columns) % 2 == 0, np.float32(1), np.float32(-1))
    return float((apart.mean(-1) * sign)[behind].sum() / max(behind.sum(), 1))


def _levelled(picture: Array, pictures: Array) -> Array:
    """The backdrop [H, W, 3] as the clip has it: blurred as fits, and shifted by the median difference from it."""
    glance = pictures[:: max(1, len(pictures) // _GLANCES)]
    best, least = picture, np.inf
    for blurred in _blurs(picture):
        apart = glance - blurred
        distance = np.sqrt(np.square(apart).sum(-1))
        near = distance < _OUTLIER
        if near.mean() > 0.1:
            blurred = blurred + np.median(apart[near][::7], axis=0)
        misfit = float(np.minimum(np.sqrt(np.square(glance - blurred).sum(-1)), _OUTLIER).mean())
        if misfit < least:
            best, least = blurred, misfit
    return np.asarray(best, dtype=np.float32)


def _blurs(picture: Array) -> list[Array]:
    """A picture [H, W, ...] at rising degrees of blur, itself first."""
    blurs = [picture]
    for _ in range(_BLURS):
        blurs.append(_blurred(blurs[-1]))
    return blurs


def _blurred(picture: Array) -> Array:
    """A picture [H, W, ...] smoothed with the kernel (1, 2, 1) / 4 both ways."""
    for axis in (0, 1):
        padded = np.concatenate([picture.take([0], axis), picture, picture.take([-1], axis)], axis)
        size = picture.shape[axis]
        low, middle, high = (padded.take(range(k, k + size), axis) for k in range(3))
        picture = (low + high + 2 * middle) / 4
    return np.asarray(picture, dtype=np.float32)


# Finding subjects


def _actors(pictures: Array, backdrop: _Backdrop) -> tuple[Found, ...]:
    """The subjects in front of a backdrop, the largest first."""
    picture, front = _picture(backdrop, pictures.shape[1])
    clear = ~_grown(front[None] > 0.5)[0]
    weights = _by_colour(pictures, _levelled(picture, pictures), clear, backdrop.genre)
    parts = [(colour, part) for colour, weight in weights.items() for part in _parts(weight, backdrop.wall)]
    if not parts:
        return ()
    parts.sort(key=lambda one: -_area(one[1]))
    largest = _area(parts[0][1])
    kept: list[tuple[str, Array]] = []
    for colour, part in parts:
        if _area(part) >= _LESSER * largest and not any(_within(part, other) for _, other in kept):
            kept.append((colour, part))
    kept = kept[:_MOST]
    found = [_found(part, colour, clear, backdrop) for colour, part in kept]
    return tuple(actor for actor in found if actor is not None)


def _within(part: Array, other: Array) -> bool:
    """Whether a weight [T, H, W] is mostly within the bounds of another: a fringe of that, no subject."""
    own, bounds = _box(part), _box(other)
    x, y = (own.left + own.right) / 2, (own.top + own.bottom) / 2
    inside = (x > bounds.left) & (x < bounds.right) & (y > bounds.top) & (y < bounds.bottom)
    return bool(inside.sum() > 0.6 * np.isfinite(x).sum())


def _area(weight: Array) -> float:
    """Pixels in the frame where something weighs most."""
    return float(weight.sum((1, 2)).max())


def _paints(genre: str) -> Array:
    """The paint of every colour, [colours, shades, 3]: pixel art has a dark rim in a second shade."""
    paints = np.stack([drawing.paint(genre, np.asarray(c, np.float32)) for c in world.COLOURS.values()])
    return np.stack([paints, paints * np.float32(0.5)], 1) if genre == "pixel art" else paints[:, None]


def _by_colour(pictures: Array, behind: Array, clear: Mask, genre: str) -> dict[str, Array]:
    """For each colour that is in the clip, how much of it every pixel has: [T, H, W], 0 to 1."""
    apart = pictures - behind
    foreground = (np.square(apart).sum(-1) > _FAINT**2) & clear
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


def _unmixed(apart: Array, below: Array, paints: Array) -> tuple[Array, Array, Array]:
    """How far pixels are on the way to each colour, how far off that way, and their misfit: three [pixels, colours].

    `apart` is the pixels' difference from what is `below` them, both [pixels, 3]; `paints` is [colours, shades, 3].
    """
    best: list[list[Array]] = []
    for shades in paints:
        options = []
        for paint in shades:
            way = paint - below
            length = np.maximum(np.square(way).sum(1), 1)
            share = np.clip((apart * way).sum(1) / length, 0, 1.15)
            off = np.sqrt(np.square(apart - share[:, None] * way).sum(1))
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
    while len(chosen) < _MOST:
        left = misfit[:, chosen].min(1, keepdims=True)
        telling = ((left - misfit > _BETTER[0]) & (misfit < _BETTER[1])).mean(0)
        if telling.max() < _COLOUR_SHARE:
            break
        chosen.append(int(telling.argmax()))
    return chosen


def _parts(weight: Array, wall: bool) -> list[Array]:
    """The subjects of one colour, each a weight [T, H, W], from all that has this colour."""
    cut = _cut(weight)
    labels = _components(cut > 0.4)
    pieces = []
    for number in range(1, labels.max() + 1):
        frames, rows, columns = np.nonzero(labels == number)
        if len(frames) >= _SMALLEST:
            pieces.append((frames, rows, columns))
    pieces.sort(key=lambda piece: -len(piece[0]))
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
        part = np.where(_grown(part > 0), np.maximum(part, weight), 0)
        if _area(part) >= _SMALLEST and (part.sum((1, 2)) > 4).sum() >= _SHORTEST:
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


def _grown(mask: Mask) -> Mask:
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


# Shapes


def _edges(profile: Array) -> tuple[Array, Array]:
    """Where profiles [T, N] first rise above one half and last fall below it, in pixels; not-a-number if never."""
    padded = np.pad(profile, ((0, 0), (1, 1)))
    above = padded >= 0.5
    rows = np.arange(len(padded))

    def first(values: Array, over: Mask) -> Array:
        at = over.argmax(1)
        here, before = values[rows, at], values[rows, np.maximum(at - 1, 0)]
        return at - 0.5 - (here - 0.5) / np.maximum(here - before, 1e-3)

    low = first(padded, above)
    high = profile.shape[1] - first(padded[:, ::-1], above[:, ::-1])
    never = ~above.any(1)
    low[never], high[never] = np.nan, np.nan
    return low.astype(np.float32), high.astype(np.float32)


def _box(weight: Array) -> _Box:
    return _Box(*_edges(weight.max(1)), *_edges(weight.max(2)))


def _patches(weight: Array, centre_x: Array, centre_y: Array, extent: Array) -> tuple[Array, Array]:
    """Square cut-outs of pictures [T, H, W] around centres, `extent` being the mean half extent; all in pixels, [T].

    Returns [T, patch²] values, by bilinear interpolation, and whether each is inside the picture.
    """
    size = weight.shape[1]
    line = ((np.arange(_PATCH) + 0.5) / _PATCH * 2 - 1) * _REACH
    x = centre_x[:, None] + line * extent[:, None] - 0.5
    y = centre_y[:, None] + line * extent[:, None] - 0.5
    inside = ((y > -0.5) & (y < size - 0.5))[:, :, None] & ((x > -0.5) & (x < size - 0.5))[:, None, :]
    x, y = np.clip(x, 0, size - 1.001), np.clip(y, 0, size - 1.001)
    left, top = x.astype(int), y.astype(int)
    across, along = (x - left)[:, None, :], (y - top)[:, :, None]
    frame = np.arange(len(weight))[:, None, None]
    left, top = left[:, None, :], top[:, :, None]
    upper = weight[frame, top, left] * (1 - across) + weight[frame, top, left + 1] * across
    lower = weight[frame, top + 1, left] * (1 - across) + weight[frame, top + 1, left + 1] * across
    values = (upper * (1 - along) + lower * along) * inside
    return values.reshape(len(weight), -1).astype(np.float32), inside.reshape(len(weight), -1)


@dataclass(frozen=True)
class _Models:
    """What each of `_LOOKS` should look like, as patches that differ a little in scale and, at rest, in place.

    `still` is [looks, 1, variants, patch²], `turning` [looks, T, variants, patch²]; `extent` is the mean half extent at
    rest in nominal radii and `aspect` width over height, both [looks].
    """

    still: Array
    turning: Array
    extent: Array
    aspect: Array


@cache
def _models(genre: str, frames: int, soft: bool) -> _Models:
    """The shapes drawn in a genre, as sharp as can be or as a soft clip has them."""
    still, turning, extents, aspects = [], [], [], []
    drawn = "flat" if genre == "pixel art" else genre
    behind = _picture(_Backdrop("black", drawn, False), _SIDE)[0]
    for subject, facing in _LOOKS:
        actor = world.Actor(subject, "yellow", "spins", _MODEL_RADIUS, (0.5, 0.5), (0.5, 0.5), 0.0, facing)
        clip = drawing.render(world.Scene("single", (actor,), "black", drawn), frames, _SIDE).astype(np.float32)
        if soft:
            clip = np.moveaxis(_softened(np.moveaxis(clip, 0, 2)), 2, 0)
        weight = _by_colour(clip, behind, np.ones(behind.shape[:2], bool), genre)["yellow"]
        box = _box(weight)
        extent = (box.right - box.left + box.bottom - box.top) / 4
        x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
        turning.append(np.stack([_patches(weight, x, y, extent * scale)[0] for scale in _SCALES], 1))
        variants = np.array([(i, j, k) for i in _SHIFTS for j in _SHIFTS for k in _SCALES], np.float32).T
        rest = np.broadcast_to(weight[0], (variants.shape[1], *weight.shape[1:]))
        at_x, at_y = x[0] + extent[0] * variants[0], y[0] + extent[0] * variants[1]
        still.append(_patches(rest, at_x, at_y, extent[0] * variants[2])[0][None])
        extents.append(extent[0] / (_MODEL_RADIUS * _SIDE))
        aspects.append((box.right - box.left)[0] / (box.bottom - box.top)[0])
    return _Models(np.stack(still), np.stack(turning), np.asarray(extents), np.asarray(aspects))


def _softened(pictures: Array) -> Array:
    """Pictures [H, W, ...] of shapes as soft, for their size, as a soft clip's."""
    for _ in range(_MODEL_BLUR):
        pictures = _blurred(pictures)
    return pictures


def _model_genre(genre: str) -> str:
    """The genre whose shapes look like this one's once paint is told from backdrop."""
    return "flat" if genre in ("watercolour", "chalkboard") else genre


def _misfits(patches: Array, valid: Mask, models: Array) -> Array:
    """Mean squared differences of patches [T, patch²], where valid, from models [looks, T or 1, variants, patch²].

    Each frame chooses its own variant; returns [looks].
    """
    known = valid.astype(np.float32)
    seen = patches * known
    if models.shape[1] == 1:
        flat = models[:, 0].reshape(-1, models.shape[-1])
        cross, own = seen @ flat.T, known @ np.square(flat).T
    else:
        flat = np.moveaxis(models, 1, 0).reshape(len(patches), -1, models.shape[-1])
        cross = np.einsum("tp,tmp->tm", seen, flat)
        own = np.einsum("tp,tmp->tm", known, np.square(flat))
    squared = np.square(seen).sum(1)[:, None] - 2 * cross + own
    squared = squared.reshape(len(patches), len(models), -1).min(2) / np.maximum(known.sum(1), 1)[:, None]
    return np.asarray(squared.mean(0))


def _found(weight: Array, colour: str, clear: Mask, backdrop: _Backdrop) -> Found | None:
    """What a weight [T, H, W] of one colour shows, `clear` [H, W] being where nothing stands before it."""
    size = weight.shape[1]
    box, area = _box(weight), weight.sum((1, 2))
    seen = (area > _GONE * np.median(area[area > 0])) & np.isfinite(box.left)
    if seen.sum() < _SHORTEST:
        return None
    whole = seen & ~_clipped(weight, clear)
    middle = (box.left + box.right) / 2
    sides = [seen & (middle < size / 2), seen & (middle >= size / 2)] if backdrop.wall else [seen]
    used = whole
    if backdrop.wall or whole.sum() < 2:
        used = np.any([side & (area >= _FULL * area[side].max(initial=0)) for side in sides], axis=0)
    genre = _model_genre(backdrop.genre)
    path = _box_track(box, seen, whole, used, clear)
    may_turn = bool(np.ptp(path[used][:, :2], axis=0).max() < _STILL)
    look, spins = _look(*_cut_out(weight, path, clear), used, genre, may_turn)
    if not whole[used].all():
        path = _box_track(box, seen, whole, used, clear, _aspect(look, genre))
        look, spins = _look(*_cut_out(weight, path, clear), used, genre, may_turn)
    patches, known = _cut_out(weight, path, clear)
    subject, facing = _LOOKS[look]
    steady = all(
        part.any() and _LOOKS[_look(patches, known, part, genre, False)[0]][0] == subject
        for part in (side & used for side in sides if backdrop.wall)
    )
    path[:, 2] /= _models(genre, len(weight), False).extent[look]
    sure = whole if whole.sum() >= max(_SHORTEST, seen.sum() / 2) else seen
    motion = "spins" if spins else _motion(path, seen, sure)
    radius = float(path[used, 2].mean()) / (_MEAN_GROWTH if motion in ("grows", "shrinks") else 1)
    sized = "large" if radius > _MEDIUM else "small"
    return Found(subject, colour, motion, facing if subject in world.FACING else 0, sized, path, seen, steady)


def _aspect(look: int, genre: str) -> float:
    """Width over height of one of `_LOOKS` at rest."""
    return float(_models(genre, 1, False).aspect[look])


def _cut_out(weight: Array, path: Array, clear: Mask) -> tuple[Array, Mask]:
    """Patches [T, patch²] along a track [T, 3], and which of their pixels are in sight."""
    track = path.T * weight.shape[1]
    patches, inside = _patches(weight, *track)
    in_sight = _patches(np.broadcast_to(clear.astype(np.float32), weight.shape), *track)[0]
    return patches, inside & (in_sight > 0.9)


def _look(patches: Array, known: Mask, used: Mask, genre: str, may_turn: bool) -> tuple[int, bool]:
    """Which of `_LOOKS` patches [T, patch²], where known, are most like in the frames used.

    Returns its number and whether it turns.
    """
    patches, known = patches[used], known[used]
    best, least = (0, False), np.inf
    for soft in (False, True):
        models = _models(genre, len(used), soft)
        misfit, spins = _misfits(patches, known, models.still), False
        if may_turn:
            turning = _misfits(patches, known, models.turning[:, used])
            turning[0] = np.inf  # a ball that turns looks like one that does not
            if turning.min() < _SPIN * misfit.min():
                misfit, spins = turning, True
        look = int(misfit.argmin())
        if misfit[look] < least:
            best, least = (look, spins), misfit[look]
    return best


def _clipped(weight: Array, clear: Mask) -> Mask:
    """Whether, in each frame of a weight [T, H, W], something touches the picture's border or what stands in front."""
    rim = _grown(~clear[None])[0]
    rim[:1], rim[-1:], rim[:, :1], rim[:, -1:] = True, True, True, True
    return np.asarray(((weight > 0.5) & rim).sum((1, 2)) > 1)


def _box_track(box: _Box, seen: Mask, whole: Mask, used: Mask, clear: Mask, aspect: float = 0.0) -> Array:
    """Centre and mean half extent in every frame as fractions, [T, 3] of (x, y, extent), bridged where not seen.

    Where a border or the wall cuts off one side, the centre is told from the other side and the extent seen elsewhere,
    or, where `aspect` is given, the height seen elsewhere and this width over height.
    """
    size = len(clear)
    half_y = float(np.median((box.bottom - box.top)[used])) / 2
    half_x = half_y * aspect if aspect else float(np.median((box.right - box.left)[used])) / 2
    x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
    extent = (box.right - box.left + box.bottom - box.top) / 4
    hidden = ~clear.all(0)
    for i in np.flatnonzero(seen & ~whole):
        left, right = box.left[i], box.right[i]
        cut_left = left < 1 or hidden[max(int(left) - 2, 0)]
        cut_right = right > size - 1 or hidden[min(int(right) + 1, size - 1)]
        if cut_left and not cut_right:
            x[i] = right - half_x
        elif cut_right and not cut_left:
            x[i] = left + half_x
        if box.top[i] < 1:
            y[i] = box.bottom[i] - half_y
        elif box.bottom[i] > size - 1:
            y[i] = box.top[i] + half_y
        extent[i] = (half_x + half_y) / 2
    times = np.arange(len(seen))
    return np.stack([np.interp(times, times[seen], c[seen]) / size for c in (x, y, extent)], 1).astype(np.float32)


# Motions


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


def _motion(path: Array, seen: Mask, whole: Mask) -> str:
    """The motion of a track [T, 3] of (x, y, radius), of which the frames `whole` are sure."""
    frames = np.flatnonzero(whole)
    sure = path[frames]
    if np.ptp(sure[:, :2], axis=0).max() < _STILL:
        slope, start = np.polyfit(frames / max(len(path) - 1, 1), sure[:, 2], 1)
        ratio = max(start + slope, 1e-3) / max(start, 1e-3)
        return "grows" if ratio > _GROWS else "shrinks" if ratio < 1 / _GROWS else "stays"
    errors = {c.motion: _course_misfit(c, path, seen) for c in _courses(len(path))}
    return min(errors, key=errors.__getitem__)


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
    return squared**0.5


def _collided(actors: tuple[Found, ...]) -> tuple[Found, ...]:
    """The actors with their motions as a collision's, where one that stops sets another off, and as others' if not."""
    motions = [actor.motion for actor in actors]
    for way in ("left", "right"):
        if len(actors) == 2 and f"is hit {way}" in motions:
            other = 1 - motions.index(f"is hit {way}")
            if motions[other] == f"stops {way}":
                motions[other], motions[1 - other] = f"hits {way}", "is hit"
    motions = [m.split()[-1] if m.startswith("is hit ") else m for m in motions]
    return tuple(replace(actor, motion=motion) for actor, motion in zip(actors, motions, strict=True))


# Redrawing


def _redrawn_misfit(pictures: Array, backdrop: _Backdrop, actors: tuple[Found, ...]) -> float:
    """How far, in 8-bit RGB, the clip is from the backdrop with the actors drawn on it."""
    size = pictures.shape[1]
    behind = _picture(backdrop, size)[0]
    chosen = np.unique(np.linspace(0, len(pictures) - 1, _GLANCES).round().astype(int))
    shift = np.median((pictures[chosen] - behind).reshape(-1, 3), axis=0)
    misfits = []
    for i in chosen:
        drawn = tuple(_posed(actor, i) for actor in actors if actor.visible[i])
        scene = world.Scene("wall" if backdrop.wall else "single", drawn, backdrop.background, backdrop.genre)
        misfits.append(_apart(pictures[i] - shift, drawing.render(scene, 1, size)[0].astype(np.float32)))
    return float(np.mean(misfits)) + _misfit_behind(pictures, behind)


def _misfit_behind(pictures: Array, behind: Array) -> float:
    """How far, in 8-bit RGB, the backdrop [H, W, 3] is from the mean of what the clip shows of it."""
    apart = pictures - _levelled(behind, pictures)
    shown = (np.square(apart).sum(-1) < _FAINT**2)[..., None]
    mean = (apart * shown).sum(0) / np.maximum(shown.sum(0), 1)
    return float(np.sqrt(np.square(mean).sum(-1)).mean())


def _posed(actor: Found, frame: int) -> world.Actor:
    x, y, radius = (float(v) for v in actor.path[frame])
    return world.Actor(actor.subject, actor.colour, "stays", radius, (x, y), (x, y), 0.0, actor.facing or 1)


def _apart(picture: Array, rendered: Array) -> float:
    """The mean distance between two pictures [H, W, 3] beyond noise, at the blur of the second that is best."""
    return min(
        float(np.clip(np.sqrt(np.square(picture - blurred).sum(-1)) - _NOISE, 0, _GREATEST).mean())
        for blurred in _blurs(rendered)
    )
