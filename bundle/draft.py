"""What an engine needs of a bundle, before there is one: while it is written, or where a graph is only being tried."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from kinograph.manifest import Component, Engine, Manifest

__all__ = ["Draft", "Source", "Trial"]


class Source(Protocol):
    """A bundle, or what is tried in place of one: its manifest, and its files by name."""

    @property
    def manifest(self) -> Manifest: ...

    def read(self, name: str) -> bytes: ...

    def map(self, name: str) -> npt.NDArray[Any]: ...

    def component(self, name: str) -> Component: ...

    def size(self, name: str) -> int: ...

    def private(self, name: str) -> int: ...

    def sha256(self, name: str) -> str: ...

    @property
    def engines(self) -> tuple[Engine, ...]: ...


class Draft:
    """The files of a `folder` in which a bundle is being written, with the components it will have."""

    def __init__(self, folder: Path, components: Mapping[str, Component]) -> None:
        self._folder = folder
        self._components = components

    def read(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()

    def map(self, name: str) -> npt.NDArray[np.uint8]:
        return np.memmap(self._folder / name, dtype=np.uint8, mode="r")

    def component(self, name: str) -> Component:
        return self._components[name]

    def size(self, name: str) -> int:
        return (self._folder / name).stat().st_size

    def private(self, name: str) -> int:
        return 0

    def sha256(self, name: str) -> str:
        return hashlib.sha256(self.map(name).data).hexdigest()

    @property
    def engines(self) -> tuple[Engine, ...]:
        return ()


class Trial:
    """A bundle with some other components, whose files are in memory or lie elsewhere; it does not own the bundle."""

    def __init__(self, bundle: Source, components: Mapping[str, Component], files: Mapping[str, bytes | Path]) -> None:
        self._bundle = bundle
        self._components = components
        self._files = files

    @property
    def manifest(self) -> Manifest:
        components = self._bundle.manifest.components | dict(self._components)
        return msgspec.structs.replace(self._bundle.manifest, components=components)

    def read(self, name: str) -> bytes:
        file = self._files.get(name)
        if file is None:
            return self._bundle.read(name)
        return file if isinstance(file, bytes) else file.read_bytes()

    def map(self, name: str) -> npt.NDArray[Any]:
        file = self._files.get(name)
        if file is None:
            return self._bundle.map(name)
        return np.frombuffer(file, np.uint8) if isinstance(file, bytes) else np.memmap(file, np.uint8, "r")

    def size(self, name: str) -> int:
        return int(self.map(name).size)

    def private(self, name: str) -> int:
        return self._bundle.private(name) if name not in self._files else 0

    def sha256(self, name: str) -> str:
        return hashlib.sha256(self.map(name).data).hexdigest()

    @property
    def engines(self) -> tuple[Engine, ...]:
        return ()

    def component(self, name: str) -> Component:
        return self._components[name] if name in self._components else self._bundle.component(name)
