"""Precisions: their names, and which parameters keep float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["PRECISIONS", "set_precision"]

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def set_precision(module: nn.Module, dtype: torch.dtype, keep: Sequence[str] | None) -> None:
    """Give the floating-point parameters and buffers of a meta `module` the dtype `dtype`.

    A parameter keeps float32 where a part of its dotted name is in `keep`: the rule by which diffusers and transformers
    read `_keep_in_fp32_modules`.
    """
    for prefix, child in module.named_modules():
        for table in (child._parameters, child._buffers):
            for name, value in table.items():
                if value is None or not value.is_floating_point() or value.device.type != "meta":
                    continue
                kept = keep and set(keep) & {*prefix.split("."), name}
                target = value.to(torch.float32 if kept else dtype)
                table[name] = nn.Parameter(target, requires_grad=False) if isinstance(value, nn.Parameter) else target
