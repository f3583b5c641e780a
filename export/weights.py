"""Weights on their way from a checkpoint into a bundle, one tensor at a time.

A graph is traced on fake tensors, so its initializers have names, shapes and dtypes but no values. `Checkpoint` finds the
value of each in the checkpoint's safetensors files, `WeightFile` writes them behind one another into the bundle. At no
time is more than one tensor in memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from safetensors import SafetensorError, safe_open

from kinograph.errors import BundleError

__all__ = ["Checkpoint", "WeightFile", "lazy_tensor"]

_ALIGNMENT = 64  # bytes; a cache line, so that memory-mapped weights can be used in place
_SAFETENSORS_NAMES = {
    ir.DataType.FLOAT: "F32",
    ir.DataType.FLOAT16: "F16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.INT64: "I64",
    ir.DataType.INT32: "I32",
    ir.DataType.BOOL: "BOOL",
}
_TORCH_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT64: torch.int64,
    ir.DataType.INT32: torch.int32,
    ir.DataType.BOOL: torch.bool,
}


class Checkpoint:
    """The tensors of one model folder: a single safetensors file, or shards with their index."""

    def __init__(self, folder: Path) -> None:
        """Raises BundleError where the folder has no safetensors weights or an index that names missing shards."""
        self.folder = folder
        self._files: dict[str, Path] = {}
        for path in self._weight_files():
            try:
                with safe_open(path, framework="pt") as shard:
                    self._files.update(dict.fromkeys(shard.keys(), path))
            except (SafetensorError, OSError) as exc:
                raise BundleError(f"{path} is not a readable safetensors file ({exc}). Copy the checkpoint again.") from exc

    def _weight_files(self) -> list[Path]:
        indices = sorted(self.folder.glob("*.safetensors.index.json"))
        if not indices:
            files = sorted(self.folder.glob("*.safetensors"))
            if len(files) != 1:
                raise BundleError(
                    f"{self.folder} holds {len(files)} safetensors files and no index; expected one file, or shards with "
                    "a *.safetensors.index.json. Save the model again with save_pretrained()."
                )
            return files
        try:
            shards = sorted(set(json.loads(indices[0].read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as exc:
            raise BundleError(f"{indices[0]} is not a weight index ({exc!r}). Copy the checkpoint again.") from exc
        for name in shards:
            if Path(name).name != name or not (self.folder / name).is_file():
                raise BundleError(f"{indices[0]} names the shard {name!r}, which {self.folder} does not hold.")
        return [self.folder / name for name in shards]

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def read(self, name: str) -> torch.Tensor:
        """One tensor, in the dtype it is stored in.

        The file is opened for this tensor alone: its pages leave memory with it.
        """
        with safe_open(self._files[name], framework="pt") as shard:
            tensor: torch.Tensor = shard.get_tensor(name)
        return tensor


def lazy_tensor(name: str, dtype: ir.DataType, shape: Iterable[int], read: Callable[[], torch.Tensor]) -> ir.LazyTensor:
    """A tensor whose value is read, checked against `shape` and cast to `dtype` when it is asked for."""
    expected = tuple(shape)

    def evaluate() -> ir.Tensor:
        value = read()
        if tuple(value.shape) != expected:
            raise BundleError(
                f"{name} has shape {tuple(value.shape)} in the checkpoint, but its configuration says {expected}. "
                "The weights and config.json belong to different models."
            )
        return ir.tensor(value.to(_TORCH_DTYPES[dtype]).contiguous(), name=name)

    return ir.LazyTensor(evaluate, dtype=dtype, shape=ir.Shape(expected), name=name)


class WeightFile:
    """A safetensors file that graphs of one component read as ONNX external data.

    Tensors of the same name in several graphs are stored once.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._tensors: dict[str, Any] = {}

    def claim(self, model: ir.Model, *, threshold: int = 1024) -> None:
        """Point every initializer of at least `threshold` bytes of `model` at this file; `write` fills it."""
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and (tensor.nbytes >= threshold or isinstance(tensor, ir.LazyTensor)):
                self._tensors.setdefault(str(value.name), tensor)

    @property
    def size(self) -> int:
        """Bytes the file will have."""
        return len(self._header()) + sum(tensor.nbytes for tensor in self._tensors.values())

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
                file.write(_as_bytes(tensor))
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
                "shape": [int(size) for size in tensor.shape],
                "data_offsets": [offset, offset + tensor.nbytes],
            }
            for name, tensor, offset in self._layout()
        }
        text = json.dumps(entries, separators=(",", ":")).encode()
        length = math.ceil((len(text) + 8) / _ALIGNMENT) * _ALIGNMENT - 8
        return length.to_bytes(8, "little") + text.ljust(length)


def _as_bytes(tensor: Any) -> memoryview:
    array = np.ascontiguousarray(tensor.numpy())
    return memoryview(array.reshape(-1).view(np.uint8))
