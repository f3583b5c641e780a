"""What a family says about a checkpoint: everything the exporter needs and nothing about how it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kinograph.export.trace import Traced
from kinograph.manifest import Conditioning, Defaults, Expert, Geometry, Solver, Text

__all__ = ["Check", "Part", "Plan"]


@dataclass(frozen=True)
class Check:
    """One comparison with PyTorch: named inputs of the component and the output it should have.

    `chunks` are the inputs of consecutive calls: one for a plain graph, several for a stream.
    """

    chunks: tuple[Mapping[str, Any], ...]
    output: str
    expected: Any  # numpy array; for a stream, the outputs of all calls joined along `axis`
    axis: int = 0


@dataclass(frozen=True)
class Part:
    """Graphs that share a weight file, and their reference in PyTorch.

    `trace` makes the graphs, by component name and in the order a stream runs them; `check` loads the real model in
    float32 and runs it.
    """

    folder: str
    trace: Callable[[torch.dtype], dict[str, Traced]]
    check: Callable[[], Check]


@dataclass(frozen=True)
class Plan:
    """A checkpoint, understood."""

    family: str
    pipeline: str
    geometry: Geometry
    solver: Solver
    conditioning: Conditioning
    text: Text
    tokenizer: bytes
    defaults: Defaults
    experts: tuple[Expert, ...]
    parts: Iterable[Part]
    checkpoint: Path
