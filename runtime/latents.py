"""The latents of a film on disk: written window by window, so that a run that was cut off can go on from them."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from kinograph.errors import OutputError, RequestError
from kinograph.runtime.request import Request

__all__ = ["LatentsFile", "cuts_of", "read_latents"]

Latents = npt.NDArray[np.float32]

_NAME = "latents"


class LatentsFile:
    """Collects a film's latents in a safetensors file at `path`, which is whole at any moment.

    It says of which resolved request they are, and by what, so that nothing else goes on from them.
    """

    def __init__(self, path: Path, request: Request, origin: Mapping[str, str]) -> None:
        self.path = path
        self._about = {"request": msgspec.json.encode(request).decode(), **origin}
        self._parts: list[Latents] = []
        self._cuts: list[int] = []
        self._there = 0  # latent frames that the file has already

    def resume(self) -> Latents | None:
        """What an earlier run has written, [1, C, F, H, W], None where there is no file.

        Raises RequestError where it is of another request, bundle, variant or version.
        """
        if not self.path.exists():
            return None
        latents, about = read_latents(self.path)
        for name, value in self._about.items():
            if about.get(name) != value:
                differing = _difference(about.get(name), value)
                raise RequestError(
                    f"{self.path} holds latents of another {name.replace('_', ' ')}: {differing}. "
                    "Ask for the same video again, or leave out --resume"
                )
        self._there = latents.shape[2]
        return latents

    def add(self, latents: Latents, *, cut: bool = False) -> None:
        """Latents [1, C, F, H, W] that come next, after a `cut` or following from the others. Raises OutputError."""
        if cut:
            self._cuts.append(sum(part.shape[2] for part in self._parts))
        self._parts.append(latents)
        whole = np.ascontiguousarray(np.concatenate(self._parts, axis=2))
        if whole.shape[2] <= self._there:
            return
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
        try:
            with temporary.open("xb") as stream:
                about = self._about | {"cuts": json.dumps(self._cuts)}
                stream.write(safetensors.numpy.save({_NAME: whole}, metadata=about))
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(self.path)
        except OSError as exc:
            temporary.unlink(missing_ok=True)
            raise OutputError(
                f"the latents {self.path} cannot be written: {exc.strerror}. Choose another place"
            ) from exc


def _difference(got: str | None, expected: str) -> str:
    """What differs between two values, field by field where they have fields."""
    try:
        found, wanted = json.loads(got or ""), json.loads(expected)
        fields = [f"{name} {found.get(name)!r}, expected {wanted[name]!r}" for name in wanted]
        fields = [told for name, told in zip(wanted, fields, strict=True) if found.get(name) != wanted[name]]
    except (ValueError, AttributeError, TypeError):
        fields = [f"{got!r}, expected {expected!r}"]
    return "got " + "; ".join(fields)[:500]


def cuts_of(about: Mapping[str, str], frames: int) -> list[int]:
    """The cuts of a file of `frames` latent frames, from what is said of it; none where that says nothing sensible."""
    try:
        cuts = msgspec.json.decode(about.get("cuts", "[]"), type=list[int])
    except msgspec.DecodeError:
        return []
    rising = all(0 < cut < frames for cut in cuts) and cuts == sorted(set(cuts))
    return cuts if rising else []


def read_latents(path: Path) -> tuple[Latents, dict[str, str]]:
    """Latents [1, C, F, H, W] float32 from a file, and what is said of them. Raises RequestError."""
    try:
        with safetensors.safe_open(path, "np") as file:
            latents, about = file.get_tensor(_NAME), file.metadata() or {}
    except (OSError, safetensors.SafetensorError, ValueError) as exc:
        raise RequestError(f"{path} holds no latents that can be read: {exc}. It is written by --latents") from exc
    if latents.dtype != np.float32 or latents.ndim != 5 or len(latents) != 1 or not np.isfinite(latents).all():
        raise RequestError(
            f"{path} holds {latents.dtype} {list(latents.shape)}; expected finite float32 latents [1, C, F, H, W]"
        )
    return latents, about
