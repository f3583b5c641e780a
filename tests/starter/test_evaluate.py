"""The evaluation: full marks for true renders, wrong exactly where a clip is, and a distance of zero for equal sets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from kinograph.starter import drawing, world
from kinograph.starter.captions import main_caption
from kinograph.starter.evaluate import captions_of, evaluate, held_out_scenes, main, show
from kinograph.starter.judge import judge
from kinograph.starter.measures import ATTRIBUTES, decibels, features, frechet_distance, outcomes, shares
from kinograph.starter.pictures import confusion

Frames = NDArray[np.uint8]


def pair(first: str, second: str, colours: tuple[str, str], motions: tuple[str, str]) -> world.Scene:
    """Two subjects beside each other, the first on the left."""
    actors = []
    for subject, colour, motion, x in zip((first, second), colours, motions, (0.25, 0.75), strict=True):
        low, high = (x, 0.78), (x, 0.22)
        start, end = (low, high) if motion == "up" else (high, low) if motion == "down" else ((x, 0.5),) * 2
        actors.append(world.Actor(subject, colour, motion, 0.17, start, end))
    return world.Scene("beside", tuple(actors), "navy", "flat")


SCENE = pair("square", "star", ("red", "yellow"), ("up", "stays"))


def wrong(scene: world.Scene, shown: world.Scene) -> set[str]:
    return {name for name, hits in outcomes(scene, judge(drawing.render(shown))).items() if not all(hits)}


def test_a_true_render_is_right_in_everything() -> None:
    right = outcomes(SCENE, judge(drawing.render(SCENE)))
    assert all(all(hits) for hits in right.values())
    assert set(right) == {*ATTRIBUTES[:4], "relation", "background", "genre", "two subjects bound", "all"}


def test_swapped_colours_are_wrong() -> None:
    assert wrong(SCENE, pair("square", "star", ("yellow", "red"), ("up", "stays"))) == {
        "colour",
        "two subjects bound",
        "all",
    }


def test_swapped_motions_are_wrong() -> None:
    assert wrong(SCENE, pair("square", "star", ("red", "yellow"), ("stays", "up"))) == {
        "motion",
        "two subjects bound",
        "all",
    }


def test_swapped_places_are_a_wrong_relation() -> None:
    assert wrong(SCENE, pair("star", "square", ("yellow", "red"), ("stays", "up"))) == {
        "relation",
        "two subjects bound",
        "all",
    }


def test_a_missing_subject_is_wrong_in_everything() -> None:
    found = outcomes(SCENE, judge(drawing.render(replace(SCENE, actors=SCENE.actors[:1]))))
    assert found["subject"] == found["colour"] == found["motion"] == [True, False]
    assert found["count"] == found["relation"] == found["two subjects bound"] == [False]


def test_an_empty_clip_is_wrong() -> None:
    scenes = held_out_scenes(6)
    right, counts = shares(scenes, [judge(np.full((17, 64, 64, 3), 128, np.uint8)) for _ in scenes])
    assert right["subject"] == right["motion"] == right["all"] == 0
    assert counts["all"] == counts["background"] == 6


def test_the_distance_is_zero_for_equal_sets_and_grows_with_change() -> None:
    clips = [drawing.render(scene) for scene in held_out_scenes(24, seed=1)]
    true = np.stack([features(clip) for clip in clips])
    brighter = np.stack([features(np.minimum(clip, 215) + np.uint8(40)) for clip in clips])
    still = np.stack([features(np.repeat(clip[:1], len(clip), axis=0)) for clip in clips])
    assert frechet_distance(true, true) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(true, brighter) > 0.1
    assert frechet_distance(true, still) > 0.01


def test_decibels_are_of_the_part_asked_for() -> None:
    truth = np.zeros((2, 4, 4, 3), np.uint8)
    clip = truth.copy()
    clip[:, :2] = 255
    part = np.zeros((2, 4, 4), bool)
    part[:, 2:] = True
    assert decibels(clip, truth) == pytest.approx(10 * np.log10(2))
    assert decibels(clip, truth, part) > 90


@pytest.mark.parametrize("kind", list(world.KINDS))
def test_held_out_scenes_are_of_the_kind_and_the_same_again(kind: str) -> None:
    scenes = held_out_scenes(5, seed=2, kind=kind)
    assert {scene.kind for scene in scenes} == {kind}
    assert scenes == held_out_scenes(5, seed=2, kind=kind)
    assert captions_of(scenes) == [main_caption(scene) for scene in scenes]
    assert captions_of(scenes, 1) == captions_of(scenes, 1)


def test_a_perfect_model_gets_a_perfect_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = held_out_scenes(8, seed=4)
    firsts = [drawing.render(scene)[0] for scene in scenes]
    asked: list[tuple[str, int]] = []

    def generate(prompt: str, seed: int, first_frame: Frames | None) -> Frames:
        asked.append((prompt, seed))
        assert first_frame is not None and np.array_equal(first_frame, firsts[seed])
        return drawing.render(scenes[seed])

    done: list[int] = []
    evaluation = evaluate(generate, scenes, first_frames=firsts, progress=done.append)
    report = evaluation.report
    assert asked == [(main_caption(scene), i) for i, scene in enumerate(scenes)]
    assert done == list(range(1, 9))
    assert report.generated == report.renders
    assert report.generated["all"] == 1 and report.shuffled["all"] < 0.5
    assert report.frechet == report.frechet_floor > 0
    assert report.first_frames is not None and report.first_frames.kept == 1

    show(evaluation, as_json=True, sheets=tmp_path)
    assert json.loads(capsys.readouterr().out)["generated"] == report.generated
    show(evaluation, as_json=False, sheets=None)
    assert "| subject | 100.0 % | 100.0 % |" in capsys.readouterr().out
    for name in ("subject", "colour", "motion", "background", "genre"):
        with Image.open(tmp_path / f"confusion-{name}.png") as picture:
            assert min(picture.size) > 200
    assert (tmp_path / "single.png").exists() and not (tmp_path / "mistakes.png").exists()
    assert all(line[0].isdigit() for line in (tmp_path / "genres.txt").read_text().splitlines())


def test_confusions_are_darker_where_more_is_confused() -> None:
    picture = confusion([("a", "a")] * 9 + [("b", "a"), ("b", "none")], ("a", "b"), "letters").astype(int)
    assert picture.sum(-1).min() < 200  # the ink
    assert (np.abs(picture - (38, 92, 168)).sum(-1) == 0).any()  # all of a row in one cell


def test_the_command_names_its_options() -> None:
    answer = CliRunner().invoke(main, ["--help"])
    assert answer.exit_code == 0
    for option in ("--prompts", "--seed", "--kind", "--paraphrases", "--first-frame", "--steps", "--guidance"):
        assert option in answer.output
