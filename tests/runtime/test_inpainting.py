"""A part of a film made anew: what the mask leaves out stays to the last bit, what it shows follows the prompt."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import kinograph
from kinograph import FramesDecoded, Pipeline, Request, WindowDone
from kinograph.errors import RequestError
from kinograph.manifest import Geometry
from kinograph.runtime.clip import read_clip
from kinograph.runtime.inpainting import _cells, _feathered
from kinograph.runtime.video import VideoWriter

PROMPT = "a red ball moves left above a yellow star on a plain navy background, flat style"
QUICK = {"num_inference_steps": 4, "guidance_scale": 1.0}
ROW = 70  # from which on the mask is white


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory, starter_copy: Callable[..., Path]) -> Pipeline:
    path = starter_copy(tmp_path_factory.mktemp("bundle") / "starter")
    with kinograph.load(path, device="cpu", variant="fp32") as opened:
        yield opened


@pytest.fixture(scope="module")
def film(pipe: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    pipe("a large red ball moves left on a plain navy background, flat style", seed=1, num_inference_steps=8).save(path)
    return path


@pytest.fixture(scope="module")
def mask(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mask") / "mask.png"
    pixels = np.zeros((128, 128), np.uint8)
    pixels[ROW:] = 255
    Image.fromarray(pixels).save(path)
    return path


def made(pipe: Pipeline, request: Request) -> np.ndarray:
    return np.concatenate([event.frames for event in pipe.run(request) if isinstance(event, FramesDecoded)])


def given(film: Path, count: int) -> np.ndarray:
    frames = list(islice(read_clip(film, width=128, height=128, fps=16, how="crop"), count))
    return np.stack([*frames, *[frames[-1]] * (count - len(frames))])


def _yellow(frames: np.ndarray) -> np.ndarray:
    """The share of every frame that is yellow."""
    red, green, blue = frames.astype(int).transpose(3, 0, 1, 2)
    return ((red > 180) & (green > 150) & (blue < 120)).mean((1, 2))


@pytest.mark.parametrize("count", [17, 41])
def test_what_is_not_masked_stays(pipe: Pipeline, film: Path, mask: Path, count: int) -> None:
    """In one window, and in several with a film that is shorter, whose last frame stays."""
    frames = made(pipe, Request(prompt=PROMPT, inpaint=str(film), mask=str(mask), num_frames=count, **QUICK))
    own = given(film, count)
    assert frames.shape == own.shape
    assert np.array_equal(frames[:, :ROW], own[:, :ROW])
    assert np.abs(frames[:, ROW + 10 :].astype(int) - own[:, ROW + 10 :]).mean() > 3


def test_what_is_masked_follows_the_prompt(pipe: Pipeline, mask: Path, tmp_path: Path) -> None:
    length = {"num_frames": 33, "window": 33}  # what the model was trained on
    pipe("a red ball moves left on a plain navy background, flat style", seed=2, **length).save(tmp_path / "film.mp4")
    inpaint = {"inpaint": str(tmp_path / "film.mp4"), "mask": str(mask)}
    frames = made(pipe, Request(prompt=PROMPT, seed=3, **inpaint, **length))
    yellow, before = (_yellow(one[:, ROW:]) for one in (frames, given(tmp_path / "film.mp4", 33)))
    assert (yellow > 0.01).all() and (before == 0).all(), "a star in every frame, where there was none"


def test_a_mask_can_move(pipe: Pipeline, film: Path, tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "mask.mp4", width=128, height=128, fps=16.0) as writer:
        for number in range(17):
            pixels = np.zeros((1, 128, 128, 3), np.uint8)
            pixels[0, :, : 64 if number < 8 else 0] = 255
            writer.write(pixels)
    request = Request(prompt=PROMPT, inpaint=str(film), mask=str(tmp_path / "mask.mp4"), **QUICK)
    frames, own = made(pipe, request), given(film, 17)
    assert np.array_equal(frames[8:], own[8:])
    assert not np.array_equal(frames[:8, :, :60], own[:8, :, :60])
    assert np.array_equal(frames[:8, :, 70:], own[:8, :, 70:])


def test_it_goes_on_after_a_break(pipe: Pipeline, film: Path, mask: Path) -> None:
    request = Request(prompt=PROMPT, inpaint=str(film), mask=str(mask), num_frames=41, **QUICK)
    events = list(pipe.run(request))
    latents = [event.latents for event in events if isinstance(event, WindowDone)]
    frames = np.concatenate([event.frames for event in events if isinstance(event, FramesDecoded)])
    resumed = list(pipe.run(request, np.concatenate(latents[:2], axis=2)))
    assert np.array_equal(np.concatenate([e.frames for e in resumed if isinstance(e, FramesDecoded)]), frames)


def test_models_that_were_not_trained_for_it_do_it_too(
    tiny_bundle: Callable[..., Path], mask: Path, film: Path
) -> None:
    """Known latents enter a text-to-video model at the level of the noise."""
    with kinograph.load(tiny_bundle("t2v"), device="cpu") as pipe:
        fields = {"width": 64, "height": 64, "num_frames": 9, "num_inference_steps": 2}
        frames = made(pipe, Request(prompt="a", inpaint=str(film), mask=str(mask), **fields))
        own = np.stack(list(islice(read_clip(film, width=64, height=64, fps=16, how="crop"), 9)))
    assert np.array_equal(frames[:, :34], own[:, :34]) and not np.array_equal(frames, own)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inpaint": "x.mp4"}, "Use --mask FILE"),
        ({"mask": "x.png"}, "there is no --inpaint"),
        ({"inpaint": "x.mp4", "mask": "x.png", "loop": True}, "Leave out other films"),
        ({"inpaint": "x.mp4", "mask": "x.png", "image": "x.png"}, "Leave out other films"),
    ],
)
def test_what_does_not_go_together_is_said(pipe: Pipeline, fields: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        pipe.resolve(Request(prompt=PROMPT, num_frames=33, **fields))  # type: ignore[arg-type]


def test_what_cannot_be_read_is_said(pipe: Pipeline, film: Path, mask: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("white")
    for fields in (
        {"inpaint": str(film), "mask": str(tmp_path / "notes.txt")},
        {"inpaint": "no.mp4", "mask": str(mask)},
    ):
        with pytest.raises(RequestError, match=r"notes\.txt|no\.mp4"):
            made(pipe, Request(prompt=PROMPT, **fields, **QUICK))
    assert len(made(pipe, Request(prompt=PROMPT, **QUICK))) == 17, "the pipeline is free again"


def test_a_token_is_given_whole_or_not_at_all() -> None:
    geometry = Geometry(channels=4, spatial=8, temporal=4, patch=2, positions=64)
    new = np.zeros((32, 48), bool)
    new[17, 20] = True
    kept = _cells(new, geometry)
    assert kept.shape == (4, 6)
    assert kept[2:, 2:4].sum() == 0 and kept.sum() == 4 * 6 - 4


def test_the_share_of_what_was_made_is_nothing_outside_the_mask() -> None:
    mask = np.zeros((64, 64), bool)
    mask[20:44, 20:44] = True
    share = _feathered(mask)
    assert not share[~mask].any()
    assert share[32, 32] == 1 and 0 < share[22, 32] < 1
