"""Windows: how a film longer than the model makes in one go is cut into runs that follow from each other.

A film is one sequence of latent frames. A window is as long as what the model was trained on; it begins within what the
window before has made, which is given to it, and what it makes beyond that is kept. Nothing is decoded and encoded
again but a window's very first frame, because the codec's first latent frame stands for one frame and the others for
several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Window", "plan", "plan_back"]


@dataclass(frozen=True)
class Window:
    """A run over `count` latent frames, which are the film's from `start`.

    The first `given` of them are there already; those up to, and without, `kept` stay in the film, the rest is dropped.
    After a `cut` the one that is there is not given: the film's stands for several frames and a window's first for one,
    so that it is made and dropped.
    """

    start: int
    count: int
    given: int
    kept: int
    cut: bool = False

    @property
    def end(self) -> int:
        """How many latent frames the film has after it."""
        return self.start + self.kept


def plan(total: int, length: int, overlap: int, ending: int = 0, cuts: Sequence[int] = ()) -> list[Window]:
    """Windows of `length` latent frames for a film of `total`, each given `overlap` of the one before.

    `overlap` counts the first frame, so it is at least 1 and less than `length`. The last `ending` latent frames of the
    film are known; the last window has them, and before them as much that is to be made as it can. At `cuts`, rising
    numbers of latent frames within the film, nothing is given of what was before; a film has those or an ending.
    """
    if cuts:
        return [window for begin, end in pairwise([0, *cuts, total]) for window in _shot(begin, end, length, overlap)]
    if total <= length:
        return [Window(0, total, 0, total)]
    # Where frames are known at the end, the last window reaches back from there as far as it can.
    windows = _shot(0, total - length + overlap if ending else total, length, overlap)
    if ending:
        start = total - length
        windows.append(Window(start, length, windows[-1].end - start, length))
    return windows


def _shot(begin: int, end: int, length: int, overlap: int) -> list[Window]:
    """Windows for the film's latent frames from `begin` to `end`, which follow from each other alone."""
    lead = 1 if begin else 0
    windows = [Window(begin - lead, length, lead, min(length, end - begin + lead), cut=begin > 0)]
    while windows[-1].end < end:
        done = windows[-1].end
        windows.append(Window(done - overlap, length, overlap, min(length, end - done + overlap)))
    return windows


def plan_back(total: int, length: int, ending: int) -> list[Window]:
    """Windows of `length` latent frames, no more than `total`, in the order in which they lead up to a known end.

    The last `ending` latent frames of the film are known. The first window has them at its end; every other has as many
    of the one made before it. What a window begins with stands for one frame, and is made and dropped where the film's
    does not.
    """
    windows, known = [], total - ending
    while known > 0:
        start = max(0, known + ending - length)
        lead = 1 if start else 0
        windows.append(Window(start, length, lead, known - start))
        known = start + lead
    return windows
