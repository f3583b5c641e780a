"""A judge in the gate: does a variant's video still show what its prompt says, where the float one's does?

Two accuracies of few videos differ by chance alone. So both variants make a video of every prompt from the same noise,
and what counts is where their verdicts part: a variant that is as good loses as many as it gains. That is McNemar's
test (Psychometrika 12, 1947, doi:10.1007/BF02295996), exact and one-sided. An attribute counts once for a prompt,
because several subjects of one video are not several independent trials.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kinograph.manifest import Agreement, Judged

__all__ = ["Judge", "agreement", "worse"]

Frames = npt.NDArray[np.uint8]

_FALSE_ALARMS = 0.01  # how often a variant that is as good may be refused, over all attributes together


class Judge(Protocol):
    """Says what videos of its own prompts show."""

    def prompts(self, count: int) -> list[str]:
        """So many prompts, the same ones every time."""

    def right(self, number: int, frames: Frames) -> Mapping[str, bool]:
        """By attribute, whether a video uint8 [T, H, W, 3] of the prompt `number` shows it; those that apply."""


def agreement(name: str, judge: Judge, before: Sequence[Frames], after: Sequence[Frames]) -> Judged:
    """What the judge called `name` makes of videos of its first prompts, by the float graphs and by a variant."""
    pairs: dict[str, list[tuple[bool, bool]]] = {}
    for number, (one, other) in enumerate(zip(before, after, strict=True)):
        verdicts = judge.right(number, one), judge.right(number, other)
        for attribute, right in verdicts[0].items():
            pairs.setdefault(attribute, []).append((right, verdicts[1][attribute]))
    attributes = {
        attribute: Agreement(
            prompts=len(found),
            right=sum(one for one, _ in found),
            lost=sum(one and not other for one, other in found),
            gained=sum(other and not one for one, other in found),
        )
        for attribute, found in pairs.items()
    }
    return Judged(judge=name, prompts=len(before), attributes=attributes)


def worse(judged: Judged) -> list[str]:
    """The attributes that are lost more often than chance explains."""
    limit = _FALSE_ALARMS / max(1, len(judged.attributes))
    return [name for name, one in judged.attributes.items() if _chance(one.lost, one.gained) < limit]


def _chance(lost: int, gained: int) -> float:
    """How likely at least `lost` of all that changed are losses, where a loss is as likely as a gain."""
    changed = lost + gained
    return float(sum(comb(changed, k) for k in range(lost, changed + 1)) / 2**changed)
