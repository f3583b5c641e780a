"""TensorRT engines of released Wan sizes, without a GPU: seconds, peak memory and fused attention, on random weights.

    python benchmarks/full_size_build.py wan2.1-1.3b wan2.2-5b --folder /big/disk [--sm 89] [--size 832x480 --frames 81]

Exports in bf16 with a text encoder of one layer, since it is about the step and the codec, and builds every component
with TensorRT for RTX. A build is a process of its own; `held` is what it kept itself (anonymous pages), `peak` also
counts the weight file that it has mapped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

from export_full_size import SIZES, UMT5_XXL, write_checkpoint
from full_size import anonymous

from kinograph.bundle import Bundle
from kinograph.engines.tensorrt import build
from kinograph.runtime.sizes import component_axes


def build_one(bundle: Path, component: str, capability: int, size: tuple[int, int], frames: int) -> None:
    """Build one component in this process, and print what came of it as JSON."""
    with Bundle.open(bundle) as opened:
        manifest = opened.manifest
        geometry = manifest.geometry
        latent = 1 + (frames - 1) // geometry.temporal
        width, height = (side // geometry.spatial for side in size)
        precisions = {name: next(iter(one.variants)) for name, one in manifest.components.items()}
        axes = component_axes(manifest, precisions, (latent, latent), height, width, [component])[component]
        built = build(opened, component, precisions[component], capability=capability, axes=axes)
    fused = sum("_gemm_mha" in layer for layer in built.layers)
    print(json.dumps([len(built.plan), built.activation_bytes, built.weight_bytes, len(built.layers), fused]))


def measured(arguments: list[str]) -> tuple[list[int], float, float, float]:
    """What a build in a process of its own printed, its seconds, and what memory it held and had at most, in GB."""
    start, held = time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True)
    done = threading.Event()

    def watch() -> None:
        nonlocal held
        while not done.wait(0.1):
            held = max(held, anonymous(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert process.stdout is not None
    told = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    done.set()
    watcher.join()
    if status:
        raise SystemExit(f"{arguments} failed")
    return json.loads(told), time.perf_counter() - start, held / 1e9, usage.ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", choices=[*SIZES, []], default=[])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--sm", type=int, default=89)
    parser.add_argument("--size", default="832x480")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--component", help="only this one")
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)  # this process is to build --component of it
    options = parser.parse_args()
    width, height = (int(side) for side in options.size.split("x"))
    if options.build is not None:
        build_one(options.build, options.component, options.sm, (width, height), options.frames)
        return
    what = f"bf16, sm{options.sm}, {options.size}, {options.frames} frames"
    print(f"| {what} | seconds | held | peak | engine | activations |")
    print("|---|---:|---:|---:|---:|---:|")
    for size in options.sizes:
        checkpoint, bundle = options.folder / f"{size}-checkpoint", options.folder / size
        if not bundle.exists():
            write_checkpoint(size, checkpoint, 1 << 27, UMT5_XXL | {"num_layers": 1, "vocab_size": 384})
            export = [sys.executable, "-m", "kinograph", "export", str(checkpoint), str(bundle)]
            subprocess.run([*export, "--precision", "bf16", "--no-parity", "--quiet"], check=True)
            shutil.rmtree(checkpoint)
        components = [options.component] if options.component else ["step", "decoder_first", "decoder_next"]
        for component in components:
            arguments = ["--build", str(bundle), "--component", component, "--sm", str(options.sm), "--folder", "."]
            found, seconds, held, peak = measured([*arguments, "--size", options.size, "--frames", str(options.frames)])
            plan, activations, _, _, fused = found
            attention = f", {fused} fused attentions" if fused else ""
            print(
                f"| {size} {component}{attention} | {seconds:.0f} | {held:.1f} GB | {peak:.1f} GB "
                f"| {plan / 1e9:.2f} GB | {activations / 1e9:.2f} GB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
