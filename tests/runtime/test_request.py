"""What can be asked for: every refusal names the nearest thing that can be done."""

from __future__ import annotations

import math
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinograph.errors import RequestError, UsageError
from kinograph.manifest import (
    FORMAT_VERSION,
    Conditioning,
    Defaults,
    Expert,
    Geometry,
    Manifest,
    Solver,
    Source,
    Text,
)
from kinograph.runtime.request import Request, given_frames, resolve

MANIFEST = Manifest(
    format_version=FORMAT_VERSION,
    name="model",
    family="wan",
    source=Source(checkpoint="c", pipeline="WanPipeline", exporter="kinograph"),
    geometry=Geometry(channels=16, spatial=8, temporal=4, patch=2, positions=1024),
    defaults=Defaults(width=832, height=480, num_frames=81, fps=16, num_inference_steps=50),
    solver=Solver(name="unipc"),
    conditioning=Conditioning(kind="noised"),
    text=Text(tokenizer="tokenizer.json", length=512, dim=8, cleaning=()),
    experts=(
        Expert(component="step", boundary=875, guidance_scale=4.0),
        Expert(component="step_2", guidance_scale=3.0),
    ),
    components={},
    files={},
)


def test_none_means_the_bundles_default() -> None:
    request = resolve(Request(prompt=""), MANIFEST)
    assert (request.width, request.height, request.num_frames, request.fps) == (832, 480, 81, 16)
    assert (request.num_inference_steps, request.solver, request.negative_prompt) == (50, "unipc", "")
    assert (request.guidance_scale, request.guidance_scale_2) == (4.0, 3.0)


def test_one_guidance_scale_is_for_both_experts() -> None:
    request = resolve(Request(prompt="", guidance_scale=6.0), MANIFEST)
    assert (request.guidance_scale, request.guidance_scale_2) == (6.0, 6.0)


@pytest.mark.parametrize("count", [1, 5, 9])
def test_a_bundle_of_short_videos_has_windows_too(count: int) -> None:
    defaults = msgspec.structs.replace(MANIFEST.defaults, num_frames=count)
    request = resolve(Request(prompt="a"), msgspec.structs.replace(MANIFEST, defaults=defaults))
    assert request.num_frames == count and 1 <= (request.overlap or 0) < (request.window or 0)


@pytest.mark.parametrize(
    ("fields", "nearest"),
    [
        ({"width": 830, "height": 480}, "--size 832x480"),
        ({"width": 0, "height": -1}, "--size 16x16"),
        ({"width": 1 << 31, "height": 480}, "--size 8192x480"),
        ({"num_frames": 80}, "--frames 81"),
        ({"num_frames": 0}, "--frames 1"),
        ({"num_frames": 10**9}, "--frames 1048573"),
        ({"num_inference_steps": 0}, "--steps 1"),
        ({"num_inference_steps": 10**9}, "--steps 1000"),
        ({"guidance_scale": math.nan}, "--guidance 1"),
        ({"guidance_scale": 1e38}, "--guidance 100"),
        ({"guidance_scale": 0.5}, "--guidance 1"),
        ({"seed": 1 << 64}, "--seed 0"),
        ({"seed": -1}, "--seed 0"),
        ({"fps": 0.0}, "--fps 16"),
        ({"fps": math.nan}, "--fps 16"),
    ],
)
def test_what_cannot_be_done_names_the_nearest(fields: dict[str, float], nearest: str) -> None:
    with pytest.raises(RequestError, match=re.escape(nearest)):
        resolve(Request(prompt="", **fields), MANIFEST)  # type: ignore[arg-type]


def test_one_error_lists_every_problem() -> None:
    with pytest.raises(RequestError) as caught:
        resolve(Request(prompt="", width=830, height=480, num_frames=80, seed=-1), MANIFEST)
    assert all(word in str(caught.value) for word in ("--size", "--frames", "--seed"))


def test_an_unknown_solver_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unipc"):
        resolve(Request(prompt="", solver="ddim"), MANIFEST)  # type: ignore[arg-type]


def test_a_model_that_needs_a_picture_says_so() -> None:
    manifest = msgspec.structs.replace(MANIFEST, conditioning=Conditioning(kind="channels", image_required=True))
    with pytest.raises(RequestError, match="--image"):
        resolve(Request(prompt=""), manifest)


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_the_nearest_value_is_always_accepted(width: int, height: int, frames: int) -> None:
    try:
        resolve(Request(prompt="", width=width, height=height, num_frames=frames), MANIFEST)
    except RequestError as error:
        size = re.search(r"--size (\d+)x(\d+)", str(error))
        count = re.search(r"--frames (\d+)", str(error))
        resolve(
            Request(
                prompt="",
                width=int(size[1]) if size else width,
                height=int(size[2]) if size else height,
                num_frames=int(count[1]) if count else frames,
            ),
            MANIFEST,
        )


@pytest.mark.parametrize(
    ("overlap", "window", "expected"), [(5, 33, (9, 8)), (5, 17, (5, 4)), (1, 33, (1, 4)), (13, 33, (13, 12))]
)
def test_films_are_led_on_from_by_two_latent_frames_where_there_is_room(
    overlap: int, window: int, expected: tuple[int, int]
) -> None:
    assert given_frames(overlap, window, 4) == expected
