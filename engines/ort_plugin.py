"""TensorRT for RTX within ONNX Runtime: its plugin, for those who have that and not TensorRT for RTX itself.

The plugin builds its engines when a session starts, of whatever part of a graph TensorRT for RTX takes, and ONNX
Runtime computes the rest on the CPU. So it gets the bundle's own graphs, without what is rewritten for ONNX Runtime's
kernels, and keeps what was compiled beside the engines that we build.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnxruntime as ort

from kinograph.engines.cache import cache_folder
from kinograph.engines.ort import OrtEngine, Provider
from kinograph.engines.ort_cuda import OrtCudaDevice, device_address
from kinograph.engines.rewrites.halves import bfloat16_to_float32
from kinograph.errors import EngineError

if TYPE_CHECKING:
    from kinograph.engines.gpu import Gpu
    from kinograph.engines.protocol import Contents
    from kinograph.manifest import Variant

__all__ = ["OrtPluginDevice", "plugin_devices"]

_BACKEND = "onnxruntime's TensorRT for RTX"
_HOW = "pip install onnxruntime-ep-nv-tensorrt-rtx"


class OrtPluginDevice(OrtCudaDevice):
    """A GPU with ONNX Runtime and its plugin, which knows the GPU as `found`. It owns `gpu`."""

    variants = ("fp16", "fp32", "bf16")

    def __init__(self, gpu: Gpu, found: Any) -> None:
        super().__init__(gpu, graphs=False)
        self._found = found

    @property
    def backend(self) -> str:
        return f"{_BACKEND} ({self.gpu.name}, onnxruntime {ort.__version__}, CUDA {self.gpu.driver})"

    def _started(self, bundle: Contents, component: str, variant: Variant) -> OrtEngine:
        kept = cache_folder() / "plugin"
        kept.mkdir(parents=True, exist_ok=True, mode=0o700)
        options = {
            "has_user_compute_stream": "1",
            "user_compute_stream": str(self.gpu.stream),
            "nv_runtime_cache_path": str(kept),
        }
        provider = Provider(
            ["CPUExecutionProvider"],
            "cuda",
            self.gpu.index,
            device_address,
            plugin=([self._found], options),
            rewrites=(bfloat16_to_float32,),
        )
        return OrtEngine(bundle, component, variant, 1, provider)


def plugin_devices() -> list[Any]:
    """The GPUs that the plugin takes. Raises EngineError, which says why, where it is not there or takes none."""
    try:
        import onnxruntime_ep_nv_tensorrt_rtx as plugin
    except ImportError as exc:
        raise EngineError(f"the plugin is not installed. Run: {_HOW}") from exc
    name = plugin.get_ep_name()

    def known() -> list[Any]:
        return [device for device in ort.get_ep_devices() if device.ep_name == name]

    if not known():  # the plugin is registered once in a process
        try:
            ort.register_execution_provider_library(name, plugin.get_library_path())
        except Exception as exc:  # onnxruntime's exceptions share no base class
            raise EngineError(f"the plugin cannot be loaded: {exc}. Check that NVIDIA's driver is installed") from exc
    if not (found := known()):
        raise EngineError("the plugin takes none of the GPUs here, which have to be of Ampere or later")
    return found
