"""Tiny checkpoints and their bundles, made once per run."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kinograph.runtime.locate import starter_bundle


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A random checkpoint of a Wan kind in diffusers layout."""
    pytest.importorskip("diffusers")
    from kinograph.export import trace

    # Keep whatever is traced from now on: the kinds share their autoencoders, and tracing is most of an export.
    trace._exported = functools.lru_cache(maxsize=None)(trace._exported.__wrapped__)  # type: ignore[assignment]
    root = tmp_path_factory.mktemp("checkpoints")

    @functools.cache
    def make(kind: str) -> Path:
        from kinograph.export.families.wan.tiny import save_tiny_checkpoint

        return save_tiny_checkpoint(kind, root / kind)

    return make


@pytest.fixture(scope="session")
def tiny_bundle(
    tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Callable[[str], Path]
) -> Callable[..., Path]:
    """The bundle exported from a tiny checkpoint, with its parity figures."""
    root = tmp_path_factory.mktemp("bundles")

    @functools.cache
    def exported(kind: str, precision: str) -> Path:
        from kinograph.export import ExportOptions, export

        path = root / f"{kind}-{precision}"
        export(tiny_checkpoint(kind), path, ExportOptions(precision=precision, name=kind))  # type: ignore[arg-type]
        return path

    def make(kind: str, precision: str = "fp32") -> Path:  # not cached itself: one key, however it is called
        return exported(kind, precision)

    return make


@pytest.fixture(scope="session")
def starter_copy() -> Callable[..., Path]:
    """Makes copies of a starter as exported, with shorter videos unless asked otherwise, so that tests take seconds."""

    def make(path: Path, *, name: str = "starter", size: int | None = None, frames: int = 17) -> Path:
        shutil.copytree(starter_bundle(name), path)
        document = json.loads((path / "bundle.json").read_text())
        size = size or document["defaults"]["width"]
        document["defaults"] |= {"width": size, "height": size, "num_frames": frames}
        document.pop("speeds", None)
        for component in document["components"].values():
            component["variants"] = {k: v for k, v in component["variants"].items() if "quality" not in v}
        for name in [name for name in document["files"] if "/int8/" in name or name == "int8-report.html"]:
            del document["files"][name]
            (path / name).unlink()
            if not any((path / name).parent.iterdir()):
                (path / name).parent.rmdir()
        (path / "bundle.json").write_text(json.dumps(document))
        return path

    return make


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A colourful 3:2 picture."""
    import numpy as np
    from PIL import Image

    path = tmp_path_factory.mktemp("pictures") / "blocks.png"
    blocks = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(np.kron(blocks, np.ones((20, 20, 1), np.uint8))).save(path)
    return path
