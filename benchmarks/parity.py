"""Writes docs/parity.md: every Wan kind, end to end against diffusers, on tiny random checkpoints.

    python benchmarks/parity.py

The checkpoints have the released models' structure and a few thousand random parameters; a full-size checkpoint takes
the same code path. Rounding is all that may differ, so a value may be one level of 255 away where it lies on an edge.
"""

from __future__ import annotations

import platform
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

import kinograph
from kinograph.export import ExportOptions, export
from kinograph.export.compare import compare, load_reference
from kinograph.export.families.wan.tiny import KINDS, PARITY_STEPS, parity_requests, save_tiny_checkpoint

TARGET = Path(__file__).resolve().parent.parent / "docs" / "parity.md"
RELEASED = {
    "t2v": "Wan 2.1 T2V (1.3B, 14B)",
    "i2v": "Wan 2.1 I2V (CLIP, 36 channels)",
    "ti2v": "Wan 2.2 TI2V (5B)",
    "t2v-a14b": "Wan 2.2 T2V-A14B",
    "i2v-a14b": "Wan 2.2 I2V-A14B",
}


def rows(folder: Path) -> Iterator[str]:
    """The table's rows: per kind and solver, the worst over all its cases."""
    picture = folder / "picture.png"
    blocks = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(np.kron(blocks, np.ones((20, 20, 1), np.uint8))).save(picture)
    for kind in KINDS:
        checkpoint = save_tiny_checkpoint(kind, folder / kind)
        bundle = folder / f"{kind}-bundle"
        manifest = export(checkpoint, bundle, ExportOptions(name=kind))
        parity = manifest.components["step"].variants["fp32"].parity
        velocity = f"{parity.max_abs / parity.scale:.1e}" if parity else "-"
        reference = load_reference(checkpoint)
        results: dict[str, list[tuple[int, float]]] = {}
        with kinograph.load(bundle) as pipe:
            for request in parity_requests(kind, picture):
                result = compare(reference, pipe, request)
                results.setdefault(str(request.solver), []).append((result.largest, result.within_one))
        for solver, cases in results.items():
            largest, share = max(case[0] for case in cases), min(case[1] for case in cases)
            row = f"| {RELEASED[kind]} | {solver} | {len(cases)} | {velocity} | {largest} | {share:.4%} |"
            print(row, flush=True)
            yield row


def main() -> None:
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        table = "\n".join(rows(Path(folder)))
    versions = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "torch", "diffusers", "transformers"))
    TARGET.write_text(
        f"""# Parity with diffusers

The same checkpoint, prompt and seed through diffusers' pipeline in PyTorch and through a bundle in Kinograph,
float32 on the CPU, {PARITY_STEPS} steps. Frames are compared as 8-bit values. Every row is the worst of its cases:
with and without guidance (two rows of text and one), two sizes, two lengths, and for TI2V with and without a given
first frame.

"velocity" is the largest difference of the step graph's prediction, relative to the RMS of PyTorch's, measured at
export and stored in every bundle. "largest" is in levels of 255.

| model | solver | cases | velocity | largest | values within one level |
|---|---|---|---|---|---|
{table}

Made by `python benchmarks/parity.py` with {versions}, Python {platform.python_version()}. The checkpoints are tiny and
random with the structure of the released models; `tests/export/test_parity.py` holds every change to this table. Solver
tables and noise have tests of their own against diffusers' schedulers and `torch.randn`.
"""
    )


if __name__ == "__main__":
    main()
