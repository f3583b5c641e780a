"""Engines that are wanted: out of the cache, and built into it where they are not there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kinograph.engines.tensorrt import BuildOptions

if TYPE_CHECKING:
    from kinograph.engines.cache import EngineCache
    from kinograph.engines.origin import Card, Origin
    from kinograph.engines.protocol import Axes, Contents
    from kinograph.engines.tensorrt import Built, Progress
    from kinograph.engines.tensorrt_toolkit import Toolkit

__all__ = ["Supply"]


@dataclass(frozen=True)
class Supply:
    """A bundle's engines out of a cache; `workspace` is in bytes, for those that have to be built."""

    cache: EngineCache
    toolkit: Toolkit
    contents: Contents
    progress: Progress
    workspace: int | None = None

    def obtain(self, wanted: Origin, needed: Axes, axes: Axes) -> tuple[Card, bool]:
        """An engine for the sizes `needed`, and whether it was built, which is then done for `axes`."""
        return self.cache.obtain(wanted, needed, axes, lambda: self._build(wanted, axes))

    def _build(self, wanted: Origin, axes: Axes) -> Built:
        options = BuildOptions(
            workspace=self.workspace,
            streams=wanted.streams,
            later_versions=wanted.later_versions,
            gpus=wanted.gpus,
            timings=self.cache.timings(wanted) if self.toolkit.times else None,
        )
        built = self.toolkit.build(self.contents, wanted, axes, options, self.progress)
        if built.timings is not None:
            self.cache.keep_timings(wanted, built.timings)
        return built
