"""Weights on their way from a checkpoint into a bundle, one tensor at a time.

A graph is traced on fake tensors, so its initializers have names, shapes and dtypes but no values. `Checkpoint` finds
the value of each in the checkpoint's safetensors files, `WeightFile` writes them behind one another into the bundle.
At no time is more than one tensor in memory.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from safetensors import SafetensorError, safe_open

from kinograph.errors import BundleError

__all__ = ["Checkpoint", "CheckpointTensor", "WeightFile"]

_BLOCK_BYTES = 1 << 26  # 64 MB
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
                raise BundleError(
                    f"{path} is not a readable safetensors file ({exc}). Copy the checkpoint again."
                ) from exc

    def _weight_files(self) -> list[Path]:
        indices = sorted(self.folder.glob("*.safetensors.index.json"))
        if not indices:
            files = sorted(self.folder.glob("*.safetensors"))
            if len(files) != 1:
                raise BundleError(
                    f"{self.folder} holds {len(files)} safetensors files and no index; expected one, or shards with "
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


class CheckpointTensor(ir.LazyTensor):
    """An initializer whose value stays in the checkpoint until it is asked for.

    `read` gives it in the dtype it is stored in; it is checked against `shape` and cast to `dtype`.
    """

    def __init__(self, name: str, dtype: ir.DataType, shape: Iterable[int], read: Callable[[], torch.Tensor]) -> None:
        self.sizes = tuple(shape)
        self._read = read
        super().__init__(self._whole, dtype=dtype, shape=ir.Shape(self.sizes), name=name)

    def permuted(self, name: str, order: Sequence[int]) -> CheckpointTensor:
        """The same weight with its axes in another order."""
        return CheckpointTensor(
            name, self.dtype, [self.sizes[axis] for axis in order], lambda: self._read().permute(*order)
        )

    def blocks(self) -> Iterator[torch.Tensor]:
        """The value in pieces of rows, so that a cast or a transposition never needs a second whole copy."""
        value = self._read()
        if tuple(value.shape) != self.sizes:
            raise BundleError(
                f"{self.name} has shape {tuple(value.shape)} in the checkpoint; its configuration says {self.sizes}. "
                "The weights and config.json belong to different models."
            )
        rows = max(1, _BLOCK_BYTES * self.sizes[0] // max(1, self.nbytes)) if self.sizes else 1
        pieces = (value[i : i + rows] for i in range(0, self.sizes[0], rows)) if self.sizes else (value,)
        for block in pieces:
            yield block.to(_TORCH_DTYPES[self.dtype]).contiguous()

    def _whole(self) -> ir.TensorProtocol:
        blocks = list(self.blocks())
        return ir.tensor(torch.cat(blocks) if self.sizes else blocks[0], name=self.name)


class WeightFile:
    """A safetensors file that graphs of one component read as ONNX external data.

    Tensors of the same name in several graphs are stored once.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._tensors: dict[str, Any] = {}

    def claim(self, model: ir.Model, *, threshold: int = 1024) -> None:
        """Point every initializer of at least `threshold` bytes of `model` at this file; `write` fills it."""
        initializers = model.graph.initializers
        for value in list(initializers.values()):
            tensor = value.const_value
            if tensor is None or (tensor.nbytes < threshold and not isinstance(tensor, CheckpointTensor)):
                continue
            name = self._name_for(str(value.name), tensor)
            if name != value.name:
                del initializers[str(value.name)]
                value.name = name
                initializers[name] = value
            self._tensors.setdefault(name, tensor)

    def _name_for(self, name: str, tensor: ir.TensorProtocol) -> str:
        """`name`, or one beside it where another graph's constant has that name and another value."""
        for candidate in itertools.chain([name], (f"{name}.{i}" for i in itertools.count(1))):
            known = self._tensors.get(candidate)
            if known is None or isinstance(tensor, CheckpointTensor) or known.tobytes() == tensor.tobytes():
                return candidate
        raise AssertionError("unreachable")

    @property
    def size(self) -> int:
        """Bytes the file will have."""
        return len(self._header()) + sum(int(tensor.nbytes) for tensor in self._tensors.values())

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
                for block in tensor.blocks() if isinstance(tensor, CheckpointTensor) else (tensor,):
                    file.write(_as_bytes(block))
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


def _as_bytes(value: torch.Tensor | ir.TensorProtocol) -> bytes | memoryview:
    if isinstance(value, torch.Tensor):
        data: npt.NDArray[np.uint8] = value.reshape(-1).view(torch.uint8).numpy()
        return data.data
    return value.tobytes()
