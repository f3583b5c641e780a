"""A bundle: the folder that the runtime reads. Opening one verifies all of it; writing one is all or nothing.

A bundle is refused, before any engine sees a byte of it, if a file is missing, unlisted, linked, or of another size or
hash than `bundle.json` says, or if a graph could make an engine read or run anything outside the bundle.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from kinograph.bundle.content_check import content_problems
from kinograph.bundle.manifest_check import MANIFEST_NAME, ManifestError, parse_manifest
from kinograph.bundle.refusal import printable, refusal
from kinograph.bundle.tree import OpenFile, Walk, hash_files, open_folder, open_regular
from kinograph.bundle.writer import BundleWriter
from kinograph.errors import BundleError, UsageError
from kinograph.manifest import Component, Engine, Manifest

__all__ = ["Bundle", "BundleWriter", "verify"]

Progress = Callable[[int, int], None]

_MAX_MANIFEST_BYTES = 16 << 20


class Bundle:
    """A verified bundle, with every file open, so that what is read is what was verified even if paths change.

    Attributes:
        path: the folder.
        manifest: what `bundle.json` says.
        digest: the sha256 of `bundle.json`, in hexadecimal. As that lists the hash of every other file, it identifies
            the whole bundle: in metadata, and in the keys of caches.
    """

    def __init__(self, path: Path, manifest: Manifest, digest: str, files: dict[str, OpenFile]) -> None:
        self.path = path
        self.manifest = manifest
        self.digest = digest
        self._files = files
        self._closed = False

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, hard_links: bool = False, progress: Progress | None = None
    ) -> Bundle:
        """The bundle at `path`, verified. Raises BundleError, which lists what is wrong, where anything is.

        `hard_links` admits files with several names: some package installers link what they install from their cache.
        `progress` is called with how many bytes are hashed so far, and how many there are: one call at a time, from
        other threads than the caller's. What it raises ends the opening.
        """
        return _open(path, progress, hard_links)

    def read(self, name: str) -> bytes:
        """The content of a small file, a graph or a tokenizer; for weights use `map`.

        Raises BundleError if the manifest does not list it, or if it was altered after the bundle was opened.
        """
        data = self._file(name).read()
        if hashlib.sha256(data).hexdigest() != self.manifest.files[name].sha256:
            raise self._altered(name)
        return data

    def map(self, name: str) -> npt.NDArray[np.uint8]:
        """The content of a file as a read-only memory map: bytes [size], read from disk where they are touched.

        The array outlives `close`. Raises BundleError if the manifest does not list the file, or if its size or
        modification time changed after the bundle was opened. What is written into the file later shows through, as in
        every memory map; replacing or deleting it does not.
        """
        return self._mapped(name, mmap.MAP_SHARED, mmap.PROT_READ)

    def size(self, name: str) -> int:
        """The bytes of a file. Raises BundleError if the manifest does not list it."""
        return self._file(name).size

    def private(self, name: str) -> int:
        """How many bytes of a file's map cannot be read from the file again, and so stay in memory: of these none."""
        return 0

    def sha256(self, name: str) -> str:
        """The sha256 of a file, as the manifest has it. Raises BundleError if the manifest does not list it."""
        self._file(name)
        return self.manifest.files[name].sha256

    @property
    def engines(self) -> tuple[Engine, ...]:
        """Engines that were built beforehand and put into the bundle."""
        return self.manifest.engines

    def copy(self, name: str, target: Path) -> None:
        """Write the content of a file to `target`, without taking it into memory.

        Raises BundleError as `map` does, OSError where it cannot be written.
        """
        file = self._file(name)
        if not file.unchanged():
            raise self._altered(name)
        with target.open("wb") as out:
            for chunk in file.chunks():
                out.write(chunk)

    def component(self, name: str) -> Component:
        """The component `name`. Raises BundleError if the bundle has none of that name."""
        try:
            return self.manifest.components[name]
        except KeyError:
            there = ", ".join(self.manifest.components) or "none"
            raise refusal(
                self.path,
                [f"it has no component '{printable(name)}', which is needed; it has: {there}"],
                "Export the checkpoint again, or use another bundle.",
            ) from None

    def close(self) -> None:
        """Close all files; maps stay valid. Closing twice is fine."""
        self._closed = True
        while self._files:
            os.close(self._files.popitem()[1].fd)

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _file(self, name: str) -> OpenFile:
        if self._closed:
            raise UsageError(f"bundle {printable(self.path)} is closed; open it again with Bundle.open()")
        if name not in self._files:
            raise refusal(self.path, [f"it has no file '{printable(name)}'"])
        return self._files[name]

    def _mapped(self, name: str, flags: int, protection: int) -> npt.NDArray[np.uint8]:
        file = self._file(name)
        if not file.unchanged():
            raise self._altered(name)
        if file.size == 0:  # which mmap refuses
            return np.frombuffer(b"", np.uint8)
        return np.frombuffer(mmap.mmap(file.fd, file.size, flags, protection), np.uint8)

    def _altered(self, name: str) -> BundleError:
        return refusal(self.path, [f"{printable(name)} was altered after the bundle was opened"])


def verify(path: str | os.PathLike[str], progress: Progress | None = None) -> Manifest:
    """Verify the bundle at `path` as opening it does, and return its manifest. Raises BundleError.

    `progress` is called as by `Bundle.open`.
    """
    with _open(path, progress) as bundle:
        return bundle.manifest


def _open(path: str | os.PathLike[str], progress: Progress | None, hard_links: bool = False) -> Bundle:
    folder = Path(path)
    try:
        root = open_folder(folder)
    except (OSError, ValueError) as exc:
        raise refusal(folder, [_why_no_folder(folder, exc)], "Give the folder that holds bundle.json.") from exc
    try:
        data = _manifest_bytes(folder, root, hard_links)
        try:
            manifest = parse_manifest(data)
        except ManifestError as exc:
            raise refusal(folder, exc.problems, *([exc.advice] if exc.advice else [])) from exc
        walk = Walk(root, manifest.files, ignore=(MANIFEST_NAME,), hard_links=hard_links)
    except OSError as exc:
        where = printable(exc.filename or MANIFEST_NAME)
        raise refusal(folder, [f"{where} cannot be read: {exc.strerror}"]) from exc
    finally:
        os.close(root)
    _check_files(folder, walk, manifest, progress)
    return Bundle(folder, manifest, hashlib.sha256(data).hexdigest(), walk.files)


def _why_no_folder(folder: Path, error: OSError | ValueError) -> str:
    if isinstance(error, ValueError):
        return f"the path is not valid: {error}"
    if folder.is_symlink():
        return f"it is a symbolic link to {printable(folder.readlink())}, expected the folder itself"
    if isinstance(error, NotADirectoryError):
        return "it is not a folder"
    return f"it cannot be opened: {error.strerror}"


def _manifest_bytes(folder: Path, root: int, hard_links: bool) -> bytes:
    try:
        file = open_regular(MANIFEST_NAME, root, hard_links)
    except FileNotFoundError as exc:
        raise refusal(folder, [f"it has no {MANIFEST_NAME}"], "Give the folder of a bundle, or export one.") from exc
    if isinstance(file, str):
        raise refusal(folder, [f"{MANIFEST_NAME} {file}"])
    try:
        if file.size > _MAX_MANIFEST_BYTES:
            raise refusal(folder, [f"{MANIFEST_NAME} has {file.size} bytes, expected at most {_MAX_MANIFEST_BYTES}"])
        return file.read()
    finally:
        os.close(file.fd)


def _check_files(folder: Path, walk: Walk, manifest: Manifest, progress: Progress | None) -> None:
    """Verify what was opened. Raises BundleError, or what `progress` raises, with everything closed again."""
    try:
        # Each stage trusts what the one before has established, and names all it finds.
        for problems in (
            _tree_problems(walk, manifest),
            _hash_problems(walk.files, manifest, progress),
            _content_problems(walk.files, manifest),
        ):
            found = list(problems)
            if found:
                raise refusal(folder, found)
    except BaseException:
        walk.close()
        raise


def _tree_problems(walk: Walk, manifest: Manifest) -> Iterator[str]:
    yield from (f"{printable(name)} {problem}" for name, problem in walk.problems.items())
    for name, file in manifest.files.items():
        if name not in walk.files:
            if not any(bad == name or name.startswith(f"{bad}/") for bad in walk.problems):
                yield f"{printable(name)} is missing"
        elif walk.files[name].size != file.size:
            yield f"{printable(name)} has {walk.files[name].size} bytes, expected {file.size}"


def _hash_problems(files: dict[str, OpenFile], manifest: Manifest, progress: Progress | None) -> Iterator[str]:
    try:
        digests = hash_files(files, progress)
    except OSError as exc:
        if exc.filename not in files:  # what `progress` raised
            raise
        yield f"{printable(exc.filename)} cannot be read: {exc.strerror}"
        return
    for name, digest in digests.items():
        expected = manifest.files[name].sha256
        if digest != expected:
            yield f"{printable(name)} was altered: its sha256 is {digest[:16]}…, expected {expected[:16]}…"
        elif not files[name].unchanged():
            yield f"{printable(name)} changed while it was being verified"


def _content_problems(files: dict[str, OpenFile], manifest: Manifest) -> Iterator[str]:
    try:
        yield from content_problems(manifest, files)
    except OSError as exc:  # of a disk that gives way just now: all of it has been read before
        yield f"its graphs or its tokenizer cannot be read: {exc.strerror}"
