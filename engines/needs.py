"""What a precision asks of a GPU."""

from __future__ import annotations

from kinograph.errors import UsageError

__all__ = ["check_capability", "runs_on"]

# the first compute capability with arithmetic of the kind; what is not here runs on all that TensorRT knows
_LEAST = {"bf16": 80, "int4-weights": 80, "fp8": 89, "mxfp8": 100, "nvfp4": 100}
_CPU_ONLY = "int8-dynamic"


def runs_on(precision: str, capability: int) -> bool:
    """Whether a GPU of that compute capability has arithmetic for a precision."""
    return precision != _CPU_ONLY and capability >= _LEAST.get(precision, 0)


def check_capability(precision: str, capability: int) -> None:
    """Raises UsageError where it has none."""
    if precision == _CPU_ONLY:
        raise UsageError(
            f"{precision} is for CPUs: TensorRT multiplies integers whose ranges are known beforehand. "
            "Use another --variant, such as int8."
        )
    if not runs_on(precision, capability):
        raise UsageError(
            f"{precision} needs compute capability {_LEAST[precision]} or later, and {capability} has no arithmetic of "
            "that kind. Use another --variant, such as fp16 or int8."
        )
