"""Windows that are denoised together: they agree on what they share, and one alone is as it would be by itself."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import kinograph
from kinograph import FramesDecoded, Pipeline, Request, StepDone, WindowDone
from kinograph.errors import RequestError
from kinograph.runtime.conditioning import nothing_given
from kinograph.runtime.denoise import Inputs
from kinograph.runtime.sampling import Sampler
from kinograph.runtime.windows import Window, plan
from kinograph.runtime.workshop import Workshop

PROMPT, STEPS = "a cat walks on a beach", 3


@pytest.fixture(scope="module")
def pipe(tiny_bundle: Callable[..., Path]) -> Pipeline:
    with kinograph.load(tiny_bundle("t2v"), device="cpu") as opened:
        yield opened


def asked(pipe: Pipeline, **fields: object) -> Request:
    smallest = {"width": 32, "height": 32, "num_inference_steps": STEPS, "window": 17}
    return pipe.resolve(Request(prompt=PROMPT, **smallest | fields))  # type: ignore[arg-type]


def inputs(pipe: Pipeline, windows: list[Window], seed: int) -> list[Inputs]:
    rng = np.random.default_rng(seed)
    geometry, made = pipe.bundle.manifest.geometry, []
    _, length, width = pipe._engine(pipe.bundle.manifest.experts[0].component).inputs["text"].shape
    rows = rng.normal(size=(2, length, width)).astype(np.float32)  # type: ignore[arg-type]
    for window in windows:
        shape = (1, geometry.channels, window.count, 32 // geometry.spatial, 32 // geometry.spatial)
        made.append(Inputs(rng.normal(size=shape).astype(np.float32), rows, nothing_given(shape)))
    return made


def finished(generator: object) -> tuple[list[StepDone], object]:
    events = []
    while True:
        try:
            events.append(next(generator))  # type: ignore[call-overload]
        except StopIteration as stop:
            return events, stop.value


def sampler(pipe: Pipeline) -> Sampler:
    shop = Workshop(pipe.device, pipe.bundle.manifest, pipe.prompts, pipe._engine, lambda: None)
    return Sampler(shop, asked(pipe))


def test_long_films_of_a_model_that_knows_text_alone(pipe: Pipeline) -> None:
    request = asked(pipe, num_frames=49)
    events = list(pipe.run(request))
    windows = plan(13, 5, (int(request.overlap or 1) + 3) // 4)
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [event.index for event in steps] == list(range(STEPS * len(windows))) and steps[0].total == len(steps)
    made = [event.latents for event in events if isinstance(event, WindowDone)]
    assert [part.shape[2] for part in made] == [window.kept - window.given for window in windows]
    frames = np.concatenate([event.frames for event in events if isinstance(event, FramesDecoded)])
    assert len(frames) == 49
    for count in (1, len(made)):  # going on after a break, however far it was
        done = np.concatenate(made[:count], axis=2)
        again = np.concatenate([e.frames for e in pipe.run(request, done) if isinstance(e, FramesDecoded)])
        assert np.array_equal(again, frames)
    with pytest.raises(RequestError, match="its windows are made together"):
        list(pipe.run(asked(pipe, num_frames=49, anchor=True)))


def test_one_window_is_as_it_would_be_alone(pipe: Pipeline) -> None:
    windows = plan(5, 5, 3)
    (its,) = inputs(pipe, windows, 0)
    told, alone = finished(sampler(pipe).alone(its, 0, 1))
    told_together, (together,) = finished(sampler(pipe).together([its], windows))
    assert np.array_equal(alone, together)
    assert [event.index for event in told] == [event.index for event in told_together] == list(range(STEPS))


def test_windows_agree_on_what_they_share(pipe: Pipeline) -> None:
    windows = plan(12, 5, 3)
    _, made = finished(sampler(pipe).together(inputs(pipe, windows, 1), windows))
    for (one, other), (a, b) in zip(pairwise(windows), pairwise(made), strict=True):
        shared = one.start + one.count - other.start
        assert shared == 3 and np.array_equal(a[:, :, 1 - shared :], b[:, :, 1:shared])
    apart = plan(10, 5, 3, cuts=[5])
    given = inputs(pipe, apart, 2)
    _, (first, *_) = finished(sampler(pipe).together(given, apart))
    _, alone = finished(sampler(pipe).alone(given[0], 0, 1))
    assert np.array_equal(first, alone)  # nothing is shared across a cut
