"""`python -m kinograph.starter.train`: trains the starter model stage by stage and writes its checkpoint.

The stages are `vae`, `text`, `latents`, `decoder`, `dit` and `write`, in this order; without `--stage` all of them run.
Each keeps its state in the run folder every two minutes and goes on from there; a stage whose time is used up ends at
once. `decoder` needs no more than `vae`, and `dit` no more than `text` and `latents`: those two may run side by side.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from diffusers import AutoencoderKLWan
from torch import nn

from kinograph.starter import model
from kinograph.starter.dit_training import train_dit
from kinograph.starter.latents import encode_world, load_cache
from kinograph.starter.loop import Budget
from kinograph.starter.text_training import train_text, world_tokenizer
from kinograph.starter.vae_training import Clips, train_decoder, train_vae

__all__ = ["STAGES", "Run", "main"]


_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Run:
    """What is trained and with how much: clip shape, minutes a stage, batch sizes as multiples of the CPU's."""

    folder: Path
    checkpoint: Path
    frames: int = 17
    size: int = 64
    seed: int = 0
    clips: int = 6_000
    scale: int = 1
    vae_minutes: float = 48.0
    decoder_minutes: float = 20.0
    text_minutes: float = 1.5
    dit_minutes: float = 70.0
    device: torch.device = _CPU


def _vae(run: Run) -> AutoencoderKLWan:
    return train_vae(run.folder, Budget(run.vae_minutes, 2e-3), _clips(run))


def _decoder(run: Run) -> AutoencoderKLWan:
    return train_decoder(run.folder, Budget(run.decoder_minutes, 1.5e-3), _clips(run), _vae(run))


def _clips(run: Run) -> Clips:
    return Clips(run.frames, run.size, run.seed, run.scale, run.device)


def _text(run: Run) -> nn.Module:
    return train_text(run.folder, Budget(run.text_minutes, 2e-3), seed=run.seed, device=run.device)


def _latents(run: Run) -> None:
    path = run.folder / "latents.pt"
    if not path.exists():
        encode_world(
            _vae(run).eval(),
            path,
            count=run.clips,
            frames=run.frames,
            size=run.size,
            seed=run.seed + 1,
            device=run.device,
        )


def _dit(run: Run) -> nn.ModuleDict:
    cache = load_cache(run.folder / "latents.pt")
    budget = Budget(run.dit_minutes, 2e-3, ema=0.9985)
    return train_dit(run.folder, budget, cache, _text(run), seed=run.seed, batch=32 * run.scale, device=run.device)


def _write(run: Run) -> None:
    trained, cache = _dit(run), load_cache(run.folder / "latents.pt")
    vae = model.make_vae(cache.mean, cache.std)
    vae.load_state_dict(_decoder(run).state_dict())
    model.write(run.checkpoint, vae, trained["transformer"].cpu(), trained["text_encoder"].cpu(), world_tokenizer())


STAGES: dict[str, Callable[[Run], object]] = {
    "vae": _vae,
    "text": _text,
    "latents": _latents,
    "decoder": _decoder,
    "dit": _dit,
    "write": _write,
}


@click.command()
@click.option("--stage", "stages", type=click.Choice(list(STAGES)), multiple=True, help="Run only these stages.")
@click.option(
    "--folder", type=click.Path(path_type=Path), default="starter-run", show_default=True, help="State of the training."
)
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), default="starter-checkpoint", show_default=True, help="Result."
)
@click.option("--frames", default=Run.frames, show_default=True, help="Frames a clip, 4·n + 1.")
@click.option("--size", default=Run.size, show_default=True, help="Side of the picture in pixels, a multiple of 16.")
@click.option("--clips", default=Run.clips, show_default=True, help="Clips in the cache of latents.")
@click.option("--scale", default=Run.scale, show_default=True, help="Multiplies the batch sizes; 8 or more on a GPU.")
@click.option("--vae-minutes", default=Run.vae_minutes, show_default=True)
@click.option("--decoder-minutes", default=Run.decoder_minutes, show_default=True)
@click.option("--text-minutes", default=Run.text_minutes, show_default=True)
@click.option("--dit-minutes", default=Run.dit_minutes, show_default=True)
@click.option("--seed", default=Run.seed, show_default=True)
@click.option("--threads", default=None, type=int, help="CPU threads; PyTorch's choice if not given.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
def main(stages: tuple[str, ...], threads: int | None, device: str, **options: int | float | Path) -> None:
    """Train the starter model, resuming whatever the run folder holds."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if threads is not None:
        torch.set_num_threads(threads)
    run = Run(device=torch.device(device), **options)  # type: ignore[arg-type]
    _check(run)
    for name in stages or tuple(STAGES):
        STAGES[name](run)


def _check(run: Run) -> None:
    if run.frames % 4 != 1:
        raise click.BadParameter(f"{run.frames} is not 4·n + 1; nearest: {4 * round((run.frames - 1) / 4) + 1}")
    if run.size % 16 or run.size < 32:
        raise click.BadParameter(f"{run.size} is not a multiple of 16; nearest: {max(32, 16 * round(run.size / 16))}")


if __name__ == "__main__":
    main()
