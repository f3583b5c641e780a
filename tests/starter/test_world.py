"""The procedural world: scenes, hold-out, motions, captions and drawing."""

from __future__ import annotations

import re

import numpy as np
import pytest

from kinograph.starter import captions, drawing, world
from kinograph.starter.shapes import OUTLINES


def _scenes(count: int, *, evaluation: bool = False, kind: str | None = None) -> list[world.Scene]:
    rng = np.random.default_rng(11)
    return [world.sample(rng, evaluation=evaluation, kind=kind) for _ in range(count)]


def _actor(motion: str, **changes: object) -> world.Actor:
    """A sampled actor that moves like this, on its own."""
    rng = np.random.default_rng(0)
    while True:
        actor = world.sample(rng, kind="single").actors[0]
        if actor.motion == motion and all(getattr(actor, name) == value for name, value in changes.items()):
            return actor


def test_a_scene_under_way_goes_on_from_there() -> None:
    rng = np.random.default_rng(3)
    for scene in (world.sample_under_way(rng) for _ in range(20)):
        actor = scene.actors[0]
        assert actor.motion in world.ENDLESS and not world.held_out(actor.subject, actor.colour, actor.motion)
        from_the_start, half_way = (world.track(world.begun(scene, share).actors[0], 33) for share in (0.0, 0.5))
        np.testing.assert_allclose(half_way[:17], from_the_start[16:], atol=1e-6)


def test_same_seed_gives_the_same_scenes_and_captions() -> None:
    first, second = np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(40):
        a, b = world.sample(first), world.sample(second)
        assert a == b
        assert captions.caption(a, first) == captions.caption(b, second)


def test_held_out_combinations_are_never_trained_on() -> None:
    def combinations(scenes: list[world.Scene]) -> set[tuple[str, str, str]]:
        return {
            (actor.subject, actor.colour, actor.motion)
            for scene in scenes
            if scene.kind != "collision"
            for actor in scene.actors
        }

    trained, kept = combinations(_scenes(3000)), combinations(_scenes(300, evaluation=True))
    assert not trained & kept
    assert all(world.held_out(*combination) for combination in kept)


def test_held_out_collisions_are_other_pairs_of_colours() -> None:
    def pairs(scenes: list[world.Scene]) -> set[tuple[str, str, str]]:
        return {(s.actors[0].colour, s.actors[1].colour, s.actors[0].motion) for s in scenes}

    assert not pairs(_scenes(1000, kind="collision")) & pairs(_scenes(100, evaluation=True, kind="collision"))


def test_the_readmes_prompts_were_trained_on_or_are_announced_as_held_out() -> None:
    assert not world.held_out("ball", "red", "left")


def test_subjects_stand_out_and_differ_within_a_scene() -> None:
    for scene in _scenes(300):
        assert all(world.contrasting(actor.colour, scene.background) for actor in scene.actors)
        assert len({(actor.subject, actor.colour) for actor in scene.actors}) == len(scene.actors)


@pytest.mark.parametrize("kind", list(world.KINDS))
def test_actors_stay_apart_and_inside(kind: str) -> None:
    for scene in _scenes(40, kind=kind):
        paths = [world.track(actor, 33) for actor in scene.actors]
        for actor, path in zip(scene.actors, paths, strict=True):
            if not actor.motion.startswith(("enters", "leaves")):
                assert (path[:, :2].min(0) >= 0.8 * path[:, 2].min()).all()
                assert (path[:, :2].max(0) <= 1 - 0.8 * path[:, 2].min()).all()
        for i, path in enumerate(paths):
            for other in paths[i + 1 :]:
                distance = np.abs(path[:, :2] - other[:, :2]).max(1)
                assert (distance >= 0.9 * (path[:, 2] + other[:, 2])).all()


@pytest.mark.parametrize("motion", ["left", "right", "up", "down", "up left", "up right", "down left", "down right"])
def test_straight_motions_go_where_they_say(motion: str) -> None:
    path = world.track(_actor(motion), 17)
    moved = path[-1, :2] - path[0, :2]
    wanted = [("right" in motion) - ("left" in motion), ("down" in motion) - ("up" in motion)]
    assert np.sign(np.where(np.abs(moved) < 1e-6, 0, moved)).tolist() == wanted


def test_who_enters_from_the_left_goes_right_and_faces_there() -> None:
    actor = _actor("enters left")
    path = world.track(actor, 17)
    assert path[0, 0] < 0 < path[-1, 0] and actor.facing == 1


def test_physics() -> None:
    falling = world.track(_actor("falls"), 33)[:, 1]
    assert (np.diff(falling, 2)[:20] > 0).all() and falling[-1] == falling[-4]
    settling = world.track(_actor("settles"), 65)[:, 1]
    peaks = [y for before, y, after in zip(settling, settling[1:], settling[2:], strict=False) if before > y < after]
    assert len(peaks) == 2 and peaks[0] < peaks[1]  # y points down: the second rebound is lower


def test_in_a_collision_one_stops_as_the_other_starts() -> None:
    for scene in _scenes(10, kind="collision"):
        first, second = (world.track(actor, 33)[:, 0] for actor in scene.actors)
        assert np.ptp(second[:17]) < 1e-6 < np.ptp(second[16:])
        assert np.ptp(first[16:]) < 1e-6 < np.ptp(first[:17])
        assert np.isclose(abs(second[16] - first[16]), 2 * scene.actors[0].radius, atol=1e-5)


def test_every_plain_caption_belongs_to_one_combination() -> None:
    told: dict[str, tuple[object, ...]] = {}
    for scene in _scenes(3000):
        facing = scene.actors[0].facing if world.faces(scene) else 0
        looks = tuple((a.subject, a.colour, a.motion, a.size) for a in scene.actors)
        meaning = (scene.kind, looks, scene.background, scene.genre, facing)
        assert told.setdefault(captions.main_caption(scene), meaning) == meaning


def test_every_paraphrase_names_every_actor_once() -> None:
    rng = np.random.default_rng(5)
    for scene in _scenes(500):
        text = captions.caption(scene, rng)
        for actor in scene.actors:
            assert len(re.findall(rf"\b{actor.colour} {actor.subject}\b", text)) == 1, text


def test_paraphrases_vary() -> None:
    scene, rng = _scenes(1, kind="beside")[0], np.random.default_rng(0)
    assert len({captions.caption(scene, rng) for _ in range(100)}) > 40


@pytest.mark.parametrize(("frames", "size"), [(17, 64), (33, 128), (1, 32)])
def test_renders_at_any_size(frames: int, size: int) -> None:
    for scene in _scenes(8):
        clip = drawing.render(scene, frames, size)
        assert clip.shape == (frames, size, size, 3) and clip.dtype == np.uint8


def test_every_genre_and_background_looks_different() -> None:
    actor = world.Actor("star", "orange", "stays", 0.24, (0.5, 0.5), (0.5, 0.5))
    clips = [
        drawing.render(world.Scene("single", (actor,), b, g), 1)[0].astype(float)
        for b in world.BACKGROUNDS
        for g in world.GENRES
    ]
    for i, one in enumerate(clips):
        for other in clips[i + 1 :]:
            assert np.abs(one - other).mean() > 1


@pytest.mark.parametrize("subject", world.SUBJECTS)
def test_shapes_lie_within_their_radius(subject: str) -> None:
    line = np.linspace(-2, 2, 201, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    inside = OUTLINES[subject](x, y) < 0
    assert inside[100, 100] or subject == "bird"
    assert np.hypot(x, y)[inside].max() < 1.45
    assert 0.9 < inside.sum() * (4 / 200) ** 2 < 3.6  # of π for the ball: none looks much larger or smaller


def test_faces_look_the_way_they_go() -> None:
    for subject in ("car", "fish", "bird"):
        right = world.Actor(subject, "orange", "stays", 0.3, (0.5, 0.5), (0.5, 0.5))
        left = world.Actor(subject, "orange", "stays", 0.3, (0.5, 0.5), (0.5, 0.5), facing=-1)
        pictures = [drawing.render(world.Scene("single", (a,), "black", "flat"), 1)[0] for a in (right, left)]
        assert np.abs(pictures[0].astype(int) - pictures[1][:, ::-1]).max() <= 1


def test_the_wall_hides_who_passes_behind_it() -> None:
    for scene in _scenes(6, kind="wall"):
        path = world.track(scene.actors[0], 17)
        seen = drawing.masks(scene)[0].sum((1, 2))
        middle = int(np.abs(path[:, 0] - 0.5).argmin())
        assert seen[middle] < 0.1 * seen[0] and np.isclose(seen[0], seen[-1], rtol=0.35)


def test_masks_are_where_the_picture_differs() -> None:
    for scene in _scenes(10, kind="single"):
        if scene.genre != "flat":
            continue
        clip, mask = drawing.render(scene).astype(int), drawing.masks(scene)[0]
        behind = drawing.backdrop(scene.background, scene.genre, False, 64)[0]
        assert (np.abs(clip - behind).max(-1)[mask == 0] <= 1).all()
