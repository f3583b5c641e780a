"""The weights of a bundle: safetensors files that graphs read as ONNX external data, written one tensor at a time."""

from __future__ import annotations

import itertools
import json
import math
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir

__all__ = ["StreamedTensor", "WeightFile"]

_ALIGNMENT = 64  # bytes; a cache line, so that memory-mapped weights can be used in place
_SAFETENSORS_NAMES = {
    ir.DataType.FLOAT: "F32",
    ir.DataType.FLOAT16: "F16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.INT64: "I64",
    ir.DataType.INT32: "I32",
    ir.DataType.INT8: "I8",
    ir.DataType.UINT8: "U8",
    ir.DataType.INT4: "U8",  # two to a byte: safetensors has no name for it
    ir.DataType.FLOAT4E2M1: "U8",
    ir.DataType.BOOL: "BOOL",
    ir.DataType.FLOAT8E4M3FN: "F8_E4M3",
}


class StreamedTensor(ir.LazyTensor):
    """An initializer too large to be in memory at once, or more than once."""

    @abstractmethod
    def pieces(self) -> Iterator[memoryview]:
        """Its bytes, little-endian and row-major, in pieces."""


class WeightFile:
    """A safetensors file that graphs of one component read as ONNX external data.

    Tensors of the same name in several graphs are stored once.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._tensors: dict[str, Any] = {}
        self._claimed: list[ir.Value] = []

    def claim(self, model: ir.Model, *, threshold: int = 1024) -> None:
        """Take every initializer of at least `threshold` bytes of `model` into this file.

        `write` then writes them, and `link` lets the model refer to them.
        """
        initializers = model.graph.initializers
        for value in list(initializers.values()):
            tensor = value.const_value
            if tensor is None or (tensor.nbytes < threshold and not isinstance(tensor, StreamedTensor)):
                continue
            name = self._name_for(str(value.name), tensor)
            if name != value.name:
                del initializers[str(value.name)]
                value.name = name
                initializers[name] = value
            self._tensors.setdefault(name, tensor)
            self._claimed.append(value)

    def _name_for(self, name: str, tensor: ir.TensorProtocol) -> str:
        """`name`, or one beside it where another graph's constant has that name and another value."""
        for candidate in itertools.chain([name], (f"{name}.{i}" for i in itertools.count(1))):
            known = self._tensors.get(candidate)
            if known is None or isinstance(tensor, StreamedTensor) or known.tobytes() == tensor.tobytes():
                return candidate
        raise AssertionError("unreachable")

    @property
    def size(self) -> int:
        """Bytes the file will have."""
        return len(self._header()) + sum(int(tensor.nbytes) for tensor in self._tensors.values())

    def link(self) -> None:
        """Let every initializer that was claimed refer to the file; others of the same name stay as they are."""
        external = self.external()
        for value in self._claimed:
            value.const_value = external[str(value.name)]

    def external(self) -> dict[str, ir.ExternalTensor]:
        """The external tensors the graphs refer to, by name, with offsets into the file."""
        start = len(self._header())
        return {
            name: ir.ExternalTensor(
                self.name, start + offset, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=name
            )
            for name, tensor, offset in self._layout()
        }

    def write(self, folder: Path) -> Iterator[int]:
        """Write `folder`/`name`, yielding the bytes written so far after every tensor."""
        with (folder / self.name).open("wb") as file:
            file.write(self._header())
            for _, tensor, _ in self._layout():
                for piece in tensor.pieces() if isinstance(tensor, StreamedTensor) else (tensor.tobytes(),):
                    file.write(piece)
                yield file.tell()

    def _layout(self) -> Iterator[tuple[str, Any, int]]:
        offset = 0
        # safetensors allows no holes: largest element first keeps every tensor aligned to its own element size
        for name, tensor in sorted(self._tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
            yield name, tensor, offset
            offset += tensor.nbytes

    def _header(self) -> bytes:
        entries = {
            name: {
                "dtype": _SAFETENSORS_NAMES[tensor.dtype],
                "shape": [tensor.nbytes] if tensor.dtype.bitwidth == 4 else [int(size) for size in tensor.shape],
                "data_offsets": [offset, offset + tensor.nbytes],
            }
            for name, tensor, offset in self._layout()
        }
        text = json.dumps(entries, separators=(",", ":")).encode()
        length = math.ceil((len(text) + 8) / _ALIGNMENT) * _ALIGNMENT - 8
        return length.to_bytes(8, "little") + text.ljust(length)
