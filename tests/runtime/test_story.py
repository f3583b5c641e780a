"""What windows are told: prompts in proportion, and where one becomes another."""

from __future__ import annotations

from itertools import pairwise

from kinograph.runtime.request import Cue, Request
from kinograph.runtime.story import Story
from kinograph.runtime.windows import plan

TOLD = Request(prompt="one", fps=4.0, cues=(Cue(8.0, "two"),))  # a latent frame a second, after the first


def test_windows_that_go_on_from_another_prompt_are_told_apart() -> None:
    story = Story(TOLD, temporal=4, context=0)
    windows = plan(21, 5, 2)
    turns = story.turns(windows)
    shares = [story.shares(window) for window in windows]
    assert [1.0, 0.0] in shares and [0.0, 1.0] in shares and any(0 < share < 1 for share, _ in shares)
    assert [window in turns for window in windows[1:]] == [a != b for a, b in pairwise(shares)]
    assert windows[0] not in turns
    assert not Story(Request(prompt="one", fps=4.0), temporal=4, context=0).turns(windows)


def test_a_cut_goes_on_from_nothing() -> None:
    story = Story(Request(prompt="one", fps=4.0, cues=TOLD.cues, cuts=True), temporal=4, context=0)
    windows = plan(21, 5, 2, cuts=story.cuts(21))
    assert any(window.cut for window in windows) and not story.turns(windows)


def test_prompts_that_are_never_heard_are_found() -> None:
    heard = Story(TOLD, temporal=4, context=0)
    assert heard.unheard(plan(21, 5, 2)) == []
    assert heard.unheard(plan(8, 5, 2)) == [8.0]  # 29 frames are 7.25 s
    close = Request(prompt="one", fps=4.0, cues=(Cue(8.0, "two"), Cue(8.1, "three")), cuts=True)
    story = Story(close, temporal=4, context=0)
    assert story.unheard(plan(21, 5, 2, cuts=story.cuts(21))) == [8.0]
