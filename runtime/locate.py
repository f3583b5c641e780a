"""Where a bundle is: a folder, a name, or the built-in starter model."""

from __future__ import annotations

import os
from pathlib import Path

from kinograph.bundle import Bundle
from kinograph.errors import BundleError

__all__ = ["BUNDLES_VARIABLE", "find_bundle", "open_bundle", "starter_bundle"]

BUNDLES_VARIABLE = "KINOGRAPH_BUNDLES"


def starter_bundle() -> Path:
    """The folder of the model that comes with Kinograph."""
    return Path(__file__).resolve().parent.parent / "starter" / "bundle"


def find_bundle(path: str | os.PathLike[str] | None) -> Path:
    """The folder `path` stands for: None is the starter, a path is itself, a bare name is looked up in
    KINOGRAPH_BUNDLES (folders separated like PATH) where no such folder is at hand.

    Raises BundleError naming every place that was looked at.
    """
    if path is None:
        return starter_bundle()
    folder = Path(path)
    looked = [folder]
    if folder.name == os.fspath(path) and not folder.exists():
        looked += [Path(base) / folder for base in os.environ.get(BUNDLES_VARIABLE, "").split(os.pathsep) if base]
    for candidate in looked:
        if candidate.exists() or candidate.is_symlink():
            return candidate
    places = ", ".join(str(candidate) for candidate in looked)
    raise BundleError(
        f"no bundle at {places}. Name an exported folder, or set {BUNDLES_VARIABLE} to where bundles are."
    )


def open_bundle(path: str | os.PathLike[str] | None) -> Bundle:
    """Find, verify and open a bundle. Raises BundleError.

    The starter came with the package, whose installer may have hard-linked it.
    """
    return Bundle.open(find_bundle(path), hard_links=path is None)
