"""TensorRT on a GPU as a `Device`: engines out of the cache, one arena for all activations, loops as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from kinograph.engines.bundled import find_bundled
from kinograph.engines.cache import EngineCache
from kinograph.engines.device_memory import DeviceBuffer, DeviceMemory, DeviceTable
from kinograph.engines.footprint import Footprint, activation_bytes
from kinograph.engines.launch import LONGEST, Launcher
from kinograph.engines.needs import runs_on
from kinograph.engines.obtain import Supply
from kinograph.engines.origin import Card, Origin, sources, streams, weight_bytes
from kinograph.engines.tensorrt_engine import Arena, TensorRTEngine
from kinograph.errors import EngineError, Interrupted, UsageError

if TYPE_CHECKING:
    from kinograph.engines.gpu import Gpu
    from kinograph.engines.protocol import Array, Axes, Contents
    from kinograph.engines.tensorrt import Progress
    from kinograph.engines.tensorrt_toolkit import Plan, Toolkit

__all__ = ["TensorRTDevice"]

_VARIANTS = ("int4-weights", "nvfp4", "mxfp8", "fp8", "int8", "bf16", "fp16", "fp32")  # fastest first


class TensorRTDevice:
    """A GPU with TensorRT. It owns `gpu`; without `graphs` every run is launched by itself.

    Of a component with more than `weight_budget` bytes of weights, the rest stays in the host's memory, and is copied
    to the GPU whenever it is needed.
    """

    asynchronous = True

    def __init__(
        self,
        gpu: Gpu,
        toolkit: Toolkit,
        cache: EngineCache,
        *,
        graphs: bool = True,
        longest: float = LONGEST,
        weight_budget: int | None = None,
    ) -> None:
        self.gpu, self.toolkit, self.cache, self.weight_budget = gpu, toolkit, cache, weight_budget
        self.memory = DeviceMemory(gpu)
        self.launcher = Launcher(gpu, graphs=graphs, longest=longest)
        self.memory.on_trim(self.launcher.forget)
        self.arena = Arena(self.memory, self.launcher)
        self.on_build: Progress | None = None
        self.cancelled = False
        self._axes: dict[str, Axes] = {}
        self._open: list[TensorRTEngine] = []

    @property
    def name(self) -> str:
        return f"cuda:{self.gpu.index}"

    @property
    def backend(self) -> str:
        return f"{self.toolkit.version} ({self.gpu.name}, CUDA {self.gpu.driver})"

    @property
    def variants(self) -> tuple[str, ...]:
        """What was quantised runs faster than the float that it was made from, and 16 bits faster than 32."""
        return tuple(name for name in _VARIANTS if runs_on(name, self.gpu.capability))

    @property
    def memory_bytes(self) -> int:
        return self.gpu.memory()[1]

    def empty(self, shape: tuple[int, ...], dtype: str) -> DeviceBuffer:
        return DeviceBuffer(self.memory, shape, dtype)

    def table(self, rows: Array) -> DeviceTable:
        return DeviceTable(self.memory, rows)

    def prepare(self, bundle: Contents, precisions: Mapping[str, str], axes: Mapping[str, Axes]) -> Iterator[str]:
        self._axes = dict(axes)
        for component, sizes in axes.items():
            if self._find(bundle, component, precisions[component], sizes) is None:
                yield f"{component} ({precisions[component]})"
                self.card(bundle, component, precisions[component], sizes)

    def open(self, bundle: Contents, component: str, precision: str) -> TensorRTEngine:
        variants = bundle.component(component).variants
        if precision not in variants:
            raise UsageError(
                f"{component} has no variant {precision!r}; this bundle has: {', '.join(variants)}. Use --variant."
            )
        engine = TensorRTEngine(self, bundle, component, precision)
        self._open.append(engine)
        return engine

    def footprint(self, bundle: Contents, component: str, precision: str, sizes: Mapping[str, int]) -> Footprint:
        """By the engine's own account where there is one, and else by the graph's."""
        needed = {axis: (size, size) for axis, size in sizes.items()}
        card = self._find(bundle, component, precision, needed)
        if card is not None:
            weights, activations = card.weight_bytes or card.bytes, card.activation_bytes
        else:
            weights = weight_bytes(bundle, component, precision)
            activations = activation_bytes(bundle, bundle.component(component).variants[precision], sizes)
        return Footprint(weights if self.weight_budget is None else min(weights, self.weight_budget), activations)

    def repeat(self, body: Callable[[int], None], count: int) -> Iterator[int]:
        return self.launcher.repeat(body, count)

    def close(self) -> None:
        try:
            for engine in list(self._open):
                engine.close()
            self.launcher.forget()
            self.arena.release()
            self.memory.trim()
        finally:
            self.gpu.close()

    def __enter__(self) -> TensorRTDevice:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def card(self, bundle: Contents, component: str, precision: str, needed: Axes) -> Card:
        """The bundle's or the cached engine for these sizes, which is built where there is none."""
        wanted = self._origin(bundle, component, precision)
        if (found := find_bundled(bundle, wanted, needed)) is not None:
            return found
        planned = self._axes.get(component, needed)
        axes = planned if _within(needed, planned) else needed
        return Supply(self.cache, self.toolkit, bundle, self._progress).obtain(wanted, needed, axes)[0]

    def load(self, bundle: Contents, component: str, precision: str, needed: Axes) -> tuple[Card, Plan]:
        """An engine for these sizes, on the GPU. One that is not what its card says is built again."""
        for _ in range(2):
            card = self.card(bundle, component, precision, needed)
            plan = bundle.read(card.file) if card.file else self.cache.read(card)
            if plan is not None:
                compiled = self.cache.compiled(card, self.backend)
                budget = self.weight_budget if card.origin.streams else None
                host_code = card.origin.later_versions
                return card, self.toolkit.load(plan, compiled, host_code=host_code, weight_budget=budget)
        raise EngineError(
            f"{card.name} in {self.cache.folder} is altered as soon as it is written; expected a folder that nothing "
            "else writes. Set KINOGRAPH_CACHE to another"
        )

    def forget(self, engine: TensorRTEngine) -> None:
        """Forget an engine that was closed."""
        self._open.remove(engine)

    def _find(self, bundle: Contents, component: str, precision: str, sizes: Axes) -> Card | None:
        wanted = self._origin(bundle, component, precision)
        return find_bundled(bundle, wanted, sizes) or self.cache.find(wanted, sizes)

    def _progress(self, phase: str, done: int, total: int) -> None:
        if self.cancelled:
            raise Interrupted("cancelled")
        if self.on_build is not None:
            self.on_build(phase, done, total)

    def _origin(self, bundle: Contents, component: str, precision: str) -> Origin:
        return Origin(
            component=component,
            precision=precision,
            sources=sources(bundle, component, precision),
            builder=self.toolkit.version,
            capability=self.gpu.capability,
            device=self.gpu.name if self.toolkit.times else None,
            streams=streams(bundle, component, precision, self.weight_budget),
        )


def _within(inner: Axes, outer: Axes) -> bool:
    return all(
        axis in outer and outer[axis][0] <= least and most <= outer[axis][1] for axis, (least, most) in inner.items()
    )
