"""The parity run: a freshly written component in the runtime's engine, against PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kinograph.bundle.draft import Draft
from kinograph.engines.ort import OrtDevice
from kinograph.errors import BundleError
from kinograph.export.plan import Check
from kinograph.manifest import Component, Parity
from kinograph.runtime.binding import Binding

__all__ = ["measure"]


def measure(folder: Path, components: Mapping[str, Component], precision: str, check: Check) -> Parity:
    """Run `components` (one, or the first and next of a stream) in `folder` on `check` and compare.

    Raises BundleError where the result is not finite or has another shape.
    """
    bundle = Draft(folder, components)
    outputs: list[Any] = []
    with OrtDevice() as device:
        engines = [device.open(bundle, name, precision) for name in components]
        axes = _axes(engines[0].inputs, check.chunks[0])
        binding = Binding(device, engines[0], axes)
        for index, chunk in enumerate(check.chunks):
            if index == 1:
                start, binding = binding, Binding(device, engines[1], axes | _axes(engines[1].inputs, chunk))
                start.hand_over(binding)
            for name, value in chunk.items():
                binding.write(name, value)
            binding.run()
            outputs.append(binding[check.output].read())
            binding.advance()
        backend = device.backend
    got = np.concatenate(outputs, axis=check.axis)
    if got.shape != check.expected.shape or not np.isfinite(got).all():
        raise BundleError(
            f"{', '.join(components)}: the graph gives {got.shape} where PyTorch gives {check.expected.shape}, "
            f"finite: {bool(np.isfinite(got).all())}. Export in fp32, or report this checkpoint."
        )
    difference = got.astype(np.float64) - check.expected.astype(np.float64)
    return Parity(
        max_abs=float(np.abs(difference).max()),
        rms=float(np.sqrt(np.mean(difference**2))),
        scale=float(np.sqrt(np.mean(check.expected.astype(np.float64) ** 2))),
        engine=backend,
    )


def _axes(inputs: Mapping[str, Any], chunk: Mapping[str, Any]) -> dict[str, int]:
    """The sizes of the axis letters, read off the arrays of a call."""
    axes: dict[str, int] = {}
    for name, tensor in inputs.items():
        for axis, size in zip(tensor.shape, chunk[name].shape if name in chunk else (), strict=False):
            if isinstance(axis, str):
                factor, _, letter = axis.rpartition("*")
                axes[letter] = size // int(factor or 1)
    return axes
