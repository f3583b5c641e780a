"""From a module on fake tensors to a clean, portable ONNX graph.

Nothing here holds a weight: modules are built on torch's meta device, traced with fake tensors, and every initializer
of the resulting graph becomes a lazy tensor that reads its value from the checkpoint when the bundle is written.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    CommonSubexpressionEliminationPass,
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
    TopologicalSortPass,
)
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from kinograph.errors import KinographError
from kinograph.export.weights import Checkpoint, CheckpointTensor
from kinograph.manifest import Tensor

__all__ = ["OPSET", "Traced", "fake_mode", "meta_module", "trace"]

OPSET = 23  # the first with Attention, RotaryEmbedding and RMSNormalization
_AXIS_LIMIT = 1 << 14
_SMALL = 1024  # numbers, of constants that are compared
_KEPT = 32  # graphs, for whatever has the same
_TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_TORCH_DTYPES |= {"uint8": torch.uint8, "int64": torch.int64}
_DTYPE_NAMES = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.UINT8: "uint8",
    ir.DataType.INT64: "int64",
}


@dataclass(frozen=True)
class Traced:
    """A graph whose weights are lazy, with its inputs and outputs as the manifest declares them."""

    model: ir.Model
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class _Job:
    """What a graph is traced from. Two of the same key and arguments are equal, whichever module they hold."""

    key: Hashable
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...]
    axes: tuple[tuple[str, int], ...]
    divisors: tuple[tuple[str, int], ...]
    limits: tuple[tuple[str, int], ...]
    grouped_from: int | None
    module: nn.Module = field(compare=False, repr=False)


@contextlib.contextmanager
def meta_module() -> Iterator[None]:
    """Modules made inside have shapes and dtypes and no values; parameters are not initialised."""
    with torch.device("meta"):
        yield


def fake_mode() -> FakeTensorMode:
    """The mode whose tensors `trace` works on."""
    return FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)


def trace(
    module: nn.Module,
    inputs: Sequence[Tensor],
    outputs: Sequence[str],
    *,
    axes: Mapping[str, int],
    sources: Mapping[str, Checkpoint],
    divisors: Mapping[str, int] | None = None,
    limits: Mapping[str, int] | None = None,
    grouped_from: int | None = None,
    key: Hashable = None,
) -> Traced:
    """Trace `module` and return its graph.

    `inputs` are the arguments of `module.forward` in order; from position `grouped_from` on they are passed as one
    list. `outputs` names the results in order; further ones are what the graph remembers and become `next_state_0`,
    `next_state_1`, … `axes` gives each axis letter the size traced at, `divisors` what it is a multiple of, `limits`
    how large it may get. `sources` maps prefixes of parameter names to the checkpoints they come from. The outputs'
    shapes follow from the trace.

    `key` says everything about `module` that its graph depends on, which is its architecture and no weight: what has
    been traced for an equal key, as the other expert of a model has, is not traced again.
    """
    divisors = divisors or {}
    job = _Job(
        key, tuple(inputs), tuple(outputs), _items(axes), _items(divisors), _items(limits or {}), grouped_from, module
    )
    model = _exported(job).clone() if key is not None else _exported.__wrapped__(job)
    for index, value in enumerate(model.graph.outputs[len(outputs) :]):
        value.name = f"next_state_{index}"
    declared = _declare_outputs(model, inputs, divisors)
    _attach_sources(model, sources)
    _clean(model)
    _name_axes(model, (*inputs, *declared))
    return Traced(model, tuple(inputs), declared)


@functools.lru_cache(maxsize=_KEPT)
def _exported(job: _Job) -> ir.Model:
    """The graph as PyTorch's exporter makes it, with fake weights."""
    axes, mode = dict(job.axes), fake_mode()
    _fake_parameters(job.module, mode)
    dims = _dimensions(job.inputs, dict(job.divisors), dict(job.limits))
    arguments: list[Any] = []
    dynamic: list[Any] = []
    for tensor in job.inputs:
        shape = [size if isinstance(size, int) else _evaluate(size, axes) for size in tensor.shape]
        with mode:
            arguments.append(torch.empty(shape, dtype=_TORCH_DTYPES[tensor.dtype]))
        dynamic.append({i: dims[size] for i, size in enumerate(tensor.shape) if isinstance(size, str)})
    if job.grouped_from is not None:
        arguments[job.grouped_from :] = [arguments[job.grouped_from :]]
        dynamic[job.grouped_from :] = [dynamic[job.grouped_from :]]
    with _quiet():
        program = torch.export.export(
            job.module.eval(),
            tuple(arguments),
            dynamic_shapes=tuple(dynamic),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            optimize=False,
            verbose=False,
            input_names=[tensor.name for tensor in job.inputs],
            output_names=list(job.outputs),
        )
    if onnx_program is None:
        raise KinographError("torch.onnx.export returned no program")
    return onnx_program.model


def _items(mapping: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(mapping.items()))


def _fake_parameters(module: nn.Module, mode: FakeTensorMode) -> None:
    """Replace meta parameters and buffers by fake CPU ones; real buffers (small tables) stay real."""
    for child in module.modules():
        for name, parameter in child._parameters.items():
            if parameter is not None and parameter.device.type == "meta":
                with mode:
                    value = torch.empty(parameter.shape, dtype=parameter.dtype)
                child._parameters[name] = nn.Parameter(value, requires_grad=False)
        for name, buffer in child._buffers.items():
            if buffer is not None and buffer.device.type == "meta":
                with mode:
                    child._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _split(axis: str) -> tuple[int, str]:
    factor, _, letter = axis.rpartition("*")
    return int(factor or 1), letter


def _evaluate(axis: str, axes: Mapping[str, int]) -> int:
    factor, letter = _split(axis)
    return factor * axes[letter]


def _dimensions(inputs: Sequence[Tensor], divisors: Mapping[str, int], limits: Mapping[str, int]) -> dict[str, Any]:
    """torch.export dimensions for every axis expression in `inputs`: `"8*H"` with divisor 2 is 16·h."""
    bases: dict[str, Any] = {}
    dims: dict[str, Any] = {}
    for axis in {size for tensor in inputs for size in tensor.shape if isinstance(size, str)}:
        factor, letter = _split(axis)
        divisor = divisors.get(letter, 1)
        largest = limits.get(letter, _AXIS_LIMIT) // divisor
        base = bases.setdefault(letter, Dim(letter.lower(), min=1, max=largest))
        multiple = factor * divisor
        dims[axis] = base if multiple == 1 else multiple * base
    return dims


_SHAPE_TERM = re.compile(r"^(?:(\d+)\*)?(s\d+)$")


def _declare_outputs(model: ir.Model, inputs: Sequence[Tensor], divisors: Mapping[str, int]) -> tuple[Tensor, ...]:
    """The outputs' declarations: torch's symbols are translated back into axis letters through the inputs' shapes."""
    letters: dict[str, tuple[str, int]] = {}
    for tensor, value in zip(inputs, model.graph.inputs, strict=True):
        for axis, size in zip(tensor.shape, value.shape or (), strict=True):
            if isinstance(axis, str) and (match := _SHAPE_TERM.match(str(getattr(size, "value", size)))):
                factor, letter = _split(axis)
                letters[match[2]] = (letter, int(match[1] or 1) // factor)  # symbol = letter / divisor

    def translate(size: Any, name: str) -> int | str:
        if isinstance(size, int):
            return size
        match = _SHAPE_TERM.match(str(getattr(size, "value", size)))
        if match is None or match[2] not in letters:
            raise KinographError(f"output {name} has the size {size}, which is no multiple of an input axis")
        letter, divisor = letters[match[2]]
        factor, rest = divmod(int(match[1] or 1), divisor)
        if rest or not factor:
            raise KinographError(f"output {name} has the size {size}, which is a fraction of the axis {letter}")
        return letter if factor == 1 else f"{factor}*{letter}"

    declared = []
    for value in model.graph.outputs:
        if value.name is None or value.shape is None or value.dtype is None:
            raise KinographError(f"output {value.name} has no shape or dtype")
        shape = tuple(translate(size, value.name) for size in value.shape)
        declared.append(Tensor(name=value.name, dtype=_DTYPE_NAMES[value.dtype], shape=shape))  # type: ignore[arg-type]
    return tuple(declared)


def _attach_sources(model: ir.Model, sources: Mapping[str, Checkpoint]) -> None:
    """Give every initializer that stands for a checkpoint tensor a lazy value."""
    for name, value in model.graph.initializers.items():
        prefix = max((p for p in sources if name.startswith(p)), key=len, default=None)
        if prefix is None or value.const_value is None:
            continue
        checkpoint, key = sources[prefix], name[len(prefix) :]
        if key not in checkpoint:
            continue
        tensor = value.const_value
        shape = [int(str(size)) for size in tensor.shape]
        value.const_value = CheckpointTensor(name, tensor.dtype, shape, functools.partial(checkpoint.read, key))


def _clean(model: ir.Model) -> None:
    """Clean-up that never looks at a weight's value. Paths of the exporting machine leave with the metadata."""
    _fold_weight_transposes(model)
    for step in (
        IdentityEliminationPass(),
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        _fold_axes,
        _deduplicate,
        CommonSubexpressionEliminationPass(),
        RemoveUnusedNodesPass(),
        RemoveUnusedOpsetsPass(),
        TopologicalSortPass(),
        ClearMetadataAndDocStringPass(),
    ):
        step(model)
    model.producer_name = "kinograph"
    model.producer_version = None


def _deduplicate(model: ir.Model) -> None:
    """Keep one of the small constants that are equal. Of weights all: what changes one must not change another."""
    kept: dict[tuple[object, ...], ir.Value] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or isinstance(tensor, CheckpointTensor) or tensor.size > _SMALL:
            continue
        same = kept.setdefault((tensor.dtype, tuple(tensor.shape), tensor.tobytes()), value)
        if same is not value:
            ir.convenience.replace_all_uses_with(value, same)
            del model.graph.initializers[name]


def _fold_axes(model: ir.Model) -> None:
    """Give every reduction its axes as the constant that they are, which TensorRT asks for.

    The exporter reshapes a list of axes to a list.
    """
    for node in model.graph:
        axes = node.inputs[1] if node.op_type.startswith("Reduce") and len(node.inputs) > 1 else None
        reshape = axes.producer() if axes is not None else None
        constant = reshape.inputs[0] if reshape is not None and reshape.op_type == "Reshape" else None
        if constant is not None and constant.const_value is not None and len(constant.const_value.shape) == 1:
            node.replace_input_with(1, constant)


def _fold_weight_transposes(model: ir.Model) -> None:
    """Store weights the way MatMul reads them, instead of transposing them at every load."""
    graph = model.graph
    for node in list(graph):
        weight = node.inputs[0] if node.inputs else None
        if node.op_type != "Transpose" or weight is None or not isinstance(weight.const_value, CheckpointTensor):
            continue
        name = f"{weight.name}.transposed"
        if name not in graph.initializers:
            tensor = weight.const_value.permuted(name, node.attributes["perm"].as_ints())
            graph.initializers[name] = ir.Value(
                name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
            )
        ir.convenience.replace_all_uses_with(node.outputs[0], graph.initializers[name])
        graph.remove(node, safe=True)
        if not weight.uses():
            del graph.initializers[str(weight.name)]


def _name_axes(model: ir.Model, declared: Sequence[Tensor]) -> None:
    """Write the axis expressions of the manifest into the graph's inputs and outputs."""
    for tensor, value in zip(declared, (*model.graph.inputs, *model.graph.outputs), strict=True):
        value.shape = ir.Shape(list(tensor.shape))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters talk about themselves; none of it is for the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
