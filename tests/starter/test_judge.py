"""The judge: right on true renders, sharp and soft, at chance on captions of other clips, and not fooled by nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from kinograph.starter import drawing, world
from kinograph.starter.judge import Verdict, judge
from kinograph.starter.measures import outcomes, shares

CLIPS = 60
SOFT = 36
LEAST = 0.97  # of every attribute, on true renders
NOISE = 6.0  # standard deviation, of 255
LEVELS = 0.05  # error of a channel's gain

Clip = NDArray[np.uint8]


@pytest.fixture(scope="module")
def scenes() -> list[world.Scene]:
    rng = np.random.default_rng(77)
    return [world.sample(rng, evaluation=True) for _ in range(CLIPS)]


@pytest.fixture(scope="module")
def verdicts(scenes: list[world.Scene]) -> list[Verdict]:
    return [judge(drawing.render(scene)) for scene in scenes]


def softened(clip: Clip, rng: np.random.Generator) -> Clip:
    """The clip blurred with (1, 2, 1) / 4 twice, noisy, and with its channels' levels a little off."""
    soft = clip.astype(np.float32)
    for _ in range(2):
        for axis in (1, 2):
            wide = np.pad(soft, [(int(i == axis),) * 2 for i in range(4)], mode="edge")
            low, middle, high = (wide.take(range(k, k + soft.shape[axis]), axis) for k in range(3))
            soft = (low + 2 * middle + high) / 4
    soft = soft * rng.uniform(1 - LEVELS, 1 + LEVELS, 3) + rng.normal(0, NOISE, soft.shape)
    return np.asarray(np.clip(soft + 0.5, 0, 255), dtype=np.uint8)


def overdrawn(scene: world.Scene) -> Clip:
    """The scene at 128×128 with its scenery, but not a wall, sharper than it should be and two pixels to the right."""
    empty, sky = (
        drawing.render(replace(scene, actors=(), kind=kind), 1, 128)[0].astype(np.float32)
        for kind in (scene.kind, "single")
    )
    level = np.median(sky, axis=(0, 1))
    excess = level + 1.15 * (np.roll(sky, 2, axis=1) - level) - sky
    excess[(empty != sky).any(-1)] = 0
    return np.asarray(np.clip(drawing.render(scene, 9, 128) + excess, 0, 255), dtype=np.uint8)


def covering() -> Iterator[world.Scene]:
    """Single subjects: every background in every genre, with every motion."""
    rng = np.random.default_rng(5)
    for i, (background, genre) in enumerate(product(world.BACKGROUNDS, world.GENRES)):
        motion = world.MOTIONS[i % len(world.MOTIONS)]
        while True:
            scene = replace(world.sample(rng, kind="single"), background=background, genre=genre)
            if scene.actors[0].motion == motion and world.contrasting(scene.actors[0].colour, background):
                yield scene
                break


def misjudged(scenes: list[world.Scene], verdicts: list[Verdict]) -> dict[str, float]:
    right, _ = shares(scenes, verdicts)
    print(right)
    del right["all"]
    return {name: share for name, share in right.items() if share < LEAST}


def test_right_on_true_renders(scenes: list[world.Scene], verdicts: list[Verdict]) -> None:
    assert not misjudged(scenes, verdicts)


def test_right_on_every_background_genre_and_motion() -> None:
    every = list(covering())
    assert {s.actors[0].motion for s in every} == set(world.MOTIONS)
    assert not misjudged(every, [judge(drawing.render(scene)) for scene in every])


@pytest.mark.parametrize("kind", [kind for kind in world.KINDS if kind != "single"])
def test_right_on_every_kind_of_scene_larger_and_longer(kind: str) -> None:
    scene = world.sample(np.random.default_rng(3), kind=kind)
    right = outcomes(scene, judge(drawing.render(scene, 33, 128)))
    assert all(right["all"]), right


def test_softness_noise_and_levels_do_not_mislead(scenes: list[world.Scene]) -> None:
    rng = np.random.default_rng(0)
    chosen = scenes[:SOFT]
    assert not misjudged(chosen, [judge(softened(drawing.render(scene), rng)) for scene in chosen])


def test_at_chance_on_captions_of_other_clips(scenes: list[world.Scene], verdicts: list[Verdict]) -> None:
    right, _ = shares(scenes[1:] + scenes[:1], verdicts)
    assert right["all"] < 0.1
    assert right["background"] < 0.35 and right["genre"] < 0.4 and right["motion"] < 0.25


@pytest.mark.parametrize("background", list(world.BACKGROUNDS))
def test_a_backdrop_alone_has_no_subjects(background: str) -> None:
    verdict = judge(drawing.render(world.Scene("single", (), background, "watercolour")))
    assert verdict == Verdict(background, "watercolour", False, ())


@pytest.mark.parametrize("background", ["night sky", "stars", "sea"])
@pytest.mark.parametrize("genre", list(world.GENRES))
def test_scenery_that_is_overdrawn_is_no_subject(background: str, genre: str) -> None:
    ball = world.Actor("ball", "red", "stays", 0.2, (0.35, 0.45), (0.35, 0.45))
    scene = world.Scene("single", (ball,), background, genre)
    actors = judge(overdrawn(scene)).actors
    assert [(actor.subject, actor.colour) for actor in actors] == [("ball", "red")]


@pytest.mark.parametrize("subject", ["ball", "heart"])
@pytest.mark.parametrize("background", ["night sky", "stars", "sea"])
def test_scenery_that_is_overdrawn_is_no_part_of_who_passes_behind_a_wall(background: str, subject: str) -> None:
    one = world.Actor(subject, "pink", "right", 0.15, (0.18, 0.6), (0.82, 0.6))
    clip = overdrawn(world.Scene("wall", (one,), background, "pixel art"))
    seen = [(actor.subject, actor.colour, actor.motion, actor.steady) for actor in judge(clip).actors]
    assert seen == [(subject, "pink", "right", True)]


@pytest.mark.parametrize("frames", [1, 2, 17])
def test_uniform_grey_shows_nothing(frames: int) -> None:
    assert judge(np.full((frames, 64, 64, 3), 128, np.uint8)).actors == ()


def test_noise_shows_nothing_in_particular() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3)).astype(np.uint8)
    judge(noise)  # any verdict will do; it must not fail


def test_two_subjects_of_one_colour_are_told_apart() -> None:
    actors = tuple(
        world.Actor(subject, "yellow", "stays", 0.17, (x, 0.5), (x, 0.5))
        for subject, x in (("square", 0.25), ("star", 0.75))
    )
    verdict = judge(drawing.render(world.Scene("beside", actors, "navy", "flat")))
    assert sorted(actor.subject for actor in verdict.actors) == ["square", "star"]


def test_another_shape_behind_the_wall_is_not_steady() -> None:
    path = {"radius": 0.15, "start": (0.2, 0.5), "end": (0.8, 0.5)}
    ball, square = (
        drawing.render(world.Scene("wall", (world.Actor(s, "red", "right", **path),), "black", "flat"))
        for s in ("ball", "square")
    )
    assert judge(ball).actors[0].steady
    assert not judge(np.concatenate([ball[:8], square[8:]])).actors[0].steady


@pytest.mark.parametrize(
    ("clip", "got"),
    [
        (np.zeros((17, 64, 64, 3), np.float32), "float32"),
        (np.zeros((17, 64, 64), np.uint8), r"\(17, 64, 64\)"),
        (np.zeros((0, 64, 64, 3), np.uint8), r"\(0, 64, 64, 3\)"),
        (np.zeros((17, 64, 32, 3), np.uint8), "64x32"),
        (np.zeros((17, 50, 50, 3), np.uint8), "50x50"),
        ([[1]], "list"),
    ],
)
def test_other_arrays_are_refused(clip: object, got: str) -> None:
    with pytest.raises(ValueError, match=f"expected uint8 RGB frames .*, got .*{got}"):
        judge(clip)  # type: ignore[arg-type]
