"""The noise equals PyTorch's CPU generator, with PyTorch at hand and, by golden values, without."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinograph import errors
from kinograph.runtime import noise

# One unit in the last place of float32 between 4 and 8, where the largest values lie, is 4.8e-7: float32 logarithms and
# cosines of two libraries differ by that much.
TOLERANCE = 1e-6

SHAPES = [(), (0,), (1,), (7,), (15,), (16,), (17,), (100,), (1, 16, 5, 8, 8), (3, 0, 2)]
BIG_SEEDS = [2**32 - 1, 2**32, 2**32 + 1, 2**40 + 7, 2**63 - 1, 2**63, 2**64 - 1]

# torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)), torch 2.13; the last values of each draw.
GOLDEN = [
    (0, (3,), [1.5409961, -0.2934289, -2.1787894]),
    (1, (16,), [-0.2222705, 1.6871134, 0.2284252, 0.4676355]),
    (42, (17,), [0.0417595, -0.2515753, 0.8598585, -0.3097268]),
    (2**40 + 7, (1, 16, 5, 8, 8), [1.2945861, -1.4474316, 0.3368269, 2.2793355]),
]


@pytest.mark.parametrize(("seed", "shape", "tail"), GOLDEN)
def test_golden_values(seed, shape, tail):
    values = noise.normal(shape, seed)
    assert values.shape == shape
    assert values.dtype == np.float32
    np.testing.assert_allclose(values.reshape(-1)[-len(tail) :], tail, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("seed", [*range(20), *BIG_SEEDS])
def test_equals_torch_at_every_shape(seed):
    torch = pytest.importorskip("torch")
    worst = 0.0
    for shape in SHAPES:
        expected = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)).numpy()
        values = noise.normal(shape, seed)
        assert values.shape == expected.shape
        worst = max(worst, float(np.abs(values - expected).max(initial=0)))
    print(f"largest difference {worst:.1e}")
    assert worst <= TOLERANCE


def test_equals_torch_at_the_size_of_a_video():
    torch = pytest.importorskip("torch")
    shape = (1, 48, 21, 30, 52)  # more than one chunk
    difference = noise.normal(shape, 3) - torch.randn(shape, generator=torch.Generator("cpu").manual_seed(3)).numpy()
    print(f"largest difference {np.abs(difference).max():.1e}")
    assert np.abs(difference).max() <= TOLERANCE


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**64 - 1), sizes=st.lists(st.integers(0, 70), min_size=1, max_size=8))
def test_consecutive_draws_equal_torchs(seed, sizes):
    """Draws of fewer than 16 values keep an odd one for the next such draw, whatever is drawn between."""
    torch = pytest.importorskip("torch")
    reference, generator = torch.Generator("cpu").manual_seed(seed), noise.Generator(seed)
    for size in sizes:
        expected = torch.randn(size, generator=reference).numpy()
        np.testing.assert_allclose(generator.normal((size,)), expected, rtol=0, atol=TOLERANCE)


def test_chunks_do_not_show(monkeypatch):
    whole = noise.normal((1000,), 5)
    monkeypatch.setattr(noise, "_CHUNK", 48)
    np.testing.assert_array_equal(noise.normal((1000,), 5), whole)


@pytest.mark.parametrize(("seed", "nearest"), [(-1, "0"), (2**64, str(2**64 - 1))])
def test_a_seed_out_of_range_is_refused(seed, nearest):
    with pytest.raises(errors.RequestError, match=rf"seed is {seed}: .* Nearest: {nearest}\."):
        noise.normal((1,), seed)
