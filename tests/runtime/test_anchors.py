"""Colours held to an anchor: drift goes, what moves stays, and another picture is left alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kinograph.runtime.anchors import Anchor, Anchors
from kinograph.runtime.request import Cue, Request
from kinograph.runtime.story import Story
from kinograph.runtime.windows import Window


def scene(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, 4, 1, 8, 8)).astype(np.float32)


@given(seed=st.integers(0, 99), drift=st.floats(-0.3, 0.3), moved=st.integers(0, 6))
def test_drift_is_taken_away_whatever_moves(seed: int, drift: float, moved: int) -> None:
    still = scene(seed)
    anchor = Anchor.of(still, np.repeat(still, 5, axis=2))
    later = np.repeat(still, 3, axis=2) + np.float32(drift)
    later[..., :moved] += 5  # something else is shown there
    expected = np.repeat(still, 3, axis=2)
    expected[..., :moved] += 5
    assert np.abs(anchor.held(later) - expected).max() < 1e-5


@given(seed=st.integers(0, 99), bright=st.floats(-0.15, 0.15), dark=st.floats(-0.15, 0.15))
def test_parts_that_drift_apart_are_held_each(seed: int, bright: float, dark: float) -> None:
    still = scene(seed)
    anchor = Anchor.of(still, np.repeat(still, 5, axis=2))
    later = np.repeat(still, 5, axis=2)
    later[..., :4] += np.float32(bright)
    later[..., 4:] += np.float32(dark)
    later[:, :, 0] += 0.01  # what varies within a window is no drift
    expected = np.repeat(still, 5, axis=2)
    expected[:, :, 0] += 0.01
    assert np.abs(anchor.held(later) - expected).max() < 1e-5


def test_no_step_where_cells_cease_to_show_what_is_usual() -> None:
    still = scene(2)
    anchor = Anchor.of(still, np.repeat(still, 5, axis=2))
    later = np.repeat(still, 21, axis=2)
    later[..., 0] += np.linspace(0, 0.5, 21, dtype=np.float32)[:, None]  # a column fades into something else
    steps = np.diff(anchor.held(later)[..., 0], axis=2)
    assert np.abs(steps).max() < 0.08  # a hard edge would make it 0.2


def test_another_picture_is_left_alone() -> None:
    anchor, other = Anchor.of(scene(0), scene(0)), scene(1) + 0.1
    assert np.array_equal(anchor.held(other), other)


def test_what_moves_within_the_first_window_is_not_usual() -> None:
    still = scene(3)
    following = np.repeat(still, 5, axis=2)
    for frame in range(5):
        following[:, :, frame, frame] += 5
    assert np.array_equal(Anchor.of(still, following).usual, still)


def test_every_prompt_has_its_own() -> None:
    request = Request(prompt="one", fps=4.0, cues=(Cue(4.0, "two"), Cue(8.0, "one")))
    anchors = Anchors(Story(request, temporal=4, context=0))  # a latent frame a second, after the first
    first, second, third = Window(0, 4, 0, 4), Window(3, 5, 2, 5), Window(7, 5, 2, 5)
    made = np.concatenate([scene(i) for i in range(4)], axis=2)
    assert anchors.first(first) is None
    anchors.remember(first, made, lambda: scene(9))
    assert anchors.first(second) is None and np.array_equal(anchors.held(second, made), made)
    anchors.remember(second, made, lambda: scene(9))
    assert np.array_equal(anchors.first(third), made[:, :, :1])
    assert np.array_equal(anchors.first(Window(4, 4, 1, 4)), scene(9))


def test_a_first_shot_of_one_latent_frame_is_all_that_is_usual() -> None:
    anchors = Anchors(Story(Request(prompt="one", fps=4.0), temporal=4, context=0))
    still = scene(5)
    anchors.remember(Window(0, 4, 0, 1), still, lambda: still)
    assert np.allclose(anchors.held(Window(3, 5, 2, 5), still + 0.1), still, atol=1e-6)
