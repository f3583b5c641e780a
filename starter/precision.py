"""In which precision a device trains: bfloat16 where it multiplies in it, float32 elsewhere."""

from __future__ import annotations

import torch

__all__ = ["mixed_precision", "multiplies_bfloat16"]


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has bfloat16 arithmetic of its own. A CPU without it emulates it, some 20 times slower."""
    return device.type != "cpu" or bool(torch.cpu._is_avx512_bf16_supported())


def mixed_precision(device: torch.device) -> torch.autocast:
    """bfloat16 autocast where the device multiplies in bfloat16, nothing elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=multiplies_bfloat16(device))
