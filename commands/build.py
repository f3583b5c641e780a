"""`kinograph build`: TensorRT engines of a bundle."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from kinograph.commands.options import THE_BUNDLES, force_option, json_option, progress_options, size
from kinograph.console import Console, json_text
from kinograph.errors import escape

__all__ = ["build"]


def _numbers(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[int, ...]:
    """`86,89` and `120` as numbers, each once."""
    parts = [part.strip() for one in value for part in one.split(",")]
    if wrong := [part for part in parts if re.fullmatch("[0-9]{2,3}", part) is None]:
        raise click.BadParameter(f"{wrong[0]!r} is not a compute capability such as 89", ctx, param)
    return tuple(dict.fromkeys(int(part) for part in parts))


@click.command()
@click.argument("bundle", required=False)
@click.option(
    "--target",
    type=click.Choice(["rtx", "tensorrt"]),
    default="rtx",
    show_default=True,
    help="TensorRT for RTX, or TensorRT, which builds on the machine that will run the engines.",
)
@click.option(
    "--sm",
    "capabilities",
    multiple=True,
    metavar="N[,N…]",
    callback=_numbers,
    help="Compute capability of the GPU, such as 89 for Ada; may be given again.  [default: the GPU here]",
)
@click.option("-o", "--output", metavar="FOLDER", help="Put the engines here too, beside an engines.json.")
@click.option("--variant", help="Precision, such as bf16 or int8.  [default: bf16, fp16 or fp32, as there is]")
@click.option("--size", metavar="WxH", callback=size, help="Size of the videos in pixels." + THE_BUNDLES)
@click.option("--frames", "num_frames", type=int, help="Number of frames, or of a window's." + THE_BUNDLES)
@click.option("--workspace", type=click.IntRange(1), metavar="MB", help="Most memory a layer may use to be fast.")
@click.option(
    "--weight-budget",
    type=click.IntRange(1),
    metavar="MB",
    help="For generate with the same: components with more weights can leave some in RAM.",
)
@click.option("--later-versions", is_flag=True, help="With TensorRT: for later versions of the same number, too.")
@click.option(
    "--gpus", type=click.Choice(["same-capability", "ampere-plus"]), help="With TensorRT: for other GPUs as well."
)
@click.option("--into-bundle", is_flag=True, help="Put the engines into BUNDLE itself, hashed like all its files.")
@click.option("--list", "listed", is_flag=True, help="Only show the engines in the cache.")
@click.option("--clean", is_flag=True, help="Only remove the engines in the cache.")
@force_option
@json_option
@progress_options
def build(
    bundle: str | None,
    listed: bool,
    clean: bool,
    workspace: int | None,
    weight_budget: int | None,
    as_json: bool,
    console: Console,
    **options: Any,
) -> None:
    """Build TensorRT engines of BUNDLE, for GPUs that need not be here, and keep them in the cache (KINOGRAPH_CACHE).

    Needs kinograph[rtx]. What is in the cache already is not built again.
    """
    from kinograph.console.build import BuildJob, card_text, described
    from kinograph.console.build import build as run
    from kinograph.engines.cache import EngineCache

    cache, output = EngineCache(), options["output"]
    if listed or clean:
        cards = cache.clean() if clean else cache.cards()
        if as_json:
            click.echo(json_text({"folder": str(cache.folder), "engines": [described(card) for card in cards]}))
            return
        for card in cards:
            click.echo(escape(("removed " if clean else "") + card_text(card)))
        click.echo(f"{escape(str(cache.folder))}: {len(cards)} engines, {sum(c.bytes for c in cards) / 1e6:.1f} MB")
        return
    width, height = options.pop("size") or (None, None)
    workspace, weight_budget = (size and size << 20 for size in (workspace, weight_budget))
    job = BuildJob(
        bundle=bundle, width=width, height=height, workspace=workspace, weight_budget=weight_budget, **options
    )
    with console:
        built = run(job, console, cache)
    text = json_text({"engines": built})
    if output is not None:
        (Path(output) / "engines.json").write_text(text + "\n", "utf-8")
    if as_json:
        click.echo(text)
        return
    for engine in built:
        name = f"{engine['component']}, {engine['precision']}, sm{engine['compute_capability']}"
        there = "" if engine["built"] else ", was there"
        click.echo(f"{escape(engine['file'] or name)}: {engine['bytes'] / 1e6:.1f} MB{there}")
    where = escape(str(Path(output) / "engines.json") if output is not None else str(cache.folder))
    click.echo(f"{where}: built with {built[0]['builder']}")
