"""Whether every component of every kind of Wan becomes a TensorRT engine in every precision, without a GPU.

    python benchmarks/build_kinds.py [--kinds t2v,i2v] [--precision bf16,fp16,fp32,int8,fp8] [--sm 86,89,120]

On tiny random checkpoints, for TensorRT for RTX. Printed are the engines, and how many attentions of the step
are one kernel.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import product
from pathlib import Path

from kinograph.calibration import CalibrationOptions, calibrate
from kinograph.console import Console
from kinograph.console.build import BuildJob, build
from kinograph.engines.cache import EngineCache
from kinograph.engines.needs import runs_on
from kinograph.errors import KinographError
from kinograph.export import ExportOptions, export
from kinograph.export.families.wan.tiny import KINDS, save_tiny_checkpoint

SMALL = {"width": 64, "height": 64, "num_frames": 5, "num_inference_steps": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--precision", default="bf16,fp16,fp32,int8,fp8")
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
            floating = precision if precision in ("bf16", "fp16") else "fp32"
            export(checkpoint, bundle, ExportOptions(precision=floating, parity=False, **SMALL))
            if precision != floating:
                calibrate(bundle, CalibrationOptions(precision, runs=2, videos=1, force=True), lambda *told: None)
            variant = None if precision == floating else precision
            for capability in (one for one in capabilities if runs_on(precision, one)):
                start = time.perf_counter()
                job = BuildJob(str(bundle), None, "rtx", (capability,), variant, None, None, None, None, force=False)
                try:
                    built = build(job, Console(None), EngineCache(folder / "cache"))
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
