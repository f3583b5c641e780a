"""A GPU with CUDA graphs, without them, and the CPU, in turn: seconds a stage and peak memory, as JSON and Markdown.

    python benchmarks/gpu.py [BUNDLE] [--variant bf16] [--size 832x480 --frames 81 --steps 4] [--runs 5] [--cpu]

Every side loads once and makes one video that is not counted. Printed are medians; a step's time is that of the loop
over its steps. `--results FOLDER` also writes `gpu-NAME.json` and `.md` there.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import kinograph
from kinograph.runtime.events import FramesDecoded, StageStarted

PROMPT = "a large red ball moves left on a plain navy background, flat style"


def measure(pipe: Any, request: kinograph.Request) -> dict[str, float]:
    """Seconds of each stage of one video, and its peak of device memory in MB where the device knows it."""
    marks: list[tuple[str, float]] = []
    least = float("inf")
    gpu = getattr(pipe.device, "gpu", None)
    pipe.prompts.clear()
    for event in pipe.run(request):
        if isinstance(event, StageStarted):
            marks.append((event.name, time.perf_counter()))
        elif isinstance(event, FramesDecoded) and event.index == 0:
            marks.append(("first frame", time.perf_counter()))
        if gpu is not None:
            least = min(least, gpu.memory()[0])
    marks.append(("end", time.perf_counter()))
    at = dict(marks)
    found = {
        "text": at["denoise"] - at["text"],
        "denoise": at["decode"] - at["denoise"],
        "decode": at["end"] - at["decode"],
        "total": at["end"] - at["text"],
    }
    if gpu is not None:
        found["memory_mb"] = (gpu.memory()[1] - least) / 1e6
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="starter")
    parser.add_argument("--variant")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size")
    parser.add_argument("--frames", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cpu", action="store_true", help="measure the CPU as well")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    size = re.fullmatch(r"(\d+)x(\d+)", options.size) if options.size else None
    request = kinograph.Request(
        prompt=PROMPT,
        width=int(size[1]) if size else None,
        height=int(size[2]) if size else None,
        num_frames=options.frames,
        num_inference_steps=options.steps,
        seed=1,
    )
    with ExitStack() as stack:
        sides = {
            "CUDA graphs": kinograph.load(options.bundle, device=options.device, variant=options.variant),
            "step by step": kinograph.load(
                options.bundle, device=options.device, variant=options.variant, cuda_graphs=False
            ),
        }
        if options.cpu:
            sides["CPU"] = kinograph.load(options.bundle, device="cpu")
        for pipe in sides.values():
            stack.enter_context(pipe)
            measure(pipe, request)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for _ in range(options.runs):
            for name, pipe in sides.items():
                runs[name].append(measure(pipe, request))
        backends = {name: f"{pipe.device.backend}, {pipe.device.name}" for name, pipe in sides.items()}
        steps = next(iter(sides.values())).resolve(request).num_inference_steps or 1
    medians = {
        name: {key: statistics.median(run[key] for run in side) for key in side[0]} for name, side in runs.items()
    }
    lines = ["| | " + " | ".join(medians) + " |", "|---" * (1 + len(medians)) + "|"]
    for key in ("text", "denoise", "decode", "total", "memory_mb"):
        unit, digits = ("MB", 0) if key == "memory_mb" else ("s", 4)
        cells = [f"{side[key]:.{digits}f} {unit}" if key in side else "" for side in medians.values()]
        lines.append(f"| {key} | " + " | ".join(cells) + " |")
    cells = [f"{1e3 * side['denoise'] / steps:.2f} ms" for side in medians.values()]
    lines.append("| a step | " + " | ".join(cells) + " |")
    print("\n".join(lines))
    if options.results is not None:
        options.results.mkdir(parents=True, exist_ok=True)
        name = f"gpu-{Path(options.bundle).name}"
        result = {"bundle": options.bundle, "steps": steps, "backends": backends, "medians": medians, "runs": runs}
        (options.results / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
        (options.results / f"{name}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
