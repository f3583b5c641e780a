"""The judge: right on true renders, at chance on captions of other clips, and not fooled by nothing."""

from __future__ import annotations

import numpy as np
import pytest

from kinograph.starter import world
from kinograph.starter.judge import ATTRIBUTES, judge

CLIPS = 60
LEAST = 0.98  # on true renders, every attribute


@pytest.fixture(scope="module")
def scenes() -> list[world.Scene]:
    rng = np.random.default_rng(77)
    return [world.sample(rng, evaluation=True) for _ in range(CLIPS)]


@pytest.mark.parametrize(("frames", "size"), [(17, 64), (33, 96)])
def test_right_on_true_renders(scenes: list[world.Scene], frames: int, size: int) -> None:
    verdicts = [judge(world.render(scene, frames, size)) for scene in scenes]
    for name in ATTRIBUTES:
        share = np.mean([getattr(v, name) == getattr(s, name) for s, v in zip(scenes, verdicts, strict=True)])
        print(f"{name} {share:.3f}")
        assert share >= LEAST


def test_noise_and_levels_do_not_mislead(scenes: list[world.Scene]) -> None:
    rng = np.random.default_rng(0)
    right = []
    for scene in scenes[:20]:
        clip = world.render(scene).astype(np.float32)
        clip = (clip + np.roll(clip, 1, 1) + np.roll(clip, 1, 2)) / 3 + rng.normal(0, 6, clip.shape)
        verdict = judge(np.clip(clip, 0, 255).astype(np.uint8))
        right.append([getattr(verdict, name) == getattr(scene, name) for name in ATTRIBUTES])
    assert np.mean(right) >= LEAST


@pytest.mark.parametrize("background", list(world.BACKGROUNDS))
def test_an_empty_clip_shows_nothing(background: str) -> None:
    clip = np.full((17, 64, 64, 3), world.BACKGROUNDS[background], np.uint8)
    verdict = judge(clip)
    assert verdict.background == background
    assert verdict.subject is verdict.colour is verdict.motion is verdict.size is None


def test_a_subject_that_stands_still_has_no_motion() -> None:
    still = world.Scene("star", "yellow", "large", "left", "navy", (0.5, 0.5), (0.5, 0.5))
    assert judge(world.render(still)).motion is None


def test_noise_shows_nothing_in_particular() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3)).astype(np.uint8)
    judge(noise)  # any verdict will do; it must not fail
