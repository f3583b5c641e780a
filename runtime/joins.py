"""Where what is known and what is new meet: latents that are eased into each other, frames that dissolve."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

__all__ = ["SAME", "dissolved", "eased"]

Latents = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

SAME = 0.35  # mean difference of a cell's channels, up to which it shows the same; latents have a variance of about 1
_FRAMES = 3  # latent frames over which a difference is spread
_DISSOLVED = 2  # frames; none and one leave a cut to be seen where something moves


def eased(known: Latents, new: Latents) -> Latents:
    """`new` [1, C, F, H, W], led up to from `known` [1, C, 1, H, W], the latent frame beside its first.

    A model comes near what it goes on from, not all the way. Where both show the same, which is decided cell by cell,
    what lies between them is not one step but is spread over several latent frames; what moves is left as it is.
    """
    difference = new[:, :, :1] - known
    same = np.abs(difference).mean(axis=1, keepdims=True) < SAME
    count = min(_FRAMES, new.shape[2])
    left = np.zeros(new.shape[2], np.float32)
    left[:count] = 1 - np.arange(1, count + 1, dtype=np.float32) / (count + 1)
    return np.asarray(new - np.where(same, difference, 0) * left[:, None, None], np.float32)


def dissolved(made: Iterable[Pixels], following: Iterable[Pixels]) -> Iterator[Pixels]:
    """Frames uint8 [T, H, W, 3] of `made` and of those `following`, in pieces; the last made ones dissolve into those.

    What follows is as it was, and is asked for when all of `made` is there.
    """
    held: list[Pixels] = []  # frames that may be the last ones
    for piece in made:
        held += [*piece]
        if len(held) > _DISSOLVED:
            yield np.stack(held[:-_DISSOLVED])
            del held[:-_DISSOLVED]
    for piece in following:
        for number, frame in enumerate(held, 1):
            mixed = frame + (piece[0] - frame.astype(np.float32)) * (number / (len(held) + 1))
            yield np.asarray(np.rint(mixed), np.uint8)[None]
        held = []
        yield piece
