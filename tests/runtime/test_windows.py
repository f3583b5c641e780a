"""Windows: every latent frame is made once, from what was there before it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kinograph.runtime.windows import Window, plan, plan_back


@given(total=st.integers(1, 200), length=st.integers(2, 21), data=st.data())
def test_every_frame_is_made_once(total: int, length: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(1, length - 1))
    ending = data.draw(st.integers(0, min(length - overlap, total - 1)))
    windows = plan(total, length, overlap, ending)
    done = 0
    for window in windows:
        assert window.start + window.given == done and window.given < window.kept <= window.count <= length
        assert window.given >= (overlap if done else 0)
        done = window.end
    assert done == total
    if total > length:
        assert all(window.count == length for window in windows)
    if ending:
        assert windows[-1].start + windows[-1].count == total


@given(total=st.integers(2, 200), length=st.integers(2, 21), data=st.data())
def test_nothing_reaches_across_a_cut(total: int, length: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(1, length - 1))
    cuts = sorted(data.draw(st.sets(st.integers(1, total - 1), min_size=1)))
    windows = plan(total, length, overlap, cuts=cuts)
    assert [window.start + window.given for window in windows if window.cut] == cuts
    done = shot = 0
    for window in windows:
        shot = done if window.cut else shot
        assert window.start + window.given == done and window.given < window.kept <= window.count == length
        assert window.start >= shot - window.cut and window.given == (1 if window.cut else overlap if done else 0)
        assert not any(done < cut < window.end for cut in cuts)
        done = window.end
    assert done == total


def test_a_short_film_is_one_run() -> None:
    assert plan(4, 5, 2) == [Window(0, 4, 0, 4)]


def test_the_rest_of_the_last_window_is_dropped() -> None:
    assert plan(6, 5, 2) == [Window(0, 5, 0, 5), Window(3, 5, 2, 3)]


def test_a_known_end_is_in_view_of_what_leads_to_it() -> None:
    assert plan(6, 5, 2, 1) == [Window(0, 5, 0, 3), Window(1, 5, 2, 5)]


@given(length=st.integers(3, 21), more=st.integers(0, 100), data=st.data())
def test_what_leads_up_to_an_end_is_made_once_from_there(length: int, more: int, data: st.DataObject) -> None:
    ending = data.draw(st.integers(1, length - 2))
    total = length + more
    known = total - ending
    for window in plan_back(total, length, ending):
        assert window.start >= 0 and window.count == length and window.given == (1 if window.start else 0)
        assert window.end == known and window.start + window.count >= known + min(ending, total - known)
        assert window.given < window.kept
        known = window.start + window.given
    assert known == 0
