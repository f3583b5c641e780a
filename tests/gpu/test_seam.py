"""What the engines count on from a GPU: the same of the fake one, which every test runs on, and of a real one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import kinograph
from kinograph.engines.cache import EngineCache
from kinograph.engines.cuda import CudaGpu
from kinograph.engines.fake_gpu import FakeGpu
from kinograph.engines.gpu import ALIGNMENT, Gpu
from kinograph.engines.host import NUMPY_DTYPES
from kinograph.engines.origin import Origin
from kinograph.engines.tensorrt import Built
from kinograph.engines.tensorrt_device import TensorRTDevice
from kinograph.errors import KinographError, MemoryLimitError
from kinograph.manifest import resolve_shape, solve_axes
from kinograph.runtime.locate import open_bundle
from kinograph.runtime.pipeline import Pipeline


def _open(kind: str) -> Gpu:
    if kind == "fake":
        return FakeGpu(1 << 32)
    try:
        return CudaGpu()
    except KinographError as exc:
        pytest.skip(str(exc))


@pytest.fixture(params=["fake", "cuda"])
def gpu(request: pytest.FixtureRequest) -> Iterator[Gpu]:
    gpu = _open(request.param)
    yield gpu
    gpu.close()


@pytest.mark.parametrize("size", [256, 4096, (32 << 20) + 256, 100 << 20])
def test_what_is_uploaded_is_fetched(gpu: Gpu, size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    address = gpu.allocate(size)
    assert address % ALIGNMENT == 0
    gpu.upload(address, data)
    expected, data[:] = data.copy(), 0  # free to be changed as soon as it was asked for
    assert np.array_equal(gpu.fetch(address, size)(), expected)
    gpu.free(address)


def test_what_is_copied_on_the_gpu_is_there_in_turn(gpu: Gpu) -> None:
    source, target = gpu.allocate(4096), gpu.allocate(4096)
    gpu.clear(target, 4096)
    gpu.upload(source, np.full(4096, 7, np.uint8))
    gpu.copy(target, source, 1024)
    gpu.clear(source, 4096)
    assert gpu.fetch(target, 4096)().sum() == 7 * 1024
    gpu.free(source)
    gpu.free(target)


def test_everything_happens_in_the_order_it_was_asked_for(gpu: Gpu) -> None:
    address = gpu.allocate(1 << 20)
    waits = []
    for value in range(1, 20):
        gpu.upload(address, np.full(1 << 20, value, np.uint8))
        waits.append(gpu.fetch(address, 1 << 20))
    gpu.clear(address, 1 << 19)
    last = gpu.fetch(address, 1 << 20)()
    assert [(int(data.min()), int(data.max())) for data in (wait() for wait in waits)] == [(n, n) for n in range(1, 20)]
    assert not last[: 1 << 19].any() and (last[1 << 19 :] == 19).all()


def test_a_captured_graph_does_its_work_when_it_is_launched(gpu: Gpu) -> None:
    address = gpu.allocate(4096)
    gpu.upload(address, np.full(4096, 7, np.uint8))
    graph = gpu.capture(lambda: gpu.clear(address + 1024, 1024))
    before = gpu.fetch(address, 4096)()
    assert (before == 7).all(), "capturing does nothing yet"
    for _ in range(3):
        gpu.upload(address, np.full(4096, 7, np.uint8))
        graph.launch()
        after = gpu.fetch(address, 4096)()
        assert after.sum() == 7 * 3072 and not after[1024:2048].any()
    graph.close()


def test_memory_comes_back(gpu: Gpu) -> None:
    free, total = gpu.memory()
    assert 0 < free <= total
    addresses = [gpu.allocate(64 << 20) for _ in range(4)]
    gpu.synchronize()
    assert gpu.memory()[0] <= free - (200 << 20)
    for address in addresses:
        gpu.free(address)
    gpu.synchronize()
    again = [gpu.allocate(64 << 20) for _ in range(4)]
    assert len(set(again)) == 4


def test_more_than_there_is_is_refused_and_what_was_there_stays(gpu: Gpu) -> None:
    address = gpu.allocate(1024)
    gpu.upload(address, np.arange(256, dtype=np.uint8).repeat(4))
    with pytest.raises(MemoryLimitError, match="left"):
        gpu.allocate(1 << 42)
    assert np.array_equal(gpu.fetch(address, 1024)(), np.arange(256, dtype=np.uint8).repeat(4))


def test_work_that_fails_while_it_is_captured_leaves_the_stream_usable(gpu: Gpu) -> None:
    address = gpu.allocate(1024)

    def work() -> None:
        gpu.clear(address, 1024)
        raise ZeroDivisionError

    with pytest.raises((ZeroDivisionError, KinographError)):
        gpu.capture(work)
    gpu.upload(address, np.full(1024, 3, np.uint8))
    assert (gpu.fetch(address, 1024)() == 3).all()


class _Clearing:
    """A toolkit whose engines fill their outputs with zeros, by what any GPU can do without a kernel."""

    version = "Clearing 1.0"
    times = False

    def __init__(self, gpu: Gpu, contents: object) -> None:
        self.gpu, self.contents = gpu, contents

    def build(self, contents: object, wanted: Origin, *others: object) -> Built:
        return Built(f"{wanted.component} {wanted.precision}".encode(), (), 1 << 20, 1)

    def load(self, plan: bytes, compiled: bytes | None, **options: object) -> SimpleNamespace:
        component, precision = plan.decode().split()
        variant = self.contents.component(component).variants[precision]

        def context(shapes: Mapping[str, tuple[int, ...]]) -> SimpleNamespace:
            sizes = solve_axes({t.name: t.shape for t in variant.inputs if t.name in shapes}, shapes)
            lengths = {
                t.name: math.prod(resolve_shape(t.shape, sizes)) * np.dtype(NUMPY_DTYPES[t.dtype]).itemsize
                for t in variant.outputs
            }

            def enqueue(addresses: Mapping[str, int], arena: int, stream: int) -> None:
                self.gpu.clear(arena, 1 << 20)
                for name, length in lengths.items():
                    self.gpu.clear(addresses[name], length)

            return SimpleNamespace(
                arena_bytes=1 << 20, enqueue=enqueue, capturable=lambda stream: True, close=lambda: None
            )

        return SimpleNamespace(context=context, compiled=lambda: None, close=lambda: None)


@pytest.mark.parametrize("kind", ["fake", "cuda"])
@pytest.mark.parametrize("graphs", [True, False])
def test_a_whole_video_goes_through_and_memory_stays_flat(tmp_path: Path, kind: str, graphs: bool) -> None:
    gpu, bundle = _open(kind), open_bundle(None)
    device = TensorRTDevice(gpu, _Clearing(gpu, bundle), EngineCache(tmp_path), graphs=graphs)  # type: ignore[arg-type]
    free = []
    with Pipeline(bundle, device, "fp32") as pipe:
        for seed in range(6):
            request = kinograph.Request(prompt="a red ball moves left", num_frames=5, num_inference_steps=4, seed=seed)
            frames = [e.frames for e in pipe.run(request) if isinstance(e, kinograph.FramesDecoded)]
            assert not np.concatenate(frames).any()
            free.append(gpu.memory()[0])
    assert len(set(free[1:])) == 1, free
