"""ONNX Runtime on a GPU that is not there: on the fake GPU's memory, with what it is asked to capture."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort
import pytest

import kinograph
from kinograph.engines import ort_cuda, ort_plugin
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


def plugin(monkeypatch: pytest.MonkeyPatch, register: Any, devices: list[Any]) -> None:
    module = SimpleNamespace(get_ep_name=lambda: "RTX", get_library_path=lambda: "plugin.so")
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", module)
    monkeypatch.setattr(ort_plugin.ort, "register_execution_provider_library", register)
    monkeypatch.setattr(ort_plugin.ort, "get_ep_devices", lambda: devices)


def test_the_plugin_is_registered_once_and_says_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[Any] = []
    cpu, gpu = SimpleNamespace(ep_name="CPU"), SimpleNamespace(ep_name="RTX")
    plugin(monkeypatch, lambda name, path: devices.extend([cpu, gpu]), devices)
    assert ort_plugin.plugin_devices() == [gpu]
    assert ort_plugin.plugin_devices() == [gpu]
    assert len(devices) == 2


def test_a_plugin_that_is_of_no_use_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, path: str) -> None:
        raise RuntimeError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", None)
    with pytest.raises(EngineError, match="pip install onnxruntime-ep-nv-tensorrt-rtx"):
        ort_plugin.plugin_devices()
    plugin(monkeypatch, fail, [])
    with pytest.raises(EngineError, match=r"cannot be loaded: libcuda\.so\.1.*driver"):
        ort_plugin.plugin_devices()
    plugin(monkeypatch, lambda name, path: None, [])
    with pytest.raises(EngineError, match="takes none of the GPUs here"):
        ort_plugin.plugin_devices()


def test_the_plugin_gets_graphs_as_they_are_on_our_stream(
    rig: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu, started = rig[0], []
    monkeypatch.setenv("KINOGRAPH_CACHE", str(tmp_path))

    def start(bundle: object, component: str, variant: object, threads: int, provider: Provider) -> Any:
        started.append(provider)
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(ort_plugin, "OrtEngine", start)
    with ort_plugin.OrtPluginDevice(gpu, "found") as device, open_bundle(None) as bundle:
        assert device.backend.startswith("onnxruntime's TensorRT for RTX (")
        device._started(bundle, "step", bundle.component("step").variants["fp32"])
    devices, options = started[0].plugin
    assert devices == ["found"] and options["user_compute_stream"] == str(gpu.stream)
    assert not any("multi_head" in rewrite.__name__ for rewrite in started[0].rewrites)
    assert (tmp_path / "plugin").is_dir()
