"""A checkpoint with LoRAs, added to its weights while these are written: the bundle is then one like any other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from kinograph.bundle.lora import Changes, Lora
from kinograph.bundle.lora_names import Names
from kinograph.export.weights import Checkpoint

__all__ = ["AdaptedCheckpoint"]


class AdaptedCheckpoint(Checkpoint):
    """A checkpoint with LoRAs: those of its weights that they change are read as float32, changed."""

    def __init__(self, folder: Path, loras: Sequence[Lora], names: Names) -> None:
        """Raises BundleError for a checkpoint or a file that cannot be read, and for one that is not for this model."""
        super().__init__(folder)
        self._changes = [Changes(lora, self, names.aliases, folder) for lora in loras]

    def changed(self) -> list[str]:
        """The names of the weights that are not the checkpoint's own."""
        return sorted(set().union(*(change.targets for change in self._changes)))

    def read(self, name: str) -> torch.Tensor:
        value = super().read(name)
        for change in self._changes:
            if name in change.targets:
                value = value.float() + torch.from_numpy(change.of(name, tuple(value.shape)))
        return value
