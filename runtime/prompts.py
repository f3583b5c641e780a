"""Prompts as the transformer reads them: embedded once, and kept for the videos to come."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from kinograph.engines.origin import sources
from kinograph.engines.protocol import Contents, Device, Engine
from kinograph.errors import RequestError
from kinograph.manifest import Manifest, Text
from kinograph.runtime.embeddings import embed, padded
from kinograph.runtime.output import write_file
from kinograph.runtime.text import Tokenizer

__all__ = ["Prompts", "read_prompts", "write_prompts"]

Rows = npt.NDArray[np.float32]

TEXT_ENCODER = "text_encoder"

_MOST_BYTES = 64 << 20  # of rows that are kept: eight of the longest prompts of UMT5-XXL, or a hundred usual ones
_KEY = re.compile(r"[0-9a-f]{64}\Z")


class Prompts:
    """Embeds prompts by a text encoder, which is opened only where one is not `known` yet.

    `given` are embedded prompts of a file, which stay; of others the latest are kept, up to 64 MiB.

    Attributes:
        given: float32 [L', D] for each prompt, by its key.
    """

    def __init__(self, tokenizer: Tokenizer, text: Text, given: Mapping[str, Rows] | None = None) -> None:
        self._tokenizer, self._text = tokenizer, text
        self.given = dict(given or {})
        self._kept: dict[str, Rows] = {}  # the latest last

    def known(self, prompts: Iterable[str]) -> bool:
        """Whether all of them can be had without the text encoder. Raises RequestError for one that is too long."""
        return all(key in self.given or key in self._kept for key in map(self._key, prompts))

    def rows(self, device: Device, engine: Callable[[], Engine], prompts: Sequence[str]) -> Rows:
        """Embeddings [B, L, D] of the prompts, padded with zeros."""
        return padded([self._row(device, engine, prompt) for prompt in prompts], self._text)

    def _row(self, device: Device, engine: Callable[[], Engine], prompt: str) -> Rows:
        key = self._key(prompt)
        if key in self.given:
            return self.given[key]
        row = self._kept.pop(key, None)
        if row is None:
            row = embed(device, engine(), self._tokenizer.encode(prompt))
        self._kept[key] = row
        size = sum(kept.nbytes for kept in self._kept.values())
        while size > _MOST_BYTES and len(self._kept) > 1:
            size -= self._kept.pop(next(iter(self._kept))).nbytes
        return row

    def _key(self, prompt: str) -> str:
        """Prompts that the model cannot tell apart have the same; nobody can tell the prompt from it."""
        return hashlib.sha256(self._tokenizer.encode(prompt).tobytes()).hexdigest()

    def embedded(self, prompts: Iterable[str]) -> dict[str, Rows]:
        """Those of the prompts that are known, as `given` takes them."""
        every = self.given | self._kept
        return {key: every[key] for key in map(self._key, prompts) if key in every}

    def clear(self) -> None:
        """Forget what was embedded, as another text encoder takes its place."""
        self._kept.clear()


def read_prompts(path: Path, bundle: Contents, manifest: Manifest) -> tuple[str, dict[str, Rows]]:
    """The variant of the bundle's text encoder that a file of prompts was made with, and they: [L', D] float32 each.

    Raises RequestError where it is no such file, or of another text encoder.
    """
    again = "Make it again: kinograph embed BUNDLE PROMPT -o FILE"
    try:
        with safetensors.safe_open(path, "np") as file:
            about = file.metadata() or {}
            given = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, safetensors.SafetensorError, ValueError) as exc:
        raise RequestError(f"{path} holds no prompts that can be read: {exc}. {again}") from exc
    variant, component = about.get("variant", ""), manifest.components[TEXT_ENCODER]
    if variant not in component.variants or sources(bundle, TEXT_ENCODER, variant) != about.get(TEXT_ENCODER):
        raise RequestError(
            f"{path} holds prompts of another text encoder ({about.get('bundle', 'of no bundle')[:200]!r}, "
            f"{variant[:64] or 'no variant'}) than {manifest.name} has in {', '.join(component.variants)}. {again}"
        )
    text = manifest.text
    for key, row in given.items():
        right = row.dtype == np.float32 and row.ndim == 2 and 0 < len(row) <= text.length and row.shape[1] == text.dim
        if not right or not _KEY.match(key) or not np.isfinite(row).all():
            raise RequestError(
                f"{path} holds {row.dtype} {list(row.shape)} called {key[:64]!r}; expected finite float32 "
                f"[1 to {text.length}, {text.dim}]. {again}"
            )
    return variant, given


def write_prompts(path: Path, bundle: Contents, manifest: Manifest, variant: str, rows: Mapping[str, Rows]) -> None:
    """Write prompts that the `variant` of the bundle's text encoder embedded, in place of what was there, in one step.

    Raises OutputError.
    """
    about = {
        TEXT_ENCODER: sources(bundle, TEXT_ENCODER, variant),
        "variant": variant,
        "bundle": manifest.name,
        "kinograph": version("kinograph"),
    }
    ordered = {key: np.ascontiguousarray(rows[key]) for key in sorted(rows)}
    write_file(path, safetensors.numpy.save(ordered, metadata=about), force=True)
