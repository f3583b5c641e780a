"""Where a bundle is: a folder, a name, or one of the built-in starter models."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from kinograph.bundle import Bundle
from kinograph.bundle.manifest_check import MANIFEST_NAME
from kinograph.errors import BundleError

__all__ = ["BUILT_IN", "BUNDLES_VARIABLE", "find_bundle", "open_bundle", "starter_bundle"]

BUNDLES_VARIABLE = "KINOGRAPH_BUNDLES"
BUILT_IN = {"starter": "bundle", "starter-few-steps": "bundle-few-steps"}
"""The models that come with Kinograph, by name, and their folders' names."""


def starter_bundle(name: str = "starter") -> Path:
    """The folder of a model that comes with Kinograph, one of `BUILT_IN`."""
    return Path(__file__).resolve().parent.parent / "starter" / BUILT_IN[name]


def find_bundle(path: str | os.PathLike[str] | None) -> Path:
    """The folder `path` stands for: None is the starter, a path is itself, a bare name is looked up, where no such
    folder is at hand, in KINOGRAPH_BUNDLES (folders separated like PATH) and then among the built-in models. A folder
    that has a built-in model's name but is no bundle, such as this package's own `starter/`, does not hide the model.

    Raises BundleError naming every place that was looked at.
    """
    if path is None:
        return starter_bundle()
    folder, name = Path(path), os.fspath(path)
    no_bundle = name in BUILT_IN and not (folder / MANIFEST_NAME).exists()
    looked = [] if no_bundle else [folder]
    if no_bundle or (folder.name == name and not folder.exists()):
        looked += [Path(base) / folder for base in os.environ.get(BUNDLES_VARIABLE, "").split(os.pathsep) if base]
        looked += [starter_bundle(known) for known in BUILT_IN if known == name]
    for candidate in looked:
        if candidate.exists() or candidate.is_symlink():
            return candidate
    places = ", ".join(str(candidate) for candidate in looked)
    raise BundleError(
        f"no bundle at {places}. Name an exported folder or a built-in model ({', '.join(BUILT_IN)}), "
        f"or set {BUNDLES_VARIABLE} to where bundles are."
    )


def open_bundle(path: str | os.PathLike[str] | None, progress: Callable[[int, int], None] | None = None) -> Bundle:
    """Find, verify and open a bundle, with `progress` as of `Bundle.open`. Raises BundleError.

    The built-in models came with the package, whose installer may have hard-linked them.
    """
    folder = find_bundle(path)
    return Bundle.open(folder, hard_links=folder in map(starter_bundle, BUILT_IN), progress=progress)
