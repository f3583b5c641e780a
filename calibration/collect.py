"""What flows through a graph while it makes videos: ranges and samples of every activation, by time of the schedule.

The graph itself computes them, as further outputs: the largest and smallest value of every channel, and a few rows at
random. So memory does not depend on the size of the video, no activation ever leaves the engine whole, and it works
wherever the graph runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from kinograph.bundle.draft import Source, Trial
from kinograph.calibration.layers import Graph, constant
from kinograph.manifest import Component, Tensor

if TYPE_CHECKING:
    from kinograph.runtime.binding import Binding

__all__ = ["BUCKETS", "Statistics", "Watch", "watched"]

Floats = npt.NDArray[np.float32]

BUCKETS = 8  # equal parts of the schedule of timesteps
_ROWS = 1024  # kept of every activation, in all
_SEED = 20_17


@dataclass
class Statistics:
    """An activation of K channels: `low` and `high` [BUCKETS, K] by parts of the schedule, and `sample` [R, K].

    A bucket that nothing fell into has a low of +inf and a high of −inf.
    """

    low: Floats
    high: Floats
    rows: list[Floats] = field(default_factory=list)

    @classmethod
    def of(cls, channels: int) -> Statistics:
        """Of nothing yet."""
        shape = (BUCKETS, channels)
        return cls(np.full(shape, np.inf, np.float32), np.full(shape, -np.inf, np.float32))

    @property
    def largest(self) -> Floats:
        """The largest magnitude of every channel, [K]."""
        bounds = np.maximum(np.abs(self.low), np.abs(self.high))
        return np.asarray(bounds.max(axis=0, where=np.isfinite(self.low), initial=0.0), np.float32)

    @property
    def sample(self) -> Floats:
        """All rows that were kept, [R, K]."""
        return np.concatenate(self.rows)

    def together(self, other: Statistics) -> Statistics:
        """Of all that this and another have seen."""
        return Statistics(np.minimum(self.low, other.low), np.maximum(self.high, other.high), self.rows + other.rows)


class Watch:
    """Gathers the statistics of values from the bindings of a watched graph, a run at a time.

    `channels` has the size of every value's last axis; 1 where all its elements are alike. `runs` is how many times the
    graph will run; with it the share of rows to keep of each is known beforehand. Finished runs are not held: they are
    read, for one value at a time, from where they are kept.
    """

    def __init__(self, channels: Mapping[str, int], runs: int) -> None:
        self.channels = dict(channels)
        self.rows = math.ceil(_ROWS / runs)
        self._now = self._nothing()
        self._runs: list[tuple[Mapping[str, npt.NDArray[Any]], str]] = []

    def see(self, binding: Binding, share: float) -> None:
        """Take what the graph has just shown; `share` is how far the schedule was from its end, 1 being pure noise."""
        bucket = min(int(share * BUCKETS), BUCKETS - 1)
        for number, kept in enumerate(self._now):
            kept.low[bucket] = np.minimum(kept.low[bucket], binding[f"low_{number}"].read())
            kept.high[bucket] = np.maximum(kept.high[bucket], binding[f"high_{number}"].read())
            kept.rows.append(binding[f"rows_{number}"].read())

    def take(self) -> dict[str, npt.NDArray[Any]]:
        """What was seen since the last time, to be kept."""
        taken: dict[str, npt.NDArray[Any]] = {}
        for number, (kept, channels) in enumerate(zip(self._now, self.channels.values(), strict=True)):
            rows = kept.sample if kept.rows else np.empty((0, channels), np.float32)
            taken |= {f"low_{number}": kept.low, f"high_{number}": kept.high, f"rows_{number}": rows}
        self._now = self._nothing()
        return taken

    def add(self, run: Mapping[str, npt.NDArray[Any]], prefix: str) -> None:
        """Count what `take` once gave, which `run` holds under names with a `prefix`."""
        self._runs.append((run, prefix))

    def halves(self, name: str) -> tuple[Statistics, Statistics]:
        """The statistics of a value, from even and from odd runs: what is decided on one can be tried on the other."""
        number = list(self.channels).index(name)
        halves = (Statistics.of(self.channels[name]), Statistics.of(self.channels[name]))
        for index, (run, prefix) in enumerate(self._runs):
            low, high, rows = (run[f"{prefix}{part}_{number}"] for part in ("low", "high", "rows"))
            half = halves[index % 2]
            np.minimum(half.low, low, out=half.low)
            np.maximum(half.high, high, out=half.high)
            half.rows += [rows] if len(rows) else []
        return halves

    def _nothing(self) -> list[Statistics]:
        return [Statistics.of(count) for count in self.channels.values()]


def watched(bundle: Source, watches: Sequence[tuple[Graph, Watch]]) -> Trial:
    """The bundle with components whose graphs also give what the watches want to see."""
    components, graphs = {}, {}
    for graph, watch in watches:
        variant = bundle.component(graph.component).variants[graph.precision]
        model = graph.model.clone()
        outputs = tuple(_watch(model, watch))
        declared = msgspec.structs.replace(variant, outputs=variant.outputs + outputs)
        components[graph.component] = Component(variants={graph.precision: declared})
        graphs[variant.graph] = ir.to_proto(model).SerializeToString()
    return Trial(bundle, components, graphs)


def _watch(model: ir.Model, watch: Watch) -> Iterator[Tensor]:
    """Append what computes the statistics; yields the new outputs."""
    values = _values(model)
    random = np.random.default_rng(_SEED)
    rows = constant(model, "watch.rows", random.integers(0, 1 << 40, watch.rows))
    rows = _node(model, "Add", [rows, _varying(model)])
    axis = constant(model, "watch.axis", np.array([0], np.int64))
    for number, (watched_name, channels) in enumerate(watch.channels.items()):
        shape = constant(model, f"watch.shape_{number}", np.array([-1, channels], np.int64))
        flat = _node(model, "Reshape", [values[watched_name], shape])
        count = _node(model, "Gather", [_node(model, "Shape", [flat]), axis], axis=0)
        chosen = _node(model, "Gather", [flat, _node(model, "Mod", [rows, count])], axis=0)
        for name, value, size in (
            ("low", _node(model, "ReduceMin", [flat, axis], keepdims=0), (channels,)),
            ("high", _node(model, "ReduceMax", [flat, axis], keepdims=0), (channels,)),
            ("rows", chosen, (watch.rows, channels)),
        ):
            value.name = f"{name}_{number}"
            value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(size)
            model.graph.outputs.append(value)
            yield Tensor(name=value.name, dtype="float32", shape=size)


def _varying(model: ir.Model) -> ir.Value:
    """A whole number that is another at every run: so other rows are seen of what stays the same, as text does."""
    total = _node(model, "ReduceSum", [_node(model, "Abs", [model.graph.inputs[0]])], keepdims=0)
    thousand = constant(model, "watch.thousand", np.float32(1000))
    return _node(model, "Cast", [_node(model, "Mul", [total, thousand])], to=ir.DataType.INT64)


def _values(model: ir.Model) -> Mapping[str, ir.Value]:
    values = {str(value.name): value for value in model.graph.inputs}
    for node in model.graph:
        values |= {str(value.name): value for value in node.outputs}
    return values


def _node(model: ir.Model, operator: str, inputs: Sequence[ir.Value], **attributes: Any) -> ir.Value:
    node = ir.node(operator, inputs, attributes=attributes)
    model.graph.append(node)
    return node.outputs[0]
