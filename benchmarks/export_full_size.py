"""Export of the released Wan sizes: peak memory and time, on random weights in the true configurations.

    python benchmarks/export_full_size.py wan2.1-1.3b wan2.2-5b wan2.1-14b --folder /big/disk

Weights are written as sharded safetensors, random in blocks that repeat (`--distinct` bytes of different values), so
that making the checkpoint does not take longer than exporting it. Each export runs in a process of its own, whose
peak memory is what the operating system accounts to it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from kinograph.export.families.wan.tiny import save_tiny_checkpoint

_SHARD_BYTES = 5 << 30
TRANSFORMER: dict[str, Any] = {
    "attention_head_dim": 128,
    "text_dim": 4096,
    "freq_dim": 256,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
}
_VAE_22: dict[str, Any] = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}
UMT5_XXL: dict[str, Any] = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
SIZES: dict[str, dict[str, Any]] = {
    "wan2.1-1.3b": {
        "num_attention_heads": 12,
        "ffn_dim": 8960,
        "num_layers": 30,
        "in_channels": 16,
        "out_channels": 16,
    },
    "wan2.1-14b": {
        "num_attention_heads": 40,
        "ffn_dim": 13824,
        "num_layers": 40,
        "in_channels": 16,
        "out_channels": 16,
    },
    "wan2.2-5b": {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48},
}


def write_checkpoint(size: str, folder: Path, distinct: int, text: Mapping[str, Any] = UMT5_XXL) -> None:
    """A checkpoint of `size` in diffusers layout; the tokenizer is the tiny one, `text` its encoder's configuration."""
    residual = size == "wan2.2-5b"
    save_tiny_checkpoint("ti2v" if residual else "t2v", folder)
    for name in ("transformer", "vae", "text_encoder"):
        shutil.rmtree(folder / name)
    with torch.device("meta"):
        models: dict[str, Any] = {
            "transformer": WanTransformer3DModel(**TRANSFORMER, **SIZES[size]),
            "vae": AutoencoderKLWan(**(_VAE_22 if residual else {})),
            "text_encoder": UMT5EncoderModel(UMT5Config(**text)),
        }
    UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0 if residual else 3.0
    ).save_pretrained(folder / "scheduler")
    for name, model in models.items():
        (folder / name).mkdir()
        if name == "text_encoder":
            model.config.save_pretrained(folder / name)
        else:
            model.save_config(folder / name)
        dtype = "F32" if name == "vae" else "BF16"
        _write_shards(
            {key: tuple(value.shape) for key, value in model.state_dict().items()}, folder / name, dtype, distinct
        )


def _write_shards(shapes: Mapping[str, tuple[int, ...]], folder: Path, dtype: str, distinct: int) -> None:
    width = {"F32": 4, "BF16": 2}[dtype]
    values = np.random.default_rng(0).normal(0, 0.02, distinct // width).astype(np.float32)
    pattern = values.tobytes() if dtype == "F32" else (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    shards = list(_shards(shapes, width))
    weight_map = {}
    for index, names in enumerate(shards):
        file = f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        header, offset = {}, 0
        for name in names:
            length = int(np.prod(shapes[name])) * width
            header[name] = {"dtype": dtype, "shape": shapes[name], "data_offsets": [offset, offset + length]}
            offset += length
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            while offset and pattern:
                offset -= out.write(pattern[:offset])
            out.truncate(out.tell() + offset)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _shards(shapes: Mapping[str, tuple[int, ...]], width: int) -> Iterator[list[str]]:
    names: list[str] = []
    total = 0
    for name, shape in shapes.items():
        length = int(np.prod(shape)) * width
        if names and total + length > _SHARD_BYTES:
            yield names
            names, total = [], 0
        names.append(name)
        total += length
    yield names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="+", choices=list(SIZES))
    parser.add_argument("--folder", type=Path, required=True, help="where checkpoints and bundles are written")
    parser.add_argument("--precision", default="bf16", choices=["fp32", "fp16", "bf16"])
    parser.add_argument(
        "--distinct",
        type=int,
        default=1 << 28,
        help="bytes of different values (default: 256 MB); 0: a hole in the file, which reads as zeros",
    )
    parser.add_argument("--keep", action="store_true", help="do not remove checkpoints and bundles")
    options = parser.parse_args()
    print(f"{'model':14} {'precision':9} {'checkpoint':>11} {'bundle':>8} {'seconds':>8} {'peak memory':>12}")
    for size in options.sizes:
        checkpoint, bundle = options.folder / size, options.folder / f"{size}-{options.precision}"
        if not checkpoint.exists():
            write_checkpoint(size, checkpoint, options.distinct)
        command = ["export", str(checkpoint), str(bundle), "--precision", options.precision, "--no-parity", "--force"]
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "kinograph", *command, "--quiet"])
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"the export of {size} failed")
        seconds, peak = time.perf_counter() - start, usage.ru_maxrss / 1e6
        sizes = [sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) / 1e9 for path in (checkpoint, bundle)]
        print(f"{size:14} {options.precision:9} {sizes[0]:8.1f} GB {sizes[1]:5.1f} GB {seconds:8.0f} {peak:9.2f} GB")
        if not options.keep:
            shutil.rmtree(checkpoint)
            shutil.rmtree(bundle)


if __name__ == "__main__":
    main()
