"""An engine that is wanted: out of the cache, and built into it where it is not there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kinograph.engines.tensorrt import BuildOptions

if TYPE_CHECKING:
    from kinograph.engines.cache import EngineCache
    from kinograph.engines.origin import Card, Origin
    from kinograph.engines.protocol import Axes, Contents
    from kinograph.engines.tensorrt import Built, Progress
    from kinograph.engines.tensorrt_toolkit import Toolkit

__all__ = ["obtain"]


def obtain(
    cache: EngineCache,
    toolkit: Toolkit,
    contents: Contents,
    wanted: Origin,
    needed: Axes,
    axes: Axes,
    progress: Progress,
    workspace: int | None = None,
) -> tuple[Card, bool]:
    """An engine for the sizes `needed`, and whether it was built, which is then done for `axes`."""

    def make() -> Built:
        options = BuildOptions(
            workspace=workspace,
            streams=wanted.streams,
            later_versions=wanted.later_versions,
            gpus=wanted.gpus,
            timings=cache.timings(wanted) if toolkit.times else None,
        )
        built = toolkit.build(contents, wanted, axes, options, progress)
        if built.timings is not None:
            cache.keep_timings(wanted, built.timings)
        return built

    return cache.obtain(wanted, needed, axes, make)
