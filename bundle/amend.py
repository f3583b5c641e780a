"""Changing what a bundle's manifest says of files that stay as they are."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import msgspec

from kinograph.bundle.manifest_check import MANIFEST_NAME, ManifestError, parse_manifest
from kinograph.bundle.refusal import printable, refusal
from kinograph.errors import OutputError
from kinograph.manifest import Manifest

__all__ = ["replace_manifest"]


def replace_manifest(path: Path, manifest: Manifest) -> None:
    """Put `manifest`, which lists the same files, in place of the one of the bundle at `path`, in one step.

    Raises BundleError where it would not be accepted, OutputError where it cannot be written; the bundle is then as it
    was. Whoever has the bundle open keeps the manifest that was verified.
    """
    data = msgspec.json.format(msgspec.json.encode(manifest)) + b"\n"
    try:
        parse_manifest(data)
    except ManifestError as exc:
        raise refusal(path, exc.problems, "This is a mistake in what wrote the bundle, not in your files.") from exc
    # Beside the bundle, not in it: a file that the manifest does not list would make it invalid for a moment.
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.json"
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path / MANIFEST_NAME)
    except OSError as exc:
        temporary.unlink(missing_ok=True)
        raise OutputError(
            f"bundle {printable(path)} could not be written: {exc.strerror}. Free some space, or copy it elsewhere."
        ) from exc
