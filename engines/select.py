"""Which device a run gets, and why."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kinograph.errors import EngineError, KinographError, UsageError

if TYPE_CHECKING:
    from kinograph.engines.protocol import Device

__all__ = ["DEVICE_VARIABLE", "Candidate", "Settings", "candidates", "chosen_name", "open_device", "open_next"]

DEVICE_VARIABLE = "KINOGRAPH_DEVICE"
_CUDA = re.compile(r"cuda(?::([0-9]{1,3}))?\Z")
_AUTO, _CPU = "auto", "cpu"
_GPU_FILES = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/dev/nvgpu")  # there with a driver, on a Jetson too


class Settings(NamedTuple):
    """How a GPU runs: its loop as CUDA graphs, and with at most so many bytes of a component's weights on it."""

    graphs: bool = True
    weight_budget: int | None = None


_DEFAULT = Settings()


class Candidate(NamedTuple):
    """A backend on a device: `open` makes the device where `why_not` is None."""

    name: str
    backend: str
    why_not: str | None
    open: Callable[[Settings], Device]


def chosen_name(name: str = _AUTO) -> str:
    """The device that is asked for: `auto` heeds KINOGRAPH_DEVICE. Raises UsageError for a name nobody knows."""
    if name == _AUTO:
        name = os.environ.get(DEVICE_VARIABLE) or _AUTO
    if name not in (_AUTO, _CPU) and _CUDA.match(name) is None:
        raise UsageError(f"unknown device {name!r}; expected auto, cpu, cuda or cuda:N. Use --device auto.")
    return name


def candidates(name: str = _AUTO) -> Iterator[Candidate]:
    """What `name` may stand for, best first; whether one can be used is found out when it is asked for."""
    name = chosen_name(name)
    if name != _CPU:
        match = _CUDA.match(name)
        index = int(match[1] or 0) if match else 0
        for backend, why_not, opened in _ON_CUDA:
            yield Candidate(f"cuda:{index}", backend, why_not(index), partial(opened, index))
    if name in (_AUTO, _CPU):
        yield Candidate(_CPU, "onnxruntime", None, _open_cpu)


def open_device(name: str = _AUTO, settings: Settings = _DEFAULT) -> Device:
    """The device called `name`: `auto` is what KINOGRAPH_DEVICE says, else the best there is.

    Where there is a GPU and `auto` cannot use it as well
    as might be, a RuntimeWarning says why. Raises EngineError, with every reason, where none can
    be used, UsageError for a name nobody knows.
    """
    device, reasons = _first(candidates(name), settings, [])
    if reasons and any(Path(path).exists() for path in _GPU_FILES):
        warnings.warn(f"{device.backend} is used: {'; '.join(reasons)}", RuntimeWarning, stacklevel=2)
    return device


def open_next(device: Device, why: str, settings: Settings = _DEFAULT) -> Device | None:
    """The next best device where `device`, which `auto` chose, turned out to be of no use; None after the last."""
    rest = iter(candidates(_AUTO))
    for candidate in rest:
        if device.name == candidate.name and device.backend.startswith(candidate.backend):
            break
    try:
        other, reasons = _first(rest, settings, [why])
    except EngineError:
        return None
    warnings.warn(f"{other.backend} is used: {'; '.join(reasons)}", RuntimeWarning, stacklevel=2)
    return other


def _first(rest: Iterator[Candidate], settings: Settings, reasons: list[str]) -> tuple[Device, list[str]]:
    for candidate in rest:
        if candidate.why_not is None:
            try:
                return candidate.open(settings), reasons
            except EngineError as exc:
                reasons.append(f"{candidate.backend} on {candidate.name}: {exc}")
        else:
            reasons.append(f"{candidate.backend} on {candidate.name}: {candidate.why_not}")
    instead = "Use --device cpu" if settings.weight_budget is None else "Leave out --weight-budget"
    raise EngineError(f"{'; '.join(reasons)}. {instead}")


def _no_gpu(index: int) -> str | None:
    """Why there is no GPU of that number, or None."""
    from kinograph.engines.cuda import CudaGpu

    try:
        CudaGpu(index).close()
    except KinographError as exc:
        return str(exc)
    return None


def _no_tensorrt(target: str) -> Callable[[int], str | None]:
    def why_not(index: int) -> str | None:
        from kinograph.engines.cuda import CudaGpu
        from kinograph.engines.tensorrt import capabilities
        from kinograph.engines.tensorrt_module import RTX, find_module

        try:
            find_module(target)
            gpu = CudaGpu(index)
            capability, name = gpu.capability, gpu.name
            gpu.close()
            if target == RTX and capability not in (known := capabilities()):
                there = ", ".join(map(str, known))
                return f"{name} has compute capability {capability}; it runs on {there}"
        except KinographError as exc:
            return str(exc)
        return None

    return why_not


def _no_ort_cuda(index: int) -> str | None:
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "this onnxruntime is for the CPU. Run: pip uninstall onnxruntime, and pip install 'kinograph[gpu]'"
    return _no_gpu(index)


def _no_plugin(index: int) -> str | None:
    from kinograph.engines.ort_plugin import plugin_devices

    try:
        if index >= (there := len(plugin_devices())):
            return f"the plugin takes {there} GPUs, and none of that number"
    except KinographError as exc:
        return str(exc)
    return _no_gpu(index)


def _open_tensorrt(target: str) -> Callable[[int, Settings], Device]:
    def opened(index: int, settings: Settings) -> Device:
        from kinograph.engines.cache import EngineCache
        from kinograph.engines.cuda import CudaGpu
        from kinograph.engines.tensorrt_device import TensorRTDevice
        from kinograph.engines.tensorrt_toolkit import TensorRT

        toolkit, gpu = TensorRT(target), CudaGpu(index)
        budget = settings.weight_budget
        return TensorRTDevice(gpu, toolkit, EngineCache(), graphs=settings.graphs, weight_budget=budget)

    return opened


def _open_ort_cuda(index: int, settings: Settings) -> Device:
    _check_no_budget(settings)
    from kinograph.engines.cuda import CudaGpu
    from kinograph.engines.ort_cuda import OrtCudaDevice

    return OrtCudaDevice(CudaGpu(index), graphs=settings.graphs)


def _open_plugin(index: int, settings: Settings) -> Device:
    _check_no_budget(settings)
    from kinograph.engines.cuda import CudaGpu
    from kinograph.engines.ort_plugin import OrtPluginDevice, plugin_devices

    found = plugin_devices()[index]
    return OrtPluginDevice(CudaGpu(index), found)


def _open_cpu(settings: Settings) -> Device:
    _check_no_budget(settings)
    from kinograph.engines.ort import OrtDevice

    return OrtDevice()


def _check_no_budget(settings: Settings) -> None:
    if settings.weight_budget is not None:
        raise EngineError("a --weight-budget is TensorRT's, and nothing else leaves weights in the host's memory")


_ON_CUDA: tuple[tuple[str, Callable[[int], str | None], Callable[[int, Settings], Device]], ...] = (
    ("TensorRT for RTX", _no_tensorrt("rtx"), _open_tensorrt("rtx")),
    ("TensorRT", _no_tensorrt("tensorrt"), _open_tensorrt("tensorrt")),
    ("onnxruntime's TensorRT for RTX", _no_plugin, _open_plugin),
    ("onnxruntime", _no_ort_cuda, _open_ort_cuda),
)
