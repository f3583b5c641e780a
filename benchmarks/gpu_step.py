"""A guided step of a released Wan size on a GPU, on random weights: Kinograph, and diffusers in PyTorch, in turn.

    python benchmarks/gpu_step.py wan2.1-1.3b --folder /big/disk --size 832x480 --frames 81 --results benchmarks/results
    python benchmarks/gpu_step.py wan2.1-1.3b --folder /big/disk --size 64x64 --frames 5 --device cpu --precision fp32

diffusers runs its transformer on a batch of two, eager and under `torch.compile`; Kinograph its whole step, guidance
and solver included, as CUDA graphs and launched one by one. What a step computes is counted by PyTorch, and held
against the rate that the GPU reaches in a large product of matrices. Every side makes one run that is not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from export_full_size import SIZES, TRANSFORMER
from full_size_build import bundle_of
from torch.utils.flop_counter import FlopCounterMode

import kinograph
from kinograph.bundle import Bundle
from kinograph.runtime.events import StageStarted, StepDone

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PRODUCT = 8192  # rows and columns, for the GPU's own rate


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds(run: Callable[[], Any], device: str, times: int) -> float:
    """Of one of `times` runs in a row."""
    wait(device)
    start = time.perf_counter()
    for _ in range(times):
        run()
    wait(device)
    return (time.perf_counter() - start) / times


def product_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large product of matrices, the best of five."""
    size = PRODUCT if device.startswith("cuda") else PRODUCT // 8
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    a @ b
    return 2 * size**3 / min(seconds(lambda: a @ b, device, 3) for _ in range(5))


def diffusers_step(
    size: str, device: str, dtype: torch.dtype, latent: tuple[int, ...], length: int, *, compiled: bool = False
) -> Callable[[], Any]:
    """diffusers' transformer on a guided batch, ready to be called."""
    with torch.device(device):
        model = WanTransformer3DModel(**TRANSFORMER, **SIZES[size]).eval().to(dtype)
    if compiled:
        model.compile()
    x = torch.randn(2, model.config.in_channels, *latent, device=device, dtype=dtype)
    text = torch.randn(2, length, model.config.text_dim, device=device, dtype=dtype)
    timestep = torch.full((2,), 500.0, device=device)

    def run() -> Any:
        with torch.no_grad():
            return model(hidden_states=x, timestep=timestep, encoder_hidden_states=text, return_dict=False)

    return run


def our_step(pipe: Any, request: kinograph.Request) -> float:
    """Seconds a step, from the first launch's end to the last's: what is before the first loads the weights."""
    told: list[tuple[int, float]] = []
    for event in pipe.run(request):
        if isinstance(event, StepDone):
            told.append((event.index, time.perf_counter()))
        elif isinstance(event, StageStarted) and event.name == "decode":
            break
    if len(told) < 2:
        raise SystemExit("all steps were one launch, or there was one: ask for more --steps, or a larger --size")
    (first, start), (last, end) = told[0], told[-1]
    return (end - start) / (last - first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["wan2.1-1.3b", "wan2.1-14b"])
    parser.add_argument("--folder", type=Path, required=True, help="where the bundle is made")
    parser.add_argument("--size", default="832x480")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--precision", choices=list(TYPES), default="bf16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    width, height = (int(side) for side in options.size.split("x"))
    device, dtype = options.device, TYPES[options.precision]
    bundle = bundle_of(options.model, options.precision, options.folder)
    request = kinograph.Request(
        prompt="a cat walks on a beach",
        negative_prompt="blurred",
        width=width,
        height=height,
        num_frames=options.frames,
        num_inference_steps=options.steps,
        seed=1,
    )
    with Bundle.open(bundle) as opened:
        length = opened.manifest.text.length  # tokens, which every prompt is padded to
    latent = (1 + (options.frames - 1) // 4, height // 8, width // 8)
    eager = diffusers_step(options.model, device, dtype, latent, length)
    with FlopCounterMode(display=False) as counter:
        eager()
    flops, rate = counter.get_total_flops(), product_rate(device, dtype)
    sides: dict[str, Callable[[], float]] = {"diffusers": lambda: seconds(eager, device, options.steps)}
    if not options.no_compile:
        compiled = diffusers_step(options.model, device, dtype, latent, length, compiled=True)
        sides["diffusers, compiled"] = lambda: seconds(compiled, device, options.steps)
    with ExitStack() as stack:
        for name, graphs in (("Kinograph", True), ("Kinograph, one by one", False))[: 1 + device.startswith("cuda")]:
            pipe = stack.enter_context(
                kinograph.load(bundle, device=device, variant=options.precision, cuda_graphs=graphs)
            )
            sides[name] = lambda pipe=pipe: our_step(pipe, request)
            backend = pipe.device.backend
        for side in sides.values():
            side()
        found: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(options.runs):
            for name, side in sides.items():
                found[name].append(side())
    medians = {name: statistics.median(values) for name, values in found.items()}
    lines = [
        f"{options.model}, {options.precision}, {options.size}, {options.frames} frames; {backend}; a step is "
        f"{flops / 1e12:.2f} TFLOP, a product of matrices runs at {rate / 1e12:.2f} TFLOP/s",
        "",
        "| | a step | TFLOP/s | of the product's rate | against diffusers |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, value in medians.items():
        achieved = flops / value
        lines.append(
            f"| {name} | {1e3 * value:.1f} ms | {achieved / 1e12:.2f} | {100 * achieved / rate:.0f} % "
            f"| {medians['diffusers'] / value:.2f}× |"
        )
    print("\n".join(lines))
    if options.results is not None:
        options.results.mkdir(parents=True, exist_ok=True)
        name = f"step-{options.model}-{options.precision}-{options.size}-{options.frames}"
        result = {"backend": backend, "flops": flops, "product_flops_per_second": rate, "seconds": found}
        (options.results / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
        (options.results / f"{name}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
