"""ONNX Runtime on a GPU that is not there: on the fake GPU's memory, with what it is asked to capture."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
import pytest

import kinograph
from kinograph.engines import ort_cuda
from kinograph.engines.device_memory import DeviceBuffer
from kinograph.engines.fake_gpu import FakeGpu
from kinograph.engines.ort import OrtEngine, Provider
from kinograph.engines.ort_cuda import OrtCudaDevice, OrtCudaEngine
from kinograph.errors import EngineError
from kinograph.runtime.locate import open_bundle
from kinograph.runtime.pipeline import Pipeline

REQUEST = kinograph.Request(prompt="a red ball moves left", num_frames=5, num_inference_steps=6, seed=3)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> tuple[FakeGpu, list[str], list[dict[str, str]]]:
    """A GPU, the numbers of the graphs that its runs asked for, and the options of its sessions."""
    gpu, numbers, sessions = FakeGpu(1 << 30), [], []

    def provider(self: OrtCudaDevice, options: dict[str, str]) -> Provider:
        sessions.append(options)
        return Provider(["CPUExecutionProvider"], "cpu", 0, address)

    def address(buffer: Any) -> int | None:
        if not isinstance(buffer, DeviceBuffer):
            return None
        return int(gpu.at(buffer.address, buffer.bytes).ctypes.data)

    def run_options(self: OrtCudaEngine) -> ort.RunOptions:
        gpu.synchronize()  # ONNX Runtime's work is on the stream, and the fake GPU's is not
        numbers.append(made(self).get_run_config_entry("gpu_graph_id"))
        return ort.RunOptions()

    made = OrtCudaEngine._run_options
    monkeypatch.setattr(OrtCudaDevice, "_provider", provider)
    monkeypatch.setattr(OrtEngine, "_run_options", lambda self: None if gpu.closed else gpu.synchronize())
    monkeypatch.setattr(OrtCudaEngine, "_run_options", run_options)
    return gpu, numbers, sessions


def frames(device: OrtCudaDevice, runs: int = 1) -> np.ndarray:
    with Pipeline(open_bundle(None), device, "fp32") as pipe:
        for _ in range(runs):
            found = [e.frames for e in pipe.run(REQUEST) if isinstance(e, kinograph.FramesDecoded)]
    return np.concatenate(found)


def test_a_loop_replays_the_graphs_of_two_sets_of_addresses(rig: Any) -> None:
    gpu, numbers, sessions = rig
    captured = frames(OrtCudaDevice(gpu), runs=2)
    assert len(numbers) == 2 * 6
    assert sorted(set(numbers)) == ["0", "1"], "rows of a table all lie at one place, latents at two"
    assert [options.get("enable_cuda_graph") for options in sessions].count("1") == 1, "only the step is captured"
    assert not gpu.allocated
    with kinograph.load(device="cpu", variant="fp32") as pipe:
        expected = np.concatenate([e.frames for e in pipe.run(REQUEST) if isinstance(e, kinograph.FramesDecoded)])
    assert np.abs(captured.astype(int) - expected).max() <= 1


def test_without_graphs_nothing_is_captured(rig: Any) -> None:
    gpu, numbers, sessions = rig
    assert frames(OrtCudaDevice(gpu, graphs=False)).std() > 1
    assert not numbers and all("enable_cuda_graph" not in options for options in sessions)


def test_more_sets_of_addresses_than_are_kept_are_run_node_by_node(rig: Any) -> None:
    gpu, numbers, _ = rig
    with Pipeline(open_bundle(None), OrtCudaDevice(gpu), "fp32") as pipe:
        for width in range(64, 64 + 16 * (ort_cuda._KEPT + 1), 16):
            list(pipe.run(msgspec.structs.replace(REQUEST, width=width, height=64, num_inference_steps=1)))
    assert numbers == [*map(str, range(ort_cuda._KEPT)), "-1"]


def test_what_cannot_be_captured_is_run_node_by_node(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, numbers, _ = rig

    def refuse(*args: object) -> None:
        raise EngineError("not all compute graph nodes have been partitioned to the CUDA EP")

    monkeypatch.setattr(ort_cuda, "OrtCudaEngine", refuse)
    assert frames(OrtCudaDevice(gpu)).std() > 1
    assert numbers == []
