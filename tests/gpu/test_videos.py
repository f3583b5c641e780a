"""Videos of a GPU against those of the CPU, on whatever backend the GPU can use. Needs a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import pytest

import kinograph
from kinograph.engines.select import Candidate, Settings, candidates
from kinograph.engines.tensorrt_device import TensorRTDevice
from kinograph.runtime.locate import open_bundle
from kinograph.runtime.pipeline import Pipeline

REQUEST = kinograph.Request(
    prompt="a red ball moves left", width=64, height=64, num_frames=9, num_inference_steps=6, seed=3
)
LEAST = 40.0  # dB: fp32 against fp32, with other orders of summation

_CANDIDATES = list(candidates("cuda"))


@pytest.fixture(params=_CANDIDATES, ids=[candidate.backend for candidate in _CANDIDATES])
def candidate(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Candidate]:
    if request.param.why_not is not None:
        pytest.skip(request.param.why_not)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KINOGRAPH_CACHE", str(tmp_path_factory.mktemp("engines")))
        yield request.param


def video(pipe: Pipeline, request: kinograph.Request = REQUEST) -> np.ndarray:
    return np.concatenate([event.frames for event in pipe.run(request) if isinstance(event, kinograph.FramesDecoded)])


def test_videos_are_those_of_the_cpu(candidate: Candidate) -> None:
    with kinograph.load(device="cpu", variant="fp32") as pipe:
        expected = video(pipe).astype(float)
    with Pipeline(open_bundle(None), candidate.open(Settings()), "fp32") as pipe:
        made = video(pipe).astype(float)
    error = np.mean((made - expected) ** 2)
    decibels = 10 * np.log10(255**2 / max(error, 1e-9))
    print(f"{candidate.backend}: {decibels:.1f} dB")
    assert decibels >= LEAST


def test_graphs_compute_what_single_steps_compute(candidate: Candidate) -> None:
    videos = []
    for graphs in (True, False):
        with Pipeline(open_bundle(None), candidate.open(Settings(graphs=graphs)), "fp32") as pipe:
            videos.append(video(pipe))
    assert np.array_equal(*videos)


def test_a_hundred_videos_take_no_more_memory_than_ten(candidate: Candidate) -> None:
    device = candidate.open(Settings())
    with Pipeline(open_bundle(None), device, "fp32") as pipe:
        free = []
        for seed in range(100):
            video(pipe, msgspec.structs.replace(REQUEST, seed=seed))
            if isinstance(device, TensorRTDevice):
                free.append(device.gpu.memory()[0])
        assert len(set(free[10:])) <= 1


def test_a_budget_for_weights_changes_no_frame(candidate: Candidate) -> None:
    if "TensorRT" not in candidate.backend or "onnxruntime" in candidate.backend:
        pytest.skip("TensorRT alone leaves weights in the host's memory")
    videos = []
    for budget in (None, 8 << 20):
        with Pipeline(open_bundle(None), candidate.open(Settings(weight_budget=budget)), "fp32") as pipe:
            videos.append(video(pipe).astype(float))
    assert np.abs(videos[0] - videos[1]).max() <= 2, "another engine may sum in another order"
