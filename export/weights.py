"""Weights as they lie in a checkpoint, read one tensor at a time.

A graph is traced on fake tensors, so its initializers have names, shapes and dtypes but no values. `Checkpoint` finds
the value of each in the checkpoint's safetensors files, `kinograph.bundle.weights` writes them into the bundle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import onnx_ir as ir
import torch
from safetensors import SafetensorError, safe_open

from kinograph.bundle.weights import StreamedTensor
from kinograph.errors import BundleError

__all__ = ["Checkpoint", "CheckpointTensor"]

_BLOCK_BYTES = 1 << 26  # 64 MB
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

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def read(self, name: str) -> torch.Tensor:
        """One tensor, in the dtype it is stored in.

        The file is opened for this tensor alone: its pages leave memory with it.
        """
        with safe_open(self._files[name], framework="pt") as shard:
            tensor: torch.Tensor = shard.get_tensor(name)
        return tensor


class CheckpointTensor(StreamedTensor):
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

    def pieces(self) -> Iterator[memoryview]:
        for block in self.blocks():
            yield block.reshape(-1).view(torch.uint8).numpy().data

    def _whole(self) -> ir.TensorProtocol:
        blocks = list(self.blocks())
        return ir.tensor(torch.cat(blocks) if self.sizes else blocks[0], name=self.name)
