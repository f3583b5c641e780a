"""The layers of a graph that can be quantised: products of an activation with a weight, grouped by the activation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from kinograph.bundle.draft import Source
from kinograph.errors import BundleError

__all__ = ["Convolution", "Graph", "Group", "constant", "open_graph"]

Array = npt.NDArray[Any]

_MATRIX = 2
_CONVOLUTIONS = (4, 5)  # dimensions of a weight [O, I, height, width], or [O, I, time, height, width]


@dataclass(frozen=True)
class Group:
    """The `MatMul` nodes that read one activation [..., K], with the names of their weights [K, N].

    They share the activation's format, so that it is quantised once.
    """

    activation: str
    nodes: tuple[str, ...]
    weights: tuple[str, ...]
    channels: int  # K


@dataclass(frozen=True)
class Convolution:
    """A `Conv` of an activation with a weight [O, I, …] and perhaps a bias [O]; `output` is what it computes."""

    activation: str
    node: str
    weight: str
    bias: str | None
    output: str
    channels: int  # O

    @property
    def weights(self) -> tuple[str, ...]:
        return (self.weight,)


@dataclass(frozen=True)
class Graph:
    """A component's graph in one precision, with its weights as read-only arrays over the bundle's files."""

    component: str
    precision: str
    model: ir.Model
    weights: Mapping[str, Array]

    def groups(self) -> list[Group]:
        """Every group, in the order in which the graph computes them."""
        found: dict[str, list[tuple[str, str]]] = {}
        for node, weight in _products(self.model):
            found.setdefault(str(node.inputs[0].name), []).append((str(node.name), weight))  # type: ignore[union-attr]
        return [
            Group(
                activation,
                tuple(node for node, _ in pairs),
                tuple(weight for _, weight in pairs),
                self.weights[pairs[0][1]].shape[0],
            )
            for activation, pairs in found.items()
            if all(weight in self.weights for _, weight in pairs)
        ]

    def convolutions(self) -> list[Convolution]:
        """Every convolution over space, and time or not, in the order in which the graph computes them."""
        found = []
        for node in self.model.graph:
            if node.op_type != "Conv" or node.domain:
                continue
            activation, weight, *rest = (None if value is None else str(value.name) for value in node.inputs)
            if activation and weight and weight in self.weights and self.weights[weight].ndim in _CONVOLUTIONS:
                bias = rest[0] if rest else None
                made = len(self.weights[weight])
                found.append(Convolution(activation, str(node.name), weight, bias, str(node.outputs[0].name), made))
        return found

    def constant(self, name: str) -> npt.NDArray[np.float32]:
        """The value of a float constant, whether it lies with the weights or in the graph."""
        if name in self.weights:
            return np.asarray(self.weights[name])
        tensor = self.model.graph.initializers[name].const_value
        if tensor is None:
            raise BundleError(f"{self.component}: {name} has no value. Export the checkpoint again.")
        return np.asarray(tensor.numpy(), np.float32)


def open_graph(bundle: Source, component: str, precision: str) -> Graph:
    """The graph of a component, to be changed and written again. Raises BundleError where it has no such variant."""
    variants = bundle.component(component).variants
    if precision not in variants:
        raise BundleError(
            f"{component} has no variant {precision!r} to quantise; it has: {', '.join(variants)}. "
            "Export the checkpoint again."
        )
    variant = variants[precision]
    model = ir.from_proto(onnx.load_model_from_string(bundle.read(variant.graph)))
    files = {path.rpartition("/")[2]: bundle.map(path) for path in variant.weights}
    weights: dict[str, Array] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.dtype == ir.DataType.FLOAT:
            start = tensor.offset or 0
            data = files[str(tensor.location)][start : start + int(tensor.length or 0)]
            weights[name] = data.view(np.float32).reshape(tuple(tensor.shape.numpy()))
    return Graph(component, precision, model, weights)


def constant(model: ir.Model, name: str, array: npt.NDArray[Any] | np.generic) -> ir.Value:
    """The initializer `name` of a graph, added with this value where the graph has none of that name."""
    array = np.asarray(array)
    if name not in model.graph.initializers:
        model.graph.initializers[name] = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            const_value=ir.tensor(array, name=name),
        )
    return model.graph.initializers[name]


def _products(model: ir.Model) -> Iterator[tuple[ir.Node, str]]:
    """Every MatMul of an activation with a matrix of weights."""
    for node in model.graph:
        if node.op_type != "MatMul" or node.domain:
            continue
        activation, weight = node.inputs
        if activation is None or weight is None or activation.is_initializer() or not weight.is_initializer():
            continue
        if weight.shape is not None and weight.shape.rank() == _MATRIX:
            yield node, str(weight.name)
