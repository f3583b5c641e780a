"""Options that several commands have."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from kinograph.console import Console
from kinograph.errors import UsageError

__all__ = [
    "THE_BUNDLES",
    "device_options",
    "embedded_option",
    "force_option",
    "json_option",
    "lora_options",
    "progress_options",
    "size",
]

_STRENGTH = re.compile(r"-?[0-9]{1,4}(?:\.[0-9]{1,6})?")
THE_BUNDLES = "  [default: the bundle's]"

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
force_option = click.option("--force", is_flag=True, help="Replace what exists already.")


embedded_option = click.option(
    "--embedded",
    metavar="FILE.safetensors",
    help="Prompts that `kinograph embed` wrote: for these the text encoder is not opened.",
)


def lora_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--lora` and `--lora-2`, which the command is given as `loras`, each a `kinograph.Lora`."""

    @click.option(
        "--lora",
        "loras",
        metavar="FILE[@STRENGTH]",
        multiple=True,
        help="LoRA that is added to the transformer, or to the first of two; may be given again.",
    )
    @click.option("--lora-2", "loras_2", metavar="FILE[@STRENGTH]", multiple=True, help="One for the second expert.")
    @functools.wraps(command)
    def with_loras(*, loras: tuple[str, ...], loras_2: tuple[str, ...], **options: Any) -> Any:
        experts = enumerate((loras, loras_2), 1)
        return command(loras=tuple(_lora(one, number) for number, every in experts for one in every), **options)

    return with_loras


def _lora(option: str, expert: int) -> Any:
    """`FILE` or `FILE@STRENGTH`; a file of that very name comes first."""
    from kinograph.bundle.lora import Lora

    path, _, strength = option.rpartition("@")
    if not path or Path(option).exists():
        return Lora(option, expert=expert)
    if _STRENGTH.fullmatch(strength):
        return Lora(path, float(strength), expert)
    if Path(path).exists():
        raise UsageError(f"--lora {option}: {strength!r} is no strength. Give a number, such as {path}@0.8")
    return Lora(option, expert=expert)


def progress_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--quiet` and `--progress`, which the command is given as its `console`."""

    @click.option("-q", "--quiet", is_flag=True, help="No progress; warnings and errors only.")
    @click.option(
        "--progress",
        type=click.Choice(["bar", "json"]),
        default="bar",
        show_default=True,
        help="On stderr, a bar where that is a terminal, or JSON objects, one a line, for programs.",
    )
    @functools.wraps(command)
    def with_console(*, quiet: bool, progress: str, **options: Any) -> Any:
        return command(console=Console(None if quiet else progress), **options)

    return with_console


def device_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which device makes videos, from which variant, and how: the arguments of `kinograph.load` but for the bundle.

    The command is given them as its `opened`.
    """

    @click.option(
        "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N; auto heeds KINOGRAPH_DEVICE."
    )
    @click.option("--variant", help="Precision, such as fp32 or fp16.  [default: the best for the device]")
    @click.option(
        "--cuda-graph/--no-cuda-graph", "cuda_graphs", default=True, help="Launch many steps on a GPU at once."
    )
    @click.option(
        "--weight-budget",
        type=click.IntRange(1),
        metavar="MB",
        help="Most of a component's weights on the GPU; TensorRT copies the rest in every step.",
    )
    @functools.wraps(command)
    def with_device(*, weight_budget: int | None, **options: Any) -> Any:
        opened = {name: options.pop(name) for name in ("device", "variant", "cuda_graphs")}
        return command(opened=opened | {"weight_budget": weight_budget and weight_budget << 20}, **options)

    return with_device


def size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """`832x480` as two numbers of pixels."""
    if value is None:
        return None
    match = re.fullmatch(r"(-?[0-9]{1,12})[x×](-?[0-9]{1,12})", value)
    if match is None:
        raise click.BadParameter(f"{value!r} is not a size such as 832x480", ctx, param)
    return int(match[1]), int(match[2])
