"""The starter's judge as calibration asks for one: prompts of the world, and whether a video shows what one says."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from kinograph.starter import world
from kinograph.starter.captions import main_caption
from kinograph.starter.judge import judge
from kinograph.starter.measures import outcomes

__all__ = ["NAME", "StarterJudge"]

NAME = "starter-world"

_SEED = 40_000  # of the scenes: neither training's nor the evaluation's


class StarterJudge:
    """Judges scenes of combinations that were never trained on; an attribute is right if it is of every actor."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(_SEED)
        self._scenes: list[world.Scene] = []

    def prompts(self, count: int) -> list[str]:
        while len(self._scenes) < count:
            self._scenes.append(world.sample(self._rng, evaluation=True))
        return [main_caption(scene) for scene in self._scenes[:count]]

    def right(self, number: int, frames: npt.NDArray[np.uint8]) -> Mapping[str, bool]:
        return {name: all(hits) for name, hits in outcomes(self._scenes[number], judge(frames)).items()}
