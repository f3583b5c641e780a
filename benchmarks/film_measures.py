"""What is measured of a film that was continued, joined or made for long, beside what the judge finds in it."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from kinograph.starter import drawing, world
from kinograph.starter.judge import judge
from kinograph.starter.measures import matched

__all__ = ["border", "centre", "kept", "outlines", "pixel_drift", "seam", "shown"]

Frames = NDArray[np.uint8]

_NEIGHBOURS = 4  # frames on either side of a join
_STANDS_OUT = 24  # levels of 255 by which a subject's pixel differs from the backdrop


def seam(frames: Frames, join: int) -> float:
    """The change into frame `join` over the median of its neighbours' changes."""
    changes = np.abs(np.diff(frames.astype(np.float64), axis=0)).mean((1, 2, 3))
    around = [*range(max(0, join - 1 - _NEIGHBOURS), join - 1), *range(join, min(len(changes), join + _NEIGHBOURS))]
    return float(changes[join - 1] / max(np.median(changes[around]), 0.5))


def shown(scene: world.Scene, frames: Frames) -> tuple[str, str] | None:
    """The subject and colour of what stands for the scene's first actor in these frames; None if nothing does."""
    found = matched(scene, judge(frames))[0]
    return None if found is None else (found.subject, found.colour)


def kept(scene: world.Scene, frames: Frames) -> tuple[bool, bool]:
    """Whether these frames show the scene's subject, and in its colour."""
    actor = scene.actors[0]
    subject, colour = shown(scene, frames) or (None, None)
    return subject == actor.subject, colour == actor.colour


def outlines(scene: world.Scene, given: Frames, made: Frames) -> NDArray[np.float64]:
    """How much every frame of `made` shows one subject of the `given` outline, wherever it is: 1 all, 0 nothing of it.

    What is seen of it, laid over what is seen in given frames, centre on centre: the best intersection over union. Less
    is there of a subject that has gone, lost a piece, or has another piece of itself beside it.
    """
    backdrop = drawing.render(dataclasses.replace(scene, actors=()), 1, given.shape[1])[0]
    models = [_centred(frame, backdrop) for frame in given[::4]]
    seen = [_centred(frame, backdrop) for frame in made]
    return np.array([max((one & m).sum() / max(1, (one | m).sum()) for m in models) for one in seen])


def _centred(frame: Frames, backdrop: Frames) -> NDArray[np.bool_]:
    """Where a frame [H, W, 3] differs from its backdrop, its centre moved to the middle: [2H, 2W]."""
    height, width = frame.shape[:2]
    moved = np.zeros((2 * height, 2 * width), bool)
    rows, columns = np.nonzero(np.abs(frame.astype(int) - backdrop).max(2) > _STANDS_OUT)
    if len(rows):
        moved[rows - round(rows.mean()) + height, columns - round(columns.mean()) + width] = True
    return moved


def pixel_drift(early: Frames, late: Frames) -> float:
    """How many levels the backdrop's colour has moved: along the border, the median of every pixel's own change.

    Of the channel that changed most, over both clips' time. It stands beside the change of the border's median colour,
    which between two tones of half the border each is that of the few pixels between them.
    """
    change = np.abs(_edges(late).mean(axis=0) - _edges(early).mean(axis=0))
    return float(np.median(change, axis=0).max())


def border(frames: Frames) -> NDArray[np.float64]:
    """The median colour along the picture's border, RGB."""
    return np.asarray(np.median(_edges(frames).reshape(-1, 3), axis=0))


def _edges(frames: Frames) -> Frames:
    """The two outermost rows and columns of frames [T, H, W, 3], as [T, N, 3]."""
    edges = [frames[:, :2], frames[:, -2:], frames[:, :, :2], frames[:, :, -2:]]
    return np.concatenate([edge.reshape(len(frames), -1, 3) for edge in edges], axis=1)


def centre(frames: Frames) -> NDArray[np.float64]:
    """Where what is not of the border's colour is in the middle of these frames' time: x and y in pixels."""
    _, rows, columns = np.nonzero(np.abs(frames - border(frames)).max(3) > 2 * _STANDS_OUT)
    return np.array([columns.mean(), rows.mean()])
