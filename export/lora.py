"""LoRA: what somebody trained beside a model, added to its weights while these are written.

For each layer that it changes a file has two thin matrices, A [r, in] and B [out, r], and α; W + s·(α/r)·B·A takes the
weight's place (Hu et al. 2021, arXiv:2106.09685), s being how strongly it is wanted. Some have whole differences of
weights and biases beside them. The bundle is then one like any other: nothing later knows of it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from kinograph.errors import BundleError, UsageError
from kinograph.export import Lora
from kinograph.export.weights import Checkpoint

__all__ = ["AdaptedCheckpoint", "Aliases"]

Aliases = Callable[[str], Iterable[str]]
"""What files call a layer, given its name in the checkpoint."""

_KINDS = {  # the tensors of a layer, by how their names end
    ".lora_A.weight": "A",
    ".lora_A.default.weight": "A",
    ".lora_down.weight": "A",
    ".lora_B.weight": "B",
    ".lora_B.default.weight": "B",
    ".lora_up.weight": "B",
    ".lora_B.bias": "B's bias",
    ".alpha": "alpha",
    ".diff": "weight",
    ".diff_b": "bias",
}
_SETTINGS = "lora_adapter_metadata"  # of PEFT, as diffusers keeps them in a file's metadata


class AdaptedCheckpoint(Checkpoint):
    """A checkpoint with LoRAs: those of its weights that they change are read as float32, changed."""

    def __init__(self, folder: Path, loras: Sequence[Lora], aliases: Aliases) -> None:
        """Raises BundleError for a checkpoint or a file that cannot be read, and for one that is not for this model."""
        super().__init__(folder)
        self._changes = [_Changes(lora, self, aliases) for lora in loras]

    def changed(self) -> list[str]:
        """The names of the weights that are not the checkpoint's own."""
        return sorted(set().union(*(change.targets for change in self._changes)))

    def read(self, name: str) -> torch.Tensor:
        value = super().read(name)
        for change in self._changes:
            if name in change.targets:
                value = value.float() + change.of(name, value.shape)
        return value


class _Changes:
    """What one file changes of a checkpoint's weights, `targets`."""

    def __init__(self, lora: Lora, weights: Checkpoint, aliases: Aliases) -> None:
        self.lora = lora
        if not math.isfinite(lora.strength):
            raise UsageError(f"the strength of {lora.path} is {lora.strength}; expected a number, such as 1 or 0.8")
        layers = {name.removesuffix(".weight") for name in weights if name.endswith(".weight")}
        names = {alias: layer for layer in layers for alias in aliases(layer)}
        self._layers: dict[str, dict[str, str]] = {}
        strange = []
        with _opened(lora.path) as file:
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                end = next((end for end in _KINDS if key.endswith(end)), "")
                layer = names.get(key.removesuffix(end)) if end else None
                if layer is None or _KINDS[end] in self._layers.setdefault(layer, {}):
                    strange.append(key)
                else:
                    self._layers[layer][_KINDS[end]] = key
            self._settings = _settings(lora.path, file.metadata() or {})
        if strange or not self._layers:
            belong = "tensors that belong to none of its layers, or twice to one"
            got = f"{len(strange)} {belong}, such as {strange[0]}" if strange else "none"
            raise BundleError(
                f"{lora.path} is no LoRA of {weights.folder}, or of a kind that is not supported: it has {got}. "
                "Expected plain LoRA, with or without differences (diff, diff_b), under names that diffusers or the "
                "model's own code use"
            )
        self.targets = {f"{layer}.{which}" for layer in self._layers for which in self._which(layer)}
        if missing := sorted(name for name in self.targets if name not in weights):
            raise BundleError(f"{lora.path} changes {missing[0]}, which {weights.folder} does not have")

    def of(self, name: str, shape: torch.Size) -> torch.Tensor:
        """What is added to the weight of that name and shape, float32. Raises BundleError where it does not fit."""
        layer, _, which = name.rpartition(".")
        keys = self._layers[layer]
        with _opened(self.lora.path) as file:
            parts = {kind: file.get_tensor(key).float() for kind, key in keys.items()}
        changes = [parts[which]] if which in parts else []
        try:
            if which == "weight" and "A" in parts:
                changes.append(self._scale(layer, parts) * (parts["B"].flatten(1) @ parts["A"].flatten(1)))
            if which == "bias" and "B's bias" in parts:
                changes.append(self._scale(layer, parts) * parts["B's bias"])
            total = torch.zeros(shape)
            for change in changes:
                if change.shape[0] != shape[0]:
                    raise ValueError(f"{list(change.shape)}")
                total += change.reshape(shape)
        except (RuntimeError, ValueError) as exc:
            raise BundleError(
                f"{self.lora.path} does not fit {name}, which has the shape {list(shape)}: "
                f"{', '.join(f'{kind} is {list(part.shape)}' for kind, part in parts.items())}. It is of another model"
            ) from exc
        return self.lora.strength * total

    def _which(self, layer: str) -> list[str]:
        """Which of a layer's weights are changed. Raises BundleError where half of a pair is missing."""
        kinds = self._layers[layer].keys()
        if ("A" in kinds) != ("B" in kinds) or (kinds & {"B's bias", "alpha"} and "A" not in kinds):
            raise BundleError(f"{self.lora.path} has only {' and '.join(kinds)} for {layer}. Copy it again")
        return [
            which for which, parts in (("weight", {"A", "weight"}), ("bias", {"B's bias", "bias"})) if kinds & parts
        ]

    def _scale(self, layer: str, parts: Mapping[str, torch.Tensor]) -> float:
        """α/r, which is 1 where the file says nothing of α."""
        rank = len(parts["A"])
        if "alpha" in parts:
            return float(parts["alpha"]) / rank
        own = (self._settings.get("alpha_pattern") or {}).items()  # by the ends of layers' names
        alphas = [alpha for end, alpha in own if f".{layer}".endswith(f".{end}")]
        return float(next(iter([*alphas, self._settings.get("lora_alpha") or rank]))) / rank


def _settings(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """PEFT's settings of a transformer's LoRA, where the file has them."""
    try:
        found = {
            key.removeprefix("transformer."): value for key, value in json.loads(metadata.get(_SETTINGS, "{}")).items()
        }
    except (ValueError, AttributeError) as exc:
        raise BundleError(f"{path} has settings that are no JSON object ({exc}). Save it again") from exc
    alphas = [found.get("lora_alpha") or 0, *(found.get("alpha_pattern") or {}).values()]
    if not all(isinstance(alpha, int | float) for alpha in alphas):
        raise BundleError(f"{path} has settings in which an alpha is no number: {alphas}. Save it again")
    if refused := [name for name in ("use_dora", "use_rslora") if found.get(name)]:
        raise BundleError(f"{path} was trained with {refused[0]}, which is not supported. Expected plain LoRA")
    return found


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as exc:
        raise BundleError(f"{path} is not a readable safetensors file ({exc}). Name a LoRA in that format") from exc
