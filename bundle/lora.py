"""LoRA: what somebody trained beside a model, to be added to its weights.

For each layer that it changes a file has two thin matrices, A [r, in] and B [out, r], and α; W + s·(α/r)·B·A takes the
weight's place (Hu et al. 2021, arXiv:2106.09685), s being how strongly it is wanted. Some have whole differences of
weights and biases beside them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - with which numpy knows the floats that files have
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from kinograph.errors import BundleError, UsageError
from kinograph.manifest import Added

__all__ = ["Changes", "Lora"]

Array = npt.NDArray[np.float32]

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


@dataclass(frozen=True)
class Lora:
    """A safetensors file, how strongly it is added, and which of the model's transformers it is for, counted from 1."""

    path: str | os.PathLike[str]
    strength: float = 1.0
    expert: int = 1

    def added(self) -> Added:
        """How a manifest tells of it. Raises BundleError where the file cannot be read."""
        path = Path(self.path)
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as exc:
            raise BundleError(f"{path} cannot be read: {exc.strerror}. Name a LoRA file") from exc
        return Added(name=path.name, sha256=digest, strength=self.strength, expert=self.expert)


class Changes:
    """What one file changes of a model's weights, `targets`. The file stays open."""

    def __init__(
        self, lora: Lora, weights: Iterable[str], aliases: Callable[[str], Iterable[str]], model: object
    ) -> None:
        """`weights` are the names of all of them, `aliases` what files call a layer; errors name the `model`.

        Raises BundleError for a file that cannot be read, or is not for this model.
        """
        self.lora = lora
        if not math.isfinite(lora.strength):
            raise UsageError(f"the strength of {lora.path} is {lora.strength}; expected a number, such as 1 or 0.8")
        there = set(weights)
        layers = {name.removesuffix(".weight") for name in there if name.endswith(".weight")}
        names = {alias: layer for layer in layers for alias in aliases(layer)}
        self._layers: dict[str, dict[str, str]] = {}
        strange = []
        self._file = _opened(lora.path)
        for key in self._file.keys():  # noqa: SIM118 - it is no mapping
            end = next((end for end in _KINDS if key.endswith(end)), "")
            layer = names.get(key.removesuffix(end)) if end else None
            if layer is None or _KINDS[end] in self._layers.setdefault(layer, {}):
                strange.append(key)
            else:
                self._layers[layer][_KINDS[end]] = key
        self._settings = _settings(lora.path, self._file.metadata() or {})
        if strange or not self._layers:
            belong = "tensors that belong to none of its layers, or twice to one"
            got = f"{len(strange)} {belong}, such as {strange[0]}" if strange else "none"
            raise BundleError(
                f"{lora.path} is no LoRA of {model}, or of a kind that is not supported: it has {got}. "
                "Expected plain LoRA, with or without differences (diff, diff_b), under names that diffusers or the "
                "model's own code use"
            )
        self.targets = {f"{layer}.{which}" for layer in self._layers for which in self._which(layer)}
        if missing := sorted(name for name in self.targets if name not in there):
            raise BundleError(f"{lora.path} changes {missing[0]}, which {model} does not have")

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises BundleError where what is added does not fit the weight of that name and shape. Nothing is read."""
        layer, _, which = name.rpartition(".")
        sizes = {kind: tuple(self._file.get_slice(key).get_shape()) for kind, key in self._layers[layer].items()}
        rows, each, rank = shape[0], math.prod(shape[1:]), next(iter(sizes.get("A", ())), 0)
        fits = [rank > 0] if "A" in sizes else []
        if which in sizes:
            fits += [sizes[which][:1] == (rows,), math.prod(sizes[which]) == rows * each]
        if which == "weight" and "A" in sizes:
            fits += [sizes["B"][:1] == (rows,), math.prod(sizes["B"]) == rows * rank]
            fits += [math.prod(sizes["A"]) == rank * each, math.prod(sizes.get("alpha", ())) == 1]
        if which == "bias" and "B's bias" in sizes:
            fits += [sizes["B's bias"] == shape]
        if not all(fits):
            raise BundleError(
                f"{self.lora.path} does not fit {name}, which has the shape {list(shape)}: "
                f"{', '.join(f'{kind} is {list(size)}' for kind, size in sizes.items())}. It is of another model"
            )

    def of(self, name: str, shape: tuple[int, ...]) -> Array:
        """What is added to the weight of that name and shape, float32. Raises BundleError where it does not fit."""
        self.check(name, shape)
        layer, _, which = name.rpartition(".")
        parts = {kind: self._read(key) for kind, key in self._layers[layer].items()}
        total = np.zeros(shape, np.float32)
        if which in parts:
            total += parts[which].reshape(shape)
        if which == "weight" and "A" in parts:
            up, down = (parts[kind].reshape(len(parts[kind]), -1) for kind in "BA")
            total += (self._scale(layer, parts) * (up @ down)).reshape(shape)
        if which == "bias" and "B's bias" in parts:
            total += self._scale(layer, parts) * parts["B's bias"]
        total *= self.lora.strength
        if not np.isfinite(total).all():
            raise BundleError(f"what {self.lora.path} adds to {name} is not finite. Copy the file again")
        return total

    def _read(self, key: str) -> Array:
        try:
            return np.asarray(self._file.get_tensor(key), np.float32)
        except (SafetensorError, TypeError, ValueError) as exc:
            raise BundleError(f"{self.lora.path} has {key} in a type that is not supported ({exc})") from exc

    def _which(self, layer: str) -> list[str]:
        """Which of a layer's weights are changed. Raises BundleError where half of a pair is missing."""
        kinds = self._layers[layer].keys()
        if ("A" in kinds) != ("B" in kinds) or (kinds & {"B's bias", "alpha"} and "A" not in kinds):
            raise BundleError(f"{self.lora.path} has only {' and '.join(kinds)} for {layer}. Copy it again")
        return [
            which for which, parts in (("weight", {"A", "weight"}), ("bias", {"B's bias", "bias"})) if kinds & parts
        ]

    def _scale(self, layer: str, parts: Mapping[str, Array]) -> float:
        """α/r, which is 1 where the file says nothing of α."""
        rank = len(parts["A"])
        if "alpha" in parts:
            return float(parts["alpha"].item()) / rank
        own = (self._settings.get("alpha_pattern") or {}).items()  # by the ends of layers' names
        alphas = [alpha for end, alpha in own if f".{layer}".endswith(f".{end}")]
        return float(next(iter([*alphas, self._settings.get("lora_alpha") or rank]))) / rank


def _settings(path: str | os.PathLike[str], metadata: Mapping[str, str]) -> dict[str, Any]:
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


def _opened(path: str | os.PathLike[str]) -> Any:
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as exc:
        raise BundleError(f"{path} is not a readable safetensors file ({exc}). Name a LoRA in that format") from exc
