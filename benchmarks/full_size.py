"""Quantising the released Wan 2.1 1.3B and its UMT5-XXL: sizes, seconds and peak memory, on random weights.

    python benchmarks/full_size.py --folder /big/disk --recipes int8 int4-weights

Exports in fp32 at a small geometry, calibrates with few runs and without a scan, then makes a video with every
variant. Every stage is a process of its own. Two figures are given for its memory: `held` is what the process itself
keeps (anonymous pages), `peak` also counts the weight files it has mapped, which the system takes back where it needs
to. The checkpoint is removed once it is exported. 70 GB of disk are needed, and an hour on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from export_full_size import write_checkpoint

_PROMPTS = ("a red ball rolls", "a blue cat sits on grass", "a green bird flies over water")
_GEOMETRY = ("--size", "64x64", "--frames", "5", "--steps", "2")
_SAMPLED = 0.1  # seconds


def run(label: str, *arguments: str) -> None:
    """Run `kinograph` with these arguments, and print what it took."""
    start, held = time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, "-m", "kinograph", *arguments])
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        held = max(held, anonymous(process.pid))
        time.sleep(_SAMPLED)
    if status:
        raise SystemExit(f"{label} failed")
    seconds, peak = time.perf_counter() - start, usage.ru_maxrss / 1e6
    print(f"{label:24} {seconds:8.0f} s   held {held / 1e9:6.2f} GB   peak {peak:6.2f} GB", flush=True)


def anonymous(pid: int) -> int:
    """Bytes that a process keeps of its own, besides files that it has mapped."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return 1024 * int(found[0].split()[1]) if found else 0


def print_sizes(bundle: Path) -> None:
    """Bytes of weights of every component in every variant."""
    manifest = json.loads((bundle / "bundle.json").read_text())
    for name, component in manifest["components"].items():
        sizes = {
            variant: sum(manifest["files"][file]["size"] for file in one["weights"]) / 1e9
            for variant, one in component["variants"].items()
        }
        print(f"{name:24} " + "   ".join(f"{variant} {size:6.3f} GB" for variant, size in sizes.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where checkpoint and bundle are written")
    parser.add_argument("--bundle", type=Path, help="an exported bundle to begin with, in place of a new one")
    parser.add_argument("--recipes", nargs="+", default=["int8"], help="the variants that are made")
    options = parser.parse_args()
    checkpoint, bundle = options.folder / "checkpoint", options.bundle or options.folder / "full-size"
    prompts, video = options.folder / "prompts.txt", str(options.folder / "video.mp4")
    prompts.write_text("\n".join(_PROMPTS))
    if options.bundle is None:
        write_checkpoint("wan2.1-1.3b", checkpoint, 1 << 27)
        run("export", "export", str(checkpoint), str(bundle), "--no-parity", "--quiet", *_GEOMETRY)
        shutil.rmtree(checkpoint)
    quick = ("--runs", "1", "--videos", "1", "--no-scan", "--force", "--quiet")
    for recipe in options.recipes:
        arguments = (str(bundle), "--recipe", recipe, "--prompts", str(prompts), *quick)
        run(f"calibrate, {recipe}", "calibrate", *arguments)
    print_sizes(bundle)
    for variant in ("fp32", *options.recipes):
        arguments = (str(bundle), _PROMPTS[0], "--variant", variant, "-o", video, "--force", "--quiet", "--verbose")
        run(f"generate, {variant}", "generate", *arguments)


if __name__ == "__main__":
    main()
