"""Whether every component of every kind of Wan becomes a TensorRT engine in every 16-bit precision, without a GPU.

    python benchmarks/build_kinds.py [--kinds t2v,i2v] [--precision bf16,fp16,fp32] [--sm 86,89,120]

On tiny random checkpoints, for TensorRT for RTX. Printed are the engines, and how many attentions of the step
are one kernel.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import product
from pathlib import Path

from kinograph.console import Console
from kinograph.console.build import BuildJob, build
from kinograph.engines.cache import EngineCache
from kinograph.errors import KinographError
from kinograph.export import ExportOptions, export
from kinograph.export.families.wan.tiny import KINDS, save_tiny_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--precision", default="bf16,fp16,fp32")
    parser.add_argument("--sm", default="86,89,120")
    options = parser.parse_args()
    capabilities = tuple(int(one) for one in options.sm.split(","))
    print(
        "| kind | precision | sm | components | fused attentions | seconds |\n|---|---|---|---:|---:|---:|", flush=True
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, precision in product(options.kinds.split(","), options.precision.split(",")):
            checkpoint, bundle = folder / kind, folder / f"{kind}-{precision}"
            if not checkpoint.exists():
                save_tiny_checkpoint(kind, checkpoint)
            export(checkpoint, bundle, ExportOptions(precision=precision, parity=False))
            for capability in capabilities:
                start = time.perf_counter()
                job = BuildJob(str(bundle), None, "rtx", (capability,), None, None, None, None, None, force=False)
                try:
                    built = build(job, Console(quiet=True), EngineCache(folder / "cache"))
                except KinographError as exc:
                    print(f"| {kind} | {precision} | {capability} | {exc} | | |", flush=True)
                    continue
                steps = [one["fused_attention"] for one in built if one["component"].startswith("step")]
                print(
                    f"| {kind} | {precision} | {capability} | {len(built)} | {', '.join(map(str, steps))} "
                    f"| {time.perf_counter() - start:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
