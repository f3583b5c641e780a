"""Windows: how a film longer than the model makes in one go is cut into runs that follow from each other.

A film is one sequence of latent frames. A window is as long as what the model was trained on; it begins within what the
window before has made, which is given to it, and what it makes beyond that is kept. Nothing is decoded and encoded
again but a window's very first frame, because the codec's first latent frame stands for one frame and the others for
several.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Window", "plan"]


@dataclass(frozen=True)
class Window:
    """A run over `count` latent frames, which are the film's from `start`.

    The first `given` of them are there already; those up to, and without, `kept` stay in the film, the rest is dropped.
    """

    start: int
    count: int
    given: int
    kept: int

    @property
    def end(self) -> int:
        """How many latent frames the film has after it."""
        return self.start + self.kept


def plan(total: int, length: int, overlap: int, ending: int = 0) -> list[Window]:
    """Windows of `length` latent frames for a film of `total`, each given `overlap` of the one before.

    `overlap` counts the first frame, so it is at least 1 and less than `length`. The last `ending` latent frames of the
    film are known; the last window has them, and before them as much that is to be made as it can.
    """
    if total <= length:
        return [Window(0, total, 0, total)]
    # Where frames are known at the end, the last window reaches back from there as far as it can.
    limit = total - length + overlap if ending else total
    windows = [Window(0, length, 0, min(length, limit))]
    while windows[-1].end < limit:
        done = windows[-1].end
        windows.append(Window(done - overlap, length, overlap, min(length, limit - done + overlap)))
    if ending:
        start = total - length
        windows.append(Window(start, length, windows[-1].end - start, length))
    return windows
