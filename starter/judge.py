"""Says what a clip shows, by plain image analysis: backdrop, genre, and every subject with its look and motion.

The judge knows the world's palette and drawing, nothing of any model or prompt. It looks for the backdrops that explain
the clip best (`judge_backdrops`); what differs from a backdrop is split by colour into subjects and followed over time
(`judge_parts`). A subject's shape is that of the drawing that looks most like it (`judge_shapes`), its motion the one
whose course fits its track (`judge_motions`). Where several genres have much the same backdrop, all are tried, and the
one that redraws the clip best is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kinograph.starter import drawing, world
from kinograph.starter.judge_backdrops import (
    FAINT,
    Backdrop,
    blurs,
    explained,
    levelled,
    likely,
    picture_of,
    reduced,
    squared,
)
from kinograph.starter.judge_motions import STILL, motion_of
from kinograph.starter.judge_parts import area_of, by_colour, grown, parts_of
from kinograph.starter.judge_shapes import LOOKS, Box, box_of, cut_out, look_of, models_of

__all__ = ["Found", "Verdict", "judge"]

Frames = NDArray[np.uint8]
Array = NDArray[np.floating]
Mask = NDArray[np.bool_]

_SIDE = 64  # pixels; larger clips are averaged down to this side
_UNIT = 32  # pixels; a clip's side is a multiple of it
_GLANCES = 6  # frames in which clips are redrawn
_SMUDGE = 0.06  # of the largest subject's area, below which something is none
_SPLINTER = 0.12  # the same for something of a larger one's colour
_INSIDE = 0.6  # of the frames in which a fringe is within the bounds of its subject
_MOST = 4  # subjects
_SHORTEST = 3  # frames in which a subject is seen at least
_GONE = 0.3  # of the median area, below which a subject is out of the picture
_FULL = 0.9  # of the greatest area, from which a subject that is never whole is as whole as it gets
_MEDIUM = 0.2  # radius between small and large
_NOISE = 18.0  # distance in 8-bit RGB that does not count when clips are redrawn
_GREATEST = 130.0  # distance that counts at most


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


def judge(frames: Frames) -> Verdict:
    """What these frames, uint8 RGB [T, H, W, 3] with H = W a multiple of 32, show."""
    _check(frames)
    pictures = reduced(frames.astype(np.float32), _SIDE if frames.shape[1] % _SIDE == 0 else frames.shape[1])
    tried = likely(pictures)
    actors = {backdrop: _actors(pictures, backdrop) for backdrop in tried}
    best = tried[0]
    if len(tried) > 1:
        best = min(tried, key=lambda backdrop: _redrawn_misfit(pictures, backdrop, actors[backdrop]))
    return Verdict(best.background, best.genre, best.wall, _collided(actors[best]))


def _check(frames: Frames) -> None:
    wanted = "uint8 RGB frames [T, H, W, 3] with H = W a multiple of 32"
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
        raise ValueError(f"expected {wanted}, got {getattr(frames, 'dtype', type(frames).__name__)}")
    if frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise ValueError(f"expected {wanted}, got shape {frames.shape}")
    if frames.shape[1] != frames.shape[2] or frames.shape[1] % _UNIT:
        raise ValueError(f"expected {wanted}, got {frames.shape[1]}x{frames.shape[2]} pixels")


def _actors(pictures: Array, backdrop: Backdrop) -> tuple[Found, ...]:
    """The subjects in front of a backdrop, the largest first."""
    picture, front = picture_of(backdrop, pictures.shape[1])
    clear = ~grown(front[None] > 0.5)[0]
    behind = levelled(picture, pictures)
    weights = by_colour(pictures, behind, clear, backdrop.genre)
    scenery = explained(pictures, picture, behind)
    parts = [(colour, part) for colour, weight in weights.items() for part in parts_of(weight, scenery, backdrop.wall)]
    if not parts:
        return ()
    parts.sort(key=lambda one: -area_of(one[1]))
    kept: list[tuple[str, Array]] = []
    for colour, part in parts:
        alike = any(own == colour for own, _ in kept)
        large = area_of(part) >= (_SPLINTER if alike else _SMUDGE) * area_of(parts[0][1])
        if large and not any(_within(part, other) for _, other in kept):
            kept.append((colour, part))
    kept = kept[:_MOST]
    found = [_found(part, colour, clear, backdrop) for colour, part in kept]
    return tuple(actor for actor in found if actor is not None)


def _within(part: Array, other: Array) -> bool:
    """Whether a weight [T, H, W] is mostly within the bounds of another: a fringe of that, no subject."""
    own, bounds = box_of(part), box_of(other)
    x, y = (own.left + own.right) / 2, (own.top + own.bottom) / 2
    inside = (x > bounds.left) & (x < bounds.right) & (y > bounds.top) & (y < bounds.bottom)
    return bool(inside.sum() > _INSIDE * np.isfinite(x).sum())


def _found(weight: Array, colour: str, clear: Mask, backdrop: Backdrop) -> Found | None:
    """What a weight [T, H, W] of one colour shows, `clear` [H, W] being where nothing stands before it."""
    size = weight.shape[1]
    box, area = box_of(weight), weight.sum((1, 2))
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
    may_turn = bool(np.ptp(path[used][:, :2], axis=0).max() < STILL)
    look, spins = look_of(*cut_out(weight, path, clear), used, genre, may_turn)
    if not whole[used].all():
        path = _box_track(box, seen, whole, used, clear, _aspect(look, genre))
        look, spins = look_of(*cut_out(weight, path, clear), used, genre, may_turn)
    patches, known = cut_out(weight, path, clear)
    subject, facing = LOOKS[look]
    steady = all(
        part.any() and LOOKS[look_of(patches, known, part, genre, False)[0]][0] == subject
        for part in (side & used for side in sides if backdrop.wall)
    )
    path[:, 2] /= models_of(genre, len(weight), False).extent[look]
    sure = whole if whole.sum() >= max(_SHORTEST, seen.sum() / 2) else seen
    motion = "spins" if spins else motion_of(path, seen, sure)
    growth = world.track(world.Actor(subject, colour, motion, 1.0, (0.0, 0.0), (0.0, 0.0)), len(path))[:, 2]
    sized = "large" if float((path[used, 2] / growth[used]).mean()) > _MEDIUM else "small"
    return Found(subject, colour, motion, facing if subject in world.FACING else 0, sized, path, seen, steady)


def _model_genre(genre: str) -> str:
    """The genre whose shapes look like this one's once paint is told from backdrop."""
    return "flat" if genre in ("watercolour", "chalkboard") else genre


def _aspect(look: int, genre: str) -> float:
    """Width over height of one of `LOOKS` at rest."""
    return float(models_of(genre, 1, False).aspect[look])


def _clipped(weight: Array, clear: Mask) -> Mask:
    """Whether, in each frame of a weight [T, H, W], something touches the picture's border or what stands in front."""
    rim = grown(~clear[None])[0]
    rim[:1], rim[-1:], rim[:, :1], rim[:, -1:] = True, True, True, True
    return np.asarray(((weight > 0.5) & rim).sum((1, 2)) > 1)


def _box_track(box: Box, seen: Mask, whole: Mask, used: Mask, clear: Mask, aspect: float = 0.0) -> Array:
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


def _redrawn_misfit(pictures: Array, backdrop: Backdrop, actors: tuple[Found, ...]) -> float:
    """How far, in 8-bit RGB, the clip is from the backdrop with the actors drawn on it."""
    size = pictures.shape[1]
    behind = picture_of(backdrop, size)[0]
    chosen = np.unique(np.linspace(0, len(pictures) - 1, _GLANCES).round().astype(int))
    if any(actor.motion == "spins" for actor in actors):
        chosen = chosen[:1]  # where it is upright
    shift = np.median((pictures[chosen] - behind).reshape(-1, 3), axis=0)
    misfits = []
    for i in chosen:
        drawn = tuple(_posed(actor, i) for actor in actors if actor.visible[i])
        scene = world.Scene("wall" if backdrop.wall else "single", drawn, backdrop.background, backdrop.genre)
        misfits.append(_apart(pictures[i] - shift, drawing.render(scene, 1, size)[0].astype(np.float32)))
    return float(np.mean(misfits)) + _misfit_behind(pictures, behind)


def _misfit_behind(pictures: Array, behind: Array) -> float:
    """How far, in 8-bit RGB, the backdrop [H, W, 3] is from the mean of what the clip shows of it."""
    apart = pictures - levelled(behind, pictures)
    shown = (squared(apart) < FAINT**2)[..., None]
    mean = (apart * shown).sum(0) / np.maximum(shown.sum(0), 1)
    return float(np.sqrt(squared(mean)).mean())


def _posed(actor: Found, frame: int) -> world.Actor:
    x, y, radius = (float(v) for v in actor.path[frame])
    return world.Actor(actor.subject, actor.colour, "stays", radius, (x, y), (x, y), 0.0, actor.facing or 1)


def _apart(picture: Array, rendered: Array) -> float:
    """The mean distance between two pictures [H, W, 3] beyond noise, at the blur of the second that is best."""
    return min(
        float(np.clip(np.sqrt(squared(picture - blurred)) - _NOISE, 0, _GREATEST).mean()) for blurred in blurs(rendered)
    )
