"""What a subject looks like: the shape, drawn in the genre, that its cut-outs are most like, at rest or turning."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from kinograph.starter import drawing, world
from kinograph.starter.judge_backdrops import Backdrop, blurred, picture_of
from kinograph.starter.judge_parts import by_colour

__all__ = ["LOOKS", "Box", "box_of", "cut_out", "look_of", "models_of"]

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]

_PATCH = 20  # side of the picture in which shapes are compared
_REACH = 1.5  # half the patch's side, in mean half extents of the subject
_SCALES = (0.9, 1.0, 1.1)
_SHIFTS = (-0.12, 0.0, 0.12)  # in mean half extents
_SPIN = 0.8  # of the misfit of a shape at rest, below which one that turns explains a subject better
_MODEL_SIDE = 48  # pixels, of the drawings that shapes are compared with
_MODEL_RADIUS = 0.3  # of their subjects
_MODEL_BLUR = 4  # passes of blur over a soft drawing of this radius
LOOKS = tuple((s, f) for s in world.SUBJECTS for f in ((1, -1) if s in world.FACING else (1,)))


@dataclass(frozen=True)
class Box:
    """A subject's bounding box in every frame, in pixels, each [T] and not-a-number where there is none."""

    left: Array
    right: Array
    top: Array
    bottom: Array


def box_of(weight: Array) -> Box:
    return Box(*_edges(weight.max(1)), *_edges(weight.max(2)))


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


def cut_out(weight: Array, path: Array, clear: Mask) -> tuple[Array, Mask]:
    """Patches [T, patch²] along a track [T, 3], and which of their pixels are in sight."""
    track = path.T * weight.shape[1]
    patches, inside = _patches(weight, *track)
    in_sight = _patches(np.broadcast_to(clear.astype(np.float32), weight.shape), *track)[0]
    return patches, inside & (in_sight > 0.9)


def _patches(weight: Array, centre_x: Array, centre_y: Array, extent: Array) -> tuple[Array, Mask]:
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
    """What each of `LOOKS` should look like, as patches that differ a little in scale and, at rest, in place.

    `still` is [looks, 1, variants, patch²], `turning` [looks, T, variants, patch²]; `extent` is the mean half extent at
    rest in nominal radii and `aspect` width over height, both [looks].
    """

    still: Array
    turning: Array
    extent: Array
    aspect: Array


@cache
def models_of(genre: str, frames: int, soft: bool) -> _Models:
    """The shapes drawn in a genre, as sharp as can be or as a soft clip has them."""
    still, turning, extents, aspects = [], [], [], []
    drawn = "flat" if genre == "pixel art" else genre
    behind = picture_of(Backdrop("black", drawn, False), _MODEL_SIDE)[0]
    for subject, facing in LOOKS:
        actor = world.Actor(subject, "yellow", "spins", _MODEL_RADIUS, (0.5, 0.5), (0.5, 0.5), 0.0, facing)
        clip = drawing.render(world.Scene("single", (actor,), "black", drawn), frames, _MODEL_SIDE).astype(np.float32)
        if soft:
            clip = np.moveaxis(_softened(np.moveaxis(clip, 0, 2)), 2, 0)
        weight = by_colour(clip, behind, np.ones(behind.shape[:2], bool), genre)["yellow"]
        box = box_of(weight)
        extent = (box.right - box.left + box.bottom - box.top) / 4
        x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
        turning.append(np.stack([_patches(weight, x, y, extent * scale)[0] for scale in _SCALES], 1))
        variants = np.array([(i, j, k) for i in _SHIFTS for j in _SHIFTS for k in _SCALES], np.float32).T
        rest = np.broadcast_to(weight[0], (variants.shape[1], *weight.shape[1:]))
        at_x, at_y = x[0] + extent[0] * variants[0], y[0] + extent[0] * variants[1]
        still.append(_patches(rest, at_x, at_y, extent[0] * variants[2])[0][None])
        extents.append(extent[0] / (_MODEL_RADIUS * _MODEL_SIDE))
        aspects.append((box.right - box.left)[0] / (box.bottom - box.top)[0])
    return _Models(np.stack(still), np.stack(turning), np.asarray(extents), np.asarray(aspects))


def _softened(pictures: Array) -> Array:
    """Pictures [H, W, ...] of shapes as soft, for their size, as a soft clip's."""
    for _ in range(_MODEL_BLUR):
        pictures = blurred(pictures)
    return pictures


def look_of(patches: Array, known: Mask, used: Mask, genre: str, may_turn: bool) -> tuple[int, bool]:
    """Which of `LOOKS` patches [T, patch²], where known, are most like in the frames used.

    Returns its number and whether it turns.
    """
    patches, known = patches[used], known[used]
    best, least = (0, False), np.inf
    for soft in (False, True):
        models = models_of(genre, len(used), soft)
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
