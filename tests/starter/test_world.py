"""The procedural world: scenes, captions, hold-out and rendering."""

from __future__ import annotations

import numpy as np
import pytest

from kinograph.starter import world


def _scenes(count: int, *, evaluation: bool = False) -> list[world.Scene]:
    rng = np.random.default_rng(11)
    return [world.sample(rng, evaluation=evaluation) for _ in range(count)]


def test_same_seed_gives_the_same_scenes_and_captions() -> None:
    first, second = np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(20):
        a, b = world.sample(first), world.sample(second)
        assert a == b
        assert world.caption(a, first) == world.caption(b, second)


def test_held_out_combinations_are_never_trained_on() -> None:
    def combination(scene: world.Scene) -> tuple[str, str, str, str]:
        return scene.subject, scene.colour, scene.motion, scene.background

    trained = {combination(s) for s in _scenes(2000)}
    kept = {combination(s) for s in _scenes(300, evaluation=True)}
    assert not trained & kept
    assert not any(world.held_out(s) for s in _scenes(100))


def test_hold_out_is_stable_across_versions() -> None:
    known = world.Scene("ball", "red", "large", "left", "navy", (0.7, 0.5), (0.3, 0.5))
    assert not world.held_out(
        known
    )  # the README's example must stay a trained combination, or be announced as held out


def test_every_word_of_a_caption_tells_the_scene() -> None:
    rng = np.random.default_rng(0)
    for scene in _scenes(200):
        text = world.caption(scene, rng)
        assert scene.colour in text and scene.subject in text and scene.background in text
        synonyms = ("large", "big", "huge") if scene.size == "large" else ("small", "little", "tiny")
        assert any(word in text.split() or f"{word}," in text.split() for word in synonyms)


def test_main_caption() -> None:
    scene = world.Scene("ball", "red", "large", "left", "navy", (0.7, 0.5), (0.3, 0.5))
    assert world.main_caption(scene) == "a large red ball moves left on a navy background"


def test_subjects_stay_inside_the_picture() -> None:
    for scene in _scenes(300):
        x, y, radius = world.track(scene, 17).T
        for centre in (x, y):
            assert np.all(centre - radius > -0.03) and np.all(centre + radius < 1.03)


def test_left_moves_left_and_down_moves_down() -> None:
    for scene in _scenes(300):
        travel = world.track(scene, 17)[-1] - world.track(scene, 17)[0]
        if scene.motion == "left":
            assert travel[0] < -0.2 and travel[1] == pytest.approx(0)
        if scene.motion == "down":
            assert travel[1] > 0.2 and travel[0] == pytest.approx(0)


@pytest.mark.parametrize(("frames", "size"), [(1, 32), (17, 64), (33, 128)])
def test_renders_at_any_size_and_length(frames: int, size: int) -> None:
    scene = _scenes(1)[0]
    clip = world.render(scene, frames, size)
    assert clip.shape == (frames, size, size, 3) and clip.dtype == np.uint8
    assert tuple(clip[0, 0, 0]) == world.BACKGROUNDS[scene.background]


@pytest.mark.parametrize("subject", world.SUBJECTS)
def test_edges_are_smooth_and_area_does_not_depend_on_the_size(subject: str) -> None:
    path = np.array([[0.5, 0.5, 0.25]], np.float32)
    coarse, fine = (world.coverage(subject, path, size)[0] for size in (64, 256))
    assert ((coarse > 0.05) & (coarse < 0.95)).any()
    assert coarse.mean() == pytest.approx(fine.mean(), rel=0.03)
