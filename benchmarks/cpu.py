"""Kinograph against diffusers on the CPU: the same checkpoint, prompt, seed and settings, in turn.

    python benchmarks/cpu.py [--checkpoint starter/checkpoint --bundle starter/bundle --runs 5]

Each side runs in a process of its own, loads once, makes one video that is not counted, and then makes the others in
turn with the other side, so that a machine that slows down slows both. Printed are medians per stage, their ratio,
and each process's peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "a large red ball moves left on a plain navy background, flat style"


def kinograph_side(options: argparse.Namespace) -> Any:
    """A function that makes the video and returns seconds per stage."""
    import kinograph
    from kinograph.runtime.events import FramesDecoded, StageStarted

    pipe = kinograph.load(options.bundle)
    request = pipe.resolve(kinograph.Request(prompt=PROMPT, seed=1))

    def run() -> dict[str, float]:
        marks: list[tuple[str, float]] = []
        pipe.prompts.clear()
        for event in pipe.run(request):
            if isinstance(event, StageStarted):
                marks.append((event.name, time.perf_counter()))
            elif isinstance(event, FramesDecoded) and event.index == 0:
                marks.append(("first frame", time.perf_counter()))
        marks.append(("end", time.perf_counter()))
        starts = dict(marks)
        return {
            "text": starts["denoise"] - starts["text"],
            "denoise": starts["decode"] - starts["denoise"],
            "decode": starts["end"] - starts["decode"],
            "total": starts["end"] - starts["text"],
        }

    return run


def diffusers_side(options: argparse.Namespace) -> Any:
    """The same through diffusers' own pipeline; its stages are told apart by hooks on the modules."""
    import torch

    import kinograph
    from kinograph.bundle import Bundle
    from kinograph.export.compare import load_reference, run_reference
    from kinograph.runtime.request import resolve

    with Bundle.open(options.bundle) as bundle:
        manifest = bundle.manifest
    request = resolve(kinograph.Request(prompt=PROMPT, seed=1), manifest)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    pipeline = load_reference(options.checkpoint)
    marks: dict[str, float] = {}

    def first_step(*_: Any) -> None:
        marks.setdefault("denoise", time.perf_counter())

    pipeline.transformer.register_forward_pre_hook(first_step)
    decode = pipeline.vae.decode

    def marked(*args: Any, **kwargs: Any) -> Any:
        marks["decode"] = time.perf_counter()
        return decode(*args, **kwargs)

    pipeline.vae.decode = marked

    def run() -> dict[str, float]:
        marks.clear()
        start = time.perf_counter()
        run_reference(pipeline, manifest, request)
        end = time.perf_counter()
        return {
            "text": marks["denoise"] - start,
            "denoise": marks["decode"] - marks["denoise"],
            "decode": end - marks["decode"],
            "total": end - start,
        }

    return run


def serve(side: str, options: argparse.Namespace) -> None:
    """Make a video whenever a line arrives on stdin, and answer with its timings."""
    run = {"kinograph": kinograph_side, "diffusers": diffusers_side}[side](options)
    for _ in sys.stdin:
        stages = run()
        stages["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print("RESULT " + json.dumps(stages), flush=True)


def start(side: str, options: argparse.Namespace) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", __file__, "--side", side]
    command += ["--checkpoint", str(options.checkpoint), "--bundle", str(options.bundle)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def ask(process: subprocess.Popen[str]) -> dict[str, float]:
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the benchmark's other side has no pipes")
    process.stdin.write("\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith("RESULT "):
            result: dict[str, float] = json.loads(line.removeprefix("RESULT "))
            return result
    raise RuntimeError(f"a side of the benchmark ended with {process.wait()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "starter" / "checkpoint")
    parser.add_argument("--bundle", type=Path, default=ROOT / "starter" / "bundle")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--side", choices=["kinograph", "diffusers"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        serve(options.side, options)
        return
    sides = {side: start(side, options) for side in ("kinograph", "diffusers")}
    results: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for index in range(options.runs + 1):
        for side, process in sides.items():
            result = ask(process)
            if index:  # the first is the warm-up
                results[side].append(result)
    for process in sides.values():
        process.terminate()
        process.wait()
    packages = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "torch", "diffusers"))
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, {packages}")
    print(f"medians of {options.runs} runs, seconds; peak memory of the process in MB")
    print(f"{'stage':10} {'kinograph':>10} {'diffusers':>10} {'ratio':>7}")
    for stage in ("text", "denoise", "decode", "total", "peak"):
        ours, theirs = (statistics.median(run[stage] for run in results[side]) for side in ("kinograph", "diffusers"))
        print(f"{stage:10} {ours:10.3f} {theirs:10.3f} {theirs / ours:6.2f}×")


if __name__ == "__main__":
    main()
