"""TensorRT engines of released Wan sizes, without a GPU: seconds, peak memory and fused attention, on random weights.

    python benchmarks/full_size_build.py wan2.1-1.3b --folder /big/disk --precision bf16,fp16,int8,fp8 --sm 86,89,120

Exports with a text encoder of one layer, since it is about the step and the codec, quantises the step where the
precision asks for it, and builds every component with TensorRT for RTX. A build is a process of its own; `held` is what
it kept itself (anonymous pages), `peak` also counts the weight file that it has mapped.
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
from itertools import product
from pathlib import Path

import msgspec
import numpy as np
from export_full_size import SIZES, UMT5_XXL, write_checkpoint
from full_size import anonymous

from kinograph.bundle import Bundle
from kinograph.bundle.draft import Trial
from kinograph.calibration.draft import draft
from kinograph.calibration.layers import open_graph
from kinograph.calibration.loop import FLOAT
from kinograph.calibration.recipes import RECIPES
from kinograph.calibration.recipes.products import Plan
from kinograph.calibration.work import Work
from kinograph.engines.needs import runs_on
from kinograph.engines.tensorrt import build
from kinograph.manifest import Component, Quality, Variant
from kinograph.runtime.sizes import component_axes


def build_one(
    bundle: Path, component: str, precision: str, capability: int, size: tuple[int, int], frames: int
) -> None:
    """Build one component in this process, and print what came of it as JSON."""
    with Bundle.open(bundle) as opened:
        contents = quantised(opened, precision) if component == "step" and precision in RECIPES else opened
        manifest = opened.manifest
        geometry = manifest.geometry
        latent = 1 + (frames - 1) // geometry.temporal
        width, height = (side // geometry.spatial for side in size)
        floating = {name: next(iter(one.variants)) for name, one in manifest.components.items()}
        axes = component_axes(manifest, floating, (latent, latent), height, width, [component])[component]
        own = precision if component == "step" else floating[component]
        built = build(contents, component, own, capability=capability, axes=axes)
    fused = sum("_gemm_mha" in layer for layer in built.layers)
    print(json.dumps([len(built.plan), built.activation_bytes, built.weight_bytes, len(built.layers), fused]))


def quantised(bundle: Bundle, precision: str) -> Trial:
    """The bundle with a quantised step beside it, made where there is none.

    Ranges are made up, and every product has one: what a build takes does not depend on them, and a run of a float step
    of five billion parameters would take longer than all its builds.
    """
    folder = bundle.path.with_name(f"{bundle.path.name}-{precision}")
    recipe, work = RECIPES[precision], Work.on_products(open_graph(bundle, "step", FLOAT), 1)
    for number, group in enumerate(group for group in work.layers if recipe.takes(group)):
        floats = tuple(work.graph.weights[name] for name in group.weights)
        even, form = np.ones(group.channels, np.float32), recipe.numbers.activation(-8.0, 8.0)
        work.chosen[number] = Plan(precision, group, even, form, floats, recipe.numbers.plain, noise=30.0)
    file = folder / "draft.json"
    if file.exists():
        variant, files = msgspec.json.decode(file.read_bytes(), type=tuple[Variant, dict[str, str]])
    else:
        made = draft(bundle, {"step": work}, precision, folder)
        variant, files = made.variants["step"], {name: str(path) for name, path in made.files.items()}
        file.write_bytes(msgspec.json.encode((variant, files)))
    quality = Quality(recipe=precision, videos=1, passed=False, velocity_db=0.0, psnr_db=0.0, ssim=0.0)
    component = Component(variants={precision: msgspec.structs.replace(variant, quality=quality)})
    return Trial(bundle, {"step": component}, {name: Path(path) for name, path in files.items()})


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


def bundle_of(size: str, precision: str, folder: Path) -> Path:
    """A bundle of that size in `folder`, in that precision or the one it is made from; made where there is none."""
    floating = precision if precision in ("bf16", "fp16") else "fp32"
    bundle = folder / f"{size}-{floating}"
    checkpoint = folder / f"{size}-checkpoint"
    if not bundle.exists():
        write_checkpoint(size, checkpoint, 1 << 27, UMT5_XXL | {"num_layers": 1, "vocab_size": 384})
        export = [sys.executable, "-m", "kinograph", "export", str(checkpoint), str(bundle)]
        subprocess.run([*export, "--precision", floating, "--no-parity", "--quiet"], check=True)
        shutil.rmtree(checkpoint)
    return bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", choices=[*SIZES, []], default=[])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--sm", default="89", help="compute capabilities, such as 86,89,120")
    parser.add_argument("--precision", default="bf16", help="such as bf16,fp16,int8,fp8")
    parser.add_argument("--size", default="832x480")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--component", help="only this one")
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)  # this process is to build --component of it
    options = parser.parse_args()
    width, height = (int(side) for side in options.size.split("x"))
    if options.build is not None:
        wanted = options.component, options.precision, int(options.sm)
        build_one(options.build, *wanted, (width, height), options.frames)
        return
    print(f"| {options.size}, {options.frames} frames | seconds | held | peak | engine | activations |")
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    for size, precision in product(options.sizes, options.precision.split(",")):
        bundle = bundle_of(size, precision, options.folder)
        components = [options.component] if options.component else ["step", "decoder_first", "decoder_next"]
        capabilities = [one for one in options.sm.split(",") if runs_on(precision, int(one))]
        for component, capability in product(components, capabilities):
            arguments = ["--build", str(bundle), "--component", component, "--precision", precision]
            arguments += ["--sm", capability, "--size", options.size, "--frames", str(options.frames), "--folder", "."]
            found, seconds, held, peak = measured(arguments)
            plan, activations, _, _, fused = found
            attention = f", {fused} fused attentions" if fused else ""
            print(
                f"| {size} {component}, {precision}, sm{capability}{attention} | {seconds:.0f} | {held:.1f} GB "
                f"| {peak:.1f} GB | {plan / 1e9:.2f} GB | {activations / 1e9:.2f} GB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
