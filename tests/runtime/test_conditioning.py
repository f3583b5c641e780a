"""Pictures made to fit."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from kinograph.runtime.conditioning import fit, nothing_given


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("width", "height"), [(64, 48), (48, 64), (200, 30), (30, 200), (28, 28)])
def test_any_picture_covers_the_frame(width: int, height: int) -> None:
    assert fit(noise(width, height), 28, 28, resample=Image.Resampling.BICUBIC).shape == (28, 28, 3)


def test_the_same_shape_is_only_scaled() -> None:
    picture = noise(160, 120)
    expected = np.asarray(Image.fromarray(picture).resize((64, 48), Image.Resampling.LANCZOS))
    assert np.array_equal(fit(picture, 64, 48, resample=Image.Resampling.LANCZOS), expected)


@pytest.mark.parametrize(("width", "height"), [(64, 48), (47, 61), (200, 30), (31, 200)])
@pytest.mark.filterwarnings("ignore")
def test_bicubic_is_what_clip_does(width: int, height: int) -> None:
    transformers = pytest.importorskip("transformers")
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, do_normalize=False, do_rescale=False
    )
    picture = noise(width, height)
    expected = processor(images=picture, return_tensors="np").pixel_values[0].transpose(1, 2, 0)
    assert np.array_equal(fit(picture, 28, 28, resample=Image.Resampling.BICUBIC), expected)


def test_nothing_given_is_an_empty_mask() -> None:
    given = nothing_given((1, 16, 3, 4, 6))
    assert given.known.shape == (1, 16, 3, 4, 6)
    assert given.mask.shape == (1, 1, 3, 4, 6)
    assert not given.mask.any()
