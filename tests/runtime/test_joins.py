"""What is made is led up to from what it goes on from, where both show the same."""

import numpy as np
import pytest

from kinograph.runtime.joins import SAME, dissolved, eased


def _latents(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((1, 4, count, 3, 5)).astype(np.float32)


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_a_small_difference_is_spread_over_the_frames_after(count: int) -> None:
    known, off = _latents(1), np.float32(0.2)
    new = eased(known, np.repeat(known + off, count, axis=2))
    steps = np.diff(np.concatenate([known, new], axis=2), axis=2)
    assert np.abs(steps).max() <= off / min(4, count + 1) + 1e-6
    np.testing.assert_allclose(new[:, :, 3:], np.repeat(known + off, max(0, count - 3), axis=2), atol=1e-6)


def test_what_moves_is_left_as_it_is() -> None:
    known, new = _latents(1), _latents(5)
    new[:, :, 0, :, 0] = known[:, :, 0, :, 0] + 0.1
    new[:, :, 0, :, 1:] = known[:, :, 0, :, 1:] + 2 * SAME
    result = eased(known, new)
    np.testing.assert_array_equal(result[..., 1:], new[..., 1:])
    assert not np.array_equal(result[..., 0], new[..., 0])


def test_what_is_the_same_already_stays() -> None:
    known = _latents(1)
    np.testing.assert_array_equal(eased(known, np.repeat(known, 4, axis=2)), np.repeat(known, 4, axis=2))


@pytest.mark.parametrize("sizes", [[1], [2], [1, 1], [5], [1, 4, 4], [4, 1]])
def test_the_last_frames_dissolve_into_what_follows(sizes: list[int]) -> None:
    ends = np.cumsum(sizes)
    made = np.arange(ends[-1], dtype=np.uint8)[:, None, None, None] + np.zeros((1, 2, 2, 3), np.uint8)
    following = made[::-1] + 90
    shown = list(dissolved(np.split(made, ends[:-1]), np.split(following, len(following))))
    result = np.concatenate(shown)
    kept = max(0, len(made) - 2)
    assert len(result) == len(made) + len(following) and all(len(piece) for piece in shown)
    np.testing.assert_array_equal(result[:kept], made[:kept])
    np.testing.assert_array_equal(result[len(made) :], following)
    steps = np.diff(result[max(0, kept - 1) : len(made) + 1, 0, 0, 0].astype(int))
    assert (steps[kept > 0 :] > 90 // 4).all()  # evenly, from the last that is its own


def test_nothing_follows_from_nothing() -> None:
    assert list(dissolved([], [])) == []
